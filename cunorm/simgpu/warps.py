"""Who runs next: the lanes of a batch of blocks, their divergence, barriers and budget.

Lanes that stand at the same block of the program run together, those at the lowest block first, so
that diverged lanes meet again where their ways join. As long as all live lanes are together, every
operation is one NumPy call over whole registers.

Registers are never written in place: an array may stand in several of them. A register that holds
one value for all lanes is an array of one element.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from . import faults
from .barriers import Barriers
from .isa import Array
from .memory import Segment
from .program import Op, Program
from .terminators import Groups, Lanes, Meeting

if TYPE_CHECKING:
    from .launch import Launch

WARP = 32
PATIENCE = 1024  # runs of lower blocks before a waiting group above them gets a turn: spin locks
FEW = 8  # a group below this fraction of the lanes is gathered; a larger one computes in every lane


class Registers(list[Array]):
    """The register file of a batch, which knows its batch."""

    __slots__ = ("batch",)
    batch: Batch


class Batch:
    """Some neighbouring blocks of a launch, executed together.

    Attributes
    ----------
    lanes : int
        Threads, with each block padded to whole warps; the padding never lives.
    live : ndarray of bool
        Which lanes have not exited; `live_count` of them.
    active : ndarray or None
        The lanes of the group at work, None for all.
    """

    WINDOW_BITS = 48

    def __init__(self, launch: Launch, first: int, blocks: int) -> None:
        self.launch = launch
        self.program: Program = launch.program
        self.memory = launch.memory
        self.first = first
        self.blocks = blocks
        self.padded = launch.padded
        self.lanes = blocks * launch.padded
        self.registers = Registers(self.program.initial)
        self.registers.batch = self
        self.live = np.tile(launch.exists, blocks)
        self.live_count = blocks * launch.threads
        self.threads = self.live_count
        self.active: Lanes = None
        self.waiting: dict[int, list[Lanes]] = {}
        self.meetings: dict[int, Array] = {}
        self.barriers = Barriers(self)
        self.steps = 0
        self.kept = 0
        self._segments: dict[str, tuple[Segment, Array]] = {}
        launch.fill(self)

    # Memory spaces.

    def segment(self, space: str) -> tuple[Segment, Array]:
        """Return the memory of a space, and which piece of it each lane owns."""
        found = self._segments.get(space)
        if found is None:
            found = self._segments[space] = self._make_segment(space)
        return found

    def _make_segment(self, space: str) -> tuple[Segment, Array]:
        if space == "shared":
            owners = np.arange(self.lanes) // self.padded if self.blocks > 1 else np.zeros(1, int)
            nbytes = self.launch.shared_bytes
            return Segment(space, self.blocks, nbytes, faults.SharedOutOfBounds), owners
        if space == "local":
            nbytes = self.program.local_bytes
            return (
                Segment(space, self.lanes, nbytes, faults.LocalOutOfBounds),
                np.arange(self.lanes),
            )
        return self.launch.parameters, np.zeros(1, int)

    @staticmethod
    def space_at(top: int) -> str | None:
        """Return which space a generic address with these upper bits points into."""
        return {0: "global", 1: "shared", 2: "local", 3: "param"}.get(top)

    # Running.

    def run(self) -> None:
        """Run until every lane has exited."""
        everyone = None if self.live_count == self.lanes else np.flatnonzero(self.live)
        self.waiting[0] = [everyone]
        blocks, budget, turns = self.program.blocks, self.launch.budget, 0
        while True:
            if not self.waiting:
                if not self.live_count:
                    return
                self._stuck()
            if len(self.waiting) == 1:
                index, groups = self.waiting.popitem()
            else:
                turns += 1
                index = min(self.waiting) if turns % PATIENCE else max(self.waiting)
                groups = self.waiting.pop(index)
            lanes = groups[0] if len(groups) == 1 else _joined(groups)
            block = blocks[index]
            while True:
                self.steps += len(block.steps) + 1
                if self.steps > budget:
                    self._endless(index, lanes)
                self.active = lanes
                if (self.lanes if lanes is None else lanes.size) == self.live_count:
                    registers = self.registers
                    for step in block.steps:
                        step(registers)
                elif block.ops:
                    self._run_some(block.ops, lanes)
                groups_after: Groups = block.terminator.advance(self, lanes)
                if len(groups_after) == 1 and not self.waiting and not self.meetings:
                    # One group and nobody else: straight on.
                    index, lanes = groups_after[0]
                    block = blocks[index]
                    continue
                break
            for target, group in groups_after:
                self.waiting.setdefault(target, []).append(group)

    def _run_some(self, ops: list[Op], lanes: Lanes) -> None:
        """Run a block for a group while other lanes wait elsewhere."""
        assert lanes is not None
        wanted = self.program.wanted
        self.kept = self.barriers.wanted()
        for index in self.waiting:
            self.kept |= wanted[index]
        for index in self.meetings:
            self.kept |= wanted[index]
        few = lanes.size * FEW < self.lanes
        registers = self.registers
        mask: Array | None = None
        for op in ops:
            if op.guard >= 0:
                self._guarded(op, lanes, self.kept)
            elif not op.pure:
                self._effect(op, lanes, self.kept)
            elif few:
                self._gathered(op, lanes, self.kept)
            else:
                # Computing every lane costs less than gathering; only what others want is merged.
                results = op.function(*[registers[slot] for slot in op.sources])
                for target, result in _pairs(op, results):
                    if self.kept >> target & 1:
                        if mask is None:
                            mask = np.zeros(self.lanes, bool)
                            mask[lanes] = True
                        result = np.where(mask, result, registers[target])
                    registers[target] = result

    def _gathered(self, op: Op, lanes: Array, kept: int) -> None:
        registers = self.registers
        operands = [
            value if value.size == 1 else value[lanes]
            for value in [registers[slot] for slot in op.sources]
        ]
        results = op.function(*operands)
        for target, result in _pairs(op, results):
            self._merge(target, result, lanes, kept)

    def _effect(self, op: Op, lanes: Lanes, kept: int) -> None:
        registers = self.registers
        operands = [registers[slot] for slot in op.sources]
        if lanes is not None:
            operands = [value if value.size == 1 else value[lanes] for value in operands]
        results = op.function(self, op, lanes, *operands)
        for target, result in zip(op.targets, results, strict=True):
            self._merge(target, result, lanes, kept)

    def _merge(self, target: int, result: Array, lanes: Lanes, kept: int) -> None:
        """Put a group's results into a register; `kept` says what other lanes want unchanged."""
        registers = self.registers
        keep = kept >> target & 1
        if lanes is None or (result.size == 1 and not keep):
            registers[target] = result
            return
        old = registers[target]
        new = np.empty(self.lanes, result.dtype)
        if keep:
            new[:] = old
        new[lanes] = result
        registers[target] = new

    def step_effect(self, op: Op) -> None:
        """Run an operation with effects, with all live lanes together."""
        self._effect(op, self.active, 0)

    def step_guarded(self, op: Op) -> None:
        """Run an operation under a predicate, with all live lanes together."""
        self._guarded(op, self.active, -1)

    def _guarded(self, op: Op, lanes: Lanes, kept: int) -> None:
        taken = self.registers[op.guard]
        if op.negated:
            taken = ~taken
        if taken.size == 1:
            if not taken[0]:
                return
            chosen = lanes
        else:
            chosen = np.flatnonzero(taken) if lanes is None else lanes[taken[lanes]]
            if chosen.size == 0:
                return
            # The lanes of the group whose predicate is false keep their registers too.
            kept = -1
        if not op.pure:
            self._effect(op, chosen, kept)
        elif chosen is None:
            for target, result in _pairs(
                op, op.function(*[self.registers[slot] for slot in op.sources])
            ):
                self.registers[target] = result
        else:
            self._gathered(op, chosen, kept)

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

    def meet(self, meeting: Meeting, lanes: Lanes) -> Groups:
        """Let lanes through a collective whose named members are all here; others wait."""
        op = meeting.op
        index = meeting.follower - 1
        here = np.arange(self.lanes) if lanes is None else lanes
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
        kept = 0
        if not everyone:
            kept = self.barriers.wanted()
            for other in (*self.waiting, *self.meetings):
                kept |= self.program.wanted[other]
        self._effect(op, group, kept)
        return ((meeting.follower, group),)

    def ballot(self, chosen: Array) -> Array:
        """Return each warp's bits of the chosen lanes, given as a mask or as indices."""
        if chosen.dtype != bool:
            mask = np.zeros(self.lanes, bool)
            mask[chosen] = True
            chosen = mask
        return np.packbits(chosen, bitorder="little").view(np.uint32)

    def _stuck(self) -> None:
        """Name who is missed: nobody can run, and lanes are waiting."""
        for index, waiting in self.meetings.items():
            op = self.program.blocks[index].terminator.op
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
        self.barriers.stuck()

    def _endless(self, index: int, lanes: Lanes) -> None:
        block = self.program.blocks[index]
        lane = int(np.flatnonzero(self.live)[0]) if lanes is None else int(lanes[0])
        op = block.ops[0] if block.ops else None
        what = f"the launch used up its budget of {self.launch.budget} operations"
        raise faults.EndlessLoop(what, self.place(op, lane))

    def place(self, op: Op | None, lane: int) -> faults.Place:
        """Return where a lane is, in the words of faults."""
        block, thread = divmod(lane, self.padded)
        place = faults.Place(
            kernel=self.program.kernel.name,
            block=_coordinates(self.first + block, self.launch.grid),
            thread=_coordinates(thread, self.launch.block),
        )
        if op is None:
            return place
        at = op.statement
        return replace(place, ptx_line=at.line, ptx_text=at.text, source=at.source)


def _pairs(op: Op, results: Any) -> Any:
    return zip(op.targets, results if len(op.targets) != 1 else (results,), strict=True)


def _joined(groups: list[Lanes]) -> Lanes:
    """Merge groups that met, in the order of lanes."""
    return np.sort(np.concatenate([group for group in groups if group is not None]))


def _coordinates(index: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y, _ = extent
    return index % x, index // x % y, index // (x * y)
