"""cvt: among integers of every width and the float formats, with every rounding and saturation."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Array
from ..ptx.types import TYPES, UNSIGNED
from .rounding import F32_NAN, canonical, flush, from_bf16, narrow, narrow_float32, saturate, widen
from .table import Pure, form

INTEGERS = "u8|s8|u16|s16|u32|s32|u64|s64"
FLOATS = "f16|bf16|f32|f64"
TO_WHOLE = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@form(f"cvt [sat] {INTEGERS}:to {INTEGERS}:source", "convert")
def _integers(to: str, source: str, sat: str | None) -> Pure:
    target = TYPES[to].dtype
    least, most = np.iinfo(target).min, np.iinfo(target).max
    given = np.iinfo(TYPES[source].dtype)

    def convert(a: Array) -> Array:
        if sat:
            low, high = max(least, given.min), min(most, given.max)
            a = np.clip(a, a.dtype.type(low), a.dtype.type(high))
        return a.astype(target)

    return Pure(convert, (to,), (source,))


@form(f"cvt rn|rz|rm|rp:mode [ftz] [sat] {FLOATS}:to {INTEGERS}:source", "convert")
def _from_integer(to: str, source: str, mode: str, ftz: str | None, sat: str | None) -> Pure:
    def convert(a: Array) -> Array:
        if mode == "rn" and to in ("f32", "f64") and not sat:
            return a.astype(TYPES[to].dtype)
        wide = _integer_to_f64(a, mode) if to == "f64" else _odd_integer(a)
        return narrow(saturate(wide) if sat else wide, to, mode)

    return Pure(convert, (to,), (source,))


def _odd_integer(a: Array) -> Array:
    """Return integers as float64, rounded to odd where they have more than 53 bits."""
    if a.dtype.itemsize < 8:
        return a.astype(np.float64)
    # The low 11 bits become one sticky bit above them: 53 bits are left of any 64.
    low = a.dtype.type(0x7FF)
    sticky = ((a & low) != 0).astype(a.dtype) << a.dtype.type(11)
    large = (a > a.dtype.type(1 << 53)) | (
        a < a.dtype.type(-(1 << 53) if a.dtype.kind == "i" else 0)
    )
    return np.where(large, (a & ~low) | sticky, a).astype(np.float64)


def _integer_to_f64(a: Array, mode: str) -> Array:
    near = a.astype(np.float64)
    if a.dtype.itemsize < 8 or mode == "rn":
        return near
    # 2^63 and 2^64 themselves do not fit back, and they are above every value that rounds to them.
    top = 2.0**63 if a.dtype.kind == "i" else 2.0**64
    back = np.where(near < top, near, 0.0).astype(a.dtype)
    above = (near >= top) | (back > a)
    below = (near < top) & (back < a)
    step_down = above & ((mode == "rm") | ((mode == "rz") & (near > 0)))
    step_up = below & ((mode == "rp") | ((mode == "rz") & (near < 0)))
    return np.where(
        step_down,
        np.nextafter(near, -np.inf),
        np.where(step_up, np.nextafter(near, np.inf), near),
    )


@form(f"cvt rni|rzi|rmi|rpi:mode [ftz] [sat] {INTEGERS}:to {FLOATS}:source", "convert")
def _to_integer(to: str, source: str, mode: str, ftz: str | None, sat: str | None) -> Pure:
    target, round_ = TYPES[to], TO_WHOLE[mode]
    limits = np.iinfo(target.dtype)
    # A NaN becomes 0, except between 64-bit types, where it becomes the value with the top bit set.
    nan = 1 << target.bits - 1 if source == "f64" or target.bits == 64 else 0
    odd_one = np.array([nan], np.uint64).astype(UNSIGNED[target.bits]).view(target.dtype)

    def convert(a: Array) -> Array:
        if ftz and source == "f32":
            a = flush(a)
        whole = round_(widen(a, source))
        # The largest integer may round up to a float past it, so the limit is a comparison.
        over, under = whole >= float(limits.max), whole <= float(limits.min)
        inside = np.where(over | under | np.isnan(whole), 0.0, whole)
        result = inside.astype(np.int64 if target.kind == "s" else np.uint64).astype(target.dtype)
        result = np.where(over, limits.max, np.where(under, limits.min, result)).astype(
            target.dtype
        )
        return np.where(np.isnan(whole), odd_one, result)

    return Pure(convert, (to,), (source,))


@form("cvt [ftz] [sat] f32:to f16|bf16:source", "convert")
def _widen_half(to: str, source: str, ftz: str | None, sat: str | None = None) -> Pure:
    def convert(a: Array) -> Array:
        if source == "bf16":
            wide = from_bf16(a)
            result = flush(canonical(wide)) if ftz else canonical(wide)
        else:
            # Every float16 subnormal is a normal float32; only the NaNs need their PTX bits.
            result = canonical(a.astype(np.float32))
        return saturate(result) if sat else result

    return Pure(convert, (to,), (source,))


@form("cvt [ftz] [sat] f64:to f16|bf16|f32:source", "convert")
def _widen_double(to: str, source: str, ftz: str | None, sat: str | None) -> Pure:
    def convert(a: Array) -> Array:
        wide = canonical(widen(flush(a) if ftz and source == "f32" else a, source))
        return saturate(wide) if sat else wide

    return Pure(convert, (to,), (source,))


@form("cvt rn|rz|rm|rp:mode [ftz] [sat] f32:to f64:source", "convert")
@form("cvt rn|rz|rm|rp:mode [ftz] [sat] f16|bf16:to f64:source", "convert")
def _from_double(to: str, source: str, mode: str, ftz: str | None, sat: str | None) -> Pure:
    def convert(a: Array) -> Array:
        result = narrow(saturate(a) if sat else a, to, mode)
        return flush(result) if ftz and to == "f32" else result

    return Pure(convert, (to,), (source,))


@form("cvt rn|rz|rm|rp:mode [ftz] [sat] [relu] f16|bf16:to f32:source", "convert")
def _from_single(
    to: str, source: str, mode: str, ftz: str | None, sat: str | None, relu: str | None
) -> Pure:
    return Pure(_narrowing(to, mode, ftz, sat, relu), (to,), (source,))


def _narrowing(
    kind: str, mode: str, ftz: str | None, sat: str | None, relu: str | None
) -> Callable[[Array], Array]:
    def convert(a: Array) -> Array:
        if ftz:
            a = flush(a)
        if sat:
            a = saturate(a)
        if relu:
            a = np.where((a > 0) | np.isnan(a), a, np.float32(0))
        if mode == "rn":
            return narrow_float32(a, kind)
        return narrow(a.astype(np.float64), kind, mode)

    return convert


@form("cvt rn|rz:mode [relu] [sat] f16x2|bf16x2:to f32:source", "convert", since=80)
def _pack(to: str, source: str, mode: str, relu: str | None, sat: str | None = None) -> Pure:
    half = _narrowing(to.removesuffix("x2"), mode, None, sat, relu)

    def convert(upper: Array, lower: Array) -> Array:
        high = half(upper).view(np.uint16).astype(np.uint32)
        return high << np.uint32(16) | half(lower).view(np.uint16)

    return Pure(convert, (to,), (source, source))


# Bits of the fraction, bias, and the largest number of the 8-bit formats.
EIGHT_BITS = {"e4m3x2": (3, 7, 448.0), "e5m2x2": (2, 15, 57344.0)}
NAN_OF_8_BITS = np.uint16(0x7F)


@form("cvt rn satfinite [relu] e4m3x2|e5m2x2:to f32:source", "convert", since=89)
def _pack_eight_bits(rn: str, satfinite: str, to: str, source: str, relu: str | None) -> Pure:
    fraction, bias, largest = EIGHT_BITS[to]

    def code(a: Array) -> Array:
        if relu:
            a = np.where((a > 0) | np.isnan(a), a, np.float32(0))
        size = np.minimum(np.abs(a), largest).astype(np.float64)
        # Of 0 frexp says 0, where all numbers below the normal ones have one power.
        power = np.where(size < 2.0 ** (1 - bias), 1 - bias, np.frexp(size)[1] - 1)
        steps = np.rint(np.ldexp(size, fraction - power))  # a carry runs into the exponent
        codes = np.where(np.isnan(a), 0, steps + np.ldexp(1.0, fraction) * (power - 1 + bias))
        signs = (np.signbit(a).astype(np.uint16)) << np.uint16(7)
        return np.where(np.isnan(a), NAN_OF_8_BITS, codes.astype(np.uint16) | signs)

    def convert(upper: Array, lower: Array) -> Array:
        return code(upper) << np.uint16(8) | code(lower)

    return Pure(convert, ("b16",), (source, source))


@form("cvt rni|rzi|rmi|rpi:mode [ftz] [sat] f16|bf16|f32|f64:to f16|bf16|f32|f64:source", "convert")
@form("cvt [ftz] [sat] f16|bf16|f32|f64:to f16|bf16|f32|f64:source", "convert")
def _same_format(
    to: str, source: str, mode: str | None = None, ftz: str | None = None, sat: str | None = None
) -> Pure | None:
    if to != source:
        return None
    round_ = TO_WHOLE.get(mode or "")

    def convert(a: Array) -> Array:
        if ftz and to == "f32":
            a = flush(a)
        wide = a if to in ("f32", "f64") else widen(a, to)
        if round_:
            wide = round_(wide)
        if sat:
            wide = saturate(wide)
        return canonical(wide) if to in ("f32", "f64") else narrow(wide, to)

    return Pure(convert, (to,), (source,))


@form("cvt rna|rn|rz:mode [relu] tf32:to f32:source", "convert", since=80)
def _tf32(to: str, source: str, mode: str, relu: str | None) -> Pure:
    def convert(a: Array) -> Array:
        if relu:
            a = np.where((a > 0) | np.isnan(a), a, np.float32(0))
        bits = a.view(np.uint32)
        even = bits >> np.uint32(13) & np.uint32(1)
        bump = (
            np.uint32(0xFFF) + even if mode == "rn" else np.uint32({"rna": 0x1000, "rz": 0}[mode])
        )
        rounded = np.where(np.isinf(a), bits, bits + bump & np.uint32(0xFFFFE000))
        return np.where(np.isnan(a), F32_NAN.view(np.uint32), rounded)

    return Pure(convert, (to,), (source,))


@form("cvt pack sat u16|s16:to s32:source", "convert")
def _pack_integers(pack: str, sat: str, to: str, source: str) -> Pure:
    limits = np.iinfo(TYPES[to].dtype)

    def convert(upper: Array, lower: Array) -> Array:
        high, low = (
            np.clip(a, limits.min, limits.max).astype(TYPES[to].dtype).view(np.uint16)
            for a in (upper, lower)
        )
        return high.astype(np.uint32) << np.uint32(16) | low

    return Pure(convert, ("b32",), (source, source))
