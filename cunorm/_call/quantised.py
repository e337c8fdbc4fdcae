"""Ops that return codes and scales, on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from .. import _check, _plan
from .._check import quantised as check
from .._families import QUANTIZE
from .._launch import kernels, launches
from .._quant import (
    Quant,
    buffer_shape,
    codes_dtype,
    codes_shape,
    from_buffer,
    scales_dtype,
)
from . import operands, planned, remembered

if TYPE_CHECKING:
    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched.

    Scales that were made are their whole memory: see `from_buffer`.
    """
    arrays, options = operands.arrays_for_numbers(op, arrays, options)
    settings = _checked(op, arrays, options)
    x, quant = arrays["x"], settings["quant"]
    check.outputs(op, arrays, quant, x)
    complete = dict(arrays)
    made: tuple[Launch, ...] = ()
    with x.device:
        if arrays["q"] is None:
            complete["q"] = cupy.empty(codes_shape(quant, x.shape), codes_dtype(quant))
        if arrays["scales"] is None:
            complete["scales"] = cupy.empty(buffer_shape(quant, x.shape), scales_dtype(quant))
        for output in op.source.writes:
            if arrays[output.name] is None:
                like = arrays[output.like]
                complete[output.name] = cupy.empty(like.shape, like.dtype)
        if x.size > 0:
            made = _launched(op, complete, settings, enqueue=enqueue)
        else:
            _write_scales_of_nothing(complete["scales"], quant, x.shape)
    # What lies past the view of such scales is looked at again by each call.
    is_padded = arrays["scales"] is not None and quant.layout in ("columns", "packed")
    return complete, () if is_padded else made


def _checked(op: Op, arrays: Arrays, options: tuple[object, ...]) -> dict[str, Any]:
    """Check what is read, and return the options by name."""
    if op is QUANTIZE:
        _check.data("y", arrays["x"])
        settings = _check.options(op, options, arrays)
        check.rows("y", arrays["x"], settings["quant"])
        return settings
    _, settings = _check.forward(op, arrays, options)
    check.rows("x", arrays["x"], settings["quant"])
    check.one_axis(arrays, op.parameters)
    return settings


def _launched(
    op: Op, arrays: Arrays, settings: dict[str, Any], *, enqueue: bool
) -> tuple[Launch, ...]:
    quant = settings["quant"]
    of_rows = (output.name for output in op.writes if output.name != "scales")
    plan = _plan.quantised(
        op,
        arrays["x"].shape[-1],
        planned.dtypes(arrays, (*of_rows, *op.reads, *op.parameters, *op.operands)),
        kernels.arch(arrays["x"].device.id),
        **planned.chosen(op, settings),
    )
    numbers = {option.name: settings[option.name] for option in op.options if option.number}
    given = quant.static if quant.global_scale is None else quant.global_scale
    numbers |= {
        "floor": quant.floor,
        "minimum": quant.minimum,
        "ceiling": inf if quant.ceiling is None else quant.ceiling,
        "given": 0.0 if given is None else given,
    }
    twins = {output.name: output.like for output in op.writes}
    paired = {name: twins[name] for name in plan.of_rows if name in twins}
    made = launches.forward(plan, 1, arrays, paired, numbers, enqueue=enqueue)
    # They may overwrite nothing, and so have no twin.
    return tuple(replace(one, written={**one.written, "scales": ""}) for one in made)


def _write_scales_of_nothing(scales: cupy.ndarray, quant: Quant, shape: tuple[int, ...]) -> None:
    """Write what there is of scales where rows have no columns, or where there are no rows."""
    if scales.size > 0:
        from .._quant_reference import codes_and_buffer

        _, own = codes_and_buffer(np.empty(shape, np.float32), quant)
        check.buffer(scales, quant, shape)[...] = cupy.asarray(own)


_quantised = remembered.remembered(work)


def quantised(op: Op, given: tuple[Any, ...], options: tuple[object, ...]) -> Any:
    """Return codes, scales, and h where there is one."""
    q, scales, *others = _quantised(op, given, options)
    if given[op.slots.index("scales")] is None:
        (quant,) = (option for option in options if isinstance(option, Quant))
        scales = from_buffer(quant, scales, q.shape[:-1])
    return (q, scales, *others)
