"""The approximate functions: computed in float64 and rounded once, inside the ISA's bounds."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..lanes import Array
from .rounding import canonical, flush
from .table import Pure, form


def _single(function: Callable[..., Array], operands: int, ftz: str | None) -> Pure:
    def compute(*arrays: Array) -> Array:
        if ftz:
            arrays = tuple(flush(a) for a in arrays)
        result = canonical(function(*(a.astype(np.float64) for a in arrays)).astype(np.float32))
        return flush(result) if ftz else result

    return Pure(compute, ("f32",), ("f32",) * operands)


FUNCTIONS: dict[str, Callable[..., Array]] = {
    "rcp": lambda a: 1.0 / a,
    "sqrt": np.sqrt,
    # Two roundings in float64 stay far below float32's half ulp; rsqrt(-0) is -infinity.
    "rsqrt": lambda a: 1.0 / np.sqrt(a),
    "sin": np.sin,
    "cos": np.cos,
    "lg2": np.log2,
    "ex2": np.exp2,
}


def _enter() -> None:
    for name, function in FUNCTIONS.items():

        def build(
            approx: str,
            f32: str,
            ftz: str | None = None,
            function: Callable[..., Array] = function,
        ) -> Pure:
            return _single(function, 1, ftz)

        form(f"{name} approx [ftz] f32", "special")(build)


_enter()


@form("tanh approx f32", "special")
def _tanh(approx: str, f32: str) -> Pure:
    return _single(np.tanh, 1, None)


@form("div approx|full:kind [ftz] f32", "special")
def _div(kind: str, f32: str, ftz: str | None = None) -> Pure:
    def divide(a: Array, b: Array) -> Array:
        result = a / b
        if kind == "approx":
            # Past 2^126 the reciprocal of b is a subnormal, flushed: 0, and NaN for infinite a.
            large = (np.abs(b) > 2.0**126) & np.isfinite(b)
            lost = np.where(np.isinf(a), np.nan, np.copysign(0.0, result))
            result = np.where(large, lost, result)
        return result

    return _single(divide, 2, ftz)


def _enter_gross() -> None:
    """Enter the float64 seeds: the upper 32 bits in, 20 bits of mantissa out."""
    for name, function in (("rcp", FUNCTIONS["rcp"]), ("rsqrt", FUNCTIONS["rsqrt"])):

        def build(
            approx: str,
            f64: str,
            ftz: str | None = None,
            function: Callable[..., Array] = function,
        ) -> Pure:
            return Pure(lambda a: _gross(function, a), ("f64",), ("f64",))

        form(f"{name} approx ftz f64", "special")(build)
    form("rsqrt approx f64", "special")(lambda approx, f64: _full_rsqrt())


def _full_rsqrt() -> Pure:
    return Pure(lambda a: canonical(1.0 / np.sqrt(a)), ("f64",), ("f64",))


def _gross(function: Callable[..., Array], a: Array) -> Array:
    upper = np.uint64(0xFFFFFFFF00000000)
    smallest = 2.0**-1022
    seen = (a.view(np.uint64) & upper).view(np.float64)
    seen = np.where(np.abs(seen) < smallest, np.copysign(0.0, seen), seen)
    result = function(seen)
    result = np.where(np.abs(result) < smallest, np.copysign(0.0, result), result)
    nan = np.isnan(result)
    kept = (result.view(np.uint64) & upper).view(np.float64)
    return np.where(nan, np.array([0x7FFFFFFF00000000], np.uint64).view(np.float64), kept)


_enter_gross()
