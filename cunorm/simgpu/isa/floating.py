"""float32 and float64 arithmetic, correctly rounded in every mode."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .._fma import apply as run
from ..lanes import Array
from ..ptx.types import UNSIGNED
from .rounding import DOUBLE, FLUSH, MODE, MODES, OPERATIONS, canonical, flush, saturate
from .table import Pure, form

ROUND = "[rn|rz|rm|rp:mode]"


def arithmetic(
    name: str, operands: int, type: str, mode: str | None, ftz: str | None, sat: str | None = None
) -> Pure:
    """Build one operation of ``fma.c``."""
    flags = MODES[mode or "rn"] << MODE | (FLUSH if ftz else 0) | (DOUBLE if type == "f64" else 0)
    code, dtype = OPERATIONS[name], np.float64 if type == "f64" else np.float32

    def plain(*arrays: Array) -> Array:
        out = np.empty(max(map(len, arrays)), dtype)
        run(code, flags, out, *arrays)
        return out

    function: Callable[..., Array] = plain
    if sat:
        function = lambda *arrays: saturate(plain(*arrays))  # noqa: E731
    return Pure(function, (type,), (type,) * operands)


def _enter_arithmetic() -> None:
    for name, operands in (("add", 2), ("sub", 2), ("mul", 2), ("fma", 3), ("mad", 3)):

        def build(
            type: str,
            mode: str | None = None,
            ftz: str | None = None,
            sat: str | None = None,
            name: str = name,
            operands: int = operands,
        ) -> Pure:
            # mad on every architecture since sm_20 is fma by another name.
            return arithmetic("fma" if name == "mad" else name, operands, type, mode, ftz, sat)

        # Where a rounding mode may be left out, the ISA says rn.
        round_ = ROUND if operands == 2 else ROUND.strip("[]")
        form(f"{name} {round_} [ftz] [sat] f32:type", "float")(build)
        form(f"{name} {round_} f64:type", "double")(build)
    for name, operands in (("div", 2), ("sqrt", 1)):

        def divide(
            type: str,
            mode: str,
            ftz: str | None = None,
            name: str = name,
            operands: int = operands,
        ) -> Pure:
            return arithmetic(name, operands, type, mode, ftz)

        form(f"{name} rn|rz|rm|rp:mode [ftz] f32:type", "division")(divide)
        form(f"{name} rn|rz|rm|rp:mode f64:type", "division")(divide)


@form("rcp rn|rz|rm|rp:mode [ftz] f32:type", "division")
@form("rcp rn|rz|rm|rp:mode f64:type", "division")
def _rcp(type: str, mode: str, ftz: str | None = None) -> Pure:
    divide = arithmetic("div", 2, type, mode, ftz).function
    one = np.ones(1, np.float64 if type == "f64" else np.float32)
    return Pure(lambda a: divide(one, a), (type,), (type,))


def _sign_bit(bits: int) -> Array:
    return np.array([1 << bits - 1], UNSIGNED[bits])


@form("neg [ftz] f32:type", "float")
@form("neg f64:type", "double")
def _neg(type: str, ftz: str | None = None) -> Pure:
    return _signed(np.bitwise_xor, _sign_bit(int(type[1:])), type, ftz)


@form("abs [ftz] f32:type", "float")
@form("abs f64:type", "double")
def _abs(type: str, ftz: str | None = None) -> Pure:
    return _signed(np.bitwise_and, ~_sign_bit(int(type[1:])), type, ftz)


def _signed(function: Callable[..., Array], mask: Array, type: str, ftz: str | None) -> Pure:
    """Build a sign operation: on bits, so that a NaN keeps its payload."""

    def changed(a: Array) -> Array:
        result = function(a.view(mask.dtype), mask).view(a.dtype)
        return flush(result) if ftz else result

    return Pure(changed, (type,), (type,))


@form("copysign f32|f64:type", "float")
def _copysign(type: str) -> Pure:
    sign = _sign_bit(int(type[1:]))

    def copied(a: Array, b: Array) -> Array:
        # PTX takes the sign of the first operand and the magnitude of the second.
        return ((a.view(sign.dtype) & sign) | (b.view(sign.dtype) & ~sign)).view(a.dtype)

    return Pure(copied, (type,), (type, type))


def _enter_extremes() -> None:
    for name in ("min", "max"):

        def build(
            type: str,
            ftz: str | None = None,
            NaN: str | None = None,
            xorsign: str | None = None,
            abs: str | None = None,
            name: str = name,
        ) -> Pure:
            choose = arithmetic(name, 2, type, None, ftz).function

            def chosen(a: Array, b: Array) -> Array:
                result: Array
                if xorsign:
                    sign = np.signbit(a) ^ np.signbit(b)
                    result = choose(np.abs(a), np.abs(b))
                    result = np.where(sign & ~np.isnan(result), -result, result)
                else:
                    result = choose(a, b)
                if NaN:
                    result = canonical(np.where(np.isnan(a) | np.isnan(b), type_nan, result))
                return result

            type_nan = np.float64("nan") if type == "f64" else np.float32("nan")
            plain = not NaN and not xorsign
            return Pure(choose if plain else chosen, (type,), (type, type))

        form(f"{name} [ftz] [NaN:NaN] f32:type", "float")(build)
        form(f"{name} [ftz] [NaN:NaN] xorsign abs f32:type", "float", since=86)(build)
        form(f"{name} f64:type", "double")(build)


@form("testp finite|infinite|number|notanumber|normal|subnormal:test f32|f64:type", "float")
def _testp(test: str, type: str) -> Pure:
    smallest = 2.0**-126 if type == "f32" else 2.0**-1022
    tests: dict[str, Callable[..., Array]] = {
        "finite": np.isfinite,
        "infinite": np.isinf,
        "number": lambda a: ~np.isnan(a),
        "notanumber": np.isnan,
        "normal": lambda a: np.isfinite(a) & (np.abs(a) >= smallest),
        "subnormal": lambda a: (np.abs(a) < smallest) & (a != 0),
    }
    return Pure(tests[test], ("pred",), (type,))


_enter_arithmetic()
_enter_extremes()
