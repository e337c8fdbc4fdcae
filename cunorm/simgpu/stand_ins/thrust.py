"""Thrust's sorts, as CuPy compiled them into itself: `cupy.cuda.thrust`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .host import Call, Host
from .operand import row_major

LIBRARY = "Thrust"
_INDEX = np.dtype(np.uintp)
_SORTED = "?bhilqBHILQefdFD"  # the dtypes that CuPy has them for


class Thrust:
    """Stable sorts in NumPy's order, NaNs last.

    Parameters
    ----------
    host : Host
        Where they run.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under the names that `cupy.cuda.thrust` has."""
        return {"sort": self.sort, "argsort": self.argsort, "lexsort": self.lexsort}

    def sort(self, dtype: Any, data_start: int, keys_start: int, shape: Sequence[int]) -> None:
        """Sort the rows of an array in place; `keys_start` is working memory, not used here."""
        dtype = np.dtype(dtype)
        _check(dtype, NotImplementedError, "arrays")
        data = row_major("data", data_start, tuple(shape), dtype)

        def run(call: Call) -> None:
            call.write(data, np.sort(call.read(data), axis=-1, kind="stable"))

        self._host.call(LIBRARY, "thrust::stable_sort", run)

    def argsort(
        self, dtype: Any, idx_start: int, data_start: int, keys_start: int, shape: Sequence[int]
    ) -> None:
        """Write which element of each row comes first, second, ..."""
        dtype = np.dtype(dtype)
        _check(dtype, NotImplementedError, "arrays")
        data = row_major("data", data_start, tuple(shape), dtype)
        order = row_major("idx", idx_start, tuple(shape), _INDEX)

        def run(call: Call) -> None:
            call.write(order, np.argsort(call.read(data), axis=-1, kind="stable"))

        self._host.call(LIBRARY, "thrust::stable_sort_by_key", run)

    def lexsort(self, dtype: Any, idx_start: int, keys_start: int, k: int, n: int) -> None:
        """Write the order of `n` elements by `k` keys, of which the last counts most."""
        dtype = np.dtype(dtype)
        _check(dtype, TypeError, "keys")
        keys = row_major("keys", keys_start, (k, n), dtype)
        order = row_major("idx", idx_start, (n,), _INDEX)

        def run(call: Call) -> None:
            call.write(order, np.lexsort(call.read(keys)))

        self._host.call(LIBRARY, "thrust::stable_sort", run)


def _check(dtype: np.dtype[Any], error: type[Exception], what: str) -> None:
    if dtype.char not in _SORTED:
        raise error(f"Sorting {what} with dtype '{dtype}' is not supported")
