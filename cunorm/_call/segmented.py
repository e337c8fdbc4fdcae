"""Backward ops with operands: rows in segments that have one row of each, and their gradients."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cupy

from .. import _plan
from .._launch import backward as of_backward
from .._launch import kernels, segments
from .._launch import launches as of_forward
from .._plan.backward_kernel import kinds_of_sums
from . import planned

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._families import Op
    from .._launch.launches import Launch
    from .._launch.segments import Segments
    from .._plan import BackwardPlan
    from .._typing import Arrays


def backward(
    op: Op,
    arrays: Arrays,
    axes: int,
    options: Mapping[str, Any],
    operands: Mapping[str, cupy.ndarray],
    *,
    enqueue: bool,
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Enqueue the kernels of a backward op with operands on the current stream.

    Parameters
    ----------
    op : Op
        The op.
    arrays : mapping of str to cupy.ndarray or None
        What is read, dx, and dgamma and dbeta where they are wanted. x has elements.
    axes : int
        How many trailing axes are a row.
    options : mapping of str to object
        The options by name, as the checks return them.
    operands : mapping of str to cupy.ndarray
        scale, shift and a gate, those that there are.
    enqueue : bool
        Whether the kernels are to run, and not only to be built.

    Returns
    -------
    arrays : mapping of str to cupy.ndarray or None
        The same with what was made: the gradients of operands, and the kernels' own.
    launches : tuple of Launch
        What may be launched again for the next arrays of the same kind.
    """
    x = arrays[op.leader]
    arrays = {"beta": None, "scale": None, **arrays, **operands}
    dtypes = planned.dtypes(arrays, (*op.reads, *op.parameters, "beta", *operands))
    wanted = arrays["dgamma"] is not None
    kinds = kinds_of_sums(op, dict(dtypes), sums=wanted)
    plan = _plan.backward(
        op,
        of_forward.cols(x, axes),
        dtypes,
        kernels.arch(x.device.id),
        **planned.chosen(op, options) | {"scale_offset": bool(options["scale_offset"])},
    )
    own = segments.of(x.shape, axes, operands.values())
    own = replace(own, blocks=plan.blocks_of_segment(own.count, own.rows))

    made = dict(arrays) | _sums(plan, own, operands, kinds, wanted=wanted)
    scalars = {name: options[name] for name in plan.scalars}
    main, taken = of_backward.backward(plan, axes, made, scalars, own, enqueue=enqueue)
    launches = [main]
    if made["partial"] is not None:
        factors: Arrays = {"gamma": taken.get("gamma"), "beta": None, "scale": taken.get("scale")}
        # A gated norm's dgate is an array of rows, which the main kernel has written.
        factors["dgate"] = made["dgate"] if "gate" in operands else None
        if "scale" in operands and "gate" not in op.reads and made["beta"] is not None:
            factors["beta"] = cupy.ascontiguousarray(made["beta"])
        adding = segments.sums(plan, kinds, own, made | factors, scalars)
        if enqueue:
            adding.enqueue((made | factors)[name] for name in adding.arrays)
        launches.append(adding)
    if wanted:
        totals = of_backward.column_sums(plan, made["dgamma"], len(op.totals), own.count, "shares")
        if enqueue:
            totals.enqueue(made.get(name) for name in totals.arrays)
        launches.append(totals)
    if made["partial"] is not None:
        taken |= factors
    as_given = of_backward.as_given(taken, made)
    for name, operand in operands.items():
        if not own.is_whole(operand):
            made[f"d{name}"] = own.sum_to(made[f"d{name}"], operand)
            as_given = False
    return made, tuple(launches) if as_given else ()


def _sums(
    plan: BackwardPlan,
    own: Segments,
    operands: Mapping[str, cupy.ndarray],
    kinds: int,
    *,
    wanted: bool,
) -> Arrays:
    """Return arrays for the gradients of operands, and for what leads to them.

    Where an operand has fewer elements than a row for each segment, its gradient is added up
    afterwards.
    """
    made: Arrays = dict.fromkeys(("dscale", "dshift", "partial", "shares"))
    for name, operand in operands.items():
        if own.is_whole(operand):
            made[f"d{name}"] = cupy.empty(operand.shape, operand.dtype)
        else:
            made[f"d{name}"] = cupy.empty((own.count, plan.cols), plan.accumulator)
    if kinds > 0 or "gate" in operands:
        rows = (kinds + ("gate" in operands)) * own.count * own.blocks
        made["partial"] = cupy.empty((rows, plan.pitch), plan.accumulator)
    if wanted:
        made["shares"] = cupy.empty((kinds * own.count, plan.pitch), plan.accumulator)
    return made
