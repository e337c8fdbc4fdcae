"""PTX statements into a program: operations on numbered register slots, in basic blocks.

Every call of a device function is expanded in place, with registers of its own, so that a program
is one straight text: the lowest block first is the order in which diverged lanes meet again. Their
parameters live in local memory, in the caller's frame.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from . import faults, isa, ptx
from .isa import Array
from .isa.types import TYPES, UNSIGNED, reading, writing
from .program import Block, Op, Program, compose
from .terminators import Barrier, Branch, Exit, IndexedBranch, Jump, Meeting

if TYPE_CHECKING:
    from .isa.types import Reading

_ADDRESS = re.compile(r"\[\s*([\w$%@.]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
_SUM = re.compile(r"([\w$@]+)\s*\+\s*(-?\w+)$")
_LITERAL = re.compile(r"-?(\d\w*|\d+\.\d+(e[+-]?\d+)?)$", re.I)
CLOCKS = {"%clock": "u32", "%clock_hi": "u32", "%clock64": "u64", "%globaltimer": "u64"}
SPECIAL = {
    **{f"%{name}.{axis}": "u32" for name in ("tid", "ntid", "ctaid", "nctaid") for axis in "xyz"},
    "%laneid": "u32",
    "%warpid": "u32",
    "%nwarpid": "u32",
    "%smid": "u32",
    "%nsmid": "u32",
    "%gridid": "u64",
    **{f"%lanemask_{test}": "u32" for test in ("eq", "le", "lt", "ge", "gt")},
    "%dynamic_smem_size": "u32",
    "%total_smem_size": "u32",
    "WARP_SZ": "u32",
}


@dataclass(eq=False)
class Scope:
    """One expansion of a function: its registers, labels and frame variables have own places."""

    function: ptx.Function
    parent: Scope | None
    frame: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Site:
    """A statement where it is decoded."""

    statement: ptx.Statement
    scope: Scope

    @property
    def operands(self) -> tuple[str, ...]:
        """The operands as written."""
        return self.statement.operands


class Unknown(Exception):
    """What cannot be decoded, in words."""


class Decoder:
    """The builder of one kernel's program; instruction families call its methods."""

    WINDOW_BITS = 48  # host addresses stay below 2^47, and other spaces get windows above
    windows: ClassVar = {
        "global": 0,
        "const": 0,
        "shared": 1 << 48,
        "local": 2 << 48,
        "param": 3 << 48,
    }

    def __init__(self, kernel: ptx.Function) -> None:
        isa.load()
        self.kernel = kernel
        self.shared, _ = kernel.shared_layout()
        self.parameters: dict[str, int] = {}
        end = 0
        for parameter in kernel.parameters:
            self.parameters[parameter.name] = end = (
                -(-end // parameter.alignment) * parameter.alignment
            )
            end += parameter.size
        self.program = Program(kernel, self.parameters, end)
        self.slots: dict[tuple[object, str], int] = {}
        self.block = Block()
        self.sites: list[Site] = []
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
    ) -> Op:
        """Build a memory operation, whose first operand is its address as uint64."""
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

    def nothing(self, site: Site) -> Op:
        """Build an operation that does nothing."""
        return self._op(site, lambda batch, op, lanes: (), [], [], pure=False)

    def address(self, site: Site, text: str) -> tuple[str, int]:
        """Split ``[base+offset]``."""
        match = _ADDRESS.match(text)
        if match is None:
            raise Unknown(f"address {text} is not understood")
        return match.group(1), int(match.group(2) or "0", 0)

    def in_frame(self, site: Site, text: str) -> bool:
        """Whether an address in .param space belongs to a device function's call."""
        base, _ = self.address(site, text)
        return base in site.scope.frame or (base.startswith("%") and site.scope.parent is not None)

    def branch(self, site: Site, label: str) -> None:
        """End the block with a branch."""
        statement = site.statement
        if statement.guard is None:
            terminator: Any = Jump()
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
            self.end(Exit())
        else:
            terminator = Jump()
            self.pending.append((terminator, site.scope, ":end"))
            self.end(terminator)

    def exit(self, site: Site) -> None:
        """End the block with the lanes' end."""
        self.end(Exit())

    def call(self, site: Site) -> None:
        """Expand a device function here."""
        operands = list(site.operands)
        groups = [operand.startswith("(") for operand in operands]
        results = _listed(operands.pop(0)) if groups[0] else []
        name = operands.pop(0)
        arguments = _listed(operands.pop(0)) if operands else []
        callee = self.kernel.module.device_functions.get(name)
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

    # Operands.

    def register_type(self, site: Site, name: str) -> str | None:
        """Return the type that a name is declared as, None for what is no register."""
        if name == "CC.CF":
            return "pred"
        if name in SPECIAL or name in CLOCKS:
            return None
        return site.scope.function.register_type(name)

    def slot(self, key: tuple[object, str], value: Array) -> int:
        """Return the slot for `key`, made with its first value where it is new."""
        found = self.slots.get(key)
        if found is None:
            found = self.slots[key] = len(self.program.initial)
            self.program.initial.append(value)
        return found

    def register(self, site: Site, name: str, kind: str) -> tuple[int, np.dtype] | None:
        """Return a register's slot and the dtype it is held as: that of its first appearance."""
        declared = self.register_type(site, name)
        if declared is None:
            return None
        if declared not in TYPES:
            raise Unknown(f"a register of type .{declared}")
        wanted = TYPES[kind].dtype
        held = TYPES[declared].dtype
        if declared != "pred" and held.itemsize == wanted.itemsize and wanted.kind != "b":
            held = wanted
        elif declared != "pred":
            held = UNSIGNED[8 * held.itemsize]
        slot = self.slot((site.scope, name), np.zeros(1, held))
        return slot, self.program.initial[slot].dtype

    def source(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        """Return the slot of an operand that is read, and how to read it as `kind`."""
        if kind == "pred" and text.startswith("!"):
            slot, _ = self.source(site, text[1:], kind)
            return slot, np.logical_not
        register = self.register(site, text, kind)
        if register is not None:
            return register[0], reading(register[1], TYPES[kind].dtype)
        if text in SPECIAL:
            held = TYPES[SPECIAL[text]].dtype
            slot = self.slot(("special", text), np.zeros(1, held))
            self.program.special[text] = slot
            return slot, reading(held, TYPES[kind].dtype)
        if text in CLOCKS:
            return self._clock(site, text, kind)
        return self.constant(site, text, kind), None

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

    def constant(self, site: Site, text: str, kind: str) -> int:
        """Return the slot of a literal or of a variable's address."""
        dtype = TYPES[kind].dtype
        if _LITERAL.match(text):
            if kind == "pred":
                return self.slot(("pred", text), np.array([int(text, 0) != 0]))
            spelled = {"f16": "b16", "f16x2": "b32", "bf16": "b16", "bf16x2": "b32"}.get(kind, kind)
            data = ptx.number(text, spelled, site.statement.line)
            return self.slot((kind, text), np.frombuffer(data, dtype))
        match = _SUM.match(text)
        name, offset = (match.group(1), int(match.group(2), 0)) if match else (text, 0)
        places = (site.scope.frame, self.shared, self.parameters)
        for at, place in enumerate(places):
            if name in place and (at < 2 or site.scope.parent is None):
                return self.slot(
                    (f"address {kind}", f"{place[name] + offset}"),
                    np.array([place[name] + offset], np.uint64).astype(dtype),
                )
        if name in self.kernel.module.globals:
            slot = self.slot(("symbol", text), np.zeros(1, dtype))
            self.program.symbols[slot] = (name, offset)
            return slot
        raise Unknown(f"operand {text} is not understood")

    def target(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        """Return the slot that a result goes to, and how it gets there."""
        if text == "_":
            return self.slot(("sink", kind), np.zeros(1, TYPES[kind].dtype)), None
        register = self.register(site, text, kind)
        if register is None:
            raise Unknown(f"{text} is no register")
        return register[0], writing(TYPES[kind].dtype, register[1])

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
