"""Comparisons and choices: setp, set, selp, slct."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lanes import Array
from ..ptx.types import TYPES, UNSIGNED
from .half import lanes_of
from .rounding import flush, widen
from .table import Pure, form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site

Test = Callable[[Array, Array], Array]

ORDERED: dict[str, Test] = {
    "eq": np.equal,
    "lt": np.less,
    "le": np.less_equal,
    "gt": np.greater,
    "ge": np.greater_equal,
    # Of the ordered tests only `ne` is true for NaNs in NumPy and false in PTX.
    "ne": lambda a, b: (a < b) | (a > b),
}
INTEGER: dict[str, Test] = ORDERED | {
    "ne": np.not_equal,
    "lo": np.less,
    "ls": np.less_equal,
    "hi": np.greater,
    "hs": np.greater_equal,
}
FLOAT: dict[str, Test] = ORDERED | {
    "equ": lambda a, b: ~((a < b) | (a > b)),
    "neu": np.not_equal,
    "ltu": lambda a, b: ~(a >= b),
    "leu": lambda a, b: ~(a > b),
    "gtu": lambda a, b: ~(a <= b),
    "geu": lambda a, b: ~(a < b),
    "num": lambda a, b: ~(np.isnan(a) | np.isnan(b)),
    "nan": lambda a, b: np.isnan(a) | np.isnan(b),
}
COMBINE: dict[str, Test] = {
    "and": np.logical_and,
    "or": np.logical_or,
    "xor": np.logical_xor,
}
FLOATS = ("f16", "bf16", "f32", "f64", "f16x2", "bf16x2")
UNORDERED = "|".join(FLOAT)
TESTS = "|".join(dict.fromkeys([*FLOAT, *INTEGER]))
TYPE = "b16|b32|b64|u16|u32|u64|s16|s32|s64|f16|bf16|f32|f64"


def comparison(test: str, type: str, ftz: str | None) -> Test | None:
    """Return the test of lanes of `type`, or None where the ISA has none."""
    function = (FLOAT if type in FLOATS else INTEGER).get(test)
    if function is None or (type[0] == "b" and type[1] != "f" and test not in ("eq", "ne")):
        return None
    if type == "f32" and ftz:
        return lambda a, b: function(flush(a), flush(b))
    if type in ("f16", "bf16", "f16x2", "bf16x2"):
        single, unpack, _ = lanes_of(type)

        def wide(a: Array, b: Array) -> Array:
            left, right = widen(unpack(a), single), widen(unpack(b), single)
            if ftz:
                smallest = 2.0**-14
                left = np.where(np.abs(left) < smallest, 0.0, left)
                right = np.where(np.abs(right) < smallest, 0.0, right)
            return function(left, right)

        return wide
    return function


@form(f"setp {TESTS}:test [and|or|xor:with_] [ftz] {TYPE}:type", "compare", decodes=True)
def _setp(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    test = comparison(fields["test"], fields["type"], fields["ftz"])
    if test is None:
        return None
    combine = COMBINE.get(fields["with_"])
    targets = site.operands[0].split("|")
    both = len(targets) == 2

    def single(a: Array, b: Array, *with_: Array) -> Any:
        result = test(a, b)
        first = combine(result, with_[0]) if combine else result
        if not both:
            return first
        return first, (combine(~result, with_[0]) if combine else ~result)

    kinds = (fields["type"],) * 2 + ("pred",) * (combine is not None)
    function = test if combine is None and not both else single
    return builder.pure(site, function, [(name, "pred") for name in targets], kinds)


@form(
    f"setp {UNORDERED}:test [and|or|xor:with_] [ftz] f16x2|bf16x2:type",
    "compare",
    decodes=True,
)
def _setp_pairs(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    test = comparison(fields["test"], fields["type"], fields["ftz"])
    if test is None:
        return None
    combine = COMBINE.get(fields["with_"])

    def both(a: Array, b: Array, *with_: Array) -> tuple[Array, Array]:
        result = test(a, b)
        low, high = np.ascontiguousarray(result[:, 0]), np.ascontiguousarray(result[:, 1])
        return (combine(low, with_[0]), combine(high, with_[0])) if combine else (low, high)

    targets = [(name, "pred") for name in site.operands[0].split("|")]
    return builder.pure(
        site, both, targets, (fields["type"],) * 2 + ("pred",) * (combine is not None)
    )


@form(f"set {TESTS}:test [ftz] u32|s32|f32|u16|s16|f16|bf16:to {TYPE}:type", "compare")
@form(f"set {TESTS}:test and|or|xor:with_ [ftz] u32|s32|f32:to {TYPE}:type", "compare")
def _set(test: str, to: str, type: str, ftz: str | None, with_: str | None = None) -> Pure | None:
    compare = comparison(test, type, ftz)
    if compare is None:
        return None
    combine = COMBINE.get(with_ or "")
    held = TYPES[to]
    true = {"f32": 0x3F800000, "f16": 0x3C00, "bf16": 0x3F80}.get(to, (1 << held.bits) - 1)
    values = np.array([0, true], UNSIGNED[held.bits]).view(held.dtype)

    def chosen(a: Array, b: Array, *other: Array) -> Array:
        result = compare(a, b)
        return values[(combine(result, other[0]) if combine else result).astype(np.intp)]

    return Pure(chosen, (to,), (type, type) + ("pred",) * (combine is not None))


@form(f"set {UNORDERED}:test [ftz] f16x2|bf16x2|u32|s32:to f16x2|bf16x2:type", "compare")
def _set_pairs(test: str, to: str, type: str, ftz: str | None) -> Pure | None:
    compare = comparison(test, type, ftz)
    if compare is None:
        return None
    true = {"f16x2": 0x3C00, "bf16x2": 0x3F80}.get(to, 0xFFFF)
    values = np.array([0, true], np.uint16)

    def chosen(a: Array, b: Array) -> Array:
        return values[compare(a, b).astype(np.intp)].view(np.uint32).reshape(-1)

    return Pure(chosen, ("b32",), (type, type))


@form("selp b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64:type", "compare")
def _selp(type: str) -> Pure:
    return Pure(lambda a, b, p: np.where(p, a, b), (type,), (type, type, "pred"))


@form("slct [ftz] b16|b32|b64|u16|u32|u64|s16|s32|s64|f32|f64:type s32|f32:by", "compare")
def _slct(type: str, by: str, ftz: str | None) -> Pure:
    def chosen(a: Array, b: Array, c: Array) -> Array:
        return np.where((flush(c) if ftz and by == "f32" else c) >= 0, a, b)

    return Pure(chosen, (type,), (type, type, by))
