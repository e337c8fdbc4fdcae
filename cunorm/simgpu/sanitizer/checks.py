"""What every access to shared and global memory is checked for, beyond its address."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array, Lanes
from .cluster_races import ClusterRaces
from .lane_races import LaneRaces
from .record import Access, Store
from .shared_races import SharedRaces

if TYPE_CHECKING:
    from ..execution.warps import Batch
    from ..memory.allocation import Allocation
    from ..memory.space import Part, Segment
    from ..ptx.program import Op


# CuPy's scan of rows reads a place that it may not have written, and then does not use it.
READS_IN_VAIN = {"cupy_inclusive_batch_scan_kernel"}


class Checks:
    """The checks of a batch of blocks, and what they must know of barriers and fences."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.races = SharedRaces(batch)
        self.block_races = batch.launch.block_races
        clustered = batch.launch.shape.size > 1
        self.cluster_races = ClusterRaces(self.races) if clustered else None
        self.lane_races = LaneRaces(batch) if batch.memory.warp_races else None
        in_vain = batch.program.kernel.name in READS_IN_VAIN
        self.uninitialised = batch.memory.uninitialised or in_vain

    # Accesses.

    def shared(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        segment: Segment,
        part: Part,
        width: int,
        written: Array | None,
    ) -> None:
        """Check accesses to shared memory; `written` is what plain stores put there."""
        if kind.strong:
            self.acquire(lanes)
        view, index, _ = part
        store = None if written is None else (view, written)
        self.races.access(kind, op, lanes, segment, index, width, store)
        if self.lane_races is not None:
            self.lane_races.access(kind, op, lanes, segment, index, width, store)
        if kind.reads and not self.uninitialised:
            position = segment.written.unwritten(index, view.dtype)
            if position is not None:
                offset = int(index[position]) * width % segment.stride
                what = f"{width}-byte {kind.value} at offset {offset:#x} of shared memory, not all"
                what += " of which this launch has written"
                self._raise(faults.SharedUninitialised, what, op, lanes, index, position)
        if kind.writes:
            segment.written.write(index, view.dtype)

    def outside(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        addresses: Array,
        parts: list[Part],
        width: int,
        written: Array | None,
    ) -> None:
        """Check accesses to global memory."""
        if kind.strong:
            self.acquire(lanes)
        for part in parts:
            which = part[2]
            first = addresses[0 if which is None else which[0]]
            allocation = self.batch.memory.find(int(first))
            assert allocation is not None
            if which is not None:
                here = np.arange(self.batch.lanes) if lanes is None else lanes
                some = written if written is None or written.size == 1 else written[which]
                self._allocated(kind, op, here[which], allocation, part, width, some)
            else:
                self._allocated(kind, op, lanes, allocation, part, width, written)

    def _allocated(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        allocation: Allocation,
        part: Part,
        width: int,
        written: Array | None,
    ) -> None:
        view, index, _ = part
        if self.block_races is not None or self.cluster_races is not None:
            store = None if written is None else (view, written)
            self._between_blocks(kind, op, lanes, allocation, index, width, store)
        if allocation.written is None:
            return
        if kind.reads and not self.uninitialised:
            position = allocation.written.unwritten(index, view.dtype)
            if position is not None:
                at = int(index[position]) * width
                what = f"{width}-byte {kind.value} at global address {allocation.address + at:#x},"
                what += f" {at} bytes into {allocation!r}, not all of which was ever written"
                self._raise(faults.Uninitialised, what, op, lanes, index, position)
        if kind.writes:
            allocation.written.write(index, view.dtype)
            allocation.forget_if_written()

    def _between_blocks(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        allocation: Allocation,
        index: Array,
        width: int,
        store: Store | None,
    ) -> None:
        found = None
        if self.block_races is not None:
            who = self._who if lanes is None else self._who[lanes]
            found = self.block_races.access(kind, op, who, allocation, index, width, store)
        if found is None and self.cluster_races is not None:
            found = self.cluster_races.access(kind, op, lanes, allocation, index, width, store)
        if found is None:
            return
        race, before = found
        at = int(index[race.position if index.size > 1 else 0]) * width
        at -= allocation.address - allocation.base
        what = (
            f"{width}-byte {kind.value} at global address {allocation.address + at:#x}, {at} bytes"
            f" into {allocation!r}, which block {before.block} of the same launch {race.verb}, in"
            f" no order: {before.instruction}"
        )
        raise faults.GlobalRace(what, self._place(op, lanes, race.position))

    def _raise(
        self,
        fault: type[faults.Fault],
        what: str,
        op: Op,
        lanes: Lanes,
        index: Array,
        position: int,
    ) -> None:
        # What all lanes share is blamed on the first of them.
        raise fault(what, self._place(op, lanes, position if index.size > 1 else 0))

    def _place(self, op: Op, lanes: Lanes, position: int) -> faults.Place:
        return self.batch.place(op, position if lanes is None else int(lanes[position]))

    # What orders accesses.

    @functools.cached_property
    def _who(self) -> Array:
        assert self.block_races is not None
        return self.block_races.numbers(self.batch)

    def publish(self, lanes: Lanes, *, beyond: bool = False) -> None:
        """Let others know what these lanes did: a fence or a release, perhaps beyond the block."""
        self.races.publish(lanes)
        if self.lane_races is not None:
            self.lane_races.publish(lanes)
        if beyond and self.block_races is not None:
            self.block_races.publish(self._who if lanes is None else self._who[lanes])

    def acquire(self, lanes: Lanes) -> None:
        """Let these lanes know what others published."""
        self.races.acquire(lanes)
        if self.lane_races is not None:
            self.lane_races.acquire(lanes)
        if self.block_races is not None and self.batch.program.orders:
            self.block_races.acquire(self._who if lanes is None else self._who[lanes])

    def barrier_of_all(self) -> None:
        """Take note that the lanes of each block met at its barrier."""
        self.races.barrier_of_all()
        if self.lane_races is not None:
            self.lane_races.barrier(None)

    def barrier(self, lanes: Array, *, arrivals: bool) -> None:
        """Take note that these lanes of one block met, perhaps with others that did not wait."""
        self.races.barrier(lanes)
        if self.lane_races is not None:
            self.lane_races.barrier(lanes)
        if arrivals:
            self.races.acquire(lanes)

    def warp_barrier(self, lanes: Lanes, members: Array) -> None:
        """Take note that these lanes met others of their warps, by these masks."""
        if self.lane_races is not None:
            self.lane_races.meet(lanes, members)
