"""Forward ops on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy
import numpy as np

from .. import _check
from .._plan import accumulator
from . import operands, planned, remembered

if TYPE_CHECKING:
    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
    arrays, options = operands.arrays_for_numbers(op, arrays, options)
    axes, settings = _check.forward(op, arrays, options)
    _check.outputs(op, arrays, settings.get("dtype"))
    settings |= operands.offset_as_added(op, arrays, settings)
    if settings.get("eps2", 0) is None:
        settings["eps2"] = settings["eps"]
    x = arrays["x"]
    complete = dict(arrays)
    launches: tuple[Launch, ...] = ()
    with x.device:
        for output in op.writes:
            if arrays[output.name] is None:
                like = arrays[output.like]
                asked = settings.get("dtype") if output.of_any_dtype else None
                complete[output.name] = cupy.empty(like.shape, asked or like.dtype)
        grouped, axes = _in_groups(op, complete, axes, settings.get("group"))
        for name in op.family.saves:
            made = _statistic(grouped["x"], axes) if op.keeps else None
            complete[name] = grouped[name] = made
        if x.size > 0:
            launches = planned.forward(op, grouped, axes, settings, enqueue=enqueue)
    return complete, launches


forward = remembered.remembered(work)


def _in_groups(op: Op, arrays: Arrays, axes: int, group: int | None) -> tuple[Arrays, int]:
    """Return arrays each of whose rows is a group of columns, and how many axes that is.

    gamma, which spans all of them, differs by row then.
    """
    views = dict(arrays)
    if group is None:
        return views, axes
    for name in (*op.rows, *op.parameters):
        a = arrays[name]
        if a is not None:
            views[name] = a.reshape(*a.shape[:-1], a.shape[-1] // group, group)
    return views, 1


def _statistic(x: cupy.ndarray, axes: int) -> cupy.ndarray:
    """Return an array for one statistic of each row of x: NaN where rows have no columns."""
    shape = x.shape[: x.ndim - axes]
    dtype = accumulator(x.dtype.name)
    return cupy.empty(shape, dtype) if x.size else cupy.full(shape, np.nan, dtype)
