"""The registers of a batch, and operations on them: with all lanes, or for some while others wait.

Registers are never written in place: an array may stand in several of them. A register that holds
one value for all lanes is an array of one element.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..device.geometry import Geometry
from ..lanes import Array, Groups, Lanes, indices
from ..ptx.op import Op
from ..ptx.program import Block
from ..sync.context import Follower, Watch

NOBODY = np.zeros(0, np.int64)
FEW = 8  # a group below this fraction of the lanes is gathered; a larger one computes in every lane


class Registers(list[Array]):
    """The register file of a batch, which knows its batch."""

    __slots__ = ("batch",)
    batch: Execution


Step = Callable[[Registers], None]


class Execution:
    """The registers of a batch of blocks.

    Attributes
    ----------
    lanes : int
        Threads, with each block padded to whole warps; the padding never lives.
    active : ndarray or None
        The lanes of the group at work, None for all.
    watch : Watch or None
        Who counts.
    """

    def __init__(self, geometry: Geometry, watch: Watch | None) -> None:
        self.geometry = geometry
        self.program = geometry.program
        self.lanes = geometry.lanes
        self.registers = Registers(self.program.initial)
        self.registers.batch = self
        self.active: Lanes = None
        self.watch = watch

    def release(self) -> None:
        """Let go of the registers: in a cycle, they would wait for the garbage collector.

        Memory that the next batch then takes again is still in the processor's caches:
        `examples/llama.py` took 1.36 s of CPU without, 1.15 s with (CuPy's import left out).
        """
        self.registers.clear()
        del self.registers.batch

    def run_some(self, ops: list[Op], lanes: Array, kept: int) -> None:
        """Run operations for a group while other lanes, which want the slots `kept`, wait."""
        few = lanes.size * FEW < self.lanes
        registers = self.registers
        mask: Array | None = None
        for op in ops:
            if op.guard >= 0:
                self.guarded(op, lanes, kept)
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

    def followed(self, follower: Follower, block: Block, lanes: Lanes, kept: int | None) -> None:
        """Run a block of the program, and tell who follows of each operation by itself.

        `kept` is as of `run_some`, None where no lane waits.
        """
        for op in block.ops:
            chosen = self.chosen(op, lanes)
            if kept is None or lanes is None:
                step_of(op)(self.registers)
            else:
                self.run_some([op], lanes, kept)
            if op.pure and (chosen is None or chosen.size):
                follower.computed(op, chosen)
            if chosen is not None and chosen is not lanes:
                follower.passed_over(op, np.setdiff1d(indices(lanes, self.lanes), chosen))
        follower.ends(block.terminator, lanes)

    def told(self, groups: Groups, *, of_cluster: bool = False) -> Groups:
        """Tell who follows that lanes go on from a barrier of a block or a cluster; return them."""
        if self.watch is not None and self.watch.follower is not None:
            unit = self.geometry.padded * (self.geometry.shape.size if of_cluster else 1)
            self.watch.follower.met([lanes for _, lanes in groups], unit)
        return groups

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
        if lanes is None:
            results = op.function(self, op, None, *operands)
            for target, result in zip(op.targets, results, strict=True):
                registers[target] = result
        else:
            operands = [value if value.size == 1 else value[lanes] for value in operands]
            results = op.function(self, op, lanes, *operands)
            for target, result in zip(op.targets, results, strict=True):
                self.merge(target, result, lanes, kept)
        if self.watch is not None:
            self.watch.performed(self.geometry, op, lanes)

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

    def chosen(self, op: Op, lanes: Lanes) -> Lanes:
        """Return those of a group for which an operation's predicate holds."""
        if op.guard < 0:
            return lanes
        taken = self.registers[op.guard]
        if op.negated:
            taken = ~taken
        if taken.size == 1:
            return lanes if taken[0] else NOBODY
        return taken.nonzero()[0] if lanes is None else lanes[taken[lanes]]

    def guarded(self, op: Op, lanes: Lanes, kept: int) -> None:
        """Run an operation under a predicate for those of a group for which it holds."""
        chosen = self.chosen(op, lanes)
        if chosen is not None and chosen.size == 0:
            return
        if self.registers[op.guard].size > 1:
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


def _pairs(op: Op, results: Any) -> Any:
    return zip(op.targets, results if len(op.targets) != 1 else (results,), strict=True)


def step_of(op: Op) -> Step:
    """Return an operation for the case that every live lane takes part."""
    if op.guard >= 0:
        return lambda registers: registers.batch.guarded(op, registers.batch.active, -1)
    if not op.pure:
        return lambda registers: registers.batch.effect(op, registers.batch.active, 0)
    function, sources, targets = op.function, op.sources, op.targets
    if len(targets) != 1:

        def several(registers: Registers) -> None:
            results = function(*[registers[slot] for slot in sources])
            for target, result in zip(targets, results, strict=True):
                registers[target] = result

        return several
    target = targets[0]
    # Spelled out by arity: this is the inner loop of everything.
    if len(sources) == 1:
        (a,) = sources

        def one(registers: Registers) -> None:
            registers[target] = function(registers[a])

        return one
    if len(sources) == 2:
        a, b = sources

        def two(registers: Registers) -> None:
            registers[target] = function(registers[a], registers[b])

        return two
    if len(sources) == 3:
        a, b, c = sources

        def three(registers: Registers) -> None:
            registers[target] = function(registers[a], registers[b], registers[c])

        return three

    def many(registers: Registers) -> None:
        registers[target] = function(*[registers[slot] for slot in sources])

    return many
