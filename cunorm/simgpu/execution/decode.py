"""PTX statements into a program: operations on numbered register slots, in basic blocks.

Every call of a device function is expanded in place, with registers of its own, so that a program
is one straight text: the lowest block first is the order in which diverged lanes meet again. Their
parameters live in local memory, in the caller's frame.
"""

from __future__ import annotations

from .. import faults, isa
from ..ptx import refusals
from ..ptx.builder import Builder
from ..ptx.module import Function
from ..ptx.op import Op
from ..ptx.operands import Scope, Site, Unknown
from ..ptx.program import Program
from ..ptx.terminators import Branch, Exit, Jump
from . import system


class Decoder(Builder):
    """The reader of one kernel: what each statement becomes is up to the instruction families."""

    def __init__(self, kernel: Function) -> None:
        super().__init__(kernel)

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
            return self._unknown(site, refusals.reason(opcode))
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
            around = Branch(site.statement, (slot,), negated=not site.statement.negated)
            self.end(around)
        if entry.family != "branch" and self.block.ops:
            # Lanes wait in front of a collective: it has a block to itself.
            self.end(Jump())
        entry.build(self, site, fields)
        if around is not None:
            around.resolve("", len(self.program.blocks))

    def _pure(self, site: Site, built: isa.Pure) -> Op:
        first, *reads = site.operands
        sources, writes = built.sources, [(first, built.targets[0])]
        if len(built.targets) > 1:
            writes.append(("CC.CF", "pred"))
        if sources and sources[-1] == "carry":
            sources = (*sources[:-1], "pred")
            reads.append("CC.CF")
        return self.pure(site, built.function, writes, sources, reads)

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
        if name.startswith("%"):
            raise Unknown(refusals.POINTER_CALLS)
        if callee is None or operands:
            raise Unknown(f"a call of {refusals.plain(name)}, whose body is not in the module")
        scope: Scope | None = site.scope
        callers: list[str] = []
        while scope is not None:
            callers.insert(0, scope.function.name)
            if scope.function is callee:
                raise Unknown(refusals.recursion(callers))
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


def _listed(text: str) -> list[str]:
    return [name.strip() for name in text.strip("() ").split(",") if name.strip()]
