"""Operands as text into register slots: registers, literals, variables, special registers."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import numpy as np

from ..lanes import Array
from . import declarations, refusals
from .module import Function
from .program import Program
from .statements import Statement
from .types import TYPES, UNSIGNED, Reading, reading, writing

_ADDRESS = re.compile(r"\[\s*([\w$%@.]+)\s*(?:\+\s*(-?\w+))?\s*\]$")
_SUM = re.compile(r"([\w$@]+)\s*\+\s*(-?\w+)$")
_ZEROS = {kind.dtype: np.zeros(1, kind.dtype) for kind in TYPES.values()}
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
    **{
        f"%{name}.{axis}": "u32"
        for name in ("cluster_ctaid", "cluster_nctaid", "clusterid", "nclusterid")
        for axis in "xyz"
    },
    "%cluster_ctarank": "u32",
    "%cluster_nctarank": "u32",
    "%is_explicit_cluster": "pred",
    # Where the driver puts the address of a cooperative launch's barrier, upper half first.
    "%envreg1": "u32",
    "%envreg2": "u32",
}


@dataclass(eq=False)
class Scope:
    """One expansion of a function: its registers, labels and frame variables have own places.

    `registers` are those that appeared, each with its slot and the dtype it is held as.
    """

    function: Function
    parent: Scope | None
    registers: dict[str, tuple[int, np.dtype]] = field(default_factory=dict)
    frame: dict[str, int] = field(default_factory=dict)
    labels: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class Site:
    """A statement where it is decoded."""

    statement: Statement
    scope: Scope

    @property
    def operands(self) -> tuple[str, ...]:
        """The operands as written."""
        return self.statement.operands


class Unknown(Exception):
    """What cannot be decoded, in words."""


class Operands(ABC):
    """The slots of one kernel's program, by the names that its text has for them."""

    def __init__(self, kernel: Function) -> None:
        self.kernel = kernel
        self.shared, _ = kernel.shared_layout
        self.parameters: dict[str, int] = {}
        end = 0
        for parameter in kernel.parameters:
            self.parameters[parameter.name] = end = (
                -(-end // parameter.alignment) * parameter.alignment
            )
            end += parameter.size
        self.program = Program(kernel, self.parameters, end)
        self.slots: dict[tuple[object, str], int] = {}

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

    def parameter(self, site: Site, text: str, width: int) -> int | None:
        """Return where an access reads the kernel's own arguments; None where it may not."""
        name, offset = self.address(site, text)
        if name not in self.parameters or site.scope.parent is not None:
            return None
        at = self.parameters[name] + offset
        inside = 0 <= at <= self.program.parameter_bytes - width and at % width == 0
        return at if inside else None

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
        """Return a new register's slot and the dtype it is held as, that of this appearance."""
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
        site.scope.registers[name] = found = len(self.program.initial), held
        self.program.initial.append(_ZEROS[held])
        return found

    def source(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        """Return the slot of an operand that is read, and how to read it as `kind`."""
        register = site.scope.registers.get(text)
        if register is None and kind == "pred" and text.startswith("!"):
            slot, _ = self.source(site, text[1:], kind)
            return slot, np.logical_not
        if register is None:
            register = self.register(site, text, kind)
        if register is not None:
            slot, held = register
            wanted = TYPES[kind].dtype
            return slot, None if held is wanted else reading(held, wanted)
        if text in SPECIAL:
            held = TYPES[SPECIAL[text]].dtype
            slot = self.slot(("special", text), np.zeros(1, held))
            self.program.special[text] = slot
            return slot, reading(held, TYPES[kind].dtype)
        if text in CLOCKS:
            return self._clock(site, text, kind)
        return self.constant(site, text, kind), None

    @abstractmethod
    def _clock(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        """Return the slot of a clock, which is read anew each time."""

    def constant(self, site: Site, text: str, kind: str) -> int:
        """Return the slot of a literal or of a variable's address."""
        dtype = TYPES[kind].dtype
        if _LITERAL.match(text):
            if kind == "pred":
                return self.slot(("pred", text), np.array([int(text, 0) != 0]))
            spelled = {"f16": "b16", "f16x2": "b32", "bf16": "b16", "bf16x2": "b32"}.get(kind, kind)
            data = declarations.number(text, spelled, site.statement.line)
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
        if name in self.kernel.module.device_functions:
            raise Unknown(f"the address of {refusals.plain(name)}: {refusals.POINTER_CALLS}")
        raise Unknown(f"operand {text} is not understood")

    def target(self, site: Site, text: str, kind: str) -> tuple[int, Reading | None]:
        """Return the slot that a result goes to, and how it gets there."""
        if text == "_":
            return self.slot(("sink", kind), np.zeros(1, TYPES[kind].dtype)), None
        register = site.scope.registers.get(text) or self.register(site, text, kind)
        if register is None:
            raise Unknown(f"{text} is no register")
        slot, held = register
        given = TYPES[kind].dtype
        return slot, None if held is given else writing(given, held)
