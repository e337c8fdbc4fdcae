"""float16 and bfloat16 arithmetic, alone and in pairs, each result rounded once.

float16 through float64 is exact: products have 22 bits and a sum's magnitudes lie within 2^-48 and
2^33. Where a product and an addend are too far apart for 53 bits, the float64 result still lies
on the same side of every float16 midpoint: a product with its addend below it spans at most 42
bits, and an addend above a product that far below is already a float16. bfloat16 has float32's
exponents, so its sums are rounded to odd in float64 first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Array
from .rounding import exact_sum, narrow, saturate, widen
from .table import Pure, form

F16_SMALLEST = 2.0**-14


def lanes_of(kind: str) -> tuple[str, Callable[[Array], Array], Callable[[Array], Array]]:
    """Return the format of one half, and how to unpack a register into halves and pack it."""
    single = kind.removesuffix("x2")
    dtype = np.float16 if single == "f16" else np.uint16
    if single == kind:
        return single, lambda a: a, lambda a: a
    return (
        single,
        lambda a: a.view(dtype).reshape(-1, 2),
        lambda a: np.ascontiguousarray(a).view(np.uint32).reshape(-1),
    )


def _flushed(a: Array, kind: str, ftz: str | None) -> Array:
    """Flush float16 subnormals, of lanes held as float64."""
    if not ftz or kind != "f16":
        return a
    return np.where(np.abs(a) < F16_SMALLEST, np.copysign(0.0, a), a)


def _arithmetic(
    kind: str,
    operands: int,
    function: Callable[..., Array],
    ftz: str | None = None,
    sat: str | None = None,
    relu: str | None = None,
) -> Pure:
    single, unpack, pack = lanes_of(kind)

    def compute(*arrays: Array) -> Array:
        wide = (_flushed(widen(unpack(a), single), single, ftz) for a in arrays)
        exact = function(*wide)
        if sat:
            exact = saturate(exact)
        rounded = narrow(exact, single)
        if relu:
            zero = np.isnan(widen(rounded, single)) | (widen(rounded, single) > 0)
            rounded = np.where(zero, rounded, rounded.dtype.type(0))
        if ftz and single == "f16":
            # A subnormal rounds to itself: flushing after the rounding is a narrowing of zero.
            rounded = _flushed(rounded.astype(np.float64), single, ftz).astype(np.float16)
            rounded = np.where(np.isnan(rounded), np.uint16(0x7FFF), rounded.view(np.uint16)).view(
                np.float16
            )
        return pack(rounded)

    return Pure(compute, (kind,), (kind,) * operands)


def _enter_arithmetic() -> None:
    functions: dict[str, tuple[int, Callable[..., Array]]] = {
        "add": (2, exact_sum),
        "sub": (2, lambda a, b: exact_sum(a, -b)),
        "mul": (2, np.multiply),
        "fma": (3, lambda a, b, c: exact_sum(a * b, c)),
    }
    for name, (operands, function) in functions.items():

        def build(
            type: str,
            rn: str | None = None,
            ftz: str | None = None,
            sat: str | None = None,
            relu: str | None = None,
            operands: int = operands,
            function: Callable[..., Array] = function,
        ) -> Pure:
            return _arithmetic(type, operands, function, ftz, sat, relu)

        rn = "rn" if name == "fma" else "[rn]"
        form(f"{name} {rn} [ftz] [sat] f16|f16x2:type", "half")(build)
        form(f"{name} {rn} bf16|bf16x2:type", "half", since=80 if name == "fma" else 90)(build)
        if name == "fma":
            form("fma rn [ftz] relu f16|f16x2:type", "half", since=80)(build)
            form("fma rn relu bf16|bf16x2:type", "half", since=80)(build)


_enter_arithmetic()


@form("neg [ftz] f16|f16x2:type", "half")
@form("neg bf16|bf16x2:type", "half", since=80)
def _neg(type: str, ftz: str | None = None) -> Pure:
    return _sign(type, np.bitwise_xor, 0x8000, ftz)


@form("abs [ftz] f16|f16x2:type", "half")
@form("abs bf16|bf16x2:type", "half", since=80)
def _abs(type: str, ftz: str | None = None) -> Pure:
    return _sign(type, np.bitwise_and, 0x7FFF, ftz)


def _sign(kind: str, function: Callable[..., Array], mask: int, ftz: str | None) -> Pure:
    _, unpack, pack = lanes_of(kind)

    def changed(a: Array) -> Array:
        halves = unpack(a)
        bits = function(halves.view(np.uint16), np.uint16(mask))
        if ftz:
            bits = np.where(bits & np.uint16(0x7C00), bits, bits & np.uint16(0x8000))
        return pack(bits.view(halves.dtype))

    return Pure(changed, (kind,), (kind,))


def _enter_extremes() -> None:
    for name in ("min", "max"):

        def build(
            type: str,
            ftz: str | None = None,
            NaN: str | None = None,
            xorsign: str | None = None,
            abs: str | None = None,
            largest: bool = name == "max",
        ) -> Pure:
            def choose(a: Array, b: Array) -> Array:
                sign = np.signbit(a) ^ np.signbit(b)
                if xorsign:
                    a, b = np.abs(a), np.abs(b)
                result = _ordered(a, b, largest)
                if NaN:
                    result = np.where(np.isnan(a) | np.isnan(b), np.nan, result)
                return np.where(sign, -result, result) if xorsign else result

            return _arithmetic(type, 2, choose, ftz)

        form(f"{name} [ftz] [NaN:NaN] f16|f16x2:type", "half", since=80)(build)
        form(f"{name} [ftz] [NaN:NaN] xorsign abs f16|f16x2:type", "half", since=86)(build)
        form(f"{name} [NaN:NaN] bf16|bf16x2:type", "half", since=80)(build)
        form(f"{name} [NaN:NaN] xorsign abs bf16|bf16x2:type", "half", since=86)(build)


def _ordered(a: Array, b: Array, largest: bool) -> Array:
    """Choose with -0 below +0; one NaN loses to a number."""
    less = (a < b) | ((a == b) & np.signbit(a) & ~np.signbit(b))
    chosen = np.where(less, b, a) if largest else np.where(less, a, b)
    return np.where(np.isnan(a), b, np.where(np.isnan(b), a, chosen))


_enter_extremes()


@form("ex2 approx [ftz] f16|f16x2:type", "special")
@form("ex2 approx ftz bf16|bf16x2:type", "special", since=90)
def _ex2(type: str, approx: str, ftz: str | None = None) -> Pure:
    return _arithmetic(type, 1, np.exp2, ftz if type[0] == "f" else None)


@form("tanh approx f16|f16x2:type", "special")
@form("tanh approx bf16|bf16x2:type", "special", since=90)
def _tanh(type: str, approx: str) -> Pure:
    return _arithmetic(type, 1, np.tanh)
