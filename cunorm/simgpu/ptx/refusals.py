"""What is known and not simulated, in plain words, and the names of functions as C++ has them."""

from __future__ import annotations

import re

# What instructions are for, by the first word of their opcodes.
_KINDS = {
    "alloca stacksave stackrestore": "memory taken from the stack while a kernel runs (alloca)",
    "tex tld4 txq istypep": "textures",
    "suld sust sured suq": "surfaces",
    "mma wmma ldmatrix stmatrix movmatrix wgmma tcgen05": "matrix instructions (tensor cores)",
    "multimem": "multicast memory of several devices",
    "setmaxnreg": "moving registers between warps",
    "tensormap": "tensor maps",
}
_PURPOSES = {word: what for words, what in _KINDS.items() for word in words.split()}
_MANGLED = re.compile(r"_ZN?K?(?:L(?=\d))?((?:\d+\w+)+)")

POINTER_CALLS = "calls through pointers, of functions or virtual methods, are not supported"


def reason(opcode: str) -> str:
    """Return why no form spells an opcode."""
    what = _PURPOSES.get(opcode.partition(".")[0])
    if opcode.startswith("cp.") and ".tensor" in opcode:
        what = "tensor maps"
    return "no such form is known" if what is None else f"{what} are not supported"


def plain(name: str) -> str:
    """Return the name of a function as its source has it, as far as that is simple."""
    mangled = _MANGLED.match(name)
    if mangled is None:
        return name
    rest, words = mangled[1], []
    while digits := re.match(r"\d+", rest):
        end = digits.end() + int(digits[0])
        words.append(rest[digits.end() : end])
        rest = rest[end:]
    return "::".join(words)


def recursion(names: list[str]) -> str:
    """Return what to say of functions that call each other in this order, and then the first."""
    first, *others = map(plain, names)
    through = f" through {' and '.join(others)}" if others else ""
    return f"{first} calls itself{through}: recursion is not supported"
