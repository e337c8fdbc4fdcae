"""Races: accesses of two parties to one place that no clock has in order.

There are four kinds. Of a block's warps in shared memory; of the lanes of one warp in shared
memory, for programs that ask for it; of a launch's blocks in global memory, where those of a
cluster count as one; of a cluster's blocks in global memory, by the clock of their warps.
"""

from __future__ import annotations

import math
from typing import Generic, TypeVar

import numpy as np

from ..device.geometry import Geometry, Shape
from ..lanes import WARP, Array
from ..memory.access import Part
from ..memory.allocation import Allocation
from ..memory.segment import Segment
from ..ptx.op import Op
from .clock import Clock, GridClock
from .record import Race, Record, Stamps, Touch

C = TypeVar("C", Clock, GridClock)


class Races(Generic[C]):
    """The accesses to some memories, a record for each, held against a clock.

    Parameters
    ----------
    clock : Clock or GridClock
        Who is in order with whom; its parties may be others than those of the stamps.
    stamps : Stamps
        Who accesses, and who of them are one party.
    """

    def __init__(self, clock: C, stamps: Stamps) -> None:
        self.clock: C = clock
        self.stamps = stamps
        self.records: dict[Segment | Allocation, Record] = {}

    def access(
        self, touch: Touch, numbers: Array, memory: Segment | Allocation, part: Part
    ) -> Race | None:
        """Check an access to a part of a memory, and keep it.

        `numbers` are of those who make it, as `Stamps.numbers` has them.
        """
        view, index, _ = part
        record = self.records.get(memory)
        if record is None:
            record = self.records[memory] = Record(memory.data.size, self.stamps)
        if index.size != numbers.size:
            index = index.repeat(numbers.size)
        stamps = numbers + self.stamps.base(touch.op, self.clock.tick())
        settled = self.clock.settled
        floor = (settled + 1 << self.stamps.time_shift) - 1 if settled else 0
        return record.access(touch, view, index, stamps, floor, self._ordered)

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        who, time = self.stamps.who, earlier >> self.stamps.time_shift
        return self.clock.ordered(who(earlier), who(later), time, atomic)

    def earlier(self, race: Race) -> tuple[Op | None, int]:
        """Return the operation of a race's earlier access, and who made it."""
        return self.stamps.op(race.stamp), int(self.stamps.who(np.array([race.stamp]))[0])

    def since(self, race: Race) -> str:
        """Return what is missing between a race's two accesses."""
        now = race.stamp >> self.stamps.time_shift == self.clock.time
        return "at the same time" if now else "with no barrier since"


class LaneRaces(Races[Clock]):
    """Those between the lanes of one warp.

    Since sm_70 they need not run in lockstep: where one writes what another reads, a
    ``__syncwarp`` belongs in between. Shuffles and votes let lanes meet, but do not order memory.
    Lanes that write one place with one instruction are no race: one of them wins.
    """

    def access(
        self, touch: Touch, numbers: Array, memory: Segment | Allocation, part: Part
    ) -> Race | None:
        """Check an access to a part of a memory, and keep it."""
        if touch.written is None:
            return super().access(touch, numbers, memory, part)
        # Of the lanes of one instruction the last wins, and the others wrote nothing.
        view, index, _ = part
        index = np.broadcast_to(index, numbers.size)
        places, last = np.unique(index[::-1], return_index=True)
        kept = index.size - 1 - last
        touch = touch._replace(written=np.broadcast_to(touch.written, index.size)[kept])
        race = super().access(touch, numbers[kept], memory, (view, places, None))
        return race and Race(int(kept[race.position]), race.verb, race.stamp)

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        # What one instruction does is in order, but its atomics come in any.
        ordered = super()._ordered(earlier, later, atomic=False)
        ordered |= earlier >> self.stamps.time_shift == self.clock.time
        return ordered

    def since(self, race: Race) -> str:
        """Return what is missing between a race's two accesses."""
        return "with no __syncwarp since"


def between_warps(batch: Geometry) -> Races[Clock]:
    """Return the races of blocks' warps in shared memory; in a cluster they are one team."""
    clock = Clock(batch.lanes, WARP, batch.shape.size * batch.padded // WARP)
    clock.in_use = batch.clustered  # for global memory
    return Races(clock, Stamps(batch.lanes, WARP))


def between_lanes(batch: Geometry) -> Races[Clock]:
    """Return the races of the lanes of each warp in shared memory."""
    return LaneRaces(Clock(batch.lanes, 1, WARP), Stamps(batch.lanes))


def between_neighbours(batch: Geometry, warps: Races[Clock]) -> Races[Clock]:
    """Return the races of each cluster's blocks in global memory, by the clock of their warps."""
    return Races(warps.clock, Stamps(batch.lanes, batch.padded))


def between_blocks(shape: Shape, orders: bool) -> Races[GridClock]:
    """Return the races of a launch's blocks in global memory; those of a cluster are one party.

    `orders` says whether anything in the program can order two of them.
    """
    blocks = math.prod(shape.grid)
    stamps = Stamps(blocks, shape.size, timed=orders)
    return Races(GridClock(blocks if orders else 0, stamps.last_time), stamps)
