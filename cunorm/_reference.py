"""What every op means: the definitions in wide NumPy, and how far from them a result may be.

A definition is computed in float64 (float64 data in `numpy.longdouble`) and left unrounded; only
the roundings that are part of the definition itself, such as that of ``cast="before"``, are made.
A kernel works in float32 (float64 for float64 data), here called the accumulator, and so may differ
from the definition by its roundings. Those are counted below, once, for `python -m cunorm check`
and for the tests.

The tolerance
-------------
Half an ulp of the output dtype, for the last rounding, plus a slack made of these terms. `u` is the
unit roundoff of the accumulator, 2^-24 or 2^-53.

- A sum of N terms passes through k additions, each good to u. Rounding errors of either sign add
  up like a random walk (Higham & Mary, SIAM J. Sci. Comput. 41, 2019): sqrt(k) u. A lane holds at
  most 64 elements or N/1024, and at most ten more additions join the lanes:
  k = min(N, max(64, N/1024)) + 10.
- `rstd`: the terms of the sum (u for a square; 5 u where it is the square of a difference), the
  sum, the division by N, eps in the accumulator's precision, and adding it: halved by the square
  root. The reciprocal square root itself is good to 2.2 u (PTX ISA, `rsqrt.approx`: 2^-22.9).
- The product x * rstd: u. Where the definition rounds it to x's dtype, a value that close to a tie
  may go to either neighbour, which is one ulp of the *product*, times gamma.
- gamma + gamma_offset: u of each. The product with it: u. Adding beta: u of the result.
- LayerNorm's mean is corrected by the mean of the differences from it (Chan, Golub & LeVeque 1983),
  so its error is that of a sum of N differences: (sqrt(k) + 3) u times their mean size.
- Backward, each error is carried beside its value: n is good to u (2 u where the mean is
  subtracted), and to what mean and rstd are off where they are the kernel's own; g * dy to u, a
  mean over the row to (sqrt(k) + 2) u of the mean of sizes, and the products and the difference
  that make dx to u each. Of rows, a sum of M passes at most min(M, max(64, M/16) + 128) additions:
  those of its block on a device of 16 multiprocessors or more, of the up to 32 rows beside it, of
  every 16th block, and of the 16 sums of those.
- float32 subnormals count as zero: CuPy compiles with `-ftz=true`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

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
    finite = np.where(np.isfinite(values), values, 0)
    exponent = np.where(finite == 0, smallest, np.maximum(np.frexp(finite)[1] - 1, smallest))
    spacing: Wide = np.ldexp(finite.dtype.type(1), exponent - (bits - 1))
    return spacing


def round_to(values: Wide, dtype: np.dtype) -> Wide:
    """Round wide values to `dtype`, to nearest even, and return them as wide as they were.

    `astype` is not enough: ml_dtypes rounds twice, from float64 to float32 and on to bfloat16.
    """
    largest = _FORMATS[np.dtype(dtype)][2]
    quantum = ulp(values, dtype)
    rounded = np.rint(values / quantum) * quantum
    return np.where(np.abs(rounded) > largest, np.copysign(np.inf, rounded), rounded)


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


def rms_norm_fwd(
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: str = "before",
    dtype: np.dtype | None = None,
) -> tuple[Expected, Expected]:
    """Return ``y = x * rstd * (gamma + gamma_offset)`` and ``rstd = (mean(x^2) + eps)^-1/2``.

    ``cast="before"`` rounds ``x * rstd`` to x's dtype before gamma multiplies, as the Llama and
    Qwen2 models define it; ``cast="after"`` rounds only the result, as PyTorch's rms_norm does.
    y has `dtype`, that of x where there is none.
    """
    dtype = x.dtype if dtype is None else dtype
    wide, u, tiny = _accumulator(x.dtype)
    data, axes, count = _normalised(x, gamma, wide)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        rstd = 1 / np.sqrt(np.mean(data**2, axes, keepdims=True) + wide(eps))
        rstd_error = u * ((1 + _walk(count) + 3) / 2 + 2.2)
        scale, scale_error = _scale(gamma, gamma_offset, wide, u)

        normal = data * rstd
        normal_error = (rstd_error + u) * np.abs(normal) + tiny * (1 + rstd)
        if cast == "before":
            rounded = round_to(normal, dtype)
            low, high = (round_to(normal + s * normal_error, dtype) for s in (-1, 1))
            normal_error = np.maximum(np.abs(high - rounded), np.abs(rounded - low))
            normal = rounded
        y = normal * scale
        slack = normal_error * np.abs(scale) + np.abs(normal) * scale_error + u * np.abs(y) + tiny
    return Expected(y, slack, dtype), _statistic(rstd, rstd_error * rstd, axes, x.dtype)


def layer_norm_fwd(
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    beta: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-5,
    *,
    dtype: np.dtype | None = None,
) -> tuple[Expected, Expected, Expected]:
    """Return y, mean and rstd: ``y = (x - mean) * rstd * gamma + beta``.

    ``rstd = (var + eps)^-1/2``, with the biased variance about the mean. y has `dtype`, that of x
    where there is none.
    """
    wide, u, tiny = _accumulator(x.dtype)
    data, axes, count = _normalised(x, beta if gamma is None else gamma, wide)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        mean = np.mean(data, axes, keepdims=True)
        mean += np.mean(data - mean, axes, keepdims=True)
        centred = data - mean
        mean_error = u * (_walk(count) + 3) * np.mean(np.abs(centred), axes, keepdims=True)
        rstd = 1 / np.sqrt(np.mean(centred**2, axes, keepdims=True) + wide(eps))
        rstd_error = u * ((5 + _walk(count) + 3) / 2 + 2.2)
        scale, _ = _scale(gamma, 0.0, wide, u)

        normal = centred * rstd
        normal_error = (rstd_error + 3 * u) * np.abs(normal) + (mean_error + tiny) * rstd + tiny
        y = normal * scale
        slack = normal_error * np.abs(scale) + u * np.abs(y)
        if beta is not None:
            y = y + beta.astype(wide)
        slack = slack + u * np.abs(y) + tiny
    return (
        Expected(y, slack, x.dtype if dtype is None else dtype),
        _statistic(mean, mean_error, axes, x.dtype),
        _statistic(rstd, rstd_error * rstd, axes, x.dtype),
    )


def add_rms_norm_fwd(
    x: npt.NDArray[np.generic],
    residual: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: str = "before",
) -> tuple[Expected, Expected, Expected]:
    """Return y, h and rstd: ``h = x + residual`` in residual's dtype, the others of h as rounded.

    y has x's dtype.
    """
    total = _add(x, residual)
    h = round_to(total.value, total.dtype).astype(total.dtype)
    y, rstd = rms_norm_fwd(h, gamma, eps, gamma_offset=gamma_offset, cast=cast, dtype=x.dtype)
    return y, total, rstd


def add_layer_norm_fwd(
    x: npt.NDArray[np.generic],
    residual: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    beta: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-5,
) -> tuple[Expected, Expected, Expected, Expected]:
    """Return y, h, mean and rstd, as `add_rms_norm_fwd`."""
    total = _add(x, residual)
    h = round_to(total.value, total.dtype).astype(total.dtype)
    y, mean, rstd = layer_norm_fwd(h, gamma, beta, eps, dtype=x.dtype)
    return y, total, mean, rstd


def rms_norm(
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: str = "before",
) -> Expected:
    """Return the y of `rms_norm_fwd`."""
    return rms_norm_fwd(x, gamma, eps, gamma_offset=gamma_offset, cast=cast)[0]


def layer_norm(
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    beta: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-5,
) -> Expected:
    """Return the y of `layer_norm_fwd`."""
    return layer_norm_fwd(x, gamma, beta, eps)[0]


def add_rms_norm(
    x: npt.NDArray[np.generic],
    residual: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: str = "before",
) -> tuple[Expected, Expected]:
    """Return the y and h of `add_rms_norm_fwd`."""
    return add_rms_norm_fwd(x, residual, gamma, eps, gamma_offset=gamma_offset, cast=cast)[:2]


def add_layer_norm(
    x: npt.NDArray[np.generic],
    residual: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None = None,
    beta: npt.NDArray[np.generic] | None = None,
    eps: float = 1e-5,
) -> tuple[Expected, Expected]:
    """Return the y and h of `add_layer_norm_fwd`."""
    return add_layer_norm_fwd(x, residual, gamma, beta, eps)[:2]


def rms_norm_bwd(
    dy: npt.NDArray[np.generic],
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None,
    rstd: npt.NDArray[np.generic] | Expected,
    *,
    gamma_offset: float = 0.0,
    dresidual: npt.NDArray[np.generic] | None = None,
) -> tuple[Expected, Expected | None]:
    """Return dx and dgamma, None for dgamma where there is no gamma.

    They are those of rstd as it is given. Of an `Expected` rstd they are the gradients as defined,
    and their slack has room for what the forward kernel's own rstd may be off.
    """
    dx, dgamma, _ = _backward(dy, x, gamma, None, rstd, gamma_offset, dresidual)
    return dx, dgamma


def layer_norm_bwd(
    dy: npt.NDArray[np.generic],
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None,
    mean: npt.NDArray[np.generic] | Expected,
    rstd: npt.NDArray[np.generic] | Expected,
    *,
    dresidual: npt.NDArray[np.generic] | None = None,
) -> tuple[Expected, Expected | None, Expected | None]:
    """Return dx, dgamma and dbeta, None for the latter two where there is no gamma.

    mean and rstd are taken as `rms_norm_bwd` takes rstd.
    """
    return _backward(dy, x, gamma, mean, rstd, 0.0, dresidual)


def _backward(
    dy: npt.NDArray[np.generic],
    x: npt.NDArray[np.generic],
    gamma: npt.NDArray[np.generic] | None,
    mean: npt.NDArray[np.generic] | Expected | None,
    rstd: npt.NDArray[np.generic] | Expected,
    gamma_offset: float,
    dresidual: npt.NDArray[np.generic] | None,
) -> tuple[Expected, Expected | None, Expected | None]:
    wide, u, tiny = _accumulator(x.dtype)
    data, axes, count = _normalised(x, gamma, wide)
    upstream = dy.astype(wide)
    r, r_error = _beside_rows(rstd, axes, wide)
    scale, scale_error = _scale(gamma, gamma_offset, wide, u)

    def average(values: Wide) -> Wide:
        means: Wide = np.mean(values, axes, keepdims=True)
        return means

    # Each error is carried along beside its value: x - mean, n, g * dy, their means, dx.
    centred, normal_error = data, tiny * (1 + r)
    if mean is not None:
        middle, middle_error = _beside_rows(mean, axes, wide)
        centred = data - middle
        normal_error = normal_error + (u * np.abs(centred) + middle_error) * r
    normal = centred * r
    normal_error = normal_error + u * np.abs(normal) + np.abs(centred) * r_error
    weighted = upstream * scale
    weighted_error = np.abs(upstream) * scale_error + (gamma is not None) * u * np.abs(weighted)
    weighted_error = weighted_error + tiny
    walk = u * (_walk(count) + 2)
    product = weighted * normal
    size = np.abs(weighted) * normal_error + weighted_error * np.abs(normal) + tiny
    slope = average(product)
    slope_error = average(size) + walk * average(np.abs(product))
    inner = weighted - normal * slope
    inner_error = weighted_error + np.abs(normal) * slope_error + normal_error * np.abs(slope)
    if mean is not None:
        level = average(weighted)
        inner = inner - level
        inner_error = inner_error + average(weighted_error) + walk * average(np.abs(weighted))
        inner_error = inner_error + u * np.abs(weighted - level)
    dx = r * inner
    slack = r * (inner_error + u * np.abs(inner)) + (r_error + u * r) * np.abs(inner) + tiny
    if dresidual is not None:
        dx = dx + dresidual.astype(wide)
        slack = slack + u * np.abs(dx)
    result = Expected(dx, slack, x.dtype)
    if gamma is None:
        return result, None, None

    rows = tuple(range(x.ndim - gamma.ndim))
    steps = u * _walk_of_rows(math.prod(x.shape[: len(rows)]))
    terms = upstream * normal
    slack = np.sum(np.abs(upstream) * normal_error + tiny, rows)
    slack = slack + steps * np.sum(np.abs(terms), rows)
    dgamma = Expected(np.sum(terms, rows), slack, gamma.dtype)
    if mean is None:
        return result, dgamma, None
    slack = steps * np.sum(np.abs(upstream), rows) + tiny
    return result, dgamma, Expected(np.sum(upstream, rows), slack, gamma.dtype)


def _beside_rows(
    statistic: npt.NDArray[np.generic] | Expected, axes: tuple[int, ...], wide: type[np.floating]
) -> tuple[Wide, Wide]:
    """Return a statistic in the shape of its rows, and how far off the kernel's may be."""
    if isinstance(statistic, Expected):
        off = statistic.slack + ulp(statistic.value, statistic.dtype) / 2
        return np.expand_dims(statistic.value, axes), np.expand_dims(off, axes)
    value = np.expand_dims(statistic.astype(wide), axes)
    return value, np.zeros_like(value)


def _walk_of_rows(count: int) -> float:
    """Return the error of a sum over `count` rows, in units of u of the sum of sizes."""
    return math.sqrt(min(count, max(64, count / 16) + 128))


def _add(x: npt.NDArray[np.generic], residual: npt.NDArray[np.generic]) -> Expected:
    """Return the sum as the accumulator gives it: its last rounding leaves no slack."""
    wide, _, tiny = _accumulator(x.dtype)
    narrow = np.float64 if x.dtype == DTYPES["float64"] else np.float32
    total = (x.astype(narrow) + residual.astype(narrow)).astype(wide)
    return Expected(total, np.full(total.shape, tiny), residual.dtype)


def _accumulator(dtype: np.dtype) -> tuple[type[np.floating], float, float]:
    """Return the definition's type, the kernel's u, and the size below which a kernel flushes."""
    if dtype == DTYPES["float64"]:
        return np.longdouble, 2.0**-53, 0.0
    return np.float64, 2.0**-24, 2.0**-126


def _normalised(
    x: npt.NDArray[np.generic], parameter: npt.NDArray[np.generic] | None, wide: type[np.floating]
) -> tuple[Wide, tuple[int, ...], int]:
    """Return x made wide, the axes that are normalised and how many elements they hold."""
    axes = tuple(range(-1 if parameter is None else -parameter.ndim, 0))
    return x.astype(wide), axes, math.prod(x.shape[axis] for axis in axes)


def _walk(count: int) -> float:
    """Return the error of a sum of `count` terms, in units of u of the sum."""
    return math.sqrt(min(count, max(64, count / 1024)) + 10)


def _scale(
    gamma: npt.NDArray[np.generic] | None, offset: float, wide: type[np.floating], u: float
) -> tuple[Wide, Wide]:
    """Return gamma + gamma_offset and its error."""
    plain = np.ones(()) if gamma is None else gamma
    scale = plain.astype(wide) + wide(offset)
    error = u * (np.abs(scale) + abs(offset)) if offset else np.zeros_like(scale)
    return scale, error


def _statistic(value: Wide, slack: Wide, axes: tuple[int, ...], x_dtype: np.dtype) -> Expected:
    """Return a statistic of each row: float32, or float64 for float64 data."""
    dtype = x_dtype if x_dtype == DTYPES["float64"] else DTYPES["float32"]
    return Expected(np.squeeze(value, axes), np.squeeze(slack, axes), dtype)
