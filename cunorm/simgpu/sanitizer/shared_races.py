"""Races in shared memory: accesses of two warps of a block with no barrier in between.

What orders two warps is a barrier that both took part in, or a fence of the one and afterwards an
atomic or volatile access of the other, as in a lock. Accesses of one warp are in program order:
lanes that diverged and never met count as ordered too, so that code written for warps in lockstep
passes. `lane_races` looks closer, where a program asks for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import WARP, WARP_BITS, Array, Lanes
from .record import Access, Record, Stamps, Store

if TYPE_CHECKING:
    from ..execution.warps import Batch
    from ..memory.space import Segment
    from ..ptx.program import Op


class SharedRaces:
    """The shared-memory accesses of a batch of blocks.

    A vector clock: `known[w, v]` is the time up to which everything that warp `v` of the team did
    is in order with what warp `w` does now. `published` is the same for what a team's warps made
    known with a fence. A team is the warps that share memory: a block's, or a cluster's.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.team = batch.launch.shape.size * batch.padded // WARP
        self.stamps = Stamps(batch.lanes, WARP_BITS)
        self.record: Record | None = None
        # Whether there is anything to keep in order; of a cluster, global memory is too.
        self.in_use = batch.launch.shape.size > 1
        self.everyone = np.arange(batch.lanes)
        self.time = 1
        self.floor = 0
        warps = batch.lanes // WARP
        self.known = np.zeros((warps, self.team), np.int64)
        self.looked = np.zeros(warps, np.int64)  # the time of the last atomic or volatile access
        self.published = np.zeros((warps // self.team, self.team), np.int64)

    def tick(self) -> int:
        """Return the time of one more access."""
        self.time += 1
        return self.time

    def access(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        segment: Segment,
        index: Array,
        width: int,
        store: Store | None,
    ) -> None:
        """Check accesses at these units of `width` bytes, and keep them."""
        if self.record is None:
            self.record = Record(segment.data.size, self.stamps)
            self.in_use = True
        self.tick()
        here = self.everyone if lanes is None else lanes
        if index.size != here.size:
            index = np.broadcast_to(index, here.size)
        stamps = here + self.stamps.base(op, self.time)
        race = self.record.access(kind, index, width, stamps, self.floor, self._ordered, store)
        if race is None:
            return
        batch, lane = self.batch, int(here[race.position])
        other = race.stamp & self.stamps.who
        offset = int(index[race.position]) * width % segment.stride
        before = batch.place(self.stamps.op(race.stamp), other)
        now = race.stamp >> self.stamps.time_shift == self.time
        between = "at the same time" if now else "with no barrier since"
        raise faults.SharedRace(
            f"{width}-byte {kind.value} at offset {offset:#x} of shared memory, which thread"
            f" {before.thread} {race.verb} {between}: {before.instruction}",
            batch.place(op, lane),
        )

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        warp = (later & self.stamps.who) >> WARP_BITS
        before = (earlier & self.stamps.who) >> WARP_BITS
        time = earlier >> self.stamps.time_shift
        ordered: Array = time <= self.known[warp, before % self.team]
        # Atomics have an order of their own: one's own may stand behind all the others'.
        return ordered | (time <= self.looked[warp]) if atomic else ordered

    def _warps(self, lanes: Lanes) -> Array:
        if lanes is None:
            return np.arange(self.known.shape[0])
        return np.unique(lanes >> WARP_BITS)

    def barrier(self, lanes: Array) -> None:
        """Order everything that these lanes of one block did before what they do next."""
        if not self.in_use:
            return
        warps = self._warps(lanes)
        self.known[warps, warps % self.team] = self.time
        self.known[warps] = self.known[warps].max(axis=0)

    def barrier_of_all(self) -> None:
        """Order everything, where every thread of every block is at its barrier."""
        if not self.in_use:
            return
        size = self.batch.launch.shape.size
        if size == 1:
            self.known[:] = self.time
            self.floor = (self.time + 1 << self.stamps.time_shift) - 1
            return
        # The blocks of a cluster are still strangers: each shares what its own warps know.
        blocks = self.known.reshape(-1, size, self.team // size, self.team)
        blocks[:] = blocks.max(axis=2, keepdims=True)
        for rank in range(size):
            own = slice(rank * self.team // size, (rank + 1) * self.team // size)
            blocks[:, rank, :, own] = self.time

    def publish(self, lanes: Lanes) -> None:
        """Let others of the team, once they acquire, know what these warps know and did."""
        if not self.in_use:
            return
        warps = self._warps(lanes)
        self.known[warps, warps % self.team] = self.time
        np.maximum.at(self.published, warps // self.team, self.known[warps])

    def acquire(self, lanes: Lanes) -> None:
        """Let these warps know what was published."""
        if not self.in_use:
            return
        warps = self._warps(lanes)
        self.looked[warps] = self.time + 1
        self.known[warps] = np.maximum(self.known[warps], self.published[warps // self.team])
