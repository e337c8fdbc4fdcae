"""A forward launch: arrays as rows, their alignment, the kernel's arguments.

What the two families share. Arrays that the kernels cannot step through are copied here.
"""

from __future__ import annotations

from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import cupy
import numpy as np

from . import _kernels, _rows
from ._plan import ITEMSIZE, PACKET_BYTES, accumulator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ._kernels import Defines
    from ._plan import Plan


def empty_like(x: cupy.ndarray) -> cupy.ndarray:
    """Return an uninitialised C-contiguous array of x's shape and dtype."""
    return cupy.empty(x.shape, x.dtype)


def statistic(x: cupy.ndarray, axes: int) -> cupy.ndarray:
    """Return an array for one statistic of each row of x: NaN where rows have no columns."""
    shape = x.shape[: x.ndim - axes]
    dtype = accumulator(x.dtype.name)
    return cupy.empty(shape, dtype) if x.size else cupy.full(shape, np.nan, dtype)


def cols(x: cupy.ndarray, axes: int) -> int:
    """Return N, the number of columns of a row."""
    return prod(x.shape[x.ndim - axes :])


def dtype_name(parameter: cupy.ndarray | None) -> str | None:
    """Return the name of a parameter's dtype, None where there is none."""
    return None if parameter is None else str(parameter.dtype.name)


def forward(
    plan: Plan,
    axes: int,
    y: cupy.ndarray,
    statistics: tuple[cupy.ndarray | None, ...],
    x: cupy.ndarray,
    parameters: Mapping[str, cupy.ndarray | None],
    scalars: Mapping[str, float],
) -> None:
    """Enqueue a forward kernel on the current stream: y and the statistics from x.

    Parameters
    ----------
    plan : Plan
        The kernel.
    axes : int
        How many trailing axes are a row.
    y : cupy.ndarray
        Written; x itself, or memory of its own.
    statistics : tuple of cupy.ndarray or None
        Written where not None, in the order of the kernel's arguments.
    x : cupy.ndarray
        Read, at least one row of at least one column.
    parameters : mapping of str to cupy.ndarray or None
        gamma and beta, in the order of the kernel's arguments.
    scalars : mapping of str to float
        The numbers that follow the rows in the kernel's last argument, in its order.
    """
    target = y
    if not _fits(axes, x, target):
        x = cupy.ascontiguousarray(x)
    if not _fits(axes, x, target):
        target = empty_like(x)
    layout = _layout(axes, x, target)
    given = {
        name: None if value is None else cupy.ascontiguousarray(value)
        for name, value in parameters.items()
    }
    access: Defines = (
        ("X_ALIGNED", _rows_aligned(x, layout.strides[0])),
        ("Y_ALIGNED", _rows_aligned(target, layout.strides[1])),
        *((f"{name.upper()}_ALIGNED", _aligned(value, x)) for name, value in given.items()),
        ("LEVELS", len(layout.extents)),
        ("ROW_INDEX", "unsigned" if layout.count < 2**32 else "unsigned long long"),
    )
    kernel = _kernels.load(plan, access)
    numbers = _numbers(layout, accumulator(x.dtype.name), tuple(scalars.items()))
    kernel(
        plan.grid(layout.count),
        plan.block,
        (target, *statistics, x, *given.values(), numbers),
    )
    if target is not y:
        y[...] = target


def _strides(a: cupy.ndarray) -> tuple[int, ...]:
    return tuple(stride // a.itemsize for stride in a.strides)


def _layout(axes: int, x: cupy.ndarray, y: cupy.ndarray) -> _rows.Layout:
    lead = x.ndim - axes
    return _rows.merge(x.shape[:lead], _strides(x)[:lead], _strides(y)[:lead])


def _fits(axes: int, x: cupy.ndarray, y: cupy.ndarray) -> bool:
    """Return whether the kernels can step through x and y as they lie."""
    lead = x.ndim - axes
    return (
        all(_rows.is_row(a.shape[lead:], _strides(a)[lead:]) for a in (x, y))
        and len(_layout(axes, x, y).extents) <= _rows.LEVELS
    )


def _rows_aligned(a: cupy.ndarray, strides: tuple[int, ...]) -> int:
    """Return 1 where every row starts on a packet's boundary."""
    steps = (stride * a.itemsize for stride in strides)
    return int(a.data.ptr % PACKET_BYTES == 0 and all(s % PACKET_BYTES == 0 for s in steps))


def _aligned(parameter: cupy.ndarray | None, x: cupy.ndarray) -> int:
    """Return 1 where a parameter starts on a boundary of what stands beside a packet of x."""
    if parameter is None:
        return 1
    beside = PACKET_BYTES // ITEMSIZE[x.dtype.name] * parameter.itemsize
    return int(parameter.data.ptr % min(PACKET_BYTES, beside) == 0)


@lru_cache(maxsize=1024)
def _numbers(
    layout: _rows.Layout, accumulator: str, scalars: tuple[tuple[str, float], ...]
) -> np.ndarray:
    """Return the kernel's last argument: struct Rows of kernels/row.cuh, then the scalars."""
    dtype = np.dtype(
        [
            ("count", np.int64),
            ("extent", np.int64, 2),
            ("x", np.int64, 3),
            ("y", np.int64, 3),
            *((name, accumulator) for name, _ in scalars),
        ],
        align=True,
    )
    unused = (0,) * (_rows.LEVELS - len(layout.extents))
    x, y = layout.strides
    extents = (1, *unused, *layout.extents)[-2:] if unused else layout.extents[1:]
    values = (layout.count, extents, unused + x, unused + y, *(v for _, v in scalars))
    return np.array(values, dtype)
