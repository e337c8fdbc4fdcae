"""Numbers on the way to a result: how far a kernel's may be from them, and how dtypes round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
DTYPES = {
    "float16": np.dtype(np.float16),
    "bfloat16": BFLOAT16,
    "float32": np.dtype(np.float32),
    "float64": np.dtype(np.float64),
}

# Bits of significand, the hidden one included, and the exponent of the smallest normal number.
_FORMATS = {
    DTYPES["float16"]: (11, -14, 65504.0),
    DTYPES["bfloat16"]: (8, -126, (2 - 2.0**-7) * 2.0**127),
    DTYPES["float32"]: (24, -126, (2 - 2.0**-23) * 2.0**127),
    DTYPES["float64"]: (53, -1022, (2 - 2.0**-52) * 2.0**1023),
}

Wide = npt.NDArray[np.floating]


def ulp(values: npt.ArrayLike, dtype: np.dtype) -> Wide:
    """Return the distance between neighbouring numbers of `dtype` around `values`."""
    bits, smallest, _ = _FORMATS[np.dtype(dtype)]
    values = np.asarray(values)
    if values.dtype == np.float64 and bits < 53:
        return _spacing(values, bits, smallest)
    finite = np.where(np.isfinite(values), values, 0)
    exponent = np.where(finite == 0, smallest, np.maximum(np.frexp(finite)[1] - 1, smallest))
    spacing: Wide = np.ldexp(finite.dtype.type(1), exponent - (bits - 1))
    return spacing


def _spacing(values: Wide, bits: int, smallest: int) -> Wide:
    """Return `ulp` of float64 values for a narrower format, from the bits of their exponents.

    Most of a test's time on the host was `frexp` and `ldexp`: this takes a third of it or less.
    """
    exponent = np.empty(values.shape, np.int64)
    np.right_shift(values.view(np.int64), 52, out=exponent)
    exponent &= 0x7FF
    exponent[exponent == 0x7FF] = 0  # infinities and NaN count as 0
    np.maximum(exponent, smallest + 1023, out=exponent)
    exponent -= bits - 1
    exponent <<= 52
    return exponent.view(np.float64)


def round_to(values: Wide, dtype: np.dtype) -> Wide:
    """Round wide values to `dtype`, to nearest even, and return them as wide as they were.

    `astype` is not enough: ml_dtypes rounds twice, from float64 to float32 and on to bfloat16.
    """
    largest = _FORMATS[np.dtype(dtype)][2]
    quantum = ulp(values, dtype)
    rounded = np.rint(values / quantum) * quantum
    beyond = np.abs(rounded) > largest
    return np.where(beyond, np.copysign(np.inf, rounded), rounded) if beyond.any() else rounded


def ulps(actual: npt.ArrayLike, expected: Wide, dtype: np.dtype) -> Wide:
    """Return the distance of each element from `expected`, in ulps of `dtype` at `expected`.

    Equal infinities and NaN where NaN is expected are at distance 0; any other pair with an
    infinity or a NaN in it is infinitely far apart. A perfectly rounded result is at most 0.5 away.
    """
    expected = np.asarray(expected)
    actual = np.asarray(actual).astype(expected.dtype)
    rounded = round_to(expected, dtype)
    same = (actual == rounded) | (np.isnan(actual) & np.isnan(expected))
    with np.errstate(invalid="ignore"):
        distance = np.abs(actual - expected) / ulp(expected, dtype)
    distance = np.where(np.isfinite(distance), distance, np.inf)
    return np.where(same & ~np.isfinite(rounded), 0, distance)


@dataclass(frozen=True)
class Expected:
    """One output as defined, and how far from it a correct kernel may be.

    Attributes
    ----------
    value : ndarray
        The definition, before its last rounding.
    slack : ndarray
        What the accumulator's roundings may add to half an ulp, element by element.
    dtype : dtype
        The output dtype.
    """

    value: Wide
    slack: Wide
    dtype: np.dtype

    def ulps(self, actual: npt.ArrayLike) -> Wide:
        """Return the distance of each element of `actual` from the definition, in ulps."""
        return ulps(actual, self.value, self.dtype)

    @property
    def allowed(self) -> Wide:
        """How far each element may be from the definition, in ulps."""
        slack = np.where(np.isfinite(self.slack), self.slack, 0)
        return 0.5 + slack / ulp(self.value, self.dtype)

    def accepts(self, actual: npt.ArrayLike) -> npt.NDArray[np.bool_]:
        """Return, element by element, whether `actual` is within the tolerance."""
        return self.ulps(actual) <= self.allowed


@dataclass(frozen=True)
class Near:
    """A value on the way to a result, and how far from it a kernel's may be."""

    value: Wide
    error: Wide


@dataclass(frozen=True)
class Precision:
    """What x's dtype means for a definition.

    Attributes
    ----------
    wide : type
        What it is computed in.
    u : float
        The unit roundoff of the kernel's accumulator.
    tiny : float
        The size below which a kernel flushes to zero.
    """

    wide: type[np.floating]
    u: float
    tiny: float

    @staticmethod
    def of(dtype: np.dtype) -> Precision:
        """Return that of rows of `dtype`."""
        if dtype == DTYPES["float64"]:
            return Precision(np.longdouble, 2.0**-53, 0.0)
        return Precision(np.float64, 2.0**-24, 2.0**-126)


def promoted(a: np.dtype, b: np.dtype) -> np.dtype:
    """Return the dtype of what NumPy's operators make of two; it knows none of both 16-bit ones."""
    return DTYPES["float32"] if a != b and a.itemsize == b.itemsize else max(a, b, key=_itemsize)


def _itemsize(dtype: np.dtype) -> int:
    return dtype.itemsize


def rounded(near: Near, dtype: np.dtype) -> Near:
    """Round a value on the way; what is near it may come to be the next number."""
    rounded = round_to(near.value, dtype)
    low, high = (round_to(near.value + s * near.error, dtype) for s in (-1, 1))
    return Near(rounded, np.maximum(np.abs(high - rounded), np.abs(rounded - low)))


def walk_of_rows(count: int) -> float:
    """Return the error of a sum over `count` rows, in units of u of the sum of sizes."""
    return math.sqrt(min(count, max(32, count / 1024) + 112))


def walk_of_columns(count: int) -> float:
    """Return the error of a sum of `count` terms, in units of u of the sum."""
    return math.sqrt(min(count, 32 + count / 65536) + 15)


def weight_of(gamma: npt.NDArray[Any] | None, offset: float, precision: Precision) -> Near:
    """Return gamma + gamma_offset and its error."""
    plain = np.ones(()) if gamma is None else gamma
    weight = plain.astype(precision.wide) + precision.wide(offset)
    error = precision.u * (np.abs(weight) + abs(offset)) if offset else np.zeros_like(weight)
    return Near(weight, error)


def statistic_of(statistic: Near, axes: tuple[int, ...], dtype: np.dtype) -> Expected:
    """Return a statistic of each row: float32, or float64 for float64 data."""
    own = dtype if dtype == DTYPES["float64"] else DTYPES["float32"]
    return Expected(np.squeeze(statistic.value, axes), np.squeeze(statistic.error, axes), own)
