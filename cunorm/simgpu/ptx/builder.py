"""Operations and the ends of basic blocks, as instruction families ask for them."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .. import faults
from ..lanes import Array, Lanes
from .module import Function
from .op import Op
from .operands import CLOCKS, Operands, Scope, Site, Unknown
from .program import Block
from .terminators import (
    Barrier,
    Branch,
    ClusterArrive,
    ClusterWait,
    Exit,
    IndexedBranch,
    Jump,
    Meeting,
)
from .types import TYPES, Reading, compose, reading


class Builder(Operands):
    """The program under construction.

    Attributes
    ----------
    block : Block
        The basic block that operations are added to.
    pending : list
        Branches whose labels may stand further on: the terminator, its scope, the label.
    """

    def __init__(self, kernel: Function) -> None:
        super().__init__(kernel)
        self.block = Block()
        self._swapped: dict[str, set[str]] = {}
        self._composed: dict[tuple[Any, ...], Callable[..., Any]] = {}
        self.pending: list[tuple[Jump, Scope, str]] = []

    def end(self, terminator: Jump) -> None:
        """Close the current block."""
        self.block.terminator = terminator
        terminator.follower = len(self.program.blocks) + 1
        self.program.blocks.append(self.block)
        self.block = Block()

    def pure(
        self,
        site: Site,
        function: Callable[..., Any],
        targets: Sequence[tuple[str, str]],
        kinds: Sequence[str],
        sources: Sequence[str] | None = None,
    ) -> Op:
        """Build an operation on registers alone."""
        texts = site.operands[1:] if sources is None else sources
        return self._op(site, function, targets, list(zip(texts, kinds, strict=True)), pure=True)

    def effect(
        self,
        site: Site,
        function: Callable[..., Any],
        targets: Sequence[tuple[str, str]],
        sources: Sequence[tuple[str, str]],
    ) -> Op:
        """Build an operation with effects: ``function(batch, op, lanes, *operands)``."""
        return self._op(site, function, targets, sources, pure=False)

    def access(
        self,
        site: Site,
        function: Callable[..., Any],
        address: str,
        targets: Sequence[tuple[str, str]],
        sources: Sequence[tuple[str, str]],
        also: Sequence[str] = (),
    ) -> Op:
        """Build a memory operation: its first operands are its addresses, as uint64."""
        if also:
            return self._between(site, function, (address, *also), targets, sources)
        base, offset = self.address(site, address)
        declared = self.register_type(site, base)
        kind = "u64"
        if declared is not None:
            kind = f"u{TYPES[declared].bits}"
        step = np.array([offset & ((1 << int(kind[1:])) - 1)], TYPES[kind].dtype)
        short = kind != "u64"

        def accessed(batch: Any, op: Op, lanes: Lanes, at: Array, *values: Array) -> Any:
            if offset:
                at = at + step
            return function(batch, op, lanes, at.astype(np.uint64) if short else at, *values)

        return self.effect(site, accessed, targets, [(base, kind), *sources])

    def _between(
        self,
        site: Site,
        function: Callable[..., Any],
        texts: Sequence[str],
        targets: Sequence[tuple[str, str]],
        sources: Sequence[tuple[str, str]],
    ) -> Op:
        """Build an operation on several addresses."""
        places, steps = [], []
        for text in texts:
            base, offset = self.address(site, text)
            declared = self.register_type(site, base)
            kind = "u64" if declared is None else f"u{TYPES[declared].bits}"
            places.append((base, kind))
            steps.append(np.array([offset & ((1 << int(kind[1:])) - 1)], TYPES[kind].dtype))

        def accessed(batch: Any, op: Op, lanes: Lanes, *values: Array) -> Any:
            addresses = [
                (at + step).astype(np.uint64) for at, step in zip(values, steps, strict=False)
            ]
            return function(batch, op, lanes, *addresses, *values[len(steps) :])

        return self.effect(site, accessed, targets, [*places, *sources])

    def swaps(self, site: Site, address: str) -> bool:
        """Whether the function compares and swaps at this very address.

        A loop of compare-and-swap, as CUDA's guide has it for atomics that hardware lacks, begins
        with a plain load; what that finds is only a guess.
        """
        function = site.scope.function
        found = self._swapped.get(function.name)
        if found is None:
            found = self._swapped[function.name] = {
                statement.operands[1]
                for statement in function.statements
                if statement.opcode.startswith("atom.") and ".cas." in statement.opcode
            }
        return address in found

    def nothing(self, site: Site) -> Op:
        """Build an operation that does nothing."""
        return self._op(site, lambda batch, op, lanes: (), [], [], pure=False)

    @abstractmethod
    def call(self, site: Site) -> None:
        """Expand the device function that is called here."""

    def branch(self, site: Site, label: str) -> None:
        """End the block with a branch."""
        statement = site.statement
        if statement.guard is None:
            terminator = Jump(statement)
        else:
            slot, _ = self.source(site, statement.guard, "pred")
            terminator = Branch(statement, (slot,), negated=statement.negated)
        self.pending.append((terminator, site.scope, label))
        self.end(terminator)

    def indexed_branch(self, site: Site, index: str, table: str) -> None:
        """End the block with a jump through a table of labels."""
        labels = site.scope.function.tables.get(table)
        if labels is None:
            raise Unknown(f"branch targets {table} are not known")
        slot, convert = self.source(site, index, "u32")
        terminator = IndexedBranch(site.statement, (slot,), convert=convert, labels=labels)
        for label in labels:
            self.pending.append((terminator, site.scope, label))
        self.end(terminator)

    def leave(self, site: Site) -> None:
        """End the block with a return: out of the program, or to after the call."""
        if site.scope.parent is None:
            self.exit(site)
        else:
            terminator = Jump(site.statement)
            self.pending.append((terminator, site.scope, ":end"))
            self.end(terminator)

    def exit(self, site: Site) -> None:
        """End the block with the lanes' end."""
        self.end(Exit(site.statement))

    def barrier(
        self,
        site: Site,
        operands: Sequence[str],
        *,
        aligned: bool,
        waits: bool = True,
        vote: str | None = None,
        result: tuple[str, str] | None = None,
        reduce: Callable[[Array], int] | None = None,
    ) -> None:
        """End the block with a barrier; operands are its number and how many threads it is for."""
        reads = [self.source(site, text, "u32") for text in operands]
        if vote is not None:
            reads.append(self.source(site, vote, "pred"))
        target = self.target(site, *result) if result else None
        op = self._op(site, lambda *_: (), [], [], pure=False)
        op.sources = tuple(slot for slot, _ in reads)
        op.targets = (target[0],) if target else ()
        self.end(
            Barrier(
                ops=(op,),
                reads=reads,
                numbers=len(operands),
                aligned=aligned,
                waits=waits,
                votes=vote is not None,
                result=target,
                reduce=reduce,
            )
        )

    def cluster_barrier(self, site: Site, *, waits: bool, aligned: bool, orders: bool) -> None:
        """End the block with a barrier of the cluster."""
        op = self._op(site, lambda *_: (), [], [], pure=False)
        kind = ClusterWait if waits else ClusterArrive
        self.end(kind(ops=(op,), aligned=aligned, orders=orders))

    def meeting(
        self,
        site: Site,
        function: Callable[..., Any],
        targets: Sequence[tuple[str, str]],
        sources: Sequence[tuple[str, str]],
    ) -> None:
        """End the block with a warp collective; its last source is the mask of its members."""
        op = self._op(site, function, targets, sources, pure=False)
        op.guard = -1
        self.end(Meeting(ops=(op,)))

    def _clock(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        held = TYPES[CLOCKS[text]].dtype
        slot = self.slot(("special", text), np.zeros(1, held))
        tick = self._op(
            site,
            lambda batch, op, lanes: (np.array([batch.steps], held),),
            [],
            [],
            pure=False,
        )
        tick.targets = (slot,)
        tick.family = "move"
        self.block.ops.append(tick)
        return slot, reading(held, TYPES[kind].dtype)

    def _op(
        self,
        site: Site,
        function: Callable[..., Any],
        targets: Sequence[tuple[str, str]],
        sources: Sequence[tuple[str, str]],
        *,
        pure: bool,
    ) -> Op:
        reads = [self.source(site, text, kind) for text, kind in sources]
        writes = [self.target(site, text, kind) for text, kind in targets]
        statement, guard = site.statement, -1
        if statement.guard is not None:
            guard, _ = self.source(site, statement.guard, "pred")
        # Kernels have few kinds of operations and thousands of them: each kind is made once.
        conversions = tuple([read[1] for read in reads]), tuple([write[1] for write in writes])
        key = function, *conversions
        composed = self._composed.get(key)
        if composed is None:
            composed = self._composed[key] = compose(function, *conversions, pure=pure)
        return Op(
            composed,
            tuple([read[0] for read in reads]),
            tuple([write[0] for write in writes]),
            guard,
            statement.negated,
            pure,
            statement,
        )

    def _unknown(self, site: Site, why: str) -> Op:
        text = site.statement.text

        def refuse(batch: Any, op: Op, lanes: Lanes) -> tuple[Array, ...]:
            lane = 0 if lanes is None else int(lanes[0])
            raise faults.UnknownInstruction(
                f"`{text}` is not simulated: {why}", batch.place(op, lane)
            )

        return self._op(site, refuse, [], [], pure=False)
