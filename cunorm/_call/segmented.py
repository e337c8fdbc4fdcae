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
    op: Op, arrays: Arrays, axes: int, options: Mapping[str, Any], *, enqueue: bool
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
    enqueue : bool
        Whether the kernels are to run, and not only to be built.

    Returns
    -------
    arrays : mapping of str to cupy.ndarray or None
        The same with what was made: the gradients of operands, and the kernels' own.
    launches : tuple of Launch
        What may be launched again for the next arrays of the same kind.
    """
    x = arrays["x"]
    operands = {n: arrays[n] for n in op.operands if arrays[n] is not None}
    names = (*op.reads, *op.parameters, *op.operands, "beta")
    arrays = {"beta": None, **arrays}
    dtypes = planned.dtypes(arrays, names)
    wanted = arrays["dgamma"] is not None
    kinds = kinds_of_sums(op, dict(dtypes), sums=wanted)
    plan = _plan.backward(
        op,
        of_forward.cols(x, axes),
        dtypes,
        kernels.arch(x.device.id),
        **planned.chosen(op, options),
    )
    own = segments.of(x.shape, axes, operands.values())
    own = replace(own, blocks=plan.blocks_of_segment(own.count, own.rows))

    made = dict(arrays) | _sums(plan, own, operands, kinds, wanted=wanted)
    scalars = {name: options[name] for name in plan.scalars}
    main, taken = _main(plan, own, made, scalars)
    if enqueue:
        main.enqueue(taken[name] for name in main.arrays)
        if taken["dx"].data.ptr != made["dx"].data.ptr:
            own.of_rows(made["dx"])[...] = taken["dx"]
    launches = [main]
    if kinds > 0:
        adding = segments.sums(plan, kinds, own, made, taken["scale"], scalars)
        given = {**made, "scale": taken["scale"], "gamma": taken["gamma"]}
        if enqueue:
            adding.enqueue(given[name] for name in adding.arrays)
        launches.append(adding)
    if wanted:
        totals = of_backward.column_sums(plan, made["dgamma"], len(op.totals), own.count, "shares")
        if enqueue:
            totals.enqueue(made.get(name) for name in totals.arrays)
        launches.append(totals)
    as_given = all(a is None or a.data.ptr == made[name].data.ptr for name, a in taken.items())
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
    if kinds > 0:
        made["partial"] = cupy.empty((kinds * own.count * own.blocks, plan.pitch), plan.accumulator)
    if wanted:
        made["shares"] = cupy.empty((kinds * own.count, plan.pitch), plan.accumulator)
    return made


def _main(
    plan: BackwardPlan, own: Segments, arrays: Arrays, scalars: Mapping[str, float]
) -> tuple[Launch, Arrays]:
    """Return the launch of the backward kernel, and the arrays that it takes."""
    rows = {name: own.of_rows(arrays[name]) for name in plan.of_rows}
    if not of_forward.fit(own.axes, *rows.values()):
        rows = {
            name: of_forward.empty_like(a) if name == "dx" else cupy.ascontiguousarray(a)
            for name, a in rows.items()
        }
    parameters: Arrays = {"partial": arrays["partial"]}
    for name, parameter in (("gamma", arrays["gamma"]), ("beta", arrays["beta"])):
        if parameter is not None:
            parameters[name] = cupy.ascontiguousarray(parameter)
    scale = arrays["scale"]
    if scale is not None:
        parameters["scale"] = own.of_operand(scale)
    statistics = {
        name: cupy.ascontiguousarray(own.of_rows(arrays[name])) for name in plan.statistics
    }
    beside = {n: a for n, a in parameters.items() if n in plan.arrays}
    main = of_forward.prepare(
        plan, own.axes, rows, beside, scalars, tuple(plan.arrays), {}, segments=own
    )
    return main, {"gamma": None, "scale": None, **rows, **parameters, **statistics}
