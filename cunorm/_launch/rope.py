"""Launches of heads that are normalised and rotated: of one array, or of q and k together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .._plan import BackwardPlan, HeadsPlan, Reach, RopePlan
from .._typing import Arrays
from . import kernels
from .launches import (
    Launch,
    access_of,
    access_of_parameter,
    broadcast,
    differs_by_row,
    empty_like,
    fit,
    in_packets,
    layout_of,
    numbers_of,
)

TABLES = ("cos", "sin")


@dataclass(frozen=True)
class Heads:
    """What a launch does with one array.

    Attributes
    ----------
    plan : HeadsPlan
        How.
    axes : int
        How many trailing axes of x are a row: its columns, or its heads and their columns.
    arrays : dict of str to cupy.ndarray
        Those of the kernel, by their names there. gamma has the shape of a row, or one for each
        head. Positions, and tables where there are none, broadcast against x without its columns
        and heads. rstd is there where it is wanted.
    names : mapping of str to str
        What those are called in the call.
    """

    plan: HeadsPlan
    axes: int
    arrays: Arrays
    names: Mapping[str, str]


@dataclass(frozen=True)
class _Prepared:
    """One array's part of a launch: its kernel's arrays as they are handed over."""

    reach: Reach
    numbers: np.ndarray
    taken: Arrays
    blocks: int

    def is_as_given(self, arrays: Arrays) -> bool:
        """Return whether none of the kernel's arrays is a copy."""
        places = ((self.taken[name], a) for name, a in arrays.items() if name in self.taken)
        return all(a is b or a.data.ptr == b.data.ptr for a, b in places)


def forward(
    sides: Sequence[Heads], scalars: Mapping[str, float], *, enqueue: bool
) -> tuple[Launch, ...]:
    """Enqueue the kernel on the current stream.

    Parameters
    ----------
    sides : sequence of Heads
        One or two, each of a row at least.
    scalars : mapping of str to float
        The numbers of the kernel's last argument.
    enqueue : bool
        Whether the kernel is to run, and not only to be built.

    Returns
    -------
    tuple of Launch
        What was launched, for the next arrays of the same kind; nothing where arrays were copied.
    """
    prepared = [_prepare(side.plan, side.axes, side.arrays, scalars) for side in sides]
    plan = RopePlan(tuple(side.plan for side in sides))
    device = sides[0].arrays["x"].device.id
    launch = Launch(
        kernels.load(plan, tuple(part.reach for part in prepared), device).kernel,
        (sum(part.blocks for part in prepared),),
        plan.block,
        plan.shared_bytes,
        CNumpyArray(_joined([part.numbers for part in prepared], prepared[0].blocks)),
        device,
        tuple(side.names[name] for side in sides for name in side.plan.arrays),
        {side.names["y"]: side.names["x"] for side in sides},
    )
    if enqueue:
        launch.enqueue(
            part.taken[name]
            for side, part in zip(sides, prepared, strict=True)
            for name in side.plan.arrays
        )
    for side, part in zip(sides, prepared, strict=True):
        if part.taken["y"] is not side.arrays["y"]:
            side.arrays["y"][...] = part.taken["y"]
    as_given = all(
        part.is_as_given(side.arrays) for side, part in zip(sides, prepared, strict=True)
    )
    return (launch,) if as_given else ()


def backward(
    plan: BackwardPlan,
    axes: int,
    arrays: Arrays,
    scalars: Mapping[str, float],
    *,
    enqueue: bool,
) -> tuple[Launch, bool]:
    """Enqueue a backward kernel on the current stream.

    Parameters
    ----------
    plan : BackwardPlan
        The kernel.
    axes : int
        How many trailing axes of x are a row.
    arrays : dict of str to cupy.ndarray
        Those of the kernel, by their names there and in the call, as `Heads` has them; dx is
        C-contiguous. partial is there where sums are wanted.
    scalars : mapping of str to float
        The numbers of the kernel's last argument.
    enqueue : bool
        Whether the kernel is to run, and not only to be built.

    Returns
    -------
    launch : Launch
        What was launched.
    as_given : bool
        Whether nothing that it took is a copy.
    """
    part = _prepare(plan, axes, arrays, scalars)
    device = arrays["x"].device.id
    launch = Launch(
        kernels.load(plan, part.reach, device).kernel,
        (part.blocks,),
        plan.block,
        plan.shared_bytes,
        CNumpyArray(part.numbers),
        device,
        tuple(plan.arrays),
        {},
    )
    if enqueue:
        launch.enqueue(part.taken[name] for name in plan.arrays)
    return launch, part.is_as_given(arrays)


def _prepare(
    plan: HeadsPlan | BackwardPlan, axes: int, given: Arrays, scalars: Mapping[str, float]
) -> _Prepared:
    """Return how the kernel reaches an array's rows, copied where it cannot step through them."""
    rows = {name: given[name] for name in plan.of_rows}
    x = rows["x"]
    tables = {name: _with_unit_stride(given[name]) for name in TABLES}
    beside: dict[str, cupy.ndarray] = {}
    gamma = given.get("gamma")
    if gamma is not None and differs_by_row(axes, x, gamma):
        beside["gamma"] = broadcast(axes, x, gamma)
    if "positions" in given:
        beside["positions"] = _by_token(axes, x, given["positions"][..., None])
    else:
        beside |= {name: _by_token(axes, x, table) for name, table in tables.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        beside = {name: cupy.ascontiguousarray(a) for name, a in beside.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        read = {name: a for name, a in rows.items() if name not in plan.written}
        rows |= {name: cupy.ascontiguousarray(a) for name, a in read.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        rows["y"] = empty_like(x)
    others = {name: given.get(name) for name in plan.arrays if name not in rows | beside | tables}
    shared = {
        name: a if a is None or name in plan.written else cupy.ascontiguousarray(a)
        for name, a in others.items()
    }
    layout = layout_of(axes, *rows.values(), *beside.values())
    strides = {
        name: tuple(stride * int(a.itemsize) for stride in steps)
        for (name, a), steps in zip((rows | beside).items(), layout.strides, strict=True)
    }
    if "positions" in beside:
        outer = (0,) * (len(layout.extents) - 1)
        strides |= {name: (*outer, table.strides[0]) for name, table in tables.items()}
    taken = tables | rows | beside | shared
    accesses = {
        name: ("ALIGNED" if in_packets(plan, taken[name], strides[name]) else "ELEMENTS")
        if name in TABLES
        else access_of(plan, axes, taken[name], strides[name])
        if name in strides
        else access_of_parameter(plan, taken[name])
        for name in plan.arrays
        if name not in plan.statistics
    }
    if "positions" in beside:
        accesses["positions"] = "SCALAR"
    by_row = tuple(name for name in plan.arrays if name in strides and name not in plan.of_rows)
    reach = Reach(
        tuple(accesses.items()),
        len(layout.extents),
        layout.count >= 2**32,
        by_row,
    )
    numbers = numbers_of(
        layout.extents,
        tuple(strides[name] for name in (*plan.of_rows, *by_row)),
        plan.accumulator,
        tuple(scalars[name] for name in plan.scalars),
    )
    (blocks,) = plan.grid(layout.count)
    return _Prepared(reach, numbers, taken, blocks)


def _by_token(axes: int, x: cupy.ndarray, a: cupy.ndarray) -> cupy.ndarray:
    """Return an array of one row a token in x's leading axes, the same for all heads of a token."""
    heads = x.shape[-2] if axes == 1 else 1
    return cupy.broadcast_to(a[..., None, :], (*x.shape[:-2], heads, a.shape[-1]))


def _with_unit_stride(table: cupy.ndarray) -> cupy.ndarray:
    """Return a table whose rows are runs of elements."""
    is_run = table.shape[-1] == 1 or table.strides[-1] == table.itemsize
    return table if is_run else cupy.ascontiguousarray(table)


def _joined(numbers: Sequence[np.ndarray], blocks: int) -> np.ndarray:
    """Return the kernel's last argument: Numbers of each array, and the blocks of the first."""
    fields = [(f"side{i}", n.dtype) for i, n in enumerate(numbers)]
    dtype = np.dtype([*fields, ("blocks", np.int64)], align=True)
    return np.array((*(n[()] for n in numbers), blocks), dtype)
