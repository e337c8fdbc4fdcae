"""CUB's reductions, scans and histograms, as CuPy compiled them into itself: `cupy.cuda.cub`.

CuPy decides itself, by axes and dtypes, whether it asks CUB: only what it calls then is replaced.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ..lanes import Array
from .host import Call, Host
from .operand import row_major

LIBRARY = "CUB"


class _Reduction(NamedTuple):
    name: str
    of_rows: Callable[[Array], Array]
    empty: int | None  # what CuPy has for no elements; None where it refuses them


def _adding(function: Callable[..., Any]) -> Callable[[Array], Array]:
    """Return a sum or a product along the last axis; of float16 it is rounded once, at the end."""

    def of_rows(values: Array) -> Array:
        dtype = np.float32 if values.dtype == np.float16 else values.dtype
        found: Array = function(values, axis=-1, dtype=dtype)
        return found

    return of_rows


def _extreme(function: Callable[..., Any]) -> Callable[[Array], Array]:
    return lambda values: np.asarray(function(values, axis=-1))


# By CuPy's numbers for them, `cupy.cuda.cub.CUPY_CUB_SUM` and those after it.
_REDUCTIONS = {
    0: _Reduction("Sum", _adding(np.sum), 0),
    1: _Reduction("Min", _extreme(np.min), None),
    2: _Reduction("Max", _extreme(np.max), None),
    3: _Reduction("ArgMin", _extreme(np.argmin), None),
    4: _Reduction("ArgMax", _extreme(np.argmax), None),
    7: _Reduction("Product", _adding(np.prod), 1),
}
_POSITIONS = (3, 4)
_SCANS = {5: ("InclusiveSum", _adding(np.cumsum)), 6: ("InclusiveScan", _adding(np.cumprod))}


class Cub:
    """What `cupy.cuda.cub` asks of CUB.

    Parameters
    ----------
    host : Host
        Where it runs.
    """

    def __init__(self, host: Host) -> None:
        self._host = host

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under the names that `cupy.cuda.cub` has."""
        return {
            "device_reduce": self.device_reduce,
            "device_segmented_reduce": self.device_segmented_reduce,
            "device_scan": self.device_scan,
            "device_histogram": self.device_histogram,
        }

    def device_reduce(
        self,
        x: Any,
        op: int,
        reduce_axis: tuple[int, ...],
        out_axis: tuple[int, ...],
        out: Any = None,
        keepdims: bool = False,
    ) -> Any:
        """Return the sum, product, extreme or its position of all elements."""
        import cupy

        reduction = _reduction(op, list(_REDUCTIONS))
        shape = _shape_without(x, reduce_axis, keepdims) if keepdims else ()
        if out is not None and out.ndim != len(shape):
            raise ValueError(f"out must have {len(shape)} axes, not {out.ndim}")
        x = cupy.ascontiguousarray(x)
        y = cupy.empty((), np.int64 if int(op) in _POSITIONS else x.dtype)
        self._reduce(f"cub::DeviceReduce::{reduction.name}", reduction, x, y, (x.size,))
        return _given(y.reshape(shape), out)

    def device_segmented_reduce(
        self,
        x: Any,
        op: int,
        reduce_axis: tuple[int, ...],
        out_axis: tuple[int, ...],
        out: Any = None,
        keepdims: bool = False,
        contiguous_size: int = 0,
    ) -> Any:
        """Return the sum, product or extreme over axes whose elements are neighbours."""
        import cupy

        reduction = _reduction(op, [each for each in _REDUCTIONS if each not in _POSITIONS])
        shape = _shape_without(x, reduce_axis, keepdims)
        if out is not None and out.shape != shape:
            raise ValueError(f"out must have shape {shape}, not {out.shape}")
        y = cupy.empty(shape, x.dtype, order="C" if x.flags.c_contiguous else "F")
        rows = (y.size, contiguous_size if x.size else 0)
        self._reduce(f"cub::DeviceSegmentedReduce::{reduction.name}", reduction, x, y, rows)
        return _given(y, out)

    def _reduce(
        self, function: str, reduction: _Reduction, x: Any, y: Any, rows: tuple[int, ...]
    ) -> None:
        """Reduce x, as rows of neighbours, to y."""
        if rows[-1] == 0 and reduction.empty is None:
            raise ValueError(f"zero-size array to {reduction.name}, which has no identity")
        if rows[-1] == 0:
            y.fill(reduction.empty)
            return
        source = row_major("d_in", x.data.ptr, rows, x.dtype)
        target = row_major("d_out", y.data.ptr, rows[:-1], y.dtype)

        def run(call: Call) -> None:
            call.write(target, reduction.of_rows(call.read(source)))

        self._host.call(LIBRARY, function, run)

    def device_scan(self, x: Any, op: int) -> Any:
        """Return the sums or products up to each element, in place where x is in C order."""
        import cupy

        if int(op) not in _SCANS:
            raise ValueError(f"op must be CUPY_CUB_CUMSUM or CUPY_CUB_CUMPROD, not {op!r}")
        name, scan = _SCANS[int(op)]
        x = cupy.ascontiguousarray(x)
        elements = row_major("d_in", x.data.ptr, (x.size,), x.dtype)

        def run(call: Call) -> None:
            call.write(elements, scan(call.read(elements)))

        if x.size:
            self._host.call(LIBRARY, f"cub::DeviceScan::{name}", run)
        return x

    def device_histogram(self, x: Any, y: Any, bins: Any) -> Any:
        """Count elements into y by the edges of bins, or by the integers below ``bins - 1``."""
        import cupy

        x = cupy.ascontiguousarray(x)
        samples = row_major("d_samples", x.data.ptr, (x.size,), x.dtype)
        counts = row_major("d_histogram", y.data.ptr, (y.size,), y.dtype)
        if not isinstance(bins, cupy.ndarray):
            if x.dtype.kind not in "bui":
                raise ValueError(f"x must have an integer dtype, not {x.dtype}")
            edges = None
        else:
            bins = cupy.ascontiguousarray(bins)
            edges = row_major("d_levels", bins.data.ptr, (bins.size,), bins.dtype)

        def run(call: Call) -> None:
            values = call.read(samples)
            # The bin of a NaN is past the last one.
            at = values if edges is None else np.searchsorted(call.read(edges), values, "right") - 1
            inside = at[(at >= 0) & (at < counts.size)].astype(np.int64)
            call.write(counts, np.bincount(inside, minlength=counts.size))

        how = "HistogramEven" if edges is None else "HistogramRange"
        self._host.call(LIBRARY, f"cub::DeviceHistogram::{how}", run)
        return y


def _reduction(op: int, known: list[int]) -> _Reduction:
    if int(op) not in known:
        names = ", ".join(_REDUCTIONS[each].name for each in known)
        raise ValueError(f"op must be that of {names}, not {op!r}")
    return _REDUCTIONS[int(op)]


def _shape_without(x: Any, axes: tuple[int, ...], keepdims: bool) -> tuple[int, ...]:
    """Return the shape of x after a reduction of these axes."""
    kept = [(n, at in axes) for at, n in enumerate(x.shape)]
    return tuple(1 if reduced else n for n, reduced in kept if keepdims or not reduced)


def _given(y: Any, out: Any) -> Any:
    if out is None:
        return y
    out[...] = y
    return out
