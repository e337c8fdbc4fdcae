"""cuSPARSE's incomplete LU factors, without fill-in: what `spilu(fill_factor=1)` asks for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from .blas import typed
from .cusparse_descriptors import ZERO_PIVOT, Context, CuSparseError
from .host import Call
from .sparse import Sparse

_INT = np.dtype(np.int32)


class Factors:
    """The functions.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        return {
            "createCsrilu02Info": lambda: self._context.describe([-1]),
            "destroyCsrilu02Info": self._context.forget,
            "xcsrilu02_zeroPivot": self._zero_pivot,
            **typed("cusparse", "{}csrilu02_bufferSize", lambda *_: 1),
            **typed("cusparse", "{}csrilu02_analysis", self._analysis),
            **typed("cusparse", "{}csrilu02", self._csrilu02),
        }

    def _zero_pivot(self, handle: int, info: int, position: int) -> None:
        """Write to the host which diagonal element is missing or 0, -1 for none."""
        (found,) = self._context.get(info)
        self._context.host.to_host(position, np.asarray(found, np.int32), "position")
        if found >= 0:
            raise CuSparseError(ZERO_PIVOT)

    def _analysis(
        self, function: str, dtype: np.dtype[Any], handle: int, m: int, nnz: int, descr: int,
        values: int, offsets: int, indices: int, info: int, policy: int, buffer: int,
    ) -> None:  # fmt: skip
        a = Sparse("csr", m, m, nnz, offsets, indices, values, _INT, dtype)

        def run(call: Call) -> None:
            rows, cols, _ = a.read(call)
            missing = np.setdiff1d(np.arange(m), rows[rows == cols])
            self._context.get(info)[0] = int(missing[0]) if missing.size else -1

        self._context.call(handle, function, run)

    def _csrilu02(
        self, function: str, dtype: np.dtype[Any], handle: int, m: int, nnz: int, descr: int,
        values: int, offsets: int, indices: int, info: int, policy: int, buffer: int,
    ) -> None:  # fmt: skip
        a = Sparse("csr", m, m, nnz, offsets, indices, values, _INT, dtype)

        def run(call: Call) -> None:
            rows, cols, elements = a.read(call)
            order = np.lexsort((cols, rows))
            sorted_ = elements[order]
            self._context.get(info)[0] = _factor(rows[order], cols[order], sorted_, m)
            elements[order] = sorted_
            call.write(a.elements(), elements)

        self._context.call(handle, function, run)


def _factor(rows: Array, cols: Array, values: Array, m: int) -> int:
    """Factor the elements, in the order of rows, in place; return the first pivot of 0, or -1."""
    starts = np.searchsorted(rows, np.arange(m + 1))
    diagonal = np.zeros(m, np.int64)
    diagonal[rows[rows == cols]] = np.flatnonzero(rows == cols)
    place = np.full(m, -1)  # where this row has its element of a column
    zero = -1
    for row in range(m):
        here = np.arange(starts[row], starts[row + 1])
        place[cols[here]] = here
        for at in here[cols[here] < row]:
            above = cols[at]
            values[at] /= values[diagonal[above]]
            right = np.arange(diagonal[above] + 1, starts[above + 1])
            right = right[place[cols[right]] >= 0]
            values[place[cols[right]]] -= values[at] * values[right]
        if zero < 0 and values[diagonal[row]] == 0:
            zero = row
        place[cols[here]] = -1
    return zero
