"""Asynchronous copies to shared memory: what was asked for, and has not been waited for.

Hardware writes at some moment before the wait. Here the bytes are read when the copy is issued and
land when it is waited for, and any access to the place in between is a fault: what it would see
depends on luck.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import Array, Lanes, indices
from ..memory.access import Access, BadAccess, Part
from ..memory.segment import Spaces
from ..ptx.op import Op
from ..sanitizer.checks import Checks
from ..sanitizer.record import Touch

HANDED_OVER = -1  # the group of a copy whose completion an mbarrier stands for


@dataclass(eq=False)
class Copy:
    """One instruction's copies, by lane: where to, the bytes, and the lane's group it is in.

    `index` counts units of all shared memory, which `view` holds.
    """

    op: Op
    lanes: Array
    view: Array
    index: Array
    values: Array
    group: Array

    @property
    def width(self) -> int:
        """Bytes of one unit."""
        return int(self.view.dtype.itemsize)

    def part(self, which: Array) -> Copy:
        """Return the copies of some of the lanes."""
        return Copy(
            self.op, self.lanes[which], self.view, self.index[which], self.values[which],
            self.group[which],
        )  # fmt: skip


class CopiesInFlight:
    """The copies of a batch of blocks that have not landed."""

    def __init__(self, batch: Geometry, spaces: Spaces, checks: Checks) -> None:
        self.batch, self.spaces, self.checks = batch, spaces, checks
        self.flying: list[Copy] = []
        self.groups = np.zeros(0, np.int64)  # how many groups each lane has committed
        self.busy = np.zeros(0, np.int32)  # copies in flight to each byte of shared memory

    def issue(self, op: Op, lanes: Lanes, part: Part, values: Array, *, grouped: bool) -> Copy:
        """Take note of copies to a part of shared memory, one unit a lane."""
        batch = self.batch
        here = indices(lanes, batch.lanes)
        if not self.groups.size:
            self.groups = np.zeros(batch.lanes, np.int64)
            self.busy = np.zeros(self.spaces.shared.data.size, np.int32)
        group = self.groups[here] if grouped else np.full(here.shape, HANDED_OVER)
        view, index, _ = part
        copy = Copy(op, here, view, np.broadcast_to(index, here.shape), values, group)
        self._mark(copy, 1)
        self.flying.append(copy)
        return copy

    def _mark(self, copy: Copy, by: int) -> None:
        np.add.at(self.busy.reshape(-1, copy.width), copy.index, by)

    def check(self, index: Array, width: int) -> None:
        """Refuse an access to units of `width` bytes that a copy is in flight to."""
        units = self.busy.reshape(-1, width)[index] != 0
        if not units.any():
            return
        position, byte = (int(at) for at in np.argwhere(units)[0])
        at = int(index[position]) * width
        byte += at
        copy = next(copy for copy in self.flying if (copy.index == byte // copy.width).any())
        lane = int(copy.lanes[(copy.index == byte // copy.width).argmax()])
        place = self.batch.place(copy.op, lane)
        offset = at % self.spaces.shared.stride
        what = (
            f"{width}-byte access at offset {offset:#x} of shared memory, which an"
            f" asynchronous copy of thread {place.thread} may still be writing: {place.instruction}"
        )
        raise BadAccess(faults.CopyInFlight, what, position)

    def commit(self, lanes: Lanes) -> None:
        """End the group of copies of these lanes."""
        if self.groups.size:
            self.groups[slice(None) if lanes is None else lanes] += 1

    def wait(self, lanes: Lanes, pending: int | None) -> None:
        """Land the lanes' copies but for their last `pending` groups; None for all there are."""
        for copy, mine in self._of(lanes):
            if pending is not None:
                mine &= copy.group < self.groups[copy.lanes] - pending
            if mine.any():
                self.land(copy.part(mine))
                self._keep(copy, ~mine)

    def hand_over(self, lanes: Array, places: Array) -> list[tuple[int, Copy]]:
        """Take the copies of these lanes out of their groups, for the mbarriers at these places."""
        place_of = np.zeros(self.batch.lanes, np.int64)
        place_of[lanes] = places
        handed = []
        for copy, mine in self._of(lanes):
            at = place_of[copy.lanes]
            for place in np.unique(at[mine]).tolist():
                part = copy.part(mine & (at == place))
                part.group[:] = HANDED_OVER
                handed.append((place, part))
            self._keep(copy, ~mine)
        self.flying.extend(part for _, part in handed)
        return handed

    def _of(self, lanes: Lanes) -> list[tuple[Copy, Array]]:
        """Return the copies in groups of these lanes, and which of each copy's lanes they are."""
        if not self.flying:
            return []
        chosen = np.zeros(self.batch.lanes, bool)
        chosen[slice(None) if lanes is None else lanes] = True
        found = [(copy, chosen[copy.lanes] & (copy.group != HANDED_OVER)) for copy in self.flying]
        return [(copy, mine) for copy, mine in found if mine.any()]

    def _keep(self, copy: Copy, kept: Array) -> None:
        """Leave in flight what is kept of a copy."""
        at = self.flying.index(copy)
        self.flying[at : at + 1] = [copy.part(kept)] if kept.any() else []

    def arrive(self, copy: Copy) -> None:
        """Land a copy that was handed over."""
        self.flying.remove(copy)
        self.land(copy)

    def land(self, copy: Copy) -> None:
        """Write the bytes."""
        touch = Touch(Access.WRITE, copy.op, copy.lanes, copy.width, copy.values)
        self.checks.shared(touch, self.spaces.shared, (copy.view, copy.index, None))
        copy.view[copy.index] = copy.values
        self._mark(copy, -1)
