"""Backward ops on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
    x = arrays[op.leader]
    (weight,) = (arrays[name] for name in op.parameters)
    complete = {**arrays, **dict.fromkeys((*op.totals, "partial"))}
    beside = {name: arrays[name] for name in op.operands if arrays[name] is not None}
    launches: tuple[Launch, ...] = ()
    with x.device:
        for name in op.gradients:
            like = arrays[name.removeprefix("d")]
            complete[name] = cupy.empty(like.shape, like.dtype)
        if weight is not None and settings["sums"]:
            make = cupy.empty if x.size > 0 else cupy.zeros
            complete |= {name: make(weight.shape, weight.dtype) for name in op.totals}
        if x.size == 0:
            complete |= {f"d{name}": cupy.zeros_like(a) for name, a in beside.items()}
        elif settings.get("group") is not None:
            launches = _of_groups(op, complete, settings, enqueue=enqueue)
        elif beside:
            complete, launches = segmented.backward(
                op, complete, axes, settings, beside, enqueue=enqueue
            )
        else:
            complete, launches = planned.backward(op, complete, axes, settings, enqueue=enqueue)
    return complete, launches


def _of_groups(
    op: Op, arrays: Arrays, settings: dict[str, Any], *, enqueue: bool
) -> tuple[Launch, ...]:
    """Enqueue the kernels of rows that are groups of columns.

    gamma and beta differ by group then: to a group they are a scale and a shift. Such a call is
    worked out each time.
    """
    group = settings["group"]

    def grouped(a: cupy.ndarray) -> cupy.ndarray:
        return a.reshape(*a.shape[:-1], a.shape[-1] // group, group)

    views = {
        name: grouped(a) if a is not None and name in (*op.rows, "beta") else a
        for name, a in arrays.items()
    }
    gamma, beta = arrays["gamma"], arrays.get("beta")
    beside = {}
    if gamma is not None:
        beside["scale"] = grouped(gamma)
    if len(op.totals) > 1 and (gamma is not None or beta is not None):
        beside["shift"] = grouped(gamma if gamma is not None else beta)
    if not beside:
        planned.backward(op, views, 1, settings, enqueue=enqueue)
        return ()
    own = {**settings, "scale_offset": settings["gamma_offset"], "gamma_offset": 0.0}
    views |= dict.fromkeys(("gamma", *op.totals))
    made, _ = segmented.backward(op, views, 1, own, beside, enqueue=enqueue)
    for total, name in zip(op.totals, ("dscale", "dshift"), strict=False):
        if arrays[total] is not None:
            arrays[total] = made[name].reshape(gamma.shape)
    return ()


backward = remembered.remembered(work)
