"""Races in global memory: accesses of two blocks of one launch that nothing orders.

Blocks run in any order, and at the same time. What orders two of them is a fence of the one, and
afterwards an atomic or volatile access of the other, as where the last block adds up what all
have written. The blocks of a cluster count as one here: see `cluster_races`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..device import sources
from ..lanes import Array
from .record import Access, Race, Record, Stamps, Store

if TYPE_CHECKING:
    from ..execution.launch import Launch
    from ..execution.warps import Batch
    from ..memory.allocation import Allocation
    from ..ptx.program import Op


# How CuPy labels connected regions: each kernel reads links that other blocks are shortening, and
# finds its way from old links too.
RACES_MEANT = "cupyx_scipy_ndimage_label_"


class BlockRaces:
    """The global accesses of a launch: a record for each allocation that it touches."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.size = launch.shape.size
        self.rank_bits = (self.size - 1).bit_length()
        most = -(-launch.blocks // self.size) << self.rank_bits
        self.stamps = Stamps(most, self.rank_bits, timed=launch.program.orders)
        self.records: dict[Allocation, Record] = {}
        self.time = 1
        # The time of each block's last fence, and of its last access that may see another's.
        self.fenced = np.zeros(most if launch.program.orders else 0, np.int64)
        self.looked = self.fenced.copy()

    def numbers(self, batch: Batch) -> Array:
        """Return who each lane of a batch is: its block, numbered cluster by cluster."""
        blocks = np.arange(batch.first, batch.first + batch.blocks)
        who = blocks // self.size << self.rank_bits | blocks % self.size
        return np.repeat(who, batch.padded).astype(self.stamps.dtype)

    def access(
        self,
        kind: Access,
        op: Op,
        who: Array,
        allocation: Allocation,
        index: Array,
        width: int,
        store: Store | None,
    ) -> tuple[Race, faults.Place] | None:
        """Check accesses at these units of `width` bytes, and keep them.

        Returns the race, if there is one, with the place of the earlier access.
        """
        record = self.records.get(allocation)
        if record is None:
            record = self.records[allocation] = Record(allocation.data.size, self.stamps)
        if index.size != who.size:
            index = np.broadcast_to(index, who.size)
        stamps = who + self.stamps.base(op, self.time)
        race = record.access(kind, index, width, stamps, 0, self._ordered, store)
        return None if race is None else (race, self._place(race.stamp))

    def _place(self, stamp: int) -> faults.Place:
        who = stamp & self.stamps.who
        block = (who >> self.rank_bits) * self.size + (who & ((1 << self.rank_bits) - 1))
        op = self.stamps.op(stamp)
        place = faults.Place(block=self.launch.shape.block(block))
        if op is None:
            return place
        return sources.placed(place, op.statement, self.launch.function)

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        if not self.fenced.size:
            return np.zeros(earlier.shape, bool)
        time = earlier >> self.stamps.time_shift
        looked = self.looked[later & self.stamps.who]
        # Atomics have an order of their own: one's own may stand behind all the others'.
        ordered: Array = (
            time <= looked
            if atomic
            else (time < self.fenced[earlier & self.stamps.who]) & (time < looked)
        )
        return ordered

    def publish(self, who: Array) -> None:
        """Take note of a fence."""
        self._tick(self.fenced, who)

    def acquire(self, who: Array) -> None:
        """Take note of an access that may see what others did before their fences."""
        self._tick(self.looked, who)

    def _tick(self, times: Array, who: Array) -> None:
        if times.size:
            self.time = min(self.time + 1, self.stamps.last_time)
            times[who] = self.time
