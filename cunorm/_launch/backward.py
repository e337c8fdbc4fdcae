"""Launches of a backward pass: its kernel, and the sums of what that leaves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .. import _plan
from . import kernels
from .launches import Launch, fit, prepare

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._plan import BackwardPlan

# What there is one of for each column, and one row of for each block.
TOTALS = ("dgamma", "dbeta")


def partial(
    plan: BackwardPlan, x: cupy.ndarray, made: Mapping[str, cupy.ndarray]
) -> cupy.ndarray | None:
    """Return an array for the blocks' sums of columns; None where there are none."""
    totals = len(made) - 1
    if totals == 0:
        return None
    (blocks,) = plan.grid(x.size // plan.cols)
    return cupy.empty((totals * blocks, plan.pitch), plan.accumulator)


def backward(
    plan: BackwardPlan,
    axes: int,
    made: Mapping[str, cupy.ndarray],
    partial: cupy.ndarray | None,
    read: Mapping[str, cupy.ndarray],
    gamma: cupy.ndarray | None,
    statistics: Mapping[str, cupy.ndarray],
    gamma_offset: float,
    *,
    enqueue: bool,
) -> tuple[Launch, ...]:
    """Enqueue a backward kernel on the current stream, and the sums of what its blocks leave.

    Parameters
    ----------
    plan : BackwardPlan
        The kernel.
    axes : int
        How many trailing axes are a row.
    made : mapping of str to cupy.ndarray
        dx, and dgamma and dbeta where they are wanted. x has at least one row of at least one
        column.
    partial : cupy.ndarray or None
        What `partial` returned.
    read : mapping of str to cupy.ndarray
        The arrays of rows that are read, in the order of the kernel's arguments.
    gamma : cupy.ndarray or None
        The parameter.
    statistics : mapping of str to cupy.ndarray
        mean and rstd, as far as the kernel takes them.
    gamma_offset : float
        Added to gamma.
    enqueue : bool
        Whether the kernels are to run. If not, they are built alone; the arrays fit as they lie
        then.

    Returns
    -------
    tuple of Launch
        What was launched, for the next arrays of the same kind; nothing where arrays were copied.
    """
    rows = {"dx": made["dx"], **read}
    if not fit(axes, *rows.values()):
        rows |= {name: cupy.ascontiguousarray(a) for name, a in read.items()}
    parameters: dict[str, cupy.ndarray | None] = {}
    if gamma is not None:
        parameters["gamma"] = cupy.ascontiguousarray(gamma)
    parameters["partial"] = partial
    kept = {name: cupy.ascontiguousarray(a) for name, a in statistics.items()}
    arrays = {"dx": made["dx"], "partial": partial, **rows, **parameters, **kept}
    scalars = {"gamma_offset": gamma_offset}
    main = prepare(plan, axes, rows, parameters, scalars, tuple(arrays), {})
    if enqueue:
        main.enqueue(arrays.values())
    launches = [main]
    if partial is not None:
        sums = column_sums(plan, made["dgamma"], len(made) - 1, main.grid[0], "partial")
        if enqueue:
            sums.enqueue((*(made.get(name) for name in TOTALS), partial))
        launches.append(sums)
    asked = {**read, **statistics, "gamma": gamma}
    return tuple(launches) if all(arrays.get(name) is a for name, a in asked.items()) else ()


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
