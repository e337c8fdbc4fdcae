"""PTX text into modules, functions and statements; nothing here knows what an instruction does.

Names declared in an inner scope ``{ ... }`` are renamed (``%temp`` becomes ``%temp@3``), so that
within a function every name means one thing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from .faults import UnknownInstruction

SIZES = {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)} | {
    "f16x2": 4,
    "bf16": 2,
    "bf16x2": 4,
    "b128": 16,
}
DEFAULT_MAX_THREADS = 1024  # what every architecture allows where .maxntid says nothing

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_BLANK = re.compile(r"[\s;]*")
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\s+(?:\.(?:attribute|ptr)\S*\s*)?"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.v(?P<vector>[24])\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+\s*)?)?"
    r"(?P<name>[\w$%]+)(?P<dimensions>(?:\s*\[\d*\])*)\s*(?:=\s*(?P<value>[^;]+))?$"
)
_HEADER = re.compile(
    r"(?P<linkage>(?:\.(?:visible|extern|weak)\s+)*)\.(?P<kind>entry|func)\s*"
    r"(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*(?:\((?P<parameters>[^)]*)\))?"
    r"(?P<directives>[^{;]*)(?P<end>[{;])"
)
_BRACE = re.compile(r'[{}]|"[^"]*"')
_PIECE = re.compile(
    r"(?P<open>\{)|(?P<close>\})|(?P<label>[\w$%]+)\s*:(?!:)"
    r"|\.loc\s+(?P<loc>[^\n]*)|(?P<skip>\.(?:file|section)[^\n]*)|(?P<statement>[^;]*);"
)
_TOKEN = re.compile(r"[%$\w][\w$@]*")
_RANGE = re.compile(r"([\w$%@]+)<(\d+)>$")


@dataclass(frozen=True)
class Parameter:
    """A kernel's or function's parameter: where a launch puts its bytes, and how many."""

    name: str
    size: int
    alignment: int


@dataclass(frozen=True)
class GlobalVariable:
    """A module-scope variable and the bytes it starts with."""

    name: str
    size: int
    alignment: int
    space: str
    initial: bytes


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


@dataclass(eq=False)
class Function:
    """A kernel (``.entry``) or a device function (``.func``)."""

    name: str
    parameters: tuple[Parameter, ...]
    results: tuple[Parameter, ...]
    is_entry: bool
    max_threads: int
    cluster: tuple[int, int, int] | None
    module: Module = field(repr=False)
    statements: list[Statement] = field(default_factory=list, repr=False)
    registers: dict[str, str] = field(default_factory=dict, repr=False)
    frame: dict[str, Parameter] = field(default_factory=dict, repr=False)
    shared: dict[str, Parameter] = field(default_factory=dict, repr=False)
    tables: dict[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    uses: frozenset[str] = frozenset()

    def register_type(self, name: str) -> str | None:
        """Return the declared type of a register, or None where `name` is no register."""
        declared = self.registers.get(name)
        return declared or self.registers.get(name.rstrip("0123456789") + "<>")

    def reachable(self) -> list[Function]:
        """Return this function and every device function that it may call."""
        found: dict[str, Function] = {self.name: self}
        pending = [self]
        while pending:
            for name in pending.pop().uses & self.module.device_functions.keys() - found.keys():
                found[name] = self.module.device_functions[name]
                pending.append(found[name])
        return list(found.values())

    def shared_layout(self) -> tuple[dict[str, int], int]:
        """Return the shared-memory offset of every variable used, and the static bytes in all.

        Dynamic (``extern``) arrays all start where the static ones end, as the driver has it.
        """
        reachable = self.reachable()
        used = frozenset().union(*(function.uses for function in reachable))
        offsets: dict[str, int] = {}
        end, strictest, dynamic = 0, 1, []
        places = [self.module.shared, *(function.shared for function in reachable)]
        for variable in [variable for place in places for variable in place.values()]:
            if variable.name not in used:
                continue
            if variable.name in offsets:
                raise UnknownInstruction(f"two shared variables are called {variable.name}")
            if variable.size == 0:
                dynamic.append(variable.name)
                strictest = max(strictest, variable.alignment)
                continue
            offsets[variable.name] = -(-end // variable.alignment) * variable.alignment
            end = offsets[variable.name] + variable.size
        start = -(-end // strictest) * strictest if dynamic else end
        offsets.update(dict.fromkeys(dynamic, start))
        return offsets, start

    @property
    def shared_bytes(self) -> int:
        """Static shared memory per block."""
        return self.shared_layout()[1]

    @property
    def local_bytes(self) -> int:
        """Bytes of ``.local`` variables per thread, this function's and its callees'."""
        return sum(
            variable.size
            for function in self.reachable()
            for variable in function.frame.values()
            if variable not in function.parameters and variable not in function.results
        )


@dataclass
class Module:
    """What one PTX text defines."""

    functions: dict[str, Function] = field(default_factory=dict)
    globals: dict[str, GlobalVariable] = field(default_factory=dict)
    device_functions: dict[str, Function] = field(default_factory=dict)
    shared: dict[str, Parameter] = field(default_factory=dict)
    target: int = 0


def parse(text: str) -> Module:
    """Read a PTX module."""
    files = dict(re.findall(r'^\s*\.file\s+(\d+)\s+"([^"]*)"', text, re.M))
    text = _COMMENT.sub(lambda comment: "\n" * comment.group().count("\n"), text).rstrip("\0 \n")
    target = re.search(r"\.target\s+sm_(\d+)", text)
    module = Module(target=int(target.group(1)) if target else 0)
    at = 0
    while True:
        blank = _BLANK.match(text, at)
        at = blank.end() if blank else at
        if at == len(text):
            return module
        header = _HEADER.match(text, at)
        if header:
            at = header.end()
            if header["end"] == "{":
                end = _closing_brace(text, at)
                _define(module, header, text, at, end - 1, files)
                at = end
            continue
        word = re.compile(r"\.?\w+").match(text, at)
        directive = word.group() if word else text[at : at + 20]
        if directive == ".section":
            at = _closing_brace(text, text.index("{", at) + 1)
        elif directive in (".version", ".target", ".address_size", ".file"):
            at = _end(text, at, "\n")
        elif directive in (".pragma", ".alias"):
            at = _end(text, at, ";")
        else:
            end = _end(text, at, ";")
            _declare(module, text[at : end - 1], text.count("\n", 0, at) + 1)
            at = end


def _end(text: str, at: int, mark: str) -> int:
    end = text.find(mark, at)
    return len(text) if end < 0 else end + 1


def _closing_brace(text: str, at: int) -> int:
    depth = 1
    for brace in _BRACE.finditer(text, at):
        depth += {"{": 1, "}": -1}.get(brace.group(), 0)
        if depth == 0:
            return brace.end()
    raise ValueError("PTX ends inside a scope")


def _variable(text: str) -> tuple[Parameter, str, re.Match[str]] | None:
    """Read one declaration in a memory space: what it is, its space, and the match itself."""
    text = re.sub(r"^(?:\.(?:visible|extern|weak|common)\s+)*", "", text.strip())
    match = _VARIABLE.match(text)
    if match is None or match["type"] not in SIZES:
        return None
    element = SIZES[match["type"]] * int(match["vector"] or 1)
    size = element
    for dimension in re.findall(r"\[(\d*)\]", match["dimensions"]):
        size *= int(dimension or 0)
    if match["dimensions"].strip() == "[]" and match["value"]:
        size = element * (match["value"].count(",") + 1)
    return Parameter(match["name"], size, int(match["align"] or element)), match["space"], match


def _declare(module: Module, text: str, line: int) -> None:
    """Enter a module-scope variable."""
    found = _variable(" ".join(text.split()))
    if found is None:
        raise UnknownInstruction(f"PTX line {line} is not understood: `{text.strip()[:80]}`")
    variable, space, match = found
    if space == "shared":
        module.shared[variable.name] = variable
    elif space in ("global", "const"):
        initial = _initial(match["value"], match["type"], variable.size, line)
        module.globals[variable.name] = GlobalVariable(
            variable.name, variable.size, variable.alignment, space, initial
        )
    else:
        raise UnknownInstruction(f"PTX line {line}: a module-scope .{space} variable")


def _initial(value: str | None, kind: str, size: int, line: int) -> bytes:
    data = b""
    for item in re.findall(r"[^\s,{}]+", value or ""):
        data += number(item, kind, line)
    return data.ljust(size, b"\0")


def number(text: str, kind: str, line: int = 0) -> bytes:
    """Return the little-endian bytes of a literal as a value of type `kind`."""
    import struct

    width = SIZES[kind]
    sign = -1 if text.startswith("-") else 1
    digits = text.lstrip("-+")
    literal = digits[:2].lower()
    try:
        if literal in ("0f", "0d") and len(digits) == {"0f": 10, "0d": 18}[literal]:
            bits = bytes.fromhex(digits[2:])[::-1]
            value: float = sign * struct.unpack("<f" if literal == "0f" else "<d", bits)[0]
            if kind[0] != "f" or width * 2 == len(digits) - 2:
                return bits if sign > 0 else bits[:-1] + bytes([bits[-1] ^ 0x80])
            return struct.pack({4: "<f", 8: "<d"}[width], value)
        if kind in ("f32", "f64"):
            return struct.pack("<f" if kind == "f32" else "<d", sign * float(digits))
        digits = digits.rstrip("uU")
        base = 16 if literal == "0x" else 2 if literal == "0b" else 10
        if base == 10 and len(digits) > 1 and digits[0] == "0":
            base = 8
        whole = sign * int(digits, base)
    except (ValueError, KeyError):
        raise UnknownInstruction(f"PTX line {line}: `{text}` is no {kind} literal") from None
    return (whole & ((1 << 8 * width) - 1)).to_bytes(width, "little")


def _parameters(text: str | None) -> tuple[Parameter, ...]:
    found = (
        _variable(" ".join(piece.split())) for piece in (text or "").split(",") if piece.strip()
    )
    pieces = tuple(entry[0] for entry in found if entry is not None)
    if len(pieces) != len([piece for piece in (text or "").split(",") if piece.strip()]):
        raise UnknownInstruction(f"parameters that are not understood: `{text}`")
    return pieces


def _define(
    module: Module, header: re.Match[str], text: str, at: int, end: int, files: dict[str, str]
) -> None:
    """Read one function's body."""
    directives = {
        name: [int(item) for item in re.findall(r"\d+", values)]
        for name, values in re.findall(r"\.(\w+)([^.]*)", header["directives"])
    }
    threads = 1
    for extent in directives.get("maxntid", directives.get("reqntid", [DEFAULT_MAX_THREADS])):
        threads *= extent
    cluster = directives.get("reqnctapercluster")
    function = Function(
        header["name"],
        _parameters(header["parameters"]),
        _parameters(header["results"]),
        header["kind"] == "entry",
        threads,
        tuple([*cluster, 1, 1][:3]) if cluster else None,  # type: ignore[arg-type]
        module,
    )
    if not function.is_entry:
        function.frame.update(
            (variable.name, variable) for variable in function.parameters + function.results
        )
    _Body(function, text, files).read(at, end)
    function.uses = frozenset(_TOKEN.findall(text, at, end))
    (module.functions if function.is_entry else module.device_functions)[function.name] = function


class _Body:
    """The reader of one function's statements, scope by scope."""

    def __init__(self, function: Function, text: str, files: dict[str, str]) -> None:
        self.function = function
        self.text = text
        self.files = files
        self.source: str | None = None
        self.scopes: list[tuple[int, dict[str, str]]] = []  # first statement, renamed names
        self.count = 0

    def read(self, at: int, end: int) -> None:
        line, counted = self.text.count("\n", 0, at) + 1, at
        while True:
            blank = _BLANK.match(self.text, at, end)
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
                self.scopes.append((len(self.function.statements), {}))
            elif piece["close"]:
                self.close()
            elif piece["label"]:
                after = self.table(piece["label"], at)
                if after:
                    at = after
                else:
                    name = self.local(piece["label"]) if self.scopes else piece["label"]
                    self.add(Statement(":", (name,), None, False, line, name, self.source))
            elif piece["loc"]:
                number_, row = piece["loc"].split()[:2]
                self.source = f"{self.files.get(number_, '?')}:{row}"
            elif piece["statement"]:
                self.statement(" ".join(piece["statement"].split()), line)

    def add(self, statement: Statement) -> None:
        self.function.statements.append(statement)

    def table(self, label: str, at: int) -> int:
        """Remember a ``.branchtargets`` list, whose name looks like a label; return its end."""
        targets = re.compile(r"\s*\.branchtargets\s+([^;]*)").match(self.text, at)
        if targets:
            self.function.tables[label] = tuple(targets.group(1).replace(",", " ").split())
        return targets.end() if targets else 0

    def local(self, name: str) -> str:
        """Name something declared in the innermost scope."""
        unique = f"{name}@{self.count}"
        self.scopes[-1][1][name] = unique
        return unique

    def close(self) -> None:
        first, names = self.scopes.pop()
        if not names:
            return
        statements = self.function.statements

        def rename(text: str) -> str:
            return _TOKEN.sub(lambda token: names.get(token.group(), token.group()), text)

        for index in range(first, len(statements)):
            old = statements[index]
            statements[index] = Statement(
                old.opcode,
                tuple(rename(operand) for operand in old.operands),
                old.guard and rename(old.guard),
                old.negated,
                old.line,
                old.text,
                old.source,
            )

    def statement(self, text: str, line: int) -> None:
        if text.startswith("."):
            self.directive(text, line)
            return
        guard, negated, body = None, False, text
        if text.startswith("@"):
            guard, body = text[1:].split(None, 1)
            negated = guard.startswith("!")
            guard = guard.lstrip("!")
        opcode, _, rest = body.partition(" ")
        self.add(Statement(opcode, split(rest), guard, negated, line, text, self.source))

    def directive(self, text: str, line: int) -> None:
        function = self.function
        word, _, rest = text.partition(" ")
        if word == ".reg":
            kind, _, names = rest.strip().partition(" ")
            for name in names.replace(",", " ").split():
                several = _RANGE.match(name)
                inner = bool(self.scopes)
                if several and inner:
                    for index in range(int(several.group(2))):
                        function.registers[self.local(f"{several.group(1)}{index}")] = kind[1:]
                elif several:
                    function.registers[several.group(1) + "<>"] = kind[1:]
                else:
                    function.registers[self.local(name) if inner else name] = kind[1:]
        elif word in (".local", ".param", ".shared"):
            found = _variable(text)
            if found is None:
                raise UnknownInstruction(f"PTX line {line} is not understood: `{text}`")
            variable, space, _ = found
            name = self.local(variable.name) if self.scopes else variable.name
            variable = Parameter(name, variable.size, variable.alignment)
            if space == "shared":
                function.shared[name] = variable
            else:
                function.frame[name] = variable
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
