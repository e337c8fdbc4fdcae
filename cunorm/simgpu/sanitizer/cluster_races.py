"""Races in global memory between the blocks of one cluster.

To the other blocks of a launch a cluster counts as one. Its own blocks run at the same time, and
what orders them is what orders warps in the shared memory of the cluster: a barrier of the cluster,
an mbarrier, or a fence of the one and afterwards an atomic or volatile access of the other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import WARP_BITS, Array, Lanes
from .record import Access, Race, Record, Stamps, Store
from .shared_races import SharedRaces

if TYPE_CHECKING:
    from ..memory.allocation import Allocation
    from ..ptx.program import Op


class ClusterRaces:
    """The global accesses of the clusters in a batch: a record for each allocation.

    Parameters
    ----------
    races : SharedRaces
        Who knows of whom; its clock is used here too.
    """

    def __init__(self, races: SharedRaces) -> None:
        self.races = races
        self.batch = races.batch
        # Lanes are numbered so that those of a block share their upper bits.
        self.bits = (self.batch.padded - 1).bit_length()
        self.stamps = Stamps(self.batch.blocks << self.bits, self.bits)
        blocks, lanes = np.divmod(np.arange(self.batch.lanes), self.batch.padded)
        self.who = blocks << self.bits | lanes
        self.records: dict[Allocation, Record] = {}

    def access(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
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
        who = self.who if lanes is None else self.who[lanes]
        if index.size != who.size:
            index = np.broadcast_to(index, who.size)
        stamps = who + self.stamps.base(op, self.races.tick())
        race = record.access(kind, index, width, stamps, 0, self._ordered, store)
        if race is None:
            return None
        earlier = int(self._lane(np.array([race.stamp]))[0])
        return race, self.batch.place(self.stamps.op(race.stamp), earlier)

    def _lane(self, stamps: Array) -> Array:
        who = stamps & self.stamps.who
        lane: Array = (who >> self.bits) * self.batch.padded + (who & ((1 << self.bits) - 1))
        return lane

    def _ordered(self, earlier: Array, later: Array, atomic: bool) -> Array:
        before, now = self._lane(earlier) >> WARP_BITS, self._lane(later) >> WARP_BITS
        time, team = earlier >> self.stamps.time_shift, self.races.team
        ordered: Array = time <= self.races.known[now, before % team]
        if atomic:
            ordered |= time <= self.races.looked[now]
        # Between clusters it is for the whole launch to judge.
        ordered |= before // team != now // team
        return ordered
