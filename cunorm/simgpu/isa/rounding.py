"""Rounding between float formats in every mode, flushing subnormals, canonical NaNs."""

from __future__ import annotations

import numpy as np

from .. import _fma
from ..lanes import Array

MODES = {"rn": 0, "rz": 1, "rm": 2, "rp": 3}
SMALLEST_NORMAL = np.float32(2.0**-126)
F16_NAN = BF16_NAN = np.uint16(0x7FFF)
F32_NAN = np.array([0x7FFFFFFF], np.uint32).view(np.float32)
F64_NAN = np.array([0x7FFFFFFFFFFFFFFF], np.uint64).view(np.float64)
FLUSH, DOUBLE, MODE = 1, 2, 2
OPERATIONS: dict[str, int] = _fma.OPERATIONS


def apply(name: str, flags: int, *operands: Array) -> Array:
    """Return one operation of ``fma.c`` over lanes; `flags` as its opening comment defines them."""
    lanes = max(operand.size for operand in operands)
    out = np.empty(lanes, np.float64 if flags & DOUBLE else np.float32)
    _fma.apply(OPERATIONS[name], flags, out, *operands)
    return out


def flush(a: Array) -> Array:
    """Return float32 lanes with subnormals made zeros of their sign."""
    return apply("flush", 0, a)


def canonical(a: Array) -> Array:
    """Return float lanes with every NaN made the one that PTX arithmetic gives."""
    nan = F32_NAN if a.dtype.itemsize == 4 else F64_NAN
    return np.where(np.isnan(a), nan, a)


def saturate(a: Array) -> Array:
    """Clamp to [0, 1]; a NaN becomes +0, and so does -0."""
    result: Array = np.where(a > 0, np.minimum(a, a.dtype.type(1)), a.dtype.type(0))
    return result


def from_bf16(bits: Array) -> Array:
    """Return bfloat16 bits as float32."""
    return (bits.astype(np.uint32) << np.uint32(16)).view(np.float32)


def _to_bf16(a: Array) -> Array:
    """Round float32 lanes to bfloat16 bits, ties to even; the carry may run into the exponent."""
    bits = a.view(np.uint32)
    even = bits >> np.uint32(16) & np.uint32(1)
    rounded = (bits + np.uint32(0x7FFF) + even >> np.uint32(16)).astype(np.uint16)
    return np.where(np.isnan(a), BF16_NAN, rounded)


def odd(a: Array) -> Array:
    """Round float64 lanes to float32 towards zero, with an odd last bit where that was inexact.

    Rounding again to any format at least two bits shorter then gives what one rounding would.
    """
    near = a.astype(np.float32)
    back = near.astype(np.float64)
    bits = near.view(np.uint32) - (np.abs(back) > np.abs(a)).astype(np.uint32)
    result: Array = (bits | ((back != a) & ~np.isnan(a)).astype(np.uint32)).view(np.float32)
    return result


def exact_sum(a: Array, b: Array) -> Array:
    """Add float64 lanes, rounded to odd, so that a later rounding is the only one."""
    total = a + b
    kept = total - a
    error = (a - (total - kept)) + (b - kept)
    bits = total.view(np.int64)
    inexact = (error != 0) & np.isfinite(total)
    # Truncate: one step towards zero where the rounding went away from it. Then make it odd.
    passed = inexact & (np.signbit(error) != np.signbit(total))
    return np.where(inexact, (bits - passed) | 1, bits).view(np.float64)


def narrow(a: Array, kind: str, mode: str = "rn") -> Array:
    """Round float64 lanes to bfloat16 bits, float16, float32 or float64 in the given mode."""
    if kind == "f64":
        return canonical(a)
    near = _nearest(a, kind)
    if mode == "rn":
        return near
    back = widen(near, kind)
    bits = near.view(np.uint32 if kind == "f32" else np.uint16)
    negative = np.signbit(back)
    # Neighbours in sign-magnitude: one bit down goes towards zero, one up away from it.
    down = np.abs(back) > np.abs(a)
    up = np.abs(back) < np.abs(a)
    if mode != "rz":
        away = negative if mode == "rm" else ~negative
        down, up = down & ~away, up & away
    else:
        up = np.zeros(1, bool)
    one = np.array(1, bits.dtype)
    stepped = np.where(down, bits - one, np.where(up, bits + one, bits))
    return stepped.astype(bits.dtype).view(near.dtype)


def _nearest(a: Array, kind: str) -> Array:
    if kind == "f32":
        return canonical(a.astype(np.float32))
    if kind == "f16":
        near = a.astype(np.float16)
        return np.where(np.isnan(a), F16_NAN, near.view(np.uint16)).view(np.float16)
    return _to_bf16(odd(a))


def narrow_float32(a: Array, kind: str) -> Array:
    """Round float32 lanes to nearest float16 or bfloat16 bits: the short way of `narrow`."""
    if kind == "bf16":
        return _to_bf16(a)
    near = a.astype(np.float16)
    return np.where(np.isnan(a), F16_NAN, near.view(np.uint16)).view(np.float16)


def widen(a: Array, kind: str) -> Array:
    """Return lanes of any float format as float64, exactly."""
    return (from_bf16(a) if kind == "bf16" else a).astype(np.float64)
