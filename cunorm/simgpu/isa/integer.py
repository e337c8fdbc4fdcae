"""Integer arithmetic: wrapping, saturating, wide, high halves, carry chains, division."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Array
from ..ptx.types import SIGNED, TYPES, UNSIGNED
from .table import Pure, form

WHOLE = "u16|s16|u32|s32|u64|s64:type"


def same(function: Callable[..., Array], kind: str, operands: int) -> Pure:
    """Build a function whose operands and result all have one type."""
    return Pure(function, (kind,), (kind,) * operands)


def _sum(kind: str, sat: str | None, wrapped: Callable[..., Array]) -> Callable[..., Array]:
    if not sat:
        return wrapped

    def saturated(a: Array, b: Array) -> Array:
        exact = wrapped(a.astype(np.int64), b.astype(np.int64))
        return np.clip(exact, -(1 << 31), (1 << 31) - 1).astype(np.int32)

    return saturated


@form(f"add {WHOLE}", "integer")
@form("add sat s32:type", "integer")
def _add(type: str, sat: str | None = None) -> Pure:
    return same(_sum(type, sat, np.add), type, 2)


@form(f"sub {WHOLE}", "integer")
@form("sub sat s32:type", "integer")
def _sub(type: str, sat: str | None = None) -> Pure:
    return same(_sum(type, sat, np.subtract), type, 2)


@form("add u16x2|s16x2:type", "integer", since=90)
def _add_pairs(type: str) -> Pure:
    return Pure(pairs(np.add), ("b32",), ("b32", "b32"))


def pairs(function: Callable[..., Array], dtype: str = "u2") -> Callable[..., Array]:
    """Apply a function of 16-bit lanes to both halves of 32-bit ones."""

    def both(*operands: Array) -> Array:
        halves = [operand.view(dtype).reshape(-1, 2) for operand in operands]
        return np.ascontiguousarray(function(*halves)).view(np.uint32).reshape(-1)

    return both


def high(a: Array, b: Array, bits: int, signed: bool) -> Array:
    """Return the upper half of the product."""
    if bits < 64:
        wide = (SIGNED if signed else UNSIGNED)[2 * bits]
        product: Array = a.astype(wide) * b.astype(wide) >> wide.type(bits)
        return product.astype((SIGNED if signed else UNSIGNED)[bits])
    ua, ub = a.view(np.uint64), b.view(np.uint64)
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    low_a, high_a, low_b, high_b = ua & mask, ua >> half, ub & mask, ub >> half
    middle = high_a * low_b + (low_a * low_b >> half)
    other = low_a * high_b + (middle & mask)
    result: Array = high_a * high_b + (middle >> half) + (other >> half)
    if signed:
        # A negative factor read as unsigned is 2^64 too large: take the other factor off again.
        result = result - np.where(a < 0, ub, np.uint64(0)) - np.where(b < 0, ua, np.uint64(0))
    return result.view(a.dtype)


def _product(kind: str, part: str) -> Callable[[Array, Array], Array]:
    held = TYPES[kind]
    if part == "lo":
        return np.multiply
    if part == "hi":
        return lambda a, b: high(a, b, held.bits, held.kind == "s")
    wide = (SIGNED if held.kind == "s" else UNSIGNED)[2 * held.bits]
    return lambda a, b: np.multiply(a, b, dtype=wide)


def _wider(kind: str, part: str) -> str:
    return f"{kind[0]}{2 * int(kind[1:])}" if part == "wide" else kind


@form(f"mul lo|hi:part {WHOLE}", "integer")
@form("mul wide:part u16|s16|u32|s32:type", "integer")
def _mul(type: str, part: str) -> Pure:
    return Pure(_product(type, part), (_wider(type, part),), (type, type))


@form(f"mad lo|hi:part {WHOLE}", "integer")
@form("mad wide:part u16|s16|u32|s32:type", "integer")
def _mad(type: str, part: str) -> Pure:
    product, result = _product(type, part), _wider(type, part)
    return Pure(lambda a, b, c: product(a, b) + c, (result,), (type, type, result))


@form("mad hi:part sat s32:type", "integer")
def _mad_sat(type: str, part: str, sat: str) -> Pure:
    product, total = _product(type, part), _sum(type, sat, np.add)
    return Pure(lambda a, b, c: total(product(a, b), c), (type,), (type, type, type))


def _low24(a: Array) -> Array:
    if a.dtype.kind == "u":
        return a & np.uint32(0xFFFFFF)
    return (a << np.int32(8)) >> np.int32(8)


def _product24(part: str, a: Array, b: Array) -> Array:
    wide = np.dtype(f"{a.dtype.kind}8")
    product = _low24(a).astype(wide) * _low24(b).astype(wide)
    result: Array = (product >> wide.type(16) if part == "hi" else product).astype(a.dtype)
    return result


@form("mul24 lo|hi:part u32|s32:type", "integer")
def _mul24(type: str, part: str) -> Pure:
    return same(lambda a, b: _product24(part, a, b), type, 2)


@form("mad24 lo|hi:part u32|s32:type", "integer")
def _mad24(type: str, part: str) -> Pure:
    return same(lambda a, b, c: _product24(part, a, b) + c, type, 3)


def quotient(a: Array, b: Array) -> Array:
    """Divide towards zero; a division by zero, undefined in PTX, gives all ones."""
    safe = np.where(b == 0, b.dtype.type(1), b)
    if a.dtype.kind == "u":
        result = a // safe
    else:
        floor = a // safe
        # NumPy rounds down: go up again where that passed an inexact negative quotient.
        result = floor + ((floor < 0) & (floor * safe != a))
    return np.where(b == 0, np.array(-1).astype(a.dtype), result)


@form(f"div {WHOLE}", "division")
def _div(type: str) -> Pure:
    return same(quotient, type, 2)


@form(f"rem {WHOLE}", "division")
def _rem(type: str) -> Pure:
    return same(lambda a, b: np.where(b == 0, a, a - quotient(a, b) * b), type, 2)


@form("abs s16|s32|s64:type", "integer")
def _abs(type: str) -> Pure:
    return same(np.abs, type, 1)


@form("neg s16|s32|s64:type", "integer")
def _neg(type: str) -> Pure:
    return same(np.negative, type, 1)


@form(f"min {WHOLE}", "integer")
def _min(type: str) -> Pure:
    return same(np.minimum, type, 2)


@form(f"max {WHOLE}", "integer")
def _max(type: str) -> Pure:
    return same(np.maximum, type, 2)


@form("min u16x2|s16x2:type", "integer", since=90)
@form("min relu s16x2|s32:type", "integer", since=90)
def _min_pairs(type: str, relu: str | None = None) -> Pure:
    return _extreme(np.minimum, type, relu)


@form("max u16x2|s16x2:type", "integer", since=90)
@form("max relu s16x2|s32:type", "integer", since=90)
def _max_pairs(type: str, relu: str | None = None) -> Pure:
    return _extreme(np.maximum, type, relu)


def _extreme(choose: Callable[..., Array], kind: str, relu: str | None) -> Pure:
    def chosen(a: Array, b: Array) -> Array:
        result = choose(a, b)
        return np.maximum(result, result.dtype.type(0)) if relu else result

    if kind == "s32":
        return same(chosen, kind, 2)
    dtype = "u2" if kind == "u16x2" else "i2"
    return Pure(pairs(chosen, dtype), ("b32",), ("b32", "b32"))


@form(f"sad {WHOLE}", "integer")
def _sad(type: str) -> Pure:
    def distance(a: Array, b: Array, c: Array) -> Array:
        return np.where(a < b, b - a, a - b) + c

    return same(distance, type, 3)


@form("dp4a u32|s32:first u32|s32:second", "integer")
def _dp4a(first: str, second: str) -> Pure:
    return _dot(first, second, "1", 4, slice(None))


@form("dp2a lo|hi:part u32|s32:first u32|s32:second", "integer")
def _dp2a(part: str, first: str, second: str) -> Pure:
    return _dot(first, second, "2", 2, slice(0, 2) if part == "lo" else slice(2, 4))


def _dot(first: str, second: str, width: str, terms: int, taken: slice) -> Pure:
    one = ("u" if first[0] == "u" else "i") + width
    other = ("u" if second[0] == "u" else "i") + "1"
    result = "u32" if first == second == "u32" else "s32"

    def dot(a: Array, b: Array, c: Array) -> Array:
        left = a.view(one).reshape(-1, terms).astype(np.int64)
        right = b.view(other).reshape(-1, 4)[:, taken].astype(np.int64)
        total: Array = (left * right).sum(axis=1) + c
        return total.astype(TYPES[result].dtype)

    return Pure(dot, (result,), (first, second, result))


# Carry chains: the flag CC.CF is a predicate register that these forms read and write by name. A
# subtraction leaves the carry of a + ~b + 1 there, which is set where nothing was borrowed, and
# takes it so. The ISA's text calls it a borrow, which a chain of subtractions cannot tell apart;
# but the 128-bit division in NVIDIA's own PTX reads a subtraction's flag with addc.
def _carried(kind: str, given: bool, kept: bool, borrow: bool, factors: str | None) -> Pure:
    held = UNSIGNED[TYPES[kind].bits]

    def chain(*operands: Array) -> Array | tuple[Array, Array]:
        *terms, carry = operands if given else (*operands, np.zeros(1, bool))
        terms = [term.view(held) for term in terms]
        if factors is not None:
            a = _product(kind, factors)(*(term.view(TYPES[kind].dtype) for term in terms[:2]))
            a, b = a.view(held), terms[2]
        else:
            a, b = terms
        if borrow:
            borrowed = ~carry if given else carry
            result = a - b - borrowed.astype(held)
            flag = (a > b) | ((a == b) & ~borrowed)
        else:
            extra = carry.astype(held)
            result = a + b + extra
            flag = (result < a) | ((result == a) & carry)
        return (result.view(TYPES[kind].dtype), flag) if kept else result.view(TYPES[kind].dtype)

    operands = (kind,) * (2 if factors is None else 3)
    return Pure(
        chain,
        (kind, "carry") if kept else (kind,),
        (*operands, "carry") if given else operands,
    )


CARRIES = "u32|s32|u64|s64:type"


def _enter_carries() -> None:
    """Enter the chains in a loop: they differ in what they read, what they keep and the sign."""
    for name in ("add", "sub", "mad"):
        part = " lo|hi:part" if name == "mad" else ""
        for given in (False, True):
            opcode = name + "c" * given
            for kept in (" cc:kept", "") if given else (" cc:kept",):

                def build(
                    type: str,
                    kept: str | None = None,
                    part: str | None = None,
                    given: bool = given,
                    name: str = name,
                ) -> Pure:
                    return _carried(type, given, bool(kept), name == "sub", part)

                form(f"{opcode}{part}{kept} {CARRIES}", "integer")(build)


_enter_carries()
