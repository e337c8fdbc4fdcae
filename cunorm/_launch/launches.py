"""Launches: arrays as rows, their alignment, the kernel's arguments; and those of forward kernels.

Arrays that the kernels cannot step through are copied here. backward.py has the backward
kernels.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import TYPE_CHECKING

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .._plan import MOST_SEAMS, PACKET_BYTES, WARP, Reach, tuning
from . import kernels, levels

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from .._plan import Plan
    from .._typing import Arrays
    from .segments import Segments

# Of a pack, for shift.cuh to move it; and of codes, for codes.cuh.
SHIFTED_BYTES = (8, 16)
STAGGERED_BYTES = (4, 8)


def empty_like(x: cupy.ndarray) -> cupy.ndarray:
    """Return an uninitialised C-contiguous array of x's shape and dtype."""
    return cupy.empty(x.shape, x.dtype)


def cols(x: cupy.ndarray, axes: int) -> int:
    """Return N, the number of columns of a row."""
    return prod(x.shape[x.ndim - axes :])


@dataclass(frozen=True)
class Launch:
    """A kernel on its device with all of its arguments but arrays.

    Attributes
    ----------
    function : cupy.cuda.Function
        The compiled kernel. Through its RawKernel a launch would look it up again.
    grid, block : tuple of int
        The shape of the launch.
    shared_bytes : int
        Dynamic shared memory of a block.
    numbers : CNumpyArray
        The kernel's last argument, as CuPy hands it to the driver: 2.5 us less than to hand over
        the NumPy array each time.
    device : int
        The device of function and arrays.
    arrays : tuple of str
        The names of the arrays that the kernel takes, in its order.
    written : dict of str to str
        Arrays of rows that it writes, each with the input that it may overwrite.
    """

    function: cupy.cuda.Function
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared_bytes: int
    numbers: CNumpyArray
    device: int
    arrays: tuple[str, ...]
    written: Mapping[str, str]

    def enqueue(self, arrays: Iterable[cupy.ndarray | None]) -> None:
        """Enqueue the kernel on the current stream of its device, which must be the current one."""
        self.function(self.grid, self.block, (*arrays, self.numbers), self.shared_bytes)


def forward(
    plan: Plan,
    axes: int,
    arrays: Arrays,
    paired: Mapping[str, str],
    scalars: Mapping[str, float],
    *,
    enqueue: bool,
) -> tuple[Launch, ...]:
    """Enqueue a forward kernel on the current stream.

    Parameters
    ----------
    plan : Plan
        The kernel.
    axes : int
        How many trailing axes are a row.
    arrays : mapping of str to cupy.ndarray or None
        At least those of the kernel, by their names there. Statistics may be None. Arrays of rows
        have one shape, with at least one row of at least one column.
    paired : mapping of str to str
        The arrays of rows that are written, each with the input that it may overwrite.
    scalars : mapping of str to float
        The numbers of the kernel's last argument.
    enqueue : bool
        Whether the kernel is to run. If not, it is built alone; the arrays fit as they lie then.

    Returns
    -------
    tuple of Launch
        What was launched, for the next arrays of the same kind; nothing where arrays were copied.
    """
    rows = {name: arrays[name] for name in plan.of_rows}
    operands = {name: arrays[name] for name in plan.parameters}
    by_row = {name: a for name, a in operands.items() if differs_by_row(axes, rows["x"], a)}
    beside = {name: broadcast(axes, rows["x"], a) for name, a in by_row.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        beside = {name: cupy.ascontiguousarray(a) for name, a in beside.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        read = {name: a for name, a in rows.items() if name not in paired}
        rows |= {name: cupy.ascontiguousarray(a) for name, a in read.items()}
    if not fit(axes, *rows.values(), beside=beside.values()):
        rows |= {name: empty_like(rows[name]) for name in paired}
    shared = {n: cupy.ascontiguousarray(a) for n, a in operands.items() if n not in by_row}
    sums = [name for name in plan.statistics if name not in plan.written]
    given_sums = {name: cupy.ascontiguousarray(arrays[name]) for name in sums}
    launch = prepare(plan, axes, rows | beside, shared, scalars, tuple(plan.arrays), paired)
    taken = arrays | rows | shared | beside | given_sums
    if enqueue:
        launch.enqueue(taken[name] for name in plan.arrays)
    for name in paired:
        if rows[name] is not arrays[name]:
            arrays[name][...] = rows[name]
    places = ((taken[name], arrays[name]) for name in plan.arrays)
    as_given = all(a is b or a.data.ptr == b.data.ptr for a, b in places)
    return (launch,) if as_given else ()


def differs_by_row(axes: int, x: cupy.ndarray, operand: cupy.ndarray) -> bool:
    """Return whether an operand, which broadcasts against x, is not one row for all of x."""
    return bool(operand.shape != x.shape[x.ndim - axes :])


def broadcast(axes: int, x: cupy.ndarray, operand: cupy.ndarray) -> cupy.ndarray:
    """Return an operand in x's shape, its columns one run of elements, or one for a whole row."""
    whole = cupy.broadcast_to(operand, x.shape)
    lead = x.ndim - axes
    if _is_scalar(whole, lead) or _is_row(whole, lead):
        return whole
    whole = cupy.broadcast_to(cupy.ascontiguousarray(operand), x.shape)
    return whole if _is_row(whole, lead) else cupy.ascontiguousarray(whole)


def _is_scalar(a: cupy.ndarray, lead: int) -> bool:
    """Return whether one element stands for each whole row."""
    return not any(a.strides[lead:])


def _is_row(a: cupy.ndarray, lead: int) -> bool:
    """Return whether the columns of each row are one run of elements."""
    return levels.is_row(a.shape[lead:], _strides(a)[lead:])


def prepare(
    plan: Plan,
    axes: int,
    rows: dict[str, cupy.ndarray],
    parameters: Mapping[str, cupy.ndarray | None],
    scalars: Mapping[str, float],
    arguments: tuple[str, ...],
    written: Mapping[str, str],
    segments: Segments | None = None,
) -> Launch:
    """Return the launch of a kernel on arrays of rows that it can step through.

    Operands that differ by row are among `rows`, in their shape. Parameters by segment have two
    axes.
    """
    layout = layout_of(axes, *rows.values())
    strides = {
        name: tuple(stride * int(a.itemsize) for stride in steps)
        for (name, a), steps in zip(rows.items(), layout.strides, strict=True)
    }

    def reached(plan: Plan) -> Reach:
        return Reach(
            (
                *_accesses(plan, axes, rows, strides),
                *((name, access_of_parameter(plan, a)) for name, a in parameters.items()),
            ),
            len(layout.extents),
            layout.count >= 2**32,
            tuple(name for name in rows if name not in plan.of_rows),
        )

    device = rows["x"].device.id
    aligned = reached(plan).all_aligned
    plan = tuning.served(plan, kernels.device(device), layout.count, aligned=aligned)
    reach = reached(plan)
    numbers = numbers_of(
        layout.extents,
        tuple(strides[name] for name in (*plan.of_rows, *reach.by_row)),
        plan.accumulator,
        tuple(scalars[name] for name in plan.scalars),
        () if segments is None else segments.numbers(plan, parameters),
    )
    return Launch(
        kernels.load(plan, reach, device).kernel,
        plan.grid(layout.count) if segments is None else segments.grid,
        plan.block,
        plan.shared_bytes,
        CNumpyArray(numbers),
        device,
        arguments,
        written,
    )


def _strides(a: cupy.ndarray) -> tuple[int, ...]:
    return tuple(stride // a.itemsize for stride in a.strides)


def layout_of(axes: int, *arrays: cupy.ndarray) -> levels.Layout:
    lead = arrays[0].ndim - axes
    return levels.merge(arrays[0].shape[:lead], *(_strides(a)[:lead] for a in arrays))


def fit(axes: int, *rows: cupy.ndarray, beside: Iterable[cupy.ndarray] = ()) -> bool:
    """Return whether the kernels can step through arrays of rows as they lie.

    `beside` are operands in the same shape, whose columns fit already.
    """
    lead = rows[0].ndim - axes
    return (
        all(_is_row(a, lead) for a in rows)
        and len(layout_of(axes, *rows, *beside).extents) <= levels.LEVELS
    )


def _accesses(
    plan: Plan,
    axes: int,
    rows: Mapping[str, cupy.ndarray],
    strides: Mapping[str, tuple[int, ...]],
) -> Iterator[tuple[str, str]]:
    """Yield how the kernel reaches each array of rows, operands last.

    Beside rows in shared memory there is room for the seams of so many arrays, and operands past
    them are read element by element.
    """
    room = MOST_SEAMS if plan.split.shared else len(rows)
    for name, a in rows.items():
        access = access_of(plan, axes, a, strides[name])
        if access == "SHIFTED":
            if room == 0:
                access = "ELEMENTS"
            else:
                room -= 1
        yield name, access


def access_of(plan: Plan, axes: int, a: cupy.ndarray, strides: tuple[int, ...]) -> str:
    """Return how the kernel reaches an array's packets: an `Access` of kernels/stream.cuh.

    `strides` are those of its rows, in bytes.
    """
    if _is_scalar(a, a.ndim - axes):
        return "SCALAR"
    if in_packets(plan, a, strides):
        return "ALIGNED"
    if plan.split.lanes < WARP:
        return "ELEMENTS"
    if a.itemsize == 1:  # codes, of which two may share a byte
        staggers = plan.vec * a.shape[-1] // plan.cols in STAGGERED_BYTES
        return "STAGGERED" if staggers else "ELEMENTS"
    return "SHIFTED" if plan.vec * a.itemsize in SHIFTED_BYTES else "ELEMENTS"


def access_of_parameter(plan: Plan, a: cupy.ndarray | None) -> str:
    """Return how the kernel reaches a row that all rows, or all of a segment, share."""
    pitch = () if a is None or plan.by_segment is None else a.strides[:-1]
    return "ALIGNED" if a is None or in_packets(plan, a, pitch) else "ELEMENTS"


def in_packets(plan: Plan, a: cupy.ndarray, strides: Iterable[int]) -> bool:
    """Return whether rows start where whole packets do."""
    pack = min(PACKET_BYTES, plan.vec * int(a.itemsize))
    return all(start % pack == 0 for start in (a.data.ptr, *strides))


@lru_cache(maxsize=1024)
def numbers_of(
    extents: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    accumulator: str,
    scalars: tuple[float, ...],
    segments: tuple[int, ...] = (),
) -> np.ndarray:
    """Return the kernel's last argument: Numbers of its translation unit."""
    dtype = np.dtype(
        [
            ("count", np.int64),
            ("extent", np.int64, 2),
            ("strides", np.int64, (len(strides), levels.LEVELS)),
            ("segments", np.int64, len(segments)),
            *((f"scalar{i}", accumulator) for i in range(len(scalars))),
        ],
        align=True,
    )
    unused = (0,) * (levels.LEVELS - len(extents))
    return np.array(
        (
            prod(extents),
            (*unused, *extents)[1:],
            [unused + steps for steps in strides],
            segments,
            *scalars,
        ),
        dtype,
    )
