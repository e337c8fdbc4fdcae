"""Declarations in PTX text: types and their sizes, literals, variables."""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass

from ..faults import UnknownInstruction

SIZES = {f"{kind}{bits}": bits // 8 for kind in "busf" for bits in (8, 16, 32, 64)} | {
    "f16x2": 4,
    "bf16": 2,
    "bf16x2": 4,
    "b128": 16,
}
_VARIABLE = re.compile(
    r"\.(?P<space>global|const|shared|local|param)\s+(?:\.(?:attribute|ptr)\S*\s*)?"
    r"(?:\.align\s+(?P<align>\d+)\s+)?(?:\.v(?P<vector>[24])\s+)?\.(?P<type>\w+)\s+"
    r"(?:\.ptr\s*(?:\.\w+\s*)*(?:\.align\s+\d+\s*)?)?"
    r"(?P<name>[\w$%]+)(?P<dimensions>(?:\s*\[\d*\])*)\s*(?:=\s*(?P<value>[^;]+))?$"
)


@dataclass(frozen=True)
class Parameter:
    """A kernel's or function's parameter: where a launch puts its bytes, and how many.

    `kind` is the type of a single value, as PTX has it: ``"f32"``, ``"u64"``; empty for an array.
    """

    name: str
    size: int
    alignment: int
    kind: str = ""


def variable_of(text: str) -> tuple[Parameter, str, re.Match[str]] | None:
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
    kind = "" if match["dimensions"] or match["vector"] else match["type"]
    variable = Parameter(match["name"], size, int(match["align"] or element), kind)
    return variable, match["space"], match


def number(text: str, kind: str, line: int = 0) -> bytes:
    """Return the little-endian bytes of a literal as a value of type `kind`."""
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


def parameters_of(text: str | None) -> tuple[Parameter, ...]:
    """Read the parameters of a function."""
    found = (
        variable_of(" ".join(piece.split())) for piece in (text or "").split(",") if piece.strip()
    )
    pieces = tuple(entry[0] for entry in found if entry is not None)
    if len(pieces) != len([piece for piece in (text or "").split(",") if piece.strip()]):
        raise UnknownInstruction(f"parameters that are not understood: `{text}`")
    return pieces
