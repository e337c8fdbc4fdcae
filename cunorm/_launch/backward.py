"""Launches of a backward pass: its kernel, and the sums of what that leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .. import _plan
from . import kernels
from .launches import Launch, empty_like, fit, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._plan import BackwardPlan
    from .._typing import Arrays
    from .segments import Segments

# What there is one of for each column, and one row of for each block.
TOTALS = ("dgamma", "dbeta")


def backward(
    plan: BackwardPlan,
    axes: int,
    arrays: Arrays,
    scalars: Mapping[str, float],
    segments: Segments | None = None,
    *,
    enqueue: bool,
) -> tuple[Launch, Arrays]:
    """Enqueue a backward kernel on the current stream.

    Parameters
    ----------
    plan : BackwardPlan
        The kernel.
    axes : int
        How many trailing axes are a row.
    arrays : mapping of str to cupy.ndarray or None
        At least those of the kernel, by their names there. x has at least one row of at least one
        column, and what is written is C-contiguous.
    scalars : mapping of str to float
        The numbers of the kernel's last argument.
    segments : Segments or None
        How rows are shared out, where operands stand beside them.
    enqueue : bool
        Whether the kernel is to run. If not, it is built alone; the arrays fit as they lie then.

    Returns
    -------
    launch : Launch
        What was launched.
    taken : mapping of str to cupy.ndarray or None
        The arrays that it took: others than were given where those had to be copied.
    """
    in_order = _as_it_is if segments is None else segments.of_rows
    rows = {name: in_order(arrays[name]) for name in plan.of_rows}
    if not fit(axes, *rows.values()):
        rows = {
            name: empty_like(a)
            if name in plan.written and not a.flags.c_contiguous
            else cupy.ascontiguousarray(a)
            for name, a in rows.items()
        }
    of_segments = plan.by_segment or ()
    parameters: Arrays = {
        name: cupy.ascontiguousarray(arrays[name])
        if segments is None or name not in of_segments
        else segments.of_operand(arrays[name])
        for name in plan.parameters
    }
    parameters["partial"] = arrays["partial"]
    statistics = {name: in_order(arrays[name]) for name in plan.statistics}
    taken = {
        **rows,
        **parameters,
        **{name: cupy.ascontiguousarray(a) for name, a in statistics.items()},
    }
    launch = prepare(
        plan, axes, rows, parameters, scalars, tuple(plan.arrays), {}, segments=segments
    )
    if enqueue:
        launch.enqueue(taken[name] for name in plan.arrays)
        for name in plan.of_rows:
            if name in plan.written and taken[name].data.ptr != arrays[name].data.ptr:
                in_order(arrays[name])[...] = taken[name]
    return launch, taken


def _as_it_is(a: cupy.ndarray) -> cupy.ndarray:
    return a


def as_given(taken: Arrays, arrays: Arrays) -> bool:
    """Return whether nothing that a launch took is a copy."""
    return all(a is None or a.data.ptr == arrays[name].data.ptr for name, a in taken.items())


def column_sums(
    plan: BackwardPlan, dgamma: cupy.ndarray, parameters: int, blocks: int, partial: str
) -> Launch:
    """Return the launch that adds up the blocks' sums of each parameter, in the array `partial`."""
    sums = _plan.column_sums(plan.row, dgamma.dtype.name)
    device = dgamma.device.id
    extent = np.array([(plan.cols, plan.pitch, blocks)], "i8,i8,i8")
    return Launch(
        kernels.load(sums, _plan.Reach(()), device).kernel,
        sums.grid(plan.cols, parameters),
        sums.block,
        sums.shared_bytes,
        CNumpyArray(extent),
        device,
        (*TOTALS, partial),
        {},
    )
