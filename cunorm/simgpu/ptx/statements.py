"""The statements of a PTX function's body, scope by scope.

Names declared in an inner scope ``{ ... }`` are renamed (``%temp`` becomes ``%temp@3``), so that
within a function every name means one thing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..faults import UnknownInstruction
from .declarations import Parameter, variable_of

BLANK = re.compile(r"[\s;]*")
TOKEN = re.compile(r"[%$\w][\w$@]*")
_PIECE = re.compile(
    r"(?P<open>\{)|(?P<close>\})|(?P<label>[\w$%]+)\s*:(?!:)"
    r"|\.loc\s+(?P<loc>[^\n]*)|(?P<skip>\.(?:file|section)[^\n]*)|(?P<statement>[^;]*);"
)
_NAMED = re.compile(r"\s*\.(?P<kind>branchtargets|callprototype|calltargets)\s+(?P<list>[^;]*)")
_RANGE = re.compile(r"([\w$%@]+)<(\d+)>$")


@dataclass(frozen=True)
class Statement:
    """One instruction as written, or a label (``opcode`` is ``:`` and the one operand its name)."""

    opcode: str
    operands: tuple[str, ...]
    guard: str | None
    negated: bool
    line: int
    text: str
    source: str | None


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
        self.scopes: list[tuple[int, dict[str, str]]] = []  # first statement, renamed names
        self.count = 0

    def read(self, at: int, end: int) -> None:
        """Read the text between two places."""
        line, counted = self.text.count("\n", 0, at) + 1, at
        while True:
            blank = BLANK.match(self.text, at, end)
            at = blank.end() if blank else at
            if at >= end:
                return
            line += self.text.count("\n", counted, at)
            counted = at
            piece = _PIECE.match(self.text, at, end)
            if piece is None:
                raise ValueError(f"PTX line {line} is not understood")
            at = piece.end()
            if piece["open"]:
                self.count += 1
                self.scopes.append((len(self.statements), {}))
            elif piece["close"]:
                self.close()
            elif piece["label"]:
                after = self.table(piece["label"], at)
                if after:
                    at = after
                else:
                    name = self.local(piece["label"]) if self.scopes else piece["label"]
                    self.add(":", (name,), line, name)
            elif piece["loc"]:
                number_, row = piece["loc"].split()[:2]
                self.source = f"{self.files.get(number_, '?')}:{row}"
            elif piece["statement"]:
                self.statement(" ".join(piece["statement"].split()), line)

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
        self.statements.append(Statement(opcode, operands, guard, negated, line, text, self.source))

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
            return TOKEN.sub(lambda token: names.get(token.group(), token.group()), text)

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
            )

    def statement(self, text: str, line: int) -> None:
        """Read one instruction."""
        if text.startswith("."):
            self.directive(text, line)
            return
        guard, negated, body = None, False, text
        if text.startswith("@"):
            guard, body = text[1:].split(None, 1)
            negated = guard.startswith("!")
            guard = guard.lstrip("!")
        opcode, _, rest = body.partition(" ")
        self.add(opcode, split(rest), line, text, guard, negated)

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
    if not any(bracket in text for bracket in "{[("):
        return tuple(piece.strip() for piece in text.split(",")) if text.strip() else ()
    pieces, depth, start = [], 0, 0
    for at, letter in enumerate(text):
        if letter in "{[(":
            depth += 1
        elif letter in "}])":
            depth -= 1
        elif letter == "," and depth == 0:
            pieces.append(text[start:at].strip())
            start = at + 1
    return (*pieces, text[start:].strip())
