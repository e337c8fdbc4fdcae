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

from .._plan import PACKET_BYTES, WARP, Reach
from . import kernels, levels

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .._plan import Plan
    from .._typing import Arrays


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
    if not fit(axes, *rows.values()):
        read = {name: a for name, a in rows.items() if name not in paired}
        rows |= {name: cupy.ascontiguousarray(a) for name, a in read.items()}
    if not fit(axes, *rows.values()):
        rows |= {name: empty_like(rows[name]) for name in paired}
    parameters = {name: cupy.ascontiguousarray(arrays[name]) for name in plan.parameters}
    taken = {name: (rows | parameters).get(name, arrays[name]) for name in plan.arrays}
    launch = prepare(plan, axes, rows, parameters, scalars, tuple(taken), paired)
    if enqueue:
        launch.enqueue(taken.values())
    for name in paired:
        if rows[name] is not arrays[name]:
            arrays[name][...] = rows[name]
    return (launch,) if all(a is arrays[name] for name, a in taken.items()) else ()


def prepare(
    plan: Plan,
    axes: int,
    rows: dict[str, cupy.ndarray],
    parameters: Mapping[str, cupy.ndarray | None],
    scalars: Mapping[str, float],
    arguments: tuple[str, ...],
    written: Mapping[str, str],
    grid: tuple[int, ...] | None = None,
) -> Launch:
    """Return the launch of a kernel on arrays of rows that it can step through."""
    layout = _layout(axes, *rows.values())
    strides = {
        name: tuple(stride * int(a.itemsize) for stride in steps)
        for (name, a), steps in zip(rows.items(), layout.strides, strict=True)
    }
    reach = Reach(
        (
            *((name, _access(plan, a, strides[name])) for name, a in rows.items()),
            *((name, _access(plan, value)) for name, value in parameters.items()),
        ),
        len(layout.extents),
        layout.count >= 2**32,
    )
    device = rows["x"].device.id
    numbers = _numbers(
        layout.extents,
        tuple(strides[name] for name in plan.of_rows),
        plan.accumulator,
        tuple(scalars[name] for name in plan.scalars),
    )
    return Launch(
        kernels.load(plan, reach, device).kernel,
        plan.grid(layout.count) if grid is None else grid,
        plan.block,
        plan.shared_bytes,
        CNumpyArray(numbers),
        device,
        arguments,
        written,
    )


def _strides(a: cupy.ndarray) -> tuple[int, ...]:
    return tuple(stride // a.itemsize for stride in a.strides)


def _layout(axes: int, *arrays: cupy.ndarray) -> levels.Layout:
    lead = arrays[0].ndim - axes
    return levels.merge(arrays[0].shape[:lead], *(_strides(a)[:lead] for a in arrays))


def fit(axes: int, *arrays: cupy.ndarray) -> bool:
    """Return whether the kernels can step through the arrays as they lie."""
    lead = arrays[0].ndim - axes
    return (
        all(levels.is_row(a.shape[lead:], _strides(a)[lead:]) for a in arrays)
        and len(_layout(axes, *arrays).extents) <= levels.LEVELS
    )


def _access(plan: Plan, a: cupy.ndarray | None, strides: tuple[int, ...] | None = None) -> str:
    """Return how the kernel reaches an array's packets: an `Access` of kernels/stream.cuh.

    `strides` are those of an array of rows, in bytes, None for a parameter.
    """
    if a is None:
        return "ALIGNED"
    pack = plan.vec * int(a.itemsize)
    starts = (a.data.ptr, *(strides or ()))
    if all(start % min(PACKET_BYTES, pack) == 0 for start in starts):
        return "ALIGNED"
    shifts = strides is not None and plan.split.lanes >= WARP and pack == PACKET_BYTES
    return "SHIFTED" if shifts else "ELEMENTS"


@lru_cache(maxsize=1024)
def _numbers(
    extents: tuple[int, ...],
    strides: tuple[tuple[int, ...], ...],
    accumulator: str,
    scalars: tuple[float, ...],
) -> np.ndarray:
    """Return the kernel's last argument: Numbers of its translation unit."""
    dtype = np.dtype(
        [
            ("count", np.int64),
            ("extent", np.int64, 2),
            ("strides", np.int64, (len(strides), levels.LEVELS)),
            *((f"scalar{i}", accumulator) for i in range(len(scalars))),
        ],
        align=True,
    )
    unused = (0,) * (levels.LEVELS - len(extents))
    return np.array(
        (prod(extents), (*unused, *extents)[1:], [unused + steps for steps in strides], *scalars),
        dtype,
    )
