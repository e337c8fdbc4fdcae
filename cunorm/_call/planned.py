"""From an op and the arrays of a call to its kernels: planned, built and launched."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import cupy

from .. import _plan
from .._families import NORMED, OPS
from .._launch import backward as of_backward
from .._launch import kernels
from .._launch import launches as of_forward

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def forward(
    op: Op, arrays: Arrays, axes: int, options: Mapping[str, Any], *, enqueue: bool
) -> tuple[Launch, ...]:
    """Enqueue the kernel of a forward op on the current stream.

    Parameters
    ----------
    op : Op
        The op.
    arrays : mapping of str to cupy.ndarray or None
        All of its arrays by their names in the kernel, with those that it writes.
    axes : int
        How many trailing axes are a row.
    options : mapping of str to object
        The options by name, as the checks return them.
    enqueue : bool
        Whether the kernel is to run, and not only to be built.

    Returns
    -------
    tuple of Launch
        What may be launched again for the next arrays of the same kind.
    """
    paired = {output.name: output.like for output in op.writes}
    if op.source is NORMED and arrays["x"].dtype != arrays["residual"].dtype:
        return _one_after_the_other(arrays, axes, options, paired, enqueue=enqueue)
    plan = _plan.forward(
        op,
        of_forward.cols(arrays["x"], axes),
        dtypes(arrays, (*op.rows, *op.parameters, *op.operands, *op.sums)),
        kernels.arch(arrays["x"].device.id),
        **chosen(op, options),
    )
    numbers = {option.name: options[option.name] for option in op.options if option.number}
    return of_forward.forward(plan, axes, arrays, paired, numbers, enqueue=enqueue)


def _one_after_the_other(
    arrays: Arrays,
    axes: int,
    options: Mapping[str, Any],
    paired: Mapping[str, str],
    *,
    enqueue: bool,
) -> tuple[Launch, ...]:
    """Enqueue both norms of `rms_norm_add_rms_norm`, as `forward`.

    Rows of two dtypes are summed by two trees, and so have a kernel for each.
    """
    names = (
        {"x": "x", "residual": "residual", "gamma": "gamma", "y": "residual_out", "rstd": "rstd"},
        {"x": "residual_out", "gamma": "gamma2", "y": "y", "rstd": "rstd2"},
    )
    settings = {**options, "scale_offset": 1.0, "count": 0.0}
    launches: list[Launch] = []
    for op, own in zip((OPS["rms_norm_add_fwd"], OPS["rms_norm_fwd"]), names, strict=True):
        given = dict.fromkeys((*op.operands, *op.sums)) | {
            name: arrays[other] for name, other in own.items()
        }
        made = forward(op, given, axes, settings, enqueue=enqueue)
        launches += (
            replace(launch, arrays=tuple(own.get(n, n) for n in launch.arrays), written=paired)
            for launch in made
        )
        settings["eps"] = options["eps2"]
    return tuple(launches) if len(launches) == len(names) else ()


def backward(
    op: Op, arrays: Arrays, axes: int, options: Mapping[str, Any], *, enqueue: bool
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Enqueue the kernels of a backward op: as `forward`.

    Returns
    -------
    arrays : mapping of str to cupy.ndarray or None
        The same with what was made for the sums of columns of each block.
    launches : tuple of Launch
        As of `forward`.
    """
    x = arrays[op.leader]
    beside = ("beta",) if "gate" in op.reads else ()
    plan = _plan.backward(
        op,
        of_forward.cols(x, axes),
        dtypes({"beta": None, **arrays}, (*op.reads, *op.parameters, *beside)),
        kernels.arch(x.device.id),
        **chosen(op, options),
    )
    totals = [name for name in op.totals if arrays[name] is not None]
    partial = None
    if totals:
        (blocks,) = plan.grid(x.size // plan.cols)
        partial = cupy.empty((len(totals) * blocks, plan.pitch), plan.accumulator)
    complete = {**arrays, "partial": partial}
    scalars = {"gamma_offset": options.get("gamma_offset", 0.0)}
    main, taken = of_backward.backward(plan, axes, complete, scalars, enqueue=enqueue)
    launches = [main]
    if totals:
        sums = of_backward.column_sums(plan, arrays["dgamma"], len(totals), main.grid[0], "partial")
        if enqueue:
            sums.enqueue(complete.get(name) for name in sums.arrays)
        launches.append(sums)
    return complete, tuple(launches) if of_backward.as_given(taken, complete) else ()


def dtypes(arrays: Arrays, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the dtypes of the arrays that are there, by name."""
    given = ((name, arrays[name]) for name in names)
    return tuple((name, a.dtype.name) for name, a in given if a is not None)


def chosen(op: Op, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the kernel is compiled for, of the options."""
    return {o.name: o.compiled(options[o.name]) for o in op.options if o.compiled is not None}
