"""PTX statements into a program: operations on numbered register slots, in basic blocks.

Every call of a device function is expanded in place, with registers of its own, so that a program
is one straight text: the lowest block first is the order in which diverged lanes meet again. Their
parameters live in local memory, in the caller's frame.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import faults, isa, ptx, system
from .isa import Array
from .isa.types import TYPES, reading
from .operands import CLOCKS, Operands, Scope, Site, Unknown
from .program import Block, Op, Program, compose
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

if TYPE_CHECKING:
    from .isa.types import Reading


class Decoder(Operands):
    """The builder of one kernel's program; instruction families call its methods."""

    def __init__(self, kernel: ptx.Function) -> None:
        isa.load()
        super().__init__(kernel)
        self.block = Block()
        self.pending: list[tuple[Any, Scope, str]] = []

    def decode(self) -> Program:
        """Return the finished program."""
        root = Scope(self.kernel, None)
        self.expand(root)
        self.end(Exit())
        for terminator, scope, label in self.pending:
            if label not in scope.labels:
                raise faults.UnknownInstruction(f"label {label} is not defined")
            terminator.resolve(label, scope.labels[label])
        self.program.finish()
        return self.program

    def expand(self, scope: Scope) -> None:
        """Decode a function's statements in place."""
        for variable in scope.function.frame.values():
            if variable.name not in scope.frame:
                at = -(-self.program.local_bytes // variable.alignment) * variable.alignment
                scope.frame[variable.name] = at
                self.program.local_bytes = at + variable.size
        for statement in scope.function.statements:
            if statement.opcode == ":":
                self.label(scope, statement.operands[0])
            else:
                self.statement(Site(statement, scope))
        self.label(scope, ":end")

    def label(self, scope: Scope, name: str) -> None:
        """Begin a block that a label names."""
        if self.block.ops:
            self.end(Jump())
        scope.labels[name] = len(self.program.blocks)

    def end(self, terminator: Any) -> None:
        """Close the current block."""
        self.block.terminator = terminator
        terminator.follower = len(self.program.blocks) + 1
        self.program.blocks.append(self.block)
        self.block = Block()

    def statement(self, site: Site) -> None:
        """Decode one statement; what cannot be decoded refuses to run."""
        try:
            op = self._decode(site)
        except (Unknown, ValueError, faults.UnknownInstruction) as error:
            op = self._unknown(site, str(error))
        if op is not None:
            self.block.ops.append(op)

    def _decode(self, site: Site) -> Op | None:
        opcode = site.statement.opcode
        found = isa.find(opcode)
        if found is None:
            return self._unknown(site, "no such form is known")
        entry, fields = found
        target = self.kernel.module.target
        if target < entry.since:
            return self._unknown(site, f"it begins with sm_{entry.since}, and this is sm_{target}")
        if entry.decodes:
            if entry.family in ("branch", "barrier", "collective") and opcode[:3] != "bra":
                self._guarded(site, entry, fields)
                return None
            before = len(self.program.blocks)
            op = entry.build(self, site, fields)
            if op is None and len(self.program.blocks) == before:
                return self._unknown(site, "this form is not known")
        else:
            built = isa.pure(opcode)
            if built is None:
                return self._unknown(site, "this form is not known")
            pure = built[1]
            op = self._pure(site, pure)
        if op is not None:
            op.family = entry.family
        return op  # type: ignore[no-any-return]

    def _guarded(self, site: Site, entry: isa.Form, fields: dict[str, str | None]) -> None:
        """Decode what ends a block; a guard becomes a branch around it."""
        guard = site.statement.guard
        around = None
        if guard is not None:
            slot, _ = self.source(site, guard, "pred")
            around = Branch(slot, not site.statement.negated, site.statement)
            self.end(around)
        if entry.family != "branch" and self.block.ops:
            # Lanes wait in front of a collective: it has a block to itself.
            self.end(Jump())
        entry.build(self, site, fields)
        if around is not None:
            around.resolve("", len(self.program.blocks))

    def _pure(self, site: Site, built: isa.Pure) -> Op:
        operands = site.operands
        targets = list(built.targets)
        sources = list(built.sources)
        names = [*operands[:1], *operands[1:]]
        reads = names[1:]
        writes = [(names[0], targets[0])]
        if targets[1:] == ["carry"]:
            writes.append(("CC.CF", "pred"))
        if sources and sources[-1] == "carry":
            sources[-1] = "pred"
            reads.append("CC.CF")
        return self.pure(site, built.function, writes, tuple(sources), reads)

    # What the families call.

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

        def accessed(batch: Any, op: Op, lanes: Array | None, at: Array, *values: Array) -> Any:
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

        def accessed(batch: Any, op: Op, lanes: Array | None, *values: Array) -> Any:
            addresses = [
                (at + step).astype(np.uint64) for at, step in zip(values, steps, strict=False)
            ]
            return function(batch, op, lanes, *addresses, *values[len(steps) :])

        return self.effect(site, accessed, targets, [*places, *sources])

    def nothing(self, site: Site) -> Op:
        """Build an operation that does nothing."""
        return self._op(site, lambda batch, op, lanes: (), [], [], pure=False)

    def branch(self, site: Site, label: str) -> None:
        """End the block with a branch."""
        statement = site.statement
        if statement.guard is None:
            terminator: Any = Jump()
            terminator.statement = statement
        else:
            slot, _ = self.source(site, statement.guard, "pred")
            terminator = Branch(slot, statement.negated, statement)
        self.pending.append((terminator, site.scope, label))
        self.end(terminator)

    def indexed_branch(self, site: Site, index: str, table: str) -> None:
        """End the block with a jump through a table of labels."""
        labels = site.scope.function.tables.get(table)
        if labels is None:
            raise Unknown(f"branch targets {table} are not known")
        slot, convert = self.source(site, index, "u32")
        terminator = IndexedBranch(slot, convert, labels, site.statement)
        for label in labels:
            self.pending.append((terminator, site.scope, label))
        self.end(terminator)

    def leave(self, site: Site) -> None:
        """End the block with a return: out of the program, or to after the call."""
        if site.scope.parent is None:
            self.exit(site)
        else:
            terminator = Jump()
            terminator.statement = site.statement
            self.pending.append((terminator, site.scope, ":end"))
            self.end(terminator)

    def exit(self, site: Site) -> None:
        """End the block with the lanes' end."""
        terminator = Exit()
        terminator.statement = site.statement
        self.end(terminator)

    def call(self, site: Site) -> None:
        """Expand a device function here."""
        operands = list(site.operands)
        groups = [operand.startswith("(") for operand in operands]
        results = _listed(operands.pop(0)) if groups[0] else []
        name = operands.pop(0)
        arguments = _listed(operands.pop(0)) if operands else []
        callee = self.kernel.module.device_functions.get(name)
        if callee is None and name in system.CALLS:
            places = [[site.scope.frame[actual] for actual in row] for row in (arguments, results)]
            self.block.ops.append(self.effect(site, system.call(name, *places), [], []))
            return
        if callee is None or operands:
            raise Unknown(f"a call of {name}, whose body is not in the module")
        scope: Scope | None = site.scope
        while scope is not None:
            if scope.function is callee:
                raise Unknown(f"a recursive call of {name}")
            scope = scope.parent
        inner = Scope(callee, site.scope)
        for formal, actual in zip(
            callee.parameters + callee.results, arguments + results, strict=True
        ):
            if actual not in site.scope.frame:
                raise Unknown(f"the argument {actual}, which is no .param variable")
            inner.frame[formal.name] = site.scope.frame[actual]
        if site.statement.guard is None:
            # The call itself does nothing here, but hardware spends an instruction on it.
            self.block.ops.append(self.nothing(site))
        self.expand(inner)

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
            Barrier(op, reads, len(operands), aligned, waits, vote is not None, target, reduce)
        )

    def cluster_barrier(self, site: Site, *, waits: bool, aligned: bool, orders: bool) -> None:
        """End the block with a barrier of the cluster."""
        op = self._op(site, lambda *_: (), [], [], pure=False)
        self.end((ClusterWait if waits else ClusterArrive)(op, aligned, orders))

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
        self.end(Meeting(op))

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
        guard = -1
        if site.statement.guard is not None:
            guard, _ = self.source(site, site.statement.guard, "pred")
        return Op(
            compose(
                function, [read[1] for read in reads], [write[1] for write in writes], pure=pure
            ),
            tuple(slot for slot, _ in reads),
            tuple(slot for slot, _ in writes),
            guard,
            site.statement.negated,
            pure,
            site.statement,
        )

    def _unknown(self, site: Site, why: str) -> Op:
        text = site.statement.text

        def refuse(batch: Any, op: Op, lanes: Array | None) -> tuple[Array, ...]:
            lane = 0 if lanes is None else int(lanes[0])
            raise faults.UnknownInstruction(
                f"`{text}` is not simulated: {why}", batch.place(op, lane)
            )

        return self._op(site, refuse, [], [], pure=False)


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.strip("() ").split(",") if name.strip()]
