"""Calls of a kind seen before: launched as the first one was, without working it out again.

Checks, plan, kernel and numbers follow from a call's kind: the op, its options, and for each array
its type, shape, strides, dtype, device and alignment. What a kind leaves open is where the arrays
lie, so that is all that a later call still has to look at: whatever it writes must lie apart from
all else, or be its own input. Any other call goes the long way, which decides exactly and raises.

What is kept of a call holds none of its arrays.

Where the environment variable CUNORM_NVTX is set when cunorm's ops are loaded, each call is a range
for a profiler; where it is not, calls do not even ask.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from .. import _check
from .._families import LAZY, Op
from .._interop import libraries
from .._launch import kernels
from .._launch.launches import Launch
from .._plan import PACKET_BYTES, Way, tuning
from .._typing import Arrays

# Does all the work of a call; returns the arrays with those that were made, and, where calls of
# this kind may be repeated, what was launched.
Work = Callable[..., "tuple[Arrays, tuple[Launch, ...]]"]
# Takes an op, its arrays in the order of `Op.slots` and the values of its options; returns what the
# op returns. They have names from where they are worked out on: a dict for each call would cost
# calls that are only repeated 2 % of their time.
Call = Callable[[Op, "tuple[Any, ...]", "tuple[object, ...]"], Any]

# Kinds that are remembered, at about 2 KB each. A program has a few for each of its layers' shapes,
# times the numbers of rows that it meets.
MOST = 2048

_known: dict[tuple[Any, ...], Remembered] = {}


def remembered(work: Work) -> Call:
    """Return ``work(op, arrays, options)`` as a call that does not do it twice."""

    def call(op: Op, given: tuple[Any, ...], options: tuple[object, ...]) -> Any:
        kind: tuple[object, ...] | None
        try:
            kind, places = _look_at(op, given, options)
            known = _known.get(kind)
        except (AttributeError, TypeError):
            # An argument that is no CuPy array, or an option that is no key.
            kind, known = None, None
        if known is not None:
            complete = known.repeat(given, places)
            if complete is not None:
                return known.results(complete)
        arrays = dict(zip(op.slots, given, strict=True))
        if kind is None:
            if op.name in LAZY and _check.is_dask(arrays[op.leader]):
                from .._interop.dask_array import lazy

                return lazy(op, arrays, options)
            crossed = libraries.cross(op, lambda own: call(op, own, options), arrays)
            if crossed is not None:
                return crossed
        worked_out, launches = work(op, arrays, options)
        if kind is not None and launches:
            _remember(kind, Remembered.of(op, launches, arrays, worked_out))
        return op.results(arrays, worked_out)

    if os.environ.get("CUNORM_NVTX", "0") in ("", "0"):
        return call
    return _as_ranges(call)


def _as_ranges(call: Call) -> Call:
    """Return the function as one whose calls are NVTX ranges of the op and of x, its place."""
    from cupyx.profiler import time_range

    def ranged(op: Op, given: tuple[Any, ...], options: tuple[object, ...]) -> Any:
        x = given[op.slots.index(op.leader)]
        what = (getattr(x, attribute, "") for attribute in ("shape", "dtype"))
        with time_range(" ".join(map(str, (f"cunorm.{op.name}", *what)))):
            return call(op, given, options)

    return ranged


@contextmanager
def by(way: Way | None) -> Iterator[list[tuning.Served]]:
    """Have every call meanwhile go one way, and list their launches, as `tuning.forced`."""
    _known.clear()
    try:
        with tuning.forced(way) as asked:
            yield asked
    finally:
        _known.clear()


def clear() -> None:
    """Forget every call and every kernel."""
    _known.clear()
    kernels.forget()


def _look_at(
    op: Op, given: tuple[Any, ...], options: tuple[object, ...]
) -> tuple[tuple[Any, ...], list[int]]:
    """Return the kind of a call, and where its arrays start."""
    # The types of options too: True is 1 to a dict, and no number to the checks.
    kind: list[object] = [op, options, *map(type, options)]
    places = []
    for a in given:
        if a is None:
            kind.append(None)
            places.append(0)
        else:
            memory = a.data
            place = memory.ptr
            # To know that an array is contiguous takes a sixth of the time that its strides take.
            layout = a._c_contiguous or a.strides
            kind += (type(a), a.shape, layout, a.dtype, memory.device_id, place % PACKET_BYTES)
            places.append(place)
    return tuple(kind), places


def _remember(kind: tuple[Any, ...], known: Remembered) -> None:
    # To forget all at once needs no order and no lock; what is still in use comes back soon.
    if len(_known) >= MOST:
        _known.clear()
    _known[kind] = known


@dataclass(frozen=True)
class Remembered:
    """What a call leaves for others of its kind.

    Its arrays have positions here: those that are given come first, then None, for what a call of
    this kind does not have, then those that are made.

    Attributes
    ----------
    device : int
        The device of all arrays.
    launches : tuple of (Launch, function)
        Each kernel with all of its arguments but arrays, and what takes its arrays out of those of
        a call.
    made : tuple of (tuple of int, dtype)
        Shapes and dtypes of arrays to be made.
    results : function
        What takes the arrays that the op returns out of those of a call.
    distances : tuple of (int, int, int, int, int, bool)
        Two positions, of what is written and of another array; the distances between their starts,
        exclusive, at which they might overlap, and the one at which they did not when the call was
        worked out, like slices of one buffer; and whether they may be one and the same.
    """

    device: int
    launches: tuple[tuple[Launch, Callable[[Sequence[Any]], tuple[cupy.ndarray | None, ...]]], ...]
    made: tuple[tuple[tuple[int, ...], np.dtype[Any]], ...]
    results: Callable[[Sequence[Any]], Any]
    distances: tuple[tuple[int, int, int, int, int, bool], ...]

    @staticmethod
    def of(op: Op, launches: tuple[Launch, ...], given: Arrays, complete: Arrays) -> Remembered:
        """Return what to keep of a call: the arrays that were given, and with those made."""
        made = {n: a for n, a in complete.items() if a is not None and given.get(n) is None}
        position = {name: index for index, name in enumerate(given)}
        place_of = position | {name: len(given) + 1 + index for index, name in enumerate(made)}

        def taker(names: Sequence[str]) -> Callable[[Sequence[Any]], Any]:
            return itemgetter(*(place_of.get(name, len(given)) for name in names))

        distances = tuple(
            (
                position[written],
                position[other],
                *_distances(given[written], a),
                given[written].data.ptr - a.data.ptr,
                other == twin
                and given[written].dtype == a.dtype
                and _check.laid_out_alike(given[written], a),
            )
            for launch in launches
            for written, twin in launch.written.items()
            for other, a in given.items()
            if a is not None and given[written] is not None and other != written
        )
        return Remembered(
            launches[0].device,
            tuple((launch, taker(launch.arrays)) for launch in launches),
            tuple((a.shape, a.dtype) for a in made.values()),
            taker(op.returned(given)),
            distances,
        )

    def repeat(self, given: tuple[Any, ...], places: Sequence[int]) -> Sequence[Any] | None:
        """Launch again, and return the arrays with those that were made.

        Parameters
        ----------
        given : tuple of cupy.ndarray or None
            Of the same kind.
        places : sequence of int
            Where they start.

        Returns
        -------
        sequence of cupy.ndarray or None
            None, and nothing is launched, where it takes a closer look to know whether they
            overlap.
        """
        if runtime.getDevice() != self.device:
            with cupy.cuda.Device(self.device):
                return self.repeat(given, places)
        for written, other, low, high, known, may_be_same in self.distances:
            distance = places[written] - places[other]
            if low < distance < high and distance != known and (distance or not may_be_same):
                return None
        arrays = [*given, None]
        for shape, dtype in self.made:
            made = cupy.empty(shape, dtype)
            # CuPy's pools align to more than this, but a program may bring its own allocator.
            if made.data.ptr % PACKET_BYTES:
                return None
            arrays.append(made)
        for launch, taken in self.launches:
            launch.enqueue(taken(arrays))
        return arrays


def _distances(a: cupy.ndarray, b: cupy.ndarray) -> tuple[int, int]:
    """Return the distances from b's start to a's between which their bounds overlap."""
    (a_low, a_high), (b_low, b_high) = _bounds(a), _bounds(b)
    return b_low - a_high, b_high - a_low


def _bounds(a: cupy.ndarray) -> tuple[int, int]:
    """Return the first byte of an array and the one after its last, from where it starts."""
    reach = [(n - 1) * stride for n, stride in zip(a.shape, a.strides, strict=True)]
    low = sum(r for r in reach if r < 0)
    high = sum(r for r in reach if r > 0)
    return low, high + a.itemsize
