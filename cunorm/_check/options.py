"""What an option must be: a number in range, or one of its words."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

import numpy as np

from .._families import Op
from .._plan import ITEMSIZE, accumulator
from .._quant import Quant
from .._words import type_name, word

if TYPE_CHECKING:
    from .._typing import Arrays

CASTS = ("before", "after")
ROPE_CASTS = ("before", "between", "after")
ACTIVATIONS = ("silu", "sigmoid", None)


def real(name: str, value: object) -> float:
    """Refuse what is no real number, a bool among others."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, but is a {type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, but is too large for a float") from None


def eps(value: object, x: Any, name: str = "eps") -> float:
    """Refuse an eps that is not a finite number from 0 up, in the precision it is added in."""
    number = real(name, value)
    if not 0 <= number <= _largest(x):
        raise ValueError(
            f"{name} must be finite and not negative in {accumulator(x.dtype.name)}, but is {value}"
        )
    return number


def _offset(name: str, value: object, arrays: Arrays) -> float:
    """Refuse an offset that is not finite as it is added."""
    number, x = real(name, value), arrays["x"]
    if not abs(number) <= _largest(x):
        raise ValueError(f"{name} must be finite in {accumulator(x.dtype.name)}, but is {value}")
    return number


def _gamma_offset(name: str, value: object, arrays: Arrays) -> float:
    """Refuse an offset that is not finite, or that has no gamma to be added to."""
    number = _offset(name, value, arrays)
    for parameter in ("gamma", "gamma2"):
        if arrays.get(parameter, ()) is None and number != 0:
            raise ValueError(f"{name} must be 0 where {parameter} is None, but is {value}")
    return number


def _largest(x: Any) -> float:
    """Return the largest number in which rows of x are computed."""
    return float(np.finfo(accumulator(x.dtype.name)).max)


def cast(value: object, name: str = "cast") -> str:
    """Refuse a cast that is neither of its two words."""
    return str(word(value, name, CASTS))


def dtype(value: Any, name: str = "dtype") -> np.dtype[Any]:
    """Return one of the four dtypes, given by its name, as NumPy's or as PyTorch's."""
    word = str(value).removeprefix("torch.")
    if word not in ITEMSIZE and value is not None:  # which is float64 to NumPy
        try:
            word = np.dtype(value).name
        except TypeError:
            word = repr(value)
    if word not in ITEMSIZE:
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, but is {word}")
    if word == "bfloat16":
        from ml_dtypes import bfloat16

        own: np.dtype[Any] = np.dtype(bfloat16)
        return own
    return np.dtype(word)


def whole(name: str, value: object) -> int | None:
    """Refuse what is neither an int nor None, a bool among others."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be an int or None, but is a {type_name(value)}")
    return int(value)


def _flag(name: str, value: object, _arrays: Arrays) -> bool:
    """Refuse what is no bool: of a word, or of an array in a wrong place, all are true."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, but is a {type_name(value)}")
    return bool(value)


def _group(name: str, value: object, arrays: Arrays) -> int | None:
    """Refuse a number of columns that does not divide a row, or rows of several axes."""
    group = whole(name, value)
    if group is None:
        return None
    cols = arrays["x"].shape[-1]
    if group < 1 or cols % group:
        raise ValueError(f"{name} must divide the columns of x, {cols}, but is {group}")
    for parameter in ("gamma", "beta"):
        axes = getattr(arrays.get(parameter), "ndim", 1)
        if axes != 1:
            raise ValueError(
                f"{parameter} must have one axis where {name} is given, but has {axes}"
            )
    return group


def _count(name: str, value: object, arrays: Arrays) -> float:
    """Return 1 / count, 0 for None; refuse what is no number of columns, or has no sums."""
    sums = "squares" if "squares" in arrays else "moments"
    if (value is None) != (arrays[sums] is None):
        raise ValueError(
            f"{name} must be given with {sums}, and only then, but {name} is {value} and {sums} is "
            f"{'None' if arrays[sums] is None else 'given'}"
        )
    count = whole(name, value)
    if count is None:
        return 0.0
    if count < 1:
        raise ValueError(f"{name} must be a number of columns, from 1 up, but is {value}")
    return 1 / count


def _quant(name: str, value: object, _arrays: Arrays) -> Quant:
    """Refuse what does not say how to quantise."""
    if not isinstance(value, Quant):
        raise TypeError(f"{name} must be a cunorm.Quant, but is a {type_name(value)}")
    return value


# By `Option.check`: from an option's name, its value and the arrays of a call to the value as a
# kernel takes it.
OPTIONS: dict[str, Callable[[str, Any, Arrays], Any]] = {
    "eps": lambda name, value, arrays: eps(value, arrays["x"], name),
    "eps2": lambda name, value, arrays: None if value is None else eps(value, arrays["x"], name),
    "gamma_offset": _gamma_offset,
    "cast": lambda name, value, _arrays: cast(value, name),
    "rope_cast": lambda name, value, _arrays: word(value, name, ROPE_CASTS),
    "activation": lambda name, value, _arrays: word(value, name, ACTIVATIONS),
    "count": _count,
    "dtype": lambda name, value, _arrays: None if value is None else dtype(value, name),
    "group": _group,
    "scale_offset": _offset,
    "quant": _quant,
    "flag": _flag,
}


def options(op: Op, values: tuple[object, ...], arrays: Arrays) -> dict[str, Any]:
    """Check the options of a call, and return them by name."""
    given = zip(op.options, values, strict=True)
    return {o.name: OPTIONS[o.check](o.name, value, arrays) for o, value in given}
