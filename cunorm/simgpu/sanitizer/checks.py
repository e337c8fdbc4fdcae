"""What every access to shared and global memory is checked for, beyond its address."""

from __future__ import annotations

import functools

import numpy as np

from .. import faults
from ..device import sources
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Lanes, indices
from ..memory.access import Access, Part
from ..memory.allocation import Allocation
from ..memory.segment import Segment
from ..memory.space import GlobalMemory
from ..ptx.op import Op
from .clock import Clock, GridClock
from .races import Races, between_lanes, between_neighbours, between_warps
from .record import Race, Store

# CuPy's scan of rows reads a place that it may not have written, and then does not use it.
READS_IN_VAIN = {"cupy_inclusive_batch_scan_kernel"}


class Checks:
    """The checks of a batch of blocks, and what they must know of barriers and fences.

    Parameters
    ----------
    blocks : Races or None
        Those of all the launch's blocks, where there are several.
    """

    def __init__(
        self, batch: Geometry, memory: GlobalMemory, blocks: Races[GridClock] | None
    ) -> None:
        self.batch, self.memory = batch, memory
        self.warps = between_warps(batch)
        self.lanes = between_lanes(batch) if memory.warp_races else None
        self.blocks = blocks
        self.neighbours = between_neighbours(batch, self.warps) if batch.clustered else None
        in_vain = batch.program.kernel.name in READS_IN_VAIN
        self.uninitialised = memory.uninitialised or in_vain
        self._everyone = np.arange(batch.lanes)
        self._in_shared = [races for races in (self.warps, self.lanes) if races is not None]

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
        here = self._everyone if lanes is None else lanes
        for races in self._in_shared:
            race = races.access(kind, op, here, segment, index, width, store)
            if race is not None:
                self._shared_race(races, race, kind, op, here, segment, index, width)
        if kind.reads and not self.uninitialised:
            position = segment.written.unwritten(index, view.dtype)
            if position is not None:
                offset = int(index[position]) * width % segment.stride
                what = f"{width}-byte {kind.value} at offset {offset:#x} of shared memory, not all"
                what += " of which this launch has written"
                self._raise(faults.SharedUninitialised, what, op, lanes, index, position)
        if kind.writes:
            segment.written.write(index, view.dtype)

    def _shared_race(
        self,
        races: Races[Clock],
        race: Race,
        kind: Access,
        op: Op,
        here: Array,
        segment: Segment,
        index: Array,
        width: int,
    ) -> None:
        before = self.batch.place(*races.earlier(race))
        which = f"thread {before.thread}{' of the same warp' * (races is self.lanes)}"
        offset = int(np.broadcast_to(index, here.size)[race.position]) * width % segment.stride
        raise faults.SharedRace(
            f"{width}-byte {kind.value} at offset {offset:#x} of shared memory, which {which}"
            f" {race.verb} {races.since(race)}: {before.instruction}",
            self.batch.place(op, int(here[race.position])),
        )

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
            allocation = self.memory.find(int(first))
            assert allocation is not None
            if which is not None:
                here = indices(lanes, self.batch.lanes)
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
        if self.blocks is not None or self.neighbours is not None:
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
        race, before = None, faults.Place()
        if self.blocks is not None:
            who = self._blocks[1] if lanes is None else self._blocks[1][lanes]
            race = self.blocks.access(kind, op, who, allocation, index, width, store)
            if race is not None:
                before = self._earlier_block(*self.blocks.earlier(race))
        if race is None and self.neighbours is not None:
            who = self._neighbours if lanes is None else self._neighbours[lanes]
            race = self.neighbours.access(kind, op, who, allocation, index, width, store)
            if race is not None:
                before = self.batch.place(*self.neighbours.earlier(race))
        if race is None:
            return
        at = int(index[race.position if index.size > 1 else 0]) * width
        at -= allocation.address - allocation.base
        what = (
            f"{width}-byte {kind.value} at global address {allocation.address + at:#x}, {at} bytes"
            f" into {allocation!r}, which block {before.block} of the same launch {race.verb}, in"
            f" no order: {before.instruction}"
        )
        raise faults.GlobalRace(what, self._place(op, lanes, race.position))

    def _earlier_block(self, op: Op | None, block: int) -> faults.Place:
        place = faults.Place(block=self.batch.shape.block(block))
        kernel = self.batch.program.kernel
        return place if op is None else sources.placed(place, op.statement, kernel)

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
    def _blocks(self) -> tuple[Array, Array]:
        """The block of each lane, and its number in stamps."""
        assert self.blocks is not None
        blocks = np.arange(self.batch.first, self.batch.first + self.batch.blocks)
        pair = blocks, self.blocks.stamps.numbers(blocks)
        own, numbers = (np.repeat(each, self.batch.padded) for each in pair)
        return own, numbers

    @functools.cached_property
    def _neighbours(self) -> Array:
        """The number of each lane in stamps of clusters' blocks."""
        assert self.neighbours is not None
        return self.neighbours.stamps.numbers(self._everyone)

    def publish(self, lanes: Lanes, *, beyond: bool = False) -> None:
        """Let others know what these lanes did: a fence or a release, perhaps beyond the block."""
        self.warps.clock.publish(lanes)
        if self.lanes is not None:
            self.lanes.clock.publish(lanes)
        if beyond and self.blocks is not None and self.batch.program.orders:
            self.blocks.clock.publish(self._blocks[0] if lanes is None else self._blocks[0][lanes])

    def acquire(self, lanes: Lanes) -> None:
        """Let these lanes know what others published."""
        self.warps.clock.acquire(lanes)
        if self.lanes is not None:
            self.lanes.clock.acquire(lanes)
        if self.blocks is not None and self.batch.program.orders:
            self.blocks.clock.acquire(self._blocks[0] if lanes is None else self._blocks[0][lanes])

    def barrier_of_all(self) -> None:
        """Take note that the lanes of each block met at its barrier."""
        self.warps.clock.meet_each(self.batch.padded // WARP)
        if self.lanes is not None:
            self.lanes.clock.meet_each(WARP)

    def barrier(self, lanes: Array, *, arrivals: bool) -> None:
        """Take note that these lanes of one block met, perhaps with others that did not wait."""
        self.warps.clock.meet(lanes)
        if self.lanes is not None:
            self.lanes.clock.catch_up(lanes)
        if arrivals:
            self.warps.clock.acquire(lanes)

    def warp_barrier(self, lanes: Lanes, members: Array) -> None:
        """Take note that these lanes met others of their warps, by these masks."""
        if self.lanes is None:
            return
        here = indices(lanes, self.batch.lanes)
        masks = np.broadcast_to(members, here.size).astype(np.int64)
        for warp, mask in np.unique(np.stack([here // WARP, masks]), axis=1).T.tolist():
            self.lanes.clock.meet(WARP * warp + np.flatnonzero(mask >> np.arange(WARP) & 1))
