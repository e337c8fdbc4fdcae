"""Backward ops on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy

from .. import _check
from . import operands, planned, remembered, segmented

if TYPE_CHECKING:
    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
    arrays, options = operands.arrays_for_numbers(op, arrays, options)
    axes, settings = _check.backward(op, arrays, options)
    settings |= operands.offset_as_added(op, arrays, settings)
    x = arrays["x"]
    beside = [name for name in op.operands if arrays[name] is not None]
    (weight,) = (arrays[name] for name in op.parameters)
    complete = {**arrays, **dict.fromkeys((*op.totals, "partial"))}
    launches: tuple[Launch, ...] = ()
    with x.device:
        complete["dx"] = cupy.empty(x.shape, x.dtype)
        if weight is not None and settings["sums"]:
            make = cupy.empty if x.size > 0 else cupy.zeros
            complete |= {name: make(weight.shape, weight.dtype) for name in op.totals}
        if x.size == 0:
            complete |= {f"d{name}": cupy.zeros_like(arrays[name]) for name in beside}
        elif beside:
            complete, launches = segmented.backward(op, complete, axes, settings, enqueue=enqueue)
        else:
            complete["partial"], launches = planned.backward(
                op, complete, axes, settings, enqueue=enqueue
            )
    return complete, launches


backward = remembered.remembered(work)
