"""Forward ops on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING

import cupy
import numpy as np

from .. import _check
from .._plan import accumulator
from . import planned, remembered

if TYPE_CHECKING:
    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
    arrays, options = with_arrays_for_numbers(op, arrays, options)
    axes, settings = _check.forward(op, arrays, options)
    _check.outputs(op, arrays, settings.get("dtype"))
    if "scale" in op.operands and arrays["scale"] is not None and settings.get("cast") != "after":
        # Beside an array a number has the array's dtype.
        settings["scale_offset"] = float(
            np.asarray(settings["scale_offset"], arrays["scale"].dtype)
        )
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


def with_arrays_for_numbers(
    op: Op, arrays: Arrays, options: tuple[object, ...]
) -> tuple[Arrays, tuple[object, ...]]:
    """Return the arguments with an array of x's dtype for each operand that is a number.

    To NumPy a number has no dtype: with scale_offset it makes one number. Where all is rounded once
    at the end, the array is as wide as sums are.
    """
    numbers = {n: a for n in op.operands if isinstance(a := arrays[n], Real)}
    if not numbers:
        return arrays, options
    _check.data("x", arrays["x"])
    x = arrays["x"]
    settings = dict(zip((option.name for option in op.options), options, strict=True))
    dtype = accumulator(x.dtype.name) if settings.get("cast") == "after" else x.dtype
    made = {}
    with x.device:
        for name, number in numbers.items():
            value = _check.real(name, number)
            if name == "scale":
                value += _check.real("scale_offset", settings["scale_offset"])
                settings["scale_offset"] = 0.0
            made[name] = cupy.asarray(value, dtype)
    return arrays | made, tuple(settings.values())


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
