"""Logic, shifts and bit fields."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Array
from ..ptx.types import TYPES, UNSIGNED
from .integer import same
from .table import Pure, form

LOGIC: dict[str, Callable[..., Array]] = {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _enter_logic() -> None:
    for name, function in LOGIC.items():

        def build(type: str, function: Callable[..., Array] = function) -> Pure:
            return same(function, type, 2)

        form(f"{name} pred|b16|b32|b64:type", "logic")(build)


_enter_logic()


@form("not pred|b16|b32|b64:type", "logic")
def _not(type: str) -> Pure:
    return same(np.invert, type, 1)


@form("cnot b16|b32|b64:type", "logic")
def _cnot(type: str) -> Pure:
    return same(lambda a: (a == 0).astype(a.dtype), type, 1)


@form("shl b16|b32|b64:type", "logic")
def _shl(type: str) -> Pure:
    bits = TYPES[type].bits

    def shift(a: Array, count: Array) -> Array:
        if bits == 32:
            # NumPy gives 0 for a count past the width, as PTX does.
            return np.left_shift(a, count)
        return np.left_shift(a, count.astype(a.dtype) if bits > 32 else _short(count))

    return Pure(shift, (type,), (type, "u32"))


def _short(count: Array) -> Array:
    return np.minimum(count, np.uint32(16)).astype(np.uint16)


@form("shr u16|u32|u64|s16|s32|s64|b16|b32|b64:type", "logic")
def _shr(type: str) -> Pure:
    held = TYPES[type]
    most = np.uint32(held.bits - 1 if held.kind == "s" else held.bits)

    def shift(a: Array, count: Array) -> Array:
        result: Array = np.right_shift(a, np.minimum(count, most).astype(a.dtype))
        return result

    return Pure(shift, (type,), (type, "u32"))


@form("shf l|r:way wrap|clamp:mode b32", "logic")
def _shf(way: str, mode: str, b32: str) -> Pure:
    def funnel(low: Array, high: Array, count: Array) -> Array:
        both = high.astype(np.uint64) << np.uint64(32) | low
        by = (count & np.uint32(31) if mode == "wrap" else np.minimum(count, np.uint32(32))).astype(
            np.uint64
        )
        shifted = both << by >> np.uint64(32) if way == "l" else both >> by
        return shifted.astype(np.uint32)

    return Pure(funnel, ("b32",), ("b32", "b32", "u32"))


@form("lop3 b32", "logic")
def _lop3(b32: str) -> Pure:
    def table(a: Array, b: Array, c: Array, lookup: Array) -> Array:
        result = np.zeros(1, np.uint32)
        for row in range(8):
            if int(lookup[0]) >> row & 1:
                result = result | (
                    (a if row & 4 else ~a) & (b if row & 2 else ~b) & (c if row & 1 else ~c)
                )
        return result

    return Pure(table, ("b32",), ("b32", "b32", "b32", "b32"))


@form("popc b32|b64:type", "logic")
def _popc(type: str) -> Pure:
    return Pure(lambda a: np.bitwise_count(a).astype(np.uint32), ("u32",), (type,))


def highest(a: Array) -> Array:
    """Return the position of the highest set bit of unsigned lanes, -1 for none."""
    # The exponent of float64 says it, once each half fits its 53 bits.
    upper, lower = (a >> a.dtype.type(a.itemsize * 4)), a & a.dtype.type((1 << a.itemsize * 4) - 1)
    _, low = np.frexp(lower.astype(np.float64))
    _, up = np.frexp(upper.astype(np.float64))
    result: Array = np.where(upper != 0, up + a.itemsize * 4, low) - 1
    return result


@form("clz b32|b64:type", "logic")
def _clz(type: str) -> Pure:
    top = TYPES[type].bits - 1
    return Pure(lambda a: (top - highest(a)).astype(np.uint32), ("u32",), (type,))


@form("bfind [shiftamt] u32|u64|s32|s64:type", "logic")
def _bfind(type: str, shiftamt: str | None) -> Pure:
    held = TYPES[type]

    def find(a: Array) -> Array:
        bits = np.where(a < 0, ~a, a).astype(UNSIGNED[held.bits]) if held.kind == "s" else a
        position = highest(bits)
        if shiftamt:
            position = np.where(position < 0, -1, held.bits - 1 - position)
        return position.astype(np.int32).view(np.uint32)

    return Pure(find, ("u32",), (type,))


@form("brev b32|b64:type", "logic")
def _brev(type: str) -> Pure:
    def whole(a: Array) -> Array:
        octets = np.ascontiguousarray(a).view(np.uint8).reshape(-1, a.itemsize)
        flipped = np.unpackbits(octets, axis=1, bitorder="little")[:, ::-1]
        return np.packbits(flipped, axis=1, bitorder="little").view(a.dtype).reshape(-1)

    return same(whole, type, 1)


@form("bfe u32|u64|s32|s64:type", "logic")
def _bfe(type: str) -> Pure:
    held = TYPES[type]
    unsigned = UNSIGNED[held.bits]

    def extract(a: Array, position: Array, length: Array) -> Array:
        start, count = position & np.uint32(255), length & np.uint32(255)
        most = np.uint32(held.bits)
        shifted = a >> np.minimum(start, most - np.uint32(held.kind == "s")).astype(a.dtype)
        kept = np.minimum(count, most)
        mask = ones(kept, unsigned)
        field = shifted.view(unsigned) & mask
        if held.kind == "s":
            # The sign is the field's top bit, or a's own where the field passes its end.
            top = np.minimum(start + count - np.uint32(1), most - np.uint32(1)).astype(unsigned)
            sign = (a.view(unsigned) >> top & unsigned.type(1)).astype(bool) & (count != 0)
            field = np.where(sign, field | ~mask, field)
        result: Array = field.view(a.dtype)
        return result

    return Pure(extract, (type,), (type, "u32", "u32"))


def ones(count: Array, dtype: np.dtype) -> Array:
    """Return lanes whose lowest `count` bits are set, up to all of them."""
    result: Array = ~np.left_shift(~np.zeros(1, dtype), count.astype(dtype))
    return result


@form("bfi b32|b64:type", "logic")
def _bfi(type: str) -> Pure:
    held = TYPES[type]

    def insert(a: Array, b: Array, position: Array, length: Array) -> Array:
        start = (position & np.uint32(255)).astype(held.dtype)
        count = np.minimum(length & np.uint32(255), np.uint32(held.bits))
        mask = np.left_shift(ones(count, held.dtype), start)
        result: Array = (np.left_shift(a, start) & mask) | (b & ~mask)
        return result

    return Pure(insert, (type,), (type, type, "u32", "u32"))


@form("bmsk clamp|wrap:mode b32", "logic")
def _bmsk(mode: str, b32: str) -> Pure:
    def mask(position: Array, length: Array) -> Array:
        if mode == "wrap":
            position, length = position & np.uint32(31), length & np.uint32(31)
        return np.left_shift(ones(np.minimum(length, np.uint32(32)), np.dtype("u4")), position)

    return Pure(mask, ("b32",), ("b32", "b32"))


@form("prmt b32 [f4e|b4e|rc8|ecl|ecr|rc16:mode]", "logic")
def _prmt(b32: str, mode: str | None) -> Pure:
    def permute(a: Array, b: Array, selector: Array) -> Array:
        both = (b.astype(np.uint64) << np.uint64(32) | a).astype(np.uint64)
        both, selector = np.broadcast_arrays(both, selector)
        result = np.zeros(both.shape, np.uint32)
        for octet in range(4):
            pick = _picked(mode, octet, selector)
            value = (both >> (pick & np.uint64(7)) * np.uint64(8) & np.uint64(255)).astype(
                np.uint32
            )
            sign = np.where(value & np.uint32(128), np.uint32(255), np.uint32(0))
            value = np.where(pick & np.uint64(8), sign, value)
            result |= value << np.uint32(8 * octet)
        return result

    return Pure(permute, ("b32",), ("b32", "b32", "b32"))


def _picked(mode: str | None, octet: int, selector: Array) -> Array:
    """Return which of the eight bytes goes to `octet`; bit 3 asks for its sign."""
    if mode is None:
        return (selector >> np.uint32(4 * octet) & np.uint32(15)).astype(np.uint64)
    s = (selector & np.uint32(3)).astype(np.int64)
    pick = {
        "f4e": s + octet,
        "b4e": (s - octet) & 7,
        "rc8": s,
        "ecl": np.maximum(s, octet),
        "ecr": np.minimum(s, octet),
        "rc16": (s & 1) * 2 + octet % 2,
    }[mode]
    return pick.astype(np.uint64)


@form("fns b32", "logic")
def _fns(b32: str) -> Pure:
    def nth(mask: Array, base: Array, offset: Array) -> Array:
        mask, base, offset = np.broadcast_arrays(mask, base, offset.view(np.int32))
        result = np.full(mask.shape, 0xFFFFFFFF, np.uint32)
        for lane in range(mask.size):
            bits, start, n = int(mask[lane]), int(base[lane]), int(offset[lane])
            if start > 31:  # as may stand in a lane that is not asked
                continue
            if n == 0:
                steps = [start] if bits >> start & 1 else []
            else:
                way = range(start, 32) if n > 0 else range(start, -1, -1)
                steps = [bit for bit in way if bits >> bit & 1][abs(n) - 1 : abs(n)]
            if steps:
                result[lane] = steps[0]
        return result

    return Pure(nth, ("b32",), ("b32", "b32", "s32"))
