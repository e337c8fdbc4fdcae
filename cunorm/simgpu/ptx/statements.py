"""The statements of a PTX function's body, scope by scope.

Names declared in an inner scope ``{ ... }`` are renamed (``%temp`` becomes ``%temp@3``), so that
within a function every name means one thing.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

from ..faults import UnknownInstruction
from .declarations import Parameter, variable_of

_TOKEN = re.compile(r"[%$\w][\w$@]*")
_PIECE = re.compile(
    r"[\s;]*(?:(?P<end>$)|(?P<open>\{)|(?P<close>\})|(?P<label>[\w$%]+)\s*:(?!:)"
    r"|\.loc\s+(?P<loc>[^\n]*)|(?P<skip>\.(?:file|section)[^\n]*)|(?P<statement>[^;]*);)"
)
_NAMED = re.compile(r"\s*\.(?P<kind>branchtargets|callprototype|calltargets)\s+(?P<list>[^;]*)")
_RANGE = re.compile(r"([\w$%@]+)<(\d+)>$")
_OPERAND = re.compile(r"(?:[^,\[{(]+|\[[^\]]*\]|\{[^}]*\}|\([^)]*\))+")


class Statement(NamedTuple):
    """One instruction as written, or a label (``opcode`` is ``:`` and the one operand its name)."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int
    text: str
    source: str | None
    column: int = 0  # in the line of source, from 1; 0 where it is not known


class Body:
    """The reader of one function's statements, scope by scope.

    Attributes
    ----------
    statements : list of Statement
        What it read.
    registers, frame, shared, tables : dict
        What it read declarations of, by name: types of registers, variables of the stack frame and
        of shared memory, labels of indexed branches.
    """

    def __init__(self, text: str, files: dict[str, str]) -> None:
        self.statements: list[Statement] = []
        self.registers: dict[str, str] = {}
        self.frame: dict[str, Parameter] = {}
        self.shared: dict[str, Parameter] = {}
        self.tables: dict[str, tuple[str, ...]] = {}
        self.text = text
        self.files = files
        self.source: str | None = None
        self.column = 0
        self.scopes: list[tuple[int, dict[str, str]]] = []  # first statement, renamed names
        self.count = 0

    def read(self, at: int) -> int:
        """Read the text from a place on, up to the brace that closes it; return where that ends."""
        text, line, counted = self.text, self.text.count("\n", 0, at) + 1, at
        while True:
            piece = _PIECE.match(text, at)
            kind = "" if piece is None else piece.lastgroup
            if not piece or not kind:
                raise ValueError(f"PTX after line {line} is not understood")
            start, at = piece.start(kind), piece.end()
            line += text.count("\n", counted, start)
            counted = start
            if kind == "statement":
                self.statement(" ".join(piece[kind].split()), line)
            elif kind == "loc":
                file, row, *column = piece[kind].replace(",", " ").split()[:3]
                self.source = f"{self.files.get(file, '?')}:{row}"
                self.column = int(column[0]) if column else 0
            elif kind == "label":
                at = self.labelled(piece[kind], line, at)
            elif kind == "open":
                self.count += 1
                self.scopes.append((len(self.statements), {}))
            elif kind == "close" and not self.scopes:
                return at
            elif kind == "close":
                self.close()
            elif kind == "end":
                raise ValueError("PTX ends inside a scope")

    def labelled(self, label: str, line: int, at: int) -> int:
        """Take note of a label, or of the table of labels that it names; return where that ends."""
        after = self.table(label, at)
        if after:
            return after
        name = self.local(label) if self.scopes else label
        self.add(":", (name,), line, name)
        return at

    def add(
        self,
        opcode: str,
        operands: tuple[str, ...],
        line: int,
        text: str,
        guard: str | None = None,
        negated: bool = False,
    ) -> None:
        """Append a statement."""
        self.statements.append(
            Statement(opcode, operands, guard, negated, line, text, self.source, self.column)
        )

    def table(self, label: str, at: int) -> int:
        """Remember a ``.branchtargets`` list, whose name looks like a label; return its end.

        The prototypes of calls through pointers look the same, and nothing asks for them.
        """
        named = _NAMED.match(self.text, at)
        if named and named["kind"] == "branchtargets":
            self.tables[label] = tuple(named["list"].replace(",", " ").split())
        return named.end() if named else 0

    def local(self, name: str) -> str:
        """Name something declared in the innermost scope."""
        unique = f"{name}@{self.count}"
        self.scopes[-1][1][name] = unique
        return unique

    def close(self) -> None:
        """Leave a scope: rename, in its statements, what it declared."""
        first, names = self.scopes.pop()
        if not names:
            return

        def rename(text: str) -> str:
            return _TOKEN.sub(lambda token: names.get(token.group(), token.group()), text)

        for index in range(first, len(self.statements)):
            old = self.statements[index]
            self.statements[index] = Statement(
                old.opcode,
                tuple(rename(operand) for operand in old.operands),
                old.guard and rename(old.guard),
                old.negated,
                old.line,
                old.text,
                old.source,
                old.column,
            )

    def statement(self, text: str, line: int) -> None:
        """Read one instruction."""
        if text[0] == ".":
            self.directive(text, line)
            return
        guard, negated, body = None, False, text
        if text[0] == "@":
            guard, body = text[1:].split(None, 1)
            negated = guard.startswith("!")
            guard = guard.lstrip("!")
        opcode, _, rest = body.partition(" ")
        self.add(sys.intern(opcode), split(rest), line, text, guard, negated)

    def directive(self, text: str, line: int) -> None:
        """Read a declaration among the statements."""
        word, _, rest = text.partition(" ")
        if word == ".reg":
            kind, _, names = rest.strip().partition(" ")
            for name in names.replace(",", " ").split():
                several = _RANGE.match(name)
                inner = bool(self.scopes)
                if several and inner:
                    for index in range(int(several.group(2))):
                        self.registers[self.local(f"{several.group(1)}{index}")] = kind[1:]
                elif several:
                    self.registers[several.group(1) + "<>"] = kind[1:]
                else:
                    self.registers[self.local(name) if inner else name] = kind[1:]
        elif word in (".local", ".param", ".shared"):
            found = variable_of(text)
            if found is None:
                raise UnknownInstruction(f"PTX line {line} is not understood: `{text}`")
            variable, space, _ = found
            name = self.local(variable.name) if self.scopes else variable.name
            variable = Parameter(name, variable.size, variable.alignment)
            if space == "shared":
                self.shared[name] = variable
            else:
                self.frame[name] = variable
        elif word not in (".pragma", ".loc"):
            raise UnknownInstruction(f"PTX line {line}: directive `{text}`")


def split(text: str) -> tuple[str, ...]:
    """Split operands at the commas outside brackets."""
    if not text.strip():
        return ()
    # The same few names come again and again: equal ones are one object.
    return tuple([sys.intern(operand.strip()) for operand in _OPERAND.findall(text)])
