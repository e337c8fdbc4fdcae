"""Races in shared memory between the lanes of one warp, for programs that ask for it.

Since sm_70 the lanes of a warp need not run in lockstep: where one writes what another reads, a
``__syncwarp`` belongs in between. Shuffles and votes let lanes meet, but do not order memory. Here
each lane is a party of its own, and the barriers that order two lanes are those of their warp and
of their block. Lanes that write one place with one instruction are no race: one of them wins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import WARP, Array, Lanes
from .record import Access, Record, Stamps, Store

if TYPE_CHECKING:
    from ..execution.warps import Batch
    from ..memory.space import Segment
    from ..ptx.program import Op


class LaneRaces:
    """The shared-memory accesses of a batch, lane by lane.

    A vector clock: `known[a, b]` is the time up to which everything that lane `b` of a warp did is
    in order with what lane `a` does now; `published` is what a warp's lanes made known by fences.
    """

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.stamps = Stamps(batch.lanes, 0)
        self.record: Record | None = None
        self.time = 1
        self.known = np.zeros((batch.lanes // WARP, WARP, WARP), np.int64)
        self.published = np.zeros((batch.lanes // WARP, WARP), np.int64)

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
        self.time += 1
        here = _every(self.batch, lanes)
        index = np.broadcast_to(index, here.size)
        if store is not None:
            # Of the lanes of one instruction the last wins, and the others wrote nothing.
            places, last = np.unique(index[::-1], return_index=True)
            kept = index.size - 1 - last
            store = store[0], np.broadcast_to(store[1], index.size)[kept]
            index, here = places, here[kept]
        stamps = here + self.stamps.base(op, self.time)
        race = self.record.access(kind, index, width, stamps, 0, self._ordered, store)
        if race is None:
            return
        before = self.batch.place(self.stamps.op(race.stamp), race.stamp & self.stamps.who)
        offset = int(index[race.position]) * width % segment.stride
        raise faults.SharedRace(
            f"{width}-byte {kind.value} at offset {offset:#x} of shared memory, which thread"
            f" {before.thread} of the same warp {race.verb} with no __syncwarp since:"
            f" {before.instruction}",
            self.batch.place(op, int(here[race.position])),
        )

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        before, now = earlier & self.stamps.who, later & self.stamps.who
        time = earlier >> self.stamps.time_shift
        known = self.known[now // WARP, now % WARP, before % WARP]
        # Between two warps it is for the block to judge.
        ordered: Array = (time <= known) | (before // WARP != now // WARP) | (time == self.time)
        return ordered

    def meet(self, lanes: Lanes, members: Array) -> None:
        """Order what lanes did that met at a ``__syncwarp``; `members` are their masks."""
        here = _every(self.batch, lanes)
        masks = np.broadcast_to(members, here.size).astype(np.int64)
        for group in np.unique(np.stack([here // WARP, masks]), axis=1).T:
            warp, mask = map(int, group)
            inside = np.flatnonzero(mask >> np.arange(WARP) & 1)
            known = self.known[warp, inside].max(axis=0)
            known[inside] = self.time
            self.known[warp, inside] = known

    def barrier(self, lanes: Lanes) -> None:
        """Order everything that these lanes' warps did before what they do next."""
        here = _every(self.batch, lanes)
        self.known[here // WARP, here % WARP] = self.time

    def publish(self, lanes: Lanes) -> None:
        """Let other lanes of the warp, once they acquire, know what these did and know."""
        here = _every(self.batch, lanes)
        self.known[here // WARP, here % WARP, here % WARP] = self.time
        np.maximum.at(self.published, here // WARP, self.known[here // WARP, here % WARP])

    def acquire(self, lanes: Lanes) -> None:
        """Let these lanes know what was published."""
        here = _every(self.batch, lanes)
        at = here // WARP, here % WARP
        self.known[at] = np.maximum(self.known[at], self.published[here // WARP])


def _every(batch: Batch, lanes: Lanes) -> Array:
    return np.arange(batch.lanes) if lanes is None else lanes
