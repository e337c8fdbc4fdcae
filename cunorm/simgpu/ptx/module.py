"""PTX text into modules, functions and statements; nothing here knows what an instruction does."""

from __future__ import annotations

import functools
import math
import re
from dataclasses import dataclass, field
from typing import Any

from ..faults import UnknownInstruction
from .declarations import SIZES, Parameter, number, parameters_of, variable_of
from .statements import Body, Statement

DEFAULT_MAX_THREADS = 1024  # what every architecture allows where .maxntid says nothing

GIVEN = "<source>"  # the name of source that CuPy was given as a string

_COMMENT = re.compile(r"//[^\n]*|/\*.*?\*/", re.S)
_HEADER = re.compile(
    r"(?P<linkage>(?:\.(?:visible|extern|weak)\s+)*)\.(?P<kind>entry|func)\s*"
    r"(?:\((?P<results>[^)]*)\)\s*)?(?P<name>[\w$]+)\s*(?:\((?P<parameters>[^)]*)\))?"
    r"(?P<directives>[^{;]*)(?P<end>[{;])"
)
_SYMBOL = re.compile(
    r"(?P<generic>generic\()?(?P<name>[A-Za-z_$][\w$]*)(?(generic)\))(?:\+(?P<plus>\w+))?"
)
_BLANK = re.compile(r"[\s;]*")
_NAME = re.compile(r"[\[{(,\s]([A-Za-z_$][\w$]*)")  # of anything but registers
_BRACE = re.compile(r'[{}]|"[^"]*"')


@dataclass(frozen=True)
class GlobalVariable:
    """A module-scope variable and the bytes it starts with.

    `addresses` are the words among them that are known once the module is loaded: for each the
    offset, whose address it is, and what is added to that.
    """

    name: str
    size: int
    alignment: int
    space: str
    initial: bytes
    addresses: tuple[tuple[int, str, int], ...] = ()


@dataclass(eq=False)
class Function:
    """A kernel (``.entry``) or a device function (``.func``)."""

    name: str
    parameters: tuple[Parameter, ...]
    results: tuple[Parameter, ...]
    is_entry: bool
    max_threads: int
    has_launch_bounds: bool
    cluster: tuple[int, int, int] | None  # None where each launch has to say it
    explicit_cluster: bool
    module: Module = field(repr=False)
    statements: list[Statement] = field(repr=False)
    registers: dict[str, str] = field(repr=False)
    frame: dict[str, Parameter] = field(repr=False)
    shared: dict[str, Parameter] = field(repr=False)
    tables: dict[str, tuple[str, ...]] = field(repr=False)
    uses: frozenset[str] = field(repr=False)
    # What execution decodes it to: kept here, it goes when the module is unloaded.
    program: Any = field(default=None, repr=False)

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

    @functools.cached_property
    def shared_layout(self) -> tuple[dict[str, int], int]:
        """The shared-memory offset of every variable used, and the static bytes in all.

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
        return self.shared_layout[1]

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
    paths: dict[str, str] = field(default_factory=dict)  # of source files, by what they are called


def parse(text: str) -> Module:
    """Read a PTX module."""
    paths = dict(re.findall(r'\.file\s+(\d+)\s+"([^"]*)"', text))
    files = {number: _file_name(path) for number, path in paths.items()}
    text = _COMMENT.sub(lambda comment: "\n" * comment.group().count("\n"), text).rstrip("\0 \n")
    target = re.search(r"\.target\s+sm_(\d+)", text)
    module = Module(target=int(target.group(1)) if target else 0)
    for file, path in paths.items():
        # Of two files that are called the same, neither is known.
        same = module.paths.setdefault(files[file], path) == path
        module.paths[files[file]] = path if same else ""
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
                at = _define(module, header, text, files)
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


def _file_name(path: str) -> str:
    """Return what to call a source file in messages: its folder and its name.

    NVRTC completes the names of ``#line`` directives with the working directory of the day it
    compiled, and CuPy compiles a string as a file named by its hash, in a folder it then removes.
    """
    folder, _, name = path.rpartition("/")
    if re.fullmatch(r"[0-9a-f]{40}\.\w+\.cu", name):
        return GIVEN
    return f"{folder.rpartition('/')[2]}/{name}" if folder else name


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


def _declare(module: Module, text: str, line: int) -> None:
    """Enter a module-scope variable."""
    found = variable_of(" ".join(text.split()))
    if found is None:
        raise UnknownInstruction(f"PTX line {line} is not understood: `{text.strip()[:80]}`")
    variable, space, match = found
    if space == "shared":
        module.shared[variable.name] = variable
    elif space in ("global", "const"):
        initial, addresses = _initial(match["value"], match["type"], variable.size, line)
        module.globals[variable.name] = GlobalVariable(
            variable.name, variable.size, variable.alignment, space, initial, addresses
        )
    else:
        raise UnknownInstruction(f"PTX line {line}: a module-scope .{space} variable")


def _initial(
    value: str | None, kind: str, size: int, line: int
) -> tuple[bytes, tuple[tuple[int, str, int], ...]]:
    data, addresses = b"", []
    for item in re.findall(r"[^\s,{}]+", value or ""):
        symbol = _SYMBOL.fullmatch(item)
        if symbol and SIZES[kind] == 8:
            addresses.append((len(data), symbol["name"], int(symbol["plus"] or "0", 0)))
            item = "0"
        data += number(item, kind, line)
    return data.ljust(size, b"\0"), tuple(addresses)


def _define(module: Module, header: re.Match[str], text: str, files: dict[str, str]) -> int:
    """Read one function's body; return where it ends."""
    directives = {
        name: [int(item) for item in re.findall(r"\d+", values)]
        for name, values in re.findall(r"\.(\w+)([^.]*)", header["directives"])
    }
    bounds = directives.get("maxntid", directives.get("reqntid"))
    cluster = directives.get("reqnctapercluster")
    explicit = "explicitcluster" in directives or cluster is not None
    body = Body(text, files)
    end = body.read(header.end())
    parameters, results = parameters_of(header["parameters"]), parameters_of(header["results"])
    is_entry = header["kind"] == "entry"
    # Those of a device function lie in its frame.
    frame = {} if is_entry else {variable.name: variable for variable in parameters + results}
    function = Function(
        header["name"],
        parameters,
        results,
        is_entry,
        math.prod(bounds) if bounds else DEFAULT_MAX_THREADS,
        bounds is not None,
        None if explicit and not cluster else tuple([*(cluster or ()), 1, 1, 1][:3]),
        explicit,
        module,
        body.statements,
        body.registers,
        frame | body.frame,
        body.shared,
        body.tables,
        frozenset(_NAME.findall(text, header.end(), end)),
    )
    (module.functions if is_entry else module.device_functions)[function.name] = function
    return end
