"""What every access to shared and global memory is checked for, beyond its address."""

from __future__ import annotations

import functools

import numpy as np

from .. import faults
from ..device import sources
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Lanes, indices
from ..memory.access import Part
from ..memory.allocation import Allocation
from ..memory.segment import Segment
from ..memory.space import GlobalMemory
from ..ptx.op import Op
from .clock import Clock, GridClock
from .exemptions import Exemption
from .races import Races, between_lanes, between_neighbours, between_warps
from .record import Touch


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
        self.lanes = between_lanes(batch) if memory.warp_races else None
        self.blocks = blocks
        self.neighbours = between_neighbours(batch, self.warps) if batch.clustered else None
        name = batch.program.kernel.name
        self.uninitialised = memory.uninitialised or Exemption.READS_IN_VAIN.of(name)
        copies = Exemption.COPIES_UNWRITTEN.of(name)
        # Of a copy, whether what each lane read last was written; and the fault, if it reads on.
        self._copied = np.ones(batch.lanes, bool) if copies else None
        self._unwritten: faults.Uninitialised | None = None

    # Made by the first access or fence that needs them, which most kernels do not have.

    @functools.cached_property
    def warps(self) -> Races[Clock]:
        """The accesses of warps to shared memory."""
        return between_warps(self.batch)

    @functools.cached_property
    def _in_shared(self) -> list[Races[Clock]]:
        return [self.warps] if self.lanes is None else [self.warps, self.lanes]

    @functools.cached_property
    def _everyone(self) -> Array:
        return np.arange(self.batch.lanes)

    # Accesses.

    def shared(self, touch: Touch, segment: Segment, part: Part) -> None:
        """Check an access to shared memory."""
        if touch.kind.strong:
            self.acquire(touch.lanes)
        view, index, _ = part
        here = self._everyone if touch.lanes is None else touch.lanes
        for races in self._in_shared:
            race = races.access(touch, here, segment, part)
            if race is not None:
                before = self.batch.place(*races.earlier(race))
                which = f"thread {before.thread}{' of the same warp' * (races is self.lanes)}"
                what = (
                    f"{touch} at offset {_at(touch, index, race.position) % segment.stride:#x} of"
                    f" shared memory, which {which} {race.verb} {races.since(race)}:"
                    f" {before.instruction}"
                )
                raise faults.SharedRace(what, self._place(touch, race.position))
        if touch.kind.reads and not self.uninitialised:
            position = segment.written.unwritten(index, view.dtype)
            if position is not None:
                what = (
                    f"{touch} at offset {_at(touch, index, position) % segment.stride:#x} of"
                    " shared memory, not all of which this launch has written"
                )
                # What all lanes share is blamed on the first of them.
                raise faults.SharedUninitialised(what, self._place(touch, position))
        if touch.kind.writes:
            segment.written.write(index, view.dtype)

    def outside(self, touch: Touch, addresses: Array, parts: list[Part]) -> None:
        """Check an access to global memory."""
        if touch.kind.strong:
            self.acquire(touch.lanes)
        for part in parts:
            which = part[2]
            first = addresses[0 if which is None else which[0]]
            allocation = self.memory.find(int(first))
            assert allocation is not None
            some = touch
            if which is not None:
                written = touch.written
                some = touch._replace(
                    lanes=indices(touch.lanes, self.batch.lanes)[which],
                    written=written if written is None or written.size == 1 else written[which],
                )
            self._allocated(some, allocation, part)

    def _allocated(self, touch: Touch, allocation: Allocation, part: Part) -> None:
        self._between_blocks(touch, allocation, part)
        copied = None if self._copied is None else self._carried(self._copied, touch)
        if allocation.written is None:
            return
        view, index, _ = part
        if touch.kind.reads and not self.uninitialised:
            position = allocation.written.unwritten(index, view.dtype)
            if position is not None:
                at = _at(touch, index, position)
                what = (
                    f"{touch} at global address {allocation.address + at:#x}, {at} bytes into"
                    f" {allocation!r}, not all of which was ever written"
                )
                fault = faults.Uninitialised(what, self._place(touch, position))
                if self._copied is None:
                    raise fault
                here = indices(touch.lanes, self.batch.lanes)
                self._copied[here] = allocation.written.known(index, view.dtype)
                self._unwritten = fault
        if touch.kind.writes:
            if copied is not None and copied.size == index.size:
                allocation.written.forget(index[~copied], view.dtype)
                index = index[copied]
            allocation.written.write(index, view.dtype)
            allocation.forget_if_written()

    def _carried(self, copied: Array, touch: Touch) -> Array:
        """Return whether these lanes have what was written, which they are to write now."""
        here = indices(touch.lanes, self.batch.lanes)
        carried = copied[here]
        if self._unwritten is not None and touch.kind.reads and not carried.all():
            raise self._unwritten  # for what was read before was none of the elements
        copied[here] = True
        return carried

    def _between_blocks(self, touch: Touch, allocation: Allocation, part: Part) -> None:
        race, before, lanes = None, faults.Place(), touch.lanes
        if self.blocks is not None:
            who = self._blocks[1] if lanes is None else self._blocks[1][lanes]
            race = self.blocks.access(touch, who, allocation, part)
            if race is not None:
                before = self._earlier_block(*self.blocks.earlier(race))
        if race is None and self.neighbours is not None:
            who = self._neighbours if lanes is None else self._neighbours[lanes]
            race = self.neighbours.access(touch, who, allocation, part)
            if race is not None:
                before = self.batch.place(*self.neighbours.earlier(race))
        if race is None:
            return
        at = _at(touch, part[1], race.position) - (allocation.address - allocation.base)
        what = (
            f"{touch} at global address {allocation.address + at:#x}, {at} bytes into"
            f" {allocation!r}, which block {before.block} of the same launch {race.verb}, in no"
            f" order: {before.instruction}"
        )
        raise faults.GlobalRace(what, self._place(touch, race.position))

    def _earlier_block(self, op: Op | None, block: int) -> faults.Place:
        place = faults.Place(block=self.batch.shape.block(block))
        kernel = self.batch.program.kernel
        return place if op is None else sources.placed(place, op.statement, kernel)

    def _place(self, touch: Touch, position: int) -> faults.Place:
        return self.batch.place(touch.op, int(indices(touch.lanes, self.batch.lanes)[position]))

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


def _at(touch: Touch, index: Array, position: int) -> int:
    """Return at which byte one of an access's lanes is, though all may share one index."""
    return int(index[position if index.size > 1 else 0]) * touch.width
