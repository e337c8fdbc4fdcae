"""Operations on the lanes of a batch: with all of them together, or for some while others wait.

Registers are never written in place: an array may stand in several of them. A register that holds
one value for all lanes is an array of one element.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .. import faults
from ..device import sources
from ..lanes import Array, Lanes
from ..memory.space import Segment
from ..ptx.program import Op, Program

if TYPE_CHECKING:
    from ..ptx.statements import Statement
    from .launch import Launch

FEW = 8  # a group below this fraction of the lanes is gathered; a larger one computes in every lane


class Registers(list[Array]):
    """The register file of a batch, which knows its batch."""

    __slots__ = ("batch",)
    batch: Execution


class Execution:
    """The registers and memory of some neighbouring blocks of a launch.

    Attributes
    ----------
    lanes : int
        Threads, with each block padded to whole warps; the padding never lives.
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
        self.active: Lanes = None
        self.steps = 0
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

    def space_at(self, top: int) -> str | None:
        """Return which space a generic address with these upper bits points into."""
        shared = "cluster" if self.launch.shape.size > 1 else "shared"
        return {0: "global", 1: shared, 2: "local", 3: "param"}.get(top)

    # Operations.

    def run_some(self, ops: list[Op], lanes: Array, kept: int) -> None:
        """Run operations for a group while other lanes, which want the slots `kept`, wait."""
        few = lanes.size * FEW < self.lanes
        registers = self.registers
        mask: Array | None = None
        for op in ops:
            if op.guard >= 0:
                self._guarded(op, lanes, kept)
            elif not op.pure:
                self.effect(op, lanes, kept)
            elif few:
                self._gathered(op, lanes, kept)
            else:
                # Computing every lane costs less than gathering; only what others want is merged.
                results = op.function(*[registers[slot] for slot in op.sources])
                for target, result in _pairs(op, results):
                    if kept >> target & 1:
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
            self.merge(target, result, lanes, kept)

    def effect(self, op: Op, lanes: Lanes, kept: int) -> None:
        """Run an operation with effects for a group."""
        registers = self.registers
        operands = [registers[slot] for slot in op.sources]
        if lanes is not None:
            operands = [value if value.size == 1 else value[lanes] for value in operands]
        results = op.function(self, op, lanes, *operands)
        for target, result in zip(op.targets, results, strict=True):
            self.merge(target, result, lanes, kept)

    def merge(self, target: int, result: Array, lanes: Lanes, kept: int) -> None:
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
        self.effect(op, self.active, 0)

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
            self.effect(op, chosen, kept)
        elif chosen is None:
            for target, result in _pairs(
                op, op.function(*[self.registers[slot] for slot in op.sources])
            ):
                self.registers[target] = result
        else:
            self._gathered(op, chosen, kept)

    def place(self, at: Op | Statement | None, lane: int) -> faults.Place:
        """Return where a lane is, in the words of faults."""
        block, thread = divmod(lane, self.padded)
        place = faults.Place(
            kernel=self.program.kernel.name,
            block=self.launch.shape.block(self.first + block),
            thread=_coordinates(thread, self.launch.block),
        )
        statement = at.statement if isinstance(at, Op) else at
        return place if statement is None else sources.placed(place, statement, self.program.kernel)


def _pairs(op: Op, results: Any) -> Any:
    return zip(op.targets, results if len(op.targets) != 1 else (results,), strict=True)


def _coordinates(index: int, extent: tuple[int, int, int]) -> tuple[int, int, int]:
    x, y, _ = extent
    return index % x, index // x % y, index // (x * y)
