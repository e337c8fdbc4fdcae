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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from . import _check, _interop, _kernels
from ._launch import Launch
from ._plan import PACKET_BYTES

Arrays = Sequence[Any]  # each a cupy.ndarray or None
# Does all the work of a call; returns the arrays with those that were made, and, where calls of
# this kind may be repeated, what was launched.
Work = Callable[..., "tuple[Arrays, tuple[Launch, ...]]"]

# Kinds that are remembered, at about 2 KB each. A program has a few for each of its layers' shapes,
# times the numbers of rows that it meets.
MOST = 2048

_known: dict[tuple[Any, ...], Known] = {}


def remembered(*names: str) -> Callable[[Work], Callable[..., Arrays]]:
    """Decorate a function that checks, plans and launches, so that it need not do so twice.

    Parameters
    ----------
    *names : str
        The arrays of a call by their names in the kernel, in the order in which they are given.

    Returns
    -------
    function
        Turns ``work(op, arrays, *options) -> (arrays, launches)`` into
        ``call(op, arrays, options) -> arrays``.
    """

    def decorate(work: Work) -> Callable[..., Arrays]:
        def call(op: str, arrays: Arrays, options: tuple[object, ...]) -> Arrays:
            kind: tuple[Any, ...] | None
            try:
                kind, places = _look_at(op, arrays, options)
                known = _known.get(kind)
            except (AttributeError, TypeError):
                # An argument that is no CuPy array, or an option that is no key.
                kind, known = None, None
            if kind is None:
                foreign = _of_foreign_arrays(
                    op,
                    lambda own: call(op, own, options),
                    dict(zip(names, arrays, strict=True)),
                    options,
                )
                if foreign is not None:
                    return foreign
            if known is not None:
                complete = known.repeat(arrays, places)
                if complete is not None:
                    return complete
            complete, launches = work(op, arrays, *options)
            if kind is not None and launches:
                _remember(kind, Known.of(launches, names, arrays, complete))
            return complete

        if os.environ.get("CUNORM_NVTX", "0") in ("", "0"):
            return call
        return _as_ranges(call, names.index("x"))

    return decorate


def _as_ranges(call: Callable[..., Arrays], x: int) -> Callable[..., Arrays]:
    """Return the function as one whose calls are NVTX ranges of the op and of x, its place."""
    from cupyx.profiler import time_range

    def ranged(op: str, arrays: Arrays, options: tuple[object, ...]) -> Arrays:
        what = (getattr(arrays[x], attribute, "") for attribute in ("shape", "dtype"))
        with time_range(" ".join(map(str, (f"cunorm.{op}", *what)))):
            return call(op, arrays, options)

    return ranged


def clear() -> None:
    """Forget every call and every kernel."""
    _known.clear()
    _kernels.load.cache_clear()


def _of_foreign_arrays(
    op: str,
    call: Callable[[Arrays], Arrays],
    arrays: dict[str, Any],
    options: tuple[object, ...],
) -> Arrays | None:
    """Return what a call with arrays of another library returns; None where it takes none such.

    `call` makes the same call with CuPy arrays.
    """
    if _check.is_dask(arrays["x"]) and op in ("rms_norm", "layer_norm"):
        from ._dask import lazy

        return [lazy(op, arrays, options), *list(arrays.values())[1:]]
    return _interop.cross(op, call, arrays)


def _look_at(
    op: str, arrays: Arrays, options: tuple[object, ...]
) -> tuple[tuple[Any, ...], list[int]]:
    """Return the kind of a call, and where its arrays start."""
    # The types of options too: True is 1 to a dict, and no number to the checks.
    kind: list[object] = [op, options, *map(type, options)]
    places = []
    for a in arrays:
        if a is None:
            kind.append(None)
            places.append(0)
        else:
            memory = a.data
            place = memory.ptr
            kind.append(
                (type(a), a.shape, a.strides, a.dtype, memory.device_id, place % PACKET_BYTES)
            )
            places.append(place)
    return tuple(kind), places


def _remember(kind: tuple[Any, ...], known: Known) -> None:
    # To forget all at once needs no order and no lock; what is still in use comes back soon.
    if len(_known) >= MOST:
        _known.clear()
    _known[kind] = known


@dataclass(frozen=True)
class Known:
    """What a call leaves for others of its kind.

    Attributes
    ----------
    device : int
        The device of all arrays.
    launches : tuple of (Launch, function)
        Each kernel with all of its arguments but arrays, and what takes its arrays out of those of
        a call.
    made : tuple of (int, tuple of int, dtype)
        Arrays to be made: position, shape and dtype.
    distances : tuple of (int, int, int, int, bool)
        Two positions, of what is written and of another array; the distances between their starts,
        exclusive, at which they might overlap; and whether they may be one and the same.
    """

    device: int
    launches: tuple[tuple[Launch, Callable[[Arrays], tuple[cupy.ndarray | None, ...]]], ...]
    made: tuple[tuple[int, tuple[int, ...], np.dtype[Any]], ...]
    distances: tuple[tuple[int, int, int, int, bool], ...]

    @staticmethod
    def of(
        launches: tuple[Launch, ...], names: tuple[str, ...], given: Arrays, complete: Arrays
    ) -> Known:
        """Return what to keep of a call: the arrays that were given, and with those made."""
        position = {name: index for index, name in enumerate(names)}
        made = tuple(
            (index, after.shape, after.dtype)
            for index, (before, after) in enumerate(zip(given, complete, strict=True))
            if before is None and after is not None
        )
        distances = tuple(
            (
                position[written],
                other,
                *_distances(given[position[written]], a),
                other == position[twin] and _check.laid_out_alike(given[position[written]], a),
            )
            for launch in launches
            for written, twin in launch.written.items()
            for other, a in enumerate(given)
            if a is not None and given[position[written]] is not None and other != position[written]
        )
        taken = tuple(
            (launch, itemgetter(*(position[name] for name in launch.arrays))) for launch in launches
        )
        return Known(launches[0].device, taken, made, distances)

    def repeat(self, arrays: Arrays, places: Sequence[int]) -> Arrays | None:
        """Launch again, and return the arrays with those that were made.

        Parameters
        ----------
        arrays : sequence of cupy.ndarray or None
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
                return self.repeat(arrays, places)
        for written, other, low, high, may_be_same in self.distances:
            distance = places[written] - places[other]
            if low < distance < high and (distance != 0 or not may_be_same):
                return None
        if self.made:
            arrays = list(arrays)
            for index, shape, dtype in self.made:
                arrays[index] = made = cupy.empty(shape, dtype)
                # CuPy's pools align to more than this, but a program may bring its own allocator.
                if made.data.ptr % PACKET_BYTES:
                    return None
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
