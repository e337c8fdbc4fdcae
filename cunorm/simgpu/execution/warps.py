"""Who runs next: the lanes of a batch of blocks, their divergence, barriers and budget.

Lanes that stand at the same block of the program run together, those at the lowest block first, so
that diverged lanes meet again where their ways join. As long as all live lanes are together, every
operation is one NumPy call over whole registers.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import is_
from typing import TYPE_CHECKING, Any

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Groups, Lanes, indices, joined
from ..memory.access import BadAccess
from ..memory.segment import Spaces
from ..ptx.op import Op
from ..ptx.terminators import (
    Barrier,
    Branch,
    ClusterArrive,
    ClusterWait,
    Exit,
    IndexedBranch,
    Jump,
    Meeting,
)
from ..sanitizer.checks import Checks
from ..sync.barriers import Barriers, Leaving
from ..sync.clusters import Clusters
from ..sync.context import Context, Watch
from ..sync.copies_in_flight import CopiesInFlight
from ..sync.mbarriers import Mbarriers
from . import provenance
from .branches import branch, indexed_branch, jump
from .progress import PACE, Progress
from .registers import Execution, step_of
from .setup import Launch, repeated

PATIENCE = 1024  # polls of memory by lower blocks before a group above gets a turn: spin locks


class Batch(Execution):
    """Some neighbouring blocks of a launch, executed together: what instructions know as a Context.

    Attributes
    ----------
    live : ndarray of bool
        Which lanes have not exited; `live_count` of them.
    waiting : dict
        The groups that can run, by the block of the program they stand at.
    meetings : dict
        The lanes that wait for others at a warp collective, by its block.
    steps : int
        The instructions so far.
    yields : bool
        Whether the group at work would rather wait: an mbarrier told it that a phase goes on.
    """

    def __init__(
        self, launch: Launch, geometry: Geometry, progress: Progress, watch: Watch | None
    ) -> None:
        super().__init__(geometry, watch)
        self.launch, self.progress = launch, progress
        self.memory, self.device, self.printed = launch.memory, launch.device, launch.printed
        self.place = geometry.place
        self.steps, self.yields = 0, False
        self.live = repeated(launch.exists, geometry.blocks)
        self.live_count = geometry.blocks * geometry.threads
        self.waiting: dict[int, list[Lanes]] = {}
        self.meetings: dict[int, Array] = {}
        self._polled: dict[int, tuple[Lanes, list[Array]]] = {}
        self.spaces = Spaces(
            geometry.blocks,
            geometry.padded,
            launch.shared_bytes,
            self.program.local_bytes,
            launch.parameters,
            clustered=geometry.clustered,
        )
        self.checks = Checks(geometry, launch.memory, launch.races)
        self.barriers = Barriers(geometry, self.registers, self.live, self.checks)
        self.clusters = Clusters(geometry, self.live, self.checks)
        self.copies = CopiesInFlight(geometry, self.spaces, self.checks)
        self.mbarriers = Mbarriers(geometry, self.spaces, self.checks, self.clusters, self.copies)
        launch.fill(self.registers, geometry)

    def run(self) -> None:
        """Run until every lane has exited."""
        everyone = None if self.live_count == self.lanes else np.flatnonzero(self.live)
        self.waiting[0] = [everyone]
        blocks, pause, turns = self.program.blocks, self._pause(0, None), 0
        index, preferred, watch = 0, 0, self.watch
        follower = None if watch is None else watch.follower
        while True:
            if not self.waiting:
                if not self.live_count:
                    if watch is not None:
                        watch.finished(self.barriers.completed)
                    return
                self._stuck()
            if len(self.waiting) == 1:
                index, groups = self.waiting.popitem()
            else:
                last, index = index, min(self.waiting)
                if self.yields:
                    # Lanes that waited in vain let the next ones have their turn, in a circle.
                    self.yields = False
                    index = min((other for other in self.waiting if other > last), default=index)
                elif blocks[index].polls:
                    turns += 1
                    if self._spins(index):
                        others = [other for other in self.waiting if other != index]
                        index = min((at for at in others if at > preferred), default=min(others))
                        preferred = index
                    elif turns % PATIENCE == 0:
                        index = max(self.waiting)
                groups = self.waiting.pop(index)
            lanes = groups[0] if len(groups) == 1 else joined(groups)
            block = blocks[index]
            while True:
                self.steps += len(block.ops) + 1
                if self.steps > pause:
                    pause = self._pause(index, lanes)
                self.active = lanes
                if watch is not None:
                    watch.entered(self.geometry, index, lanes)
                together = (self.lanes if lanes is None else lanes.size) == self.live_count
                if follower is not None:
                    self.followed(follower, block, lanes, None if together else self._wanted())
                elif together:
                    registers, steps = self.registers, block.steps
                    if steps is None:
                        steps = block.steps = [step_of(op) for op in block.ops]
                    for step in steps:
                        step(registers)
                elif block.ops and lanes is not None:
                    self.run_some(block.ops, lanes, self._wanted())
                groups_after = ENDS[type(block.terminator)](self, block.terminator, lanes)
                for target, group in groups_after:
                    if blocks[target].ends:
                        self.barriers.leaves(index, group)
                if len(groups_after) == 1 and not self.waiting and not self.meetings:
                    # One group and nobody else: straight on.
                    index, lanes = groups_after[0]
                    block = blocks[index]
                    continue
                break
            for target, group in groups_after:
                self.waiting.setdefault(target, []).append(group)

    def _spins(self, index: int) -> bool:
        """Whether lanes are back at a block as they left it: only others' writes let them go on."""
        groups = self.waiting[index]
        wanted, slots = self.program.wanted[index], []
        while wanted:
            slots.append((wanted & -wanted).bit_length() - 1)
            wanted &= wanted - 1
        # A register that was not written holds the very same array.
        state = [self.registers[slot] for slot in slots]
        lanes, before = self._polled.pop(index, (None, []))
        here = groups[0] if len(groups) == 1 else joined(groups)
        assert here is not None
        if lanes is not None and np.array_equal(lanes, here) and all(map(is_, state, before)):
            return True
        self._polled[index] = (here, state)
        return False

    def _wanted(self) -> int:
        """Return the slots that lanes elsewhere will read."""
        kept = self.barriers.wanted() | self.clusters.wanted()
        for index in (*self.waiting, *self.meetings):
            kept |= self.program.wanted[index]
        return kept

    # Ends, and waiting for others.

    def retire(self, lanes: Lanes) -> None:
        """End lanes; those that wait for them to join a collective look again."""
        if lanes is None:
            self.live[:] = False
            self.live_count = 0
        else:
            self.live[lanes] = False
            self.live_count -= lanes.size
        for index, waiting in self.meetings.items():
            self.waiting.setdefault(index, []).append(waiting)
        self.meetings.clear()
        left = self.told(self.clusters.leave(), of_cluster=True)
        for index, group in (*left, *self._merged(self.barriers.after_exits())):
            self.waiting.setdefault(index, []).append(group)

    def _merged(self, leaving: Leaving) -> Groups:
        """Give lanes that leave a barrier its results, and return where they go on."""
        groups, results = leaving
        self.told(groups)
        for slot, result, group in results:
            self.merge(slot, result, group, -1)
        return groups

    def meet(self, meeting: Meeting, lanes: Lanes) -> Groups:
        """Let lanes through a collective whose named members are all here; others wait."""
        op = meeting.op
        index = meeting.follower - 1
        here = indices(lanes, self.lanes)
        if index in self.meetings:
            here = np.union1d(here, self.meetings.pop(index))
        mask = self.registers[op.sources[-1]]
        everyone = here.size == self.live_count
        if not (everyone and mask.size == 1 and int(mask[0]) == 0xFFFFFFFF):
            members = np.broadcast_to(mask if mask.size == 1 else mask[here], here.shape)
            outside = members >> (here % WARP).astype(np.uint32) & np.uint32(1) == 0
            if outside.any():
                at = int(outside.argmax())
                what = f"a lane runs a collective whose mask {int(members[at]):#010x} leaves it out"
                raise faults.MissingLanes(what, self.place(op, int(here[at])))
            lacking = members & self.ballot(self.live)[here // WARP]
            lacking = lacking & ~self.ballot(here)[here // WARP]
            if lacking.any():
                self.meetings[index] = here[lacking != 0]
                here = here[lacking == 0]
                if not here.size:
                    return ()
        group: Lanes = None if here.size == self.lanes else here
        self.effect(op, group, 0 if everyone else self._wanted())
        return ((meeting.follower, group),)

    def ballot(self, chosen: Array) -> Array:
        """Return each warp's bits of the chosen lanes, given as a mask or as indices."""
        if chosen.dtype != bool:
            mask = np.zeros(self.lanes, bool)
            mask[chosen] = True
            chosen = mask
        return np.packbits(chosen, bitorder="little").view(np.uint32)

    def explained(self, refusal: BadAccess, op: Op, lane: int) -> BadAccess:
        """Return a refusal of a global access, with the array that it is of where that is known."""
        return provenance.explained(refusal, self.launch, self.registers, op, lane)

    def _stuck(self) -> None:
        """Name who is missed: nobody can run, and lanes are waiting."""
        for index, waiting in self.meetings.items():
            (op,) = self.program.blocks[index].terminator.ops
            lane = int(waiting[0])
            mask = self.registers[op.sources[-1]]
            named = int(mask[lane if mask.size > 1 else 0])
            warp = lane // WARP
            missing = named & int(self.ballot(self.live)[warp]) & ~int(self.ballot(waiting)[warp])
            names = [bit for bit in range(WARP) if missing >> bit & 1]
            what = (
                f"a collective with mask {named:#010x} waits for lanes {names}, which do not come"
            )
            raise faults.MissingLanes(what, self.place(op, lane))
        self.clusters.stuck()
        self.barriers.stuck()

    def _pause(self, index: int, lanes: Lanes) -> int:
        """Look at the budget and the clock; return how many steps there are to the next look."""
        budget, block = self.progress.budget, self.program.blocks[index]
        statement = block.ops[0].statement if block.ops else block.terminator.statement
        if self.steps > budget:
            lane = int(np.flatnonzero(self.live)[0]) if lanes is None else int(lanes[0])
            raise faults.EndlessLoop(
                f"the launch used up its budget of {budget:,} instructions for each batch of blocks"
                " (--budget, or budget= of install(), sets another)",
                self.place(statement, lane),
            )
        self.progress.look(self.steps, statement)
        return min(budget, self.steps + PACE)


def _exit(batch: Batch, end: Exit, lanes: Lanes) -> Groups:
    batch.retire(lanes)
    return ()


def _barrier(batch: Batch, end: Barrier, lanes: Lanes) -> Groups:
    return batch._merged(batch.barriers.arrive(end, lanes))


def _cluster_arrive(batch: Batch, end: ClusterArrive, lanes: Lanes) -> Groups:
    on, *left = batch.clusters.arrive(end, lanes)
    return (on, *batch.told(left, of_cluster=True))


def _cluster_wait(batch: Batch, end: ClusterWait, lanes: Lanes) -> Groups:
    return batch.told(batch.clusters.wait(end, lanes), of_cluster=True)


if TYPE_CHECKING:

    def _as_instructions_see_it(batch: Batch) -> Context:
        return batch  # which is what they are called with, by way of functions of any kind


# What lanes do at the end of a block, by what it is: which of them go where.
ENDS: dict[type[Jump], Callable[[Batch, Any, Lanes], Groups]] = {
    Jump: jump,
    Branch: branch,
    IndexedBranch: indexed_branch,
    Exit: _exit,
    Barrier: _barrier,
    ClusterArrive: _cluster_arrive,
    ClusterWait: _cluster_wait,
    Meeting: Batch.meet,
}
