"""What every op means: the definitions in wide NumPy, and how far from them a result may be.

A definition is computed in float64 (float64 data in `numpy.longdouble`) and left unrounded; only
the roundings that are part of the definition itself, such as that of ``cast="before"``, are made.
A kernel works in float32 (float64 for float64 data), here called the accumulator, and so may differ
from the definition by its roundings. Those are counted below, once, for `python -m cunorm check`
and for the tests. `rms_norm`, and every other op by its name, is its definition.

The tolerance
-------------
Half an ulp of the output dtype, for the last rounding, plus a slack made of these terms. `u` is the
unit roundoff of the accumulator, 2^-24 or 2^-53.

- A sum of N terms passes through k additions, each good to u. Rounding errors of either sign add
  up like a random walk (Higham & Mary, SIAM J. Sci. Comput. 41, 2019): sqrt(k) u. In a leaf of the
  tree (kernels/tree.cuh) at most 32 elements follow each other, and N/65536 such chains; at most 15
  more additions join leaves and chunks: k = min(N, 32 + N/65536) + 15.
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
  that make dx to u each. Of rows, a sum of M passes at most min(M, max(32, M/1024) + 112)
  additions: those of its block, of the up to 32 rows beside it, of every 16th block, and of the 16
  sums of those.
- float32 subnormals count as zero: CuPy compiles with `-ftz=true`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ._families import OPS, ROPE, Op, Option

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


def __getattr__(name: str) -> Callable[..., Any]:
    """Return the definition of an op: called as the op is, it returns what is expected of it."""
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(define, OPS[name])


def define(op: Op, *given: Any, **named: Any) -> Any:
    """Return each result of an op as an `Expected`, None where the op returns None.

    Parameters
    ----------
    op : Op
        The op.
    *given, **named
        Its arguments, but for `out` and `residual_out`: NumPy arrays, numbers and words. A backward
        op's statistics may be an `Expected` too. The gradients are then those as defined, and their
        slack has room for what the forward kernel's own statistics may be off.
    """
    arguments = dict(zip(op.names, given, strict=False)) | named
    if len(arguments) != len(given) + len(named) or not arguments.keys() <= set(op.names):
        raise TypeError(f"{op.name} takes {', '.join(op.names)}, but was given {list(arguments)}")
    for argument in op.arguments:
        default = argument.default if isinstance(argument, Option) else None
        arguments.setdefault(argument.name, default)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        made = (_backward if op.is_backward else _forward)(op, arguments)
    return op.results(arguments, made)


def _forward(op: Op, given: dict[str, Any]) -> dict[str, Expected]:
    """Return the results of a forward op by name: y in x's dtype, and statistics of h as rounded.

    An op is what its family says: a source, a statistic and an epilogue.
    """
    x, group = given["x"], given.get("group")
    if group is not None:
        names = (*op.reads, *op.parameters)
        given = given | {n: _in_groups(given[n], group) for n in names if given[n] is not None}
    precision = Precision.of(x.dtype)
    parameters = [given[name] for name in op.parameters]
    leader = next((p for p in parameters if p is not None and group is None), None)
    axes = tuple(range(-1 if leader is None else -leader.ndim, 0))
    h, written = SOURCES[op.source.name](given, axes, precision)
    count = math.prod(h.value.shape[axis] for axis in axes)
    statistic = STATISTICS[op.family.statistic]
    eps = given["eps"] if given.get("eps2") is None else given["eps2"]
    normal, saved = statistic(h, axes, count, precision.wide(eps), precision)
    y = EPILOGUES[op.family.epilogue](normal, given, precision)
    kept = zip(op.family.saves[-len(saved) :], saved, strict=True)
    asked = given.get("dtype")
    dtype = given[op.writes[0].like].dtype if asked is None else np.dtype(asked)
    return {
        "y": Expected(y.value.reshape(x.shape), y.error.reshape(x.shape), dtype),
        **written,
        **{name: _statistic(value, axes, x.dtype) for name, value in kept},
    }


def _in_groups(a: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
    return a.reshape(*a.shape[:-1], a.shape[-1] // group, group)


# The row that is normalised, and what is written or kept beside y on the way.
Made = tuple[Near, dict[str, Expected]]


def _loaded(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    return _exact(given["x"], precision), {}


def _exact(a: npt.NDArray[Any], precision: Precision) -> Near:
    return Near(a.astype(precision.wide), np.zeros(()))


def _added(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    """Return ``h = x + residual`` as rounded to residual's dtype, and as the accumulator gives it.

    The last rounding is all there is, and leaves no slack.
    """
    x, residual, gate = given["x"], given["residual"], given["gate"]
    narrow = np.float64 if x.dtype == DTYPES["float64"] else np.float32
    addend = x.astype(narrow)
    if gate is not None:
        product = addend * gate.astype(narrow)
        addend = round_to(product, _promoted(x.dtype, gate.dtype)).astype(narrow)
    total = (addend + residual.astype(narrow)).astype(precision.wide)
    h = round_to(total, residual.dtype).astype(precision.wide)
    made = Expected(total, np.full(total.shape, precision.tiny), residual.dtype)
    return Near(h, np.zeros(())), {"residual_out": made}


def _gated(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    """Return ``v = x * activation(gate)``, not rounded, where the gate comes first."""
    x = _exact(given["x"], precision)
    return _times_gate(x, given, precision) if given["gate_first"] else x, {}


def _normed(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    """Return ``h = residual + n * gamma`` as rounded to residual's dtype, n being x normalised."""
    x, dtype = given["x"], given["residual"].dtype
    count = math.prod(x.shape[axis] for axis in axes)
    eps = precision.wide(given["eps"])
    normal, (rstd,) = _mean_square(_exact(x, precision), axes, count, eps, precision)
    h = _then_add(_scale(normal, given, precision), given | {"gate": None}, precision)
    written = {
        "residual_out": Expected(h.value, h.error, dtype),
        "rstd": _statistic(rstd, axes, x.dtype),
    }
    return _rounded(h, dtype), written


def _times_gate(value: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Multiply by an activation, which is within 2 ulp of the accumulator."""
    gate = ACTIVATIONS[given["activation"]](given["gate"].astype(precision.wide))
    product = value.value * gate
    relative = 0 if given["activation"] is None else 4 * precision.u
    slack = value.error * np.abs(gate) + (relative + precision.u) * np.abs(product)
    return Near(product, slack + precision.tiny * (1 + np.abs(value.value)))


def _mean_square(
    h: Near, axes: tuple[int, ...], count: int, eps: np.floating, precision: Precision
) -> tuple[Near, tuple[Near]]:
    """Return ``n = x * rstd``, and ``rstd = (mean(x^2) + eps)^-1/2``."""
    u, tiny, data = precision.u, precision.tiny, h.value
    rstd = 1 / np.sqrt(np.mean(data**2, axes, keepdims=True) + eps)
    rstd_error = u * ((1 + _walk(count) + 3) / 2 + 2.2)
    rstd_error = rstd_error + np.mean(np.abs(data) * h.error, axes, keepdims=True) * rstd**2
    normal = data * rstd
    normal_error = (rstd_error + u) * np.abs(normal) + h.error * rstd + tiny * (1 + rstd)
    return Near(normal, normal_error), (Near(rstd, rstd_error * rstd),)


def _moments(
    h: Near, axes: tuple[int, ...], count: int, eps: np.floating, precision: Precision
) -> tuple[Near, tuple[Near, Near]]:
    """Return ``n = (x - mean) * rstd``, mean, and rstd of the biased variance about it."""
    u, tiny, data = precision.u, precision.tiny, h.value
    mean = np.mean(data, axes, keepdims=True)
    mean += np.mean(data - mean, axes, keepdims=True)
    centred = data - mean
    mean_error = u * (_walk(count) + 3) * np.mean(np.abs(centred), axes, keepdims=True)
    mean_error = mean_error + np.mean(np.broadcast_to(h.error, data.shape), axes, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(centred**2, axes, keepdims=True) + eps)
    rstd_error = u * ((5 + _walk(count) + 3) / 2 + 2.2)
    rstd_error = rstd_error + np.mean(np.abs(centred) * h.error, axes, keepdims=True) * rstd**2
    normal = centred * rstd
    normal_error = (rstd_error + 3 * u) * np.abs(normal) + tiny
    normal_error = normal_error + (mean_error + h.error + tiny) * rstd
    return Near(normal, normal_error), (Near(mean, mean_error), Near(rstd, rstd_error * rstd))


def _scale(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = n * (gamma + gamma_offset)``.

    ``cast="before"`` rounds n to x's dtype before gamma multiplies, as the Llama and Qwen2 models
    define it; ``cast="after"`` rounds only the result, as PyTorch's rms_norm does.
    """
    weight = _weight(given["gamma"], given["gamma_offset"], precision)
    n = _rounded(normal, given["x"].dtype) if given["cast"] == "before" else normal
    y = n.value * weight.value
    slack = n.error * np.abs(weight.value) + np.abs(n.value) * weight.error
    return Near(y, slack + precision.u * np.abs(y) + precision.tiny)


def _promoted(a: np.dtype, b: np.dtype) -> np.dtype:
    """Return the dtype of what NumPy's operators make of two; it knows none of both 16-bit ones."""
    return DTYPES["float32"] if a != b and a.itemsize == b.itemsize else max(a, b, key=_itemsize)


def _itemsize(dtype: np.dtype) -> int:
    return dtype.itemsize


def _modulated(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``n * (scale + scale_offset) + shift``, each result rounded to the dtype it has."""
    u, dtype, near = precision.u, given["x"].dtype, norm
    rounds = given.get("cast") != "after"

    def to(near: Near, dtype: np.dtype) -> Near:
        slack = near.error + u * np.abs(near.value) + precision.tiny
        return _rounded(Near(near.value, slack), dtype) if rounds else Near(near.value, slack)

    scale, shift = given.get("scale"), given.get("shift")
    if scale is not None or shift is not None:
        near = to(near, dtype)
    if scale is not None:
        offset = np.asarray(given["scale_offset"], scale.dtype if rounds else precision.wide)
        total = scale.astype(precision.wide) + offset.astype(precision.wide)
        factor = to(Near(total, np.zeros(())), scale.dtype)
        dtype = _promoted(dtype, scale.dtype)
        error = near.error * np.abs(factor.value) + np.abs(near.value) * factor.error
        near = to(Near(near.value * factor.value, error), dtype)
    if shift is not None:
        dtype = _promoted(dtype, shift.dtype)
        near = to(Near(near.value + shift.astype(precision.wide), near.error), dtype)
    own = given["dtype"]
    return to(near, dtype) if own is not None and own != dtype else near


def _rounded(near: Near, dtype: np.dtype) -> Near:
    """Round a value on the way; what is near it may come to be the next number."""
    rounded = round_to(near.value, dtype)
    low, high = (round_to(near.value + s * near.error, dtype) for s in (-1, 1))
    return Near(rounded, np.maximum(np.abs(high - rounded), np.abs(rounded - low)))


def _then_gate(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = t * activation(gate)`` of the norm t, unless the gate came first."""
    if given["gate_first"]:
        return _modulated(norm, given, precision)
    if given["cast"] == "before":
        norm = _rounded(norm, given["x"].dtype)
    return _times_gate(norm, given, precision)


def _then_add(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``h = residual + gate * n`` of the norm n, each result rounded to the dtype it has."""
    x, gate, residual = (given[name] for name in ("x", "gate", "residual"))
    u, dtype = precision.u, x.dtype
    near = _rounded(norm, dtype)
    if gate is not None:
        dtype = _promoted(dtype, gate.dtype)
        factor = gate.astype(precision.wide)
        product = near.value * factor
        slack = near.error * np.abs(factor) + u * np.abs(product) + precision.tiny
        near = _rounded(Near(product, slack), dtype)
    total = near.value + residual.astype(precision.wide)
    near = Near(total, near.error + u * np.abs(total) + precision.tiny)
    dtype = _promoted(dtype, residual.dtype)
    return near if dtype == residual.dtype else _rounded(near, dtype)


def _scale_of_sum(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = rms_norm(h, gamma2)``, in the dtype of h, which is residual's."""
    x, residual = given["x"], given["residual"]
    y = _scale(normal, given | {"gamma": given["gamma2"], "x": residual}, precision)
    return y if x.dtype == residual.dtype else _rounded(y, residual.dtype)


def _affine(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = n * gamma + beta``, rounded once."""
    beta = given["beta"]
    weight = _weight(given["gamma"], given["gamma_offset"], precision)
    y = normal.value * weight.value
    slack = normal.error * np.abs(weight.value) + precision.u * np.abs(y)
    slack = slack + np.abs(normal.value) * weight.error
    if beta is not None:
        y = y + beta.astype(precision.wide)
    return Near(y, slack + precision.u * np.abs(y) + precision.tiny)


# By the names of `_families.py`.
SOURCES: dict[str, Callable[[dict[str, Any], tuple[int, ...], Precision], Made]] = {
    "Loaded": _loaded,
    "Added": _added,
    "Gated": _gated,
    "Normed": _normed,
}
STATISTICS: dict[str, Callable[..., tuple[Near, tuple[Near, ...]]]] = {
    "MeanSquare": _mean_square,
    "Moments": _moments,
}
EPILOGUES: dict[str, Callable[[Near, dict[str, Any], Precision], Near]] = {
    "Scale": lambda normal, *rest: _modulated(_scale(normal, *rest), *rest),
    "Affine": lambda normal, *rest: _modulated(_affine(normal, *rest), *rest),
    "ScaleThenGate": lambda normal, *rest: _then_gate(_scale(normal, *rest), *rest),
    "AffineThenGate": lambda normal, *rest: _then_gate(_affine(normal, *rest), *rest),
    "ScaleThenAdd": lambda normal, *rest: _then_add(_scale(normal, *rest), *rest),
    "ScaleOfSum": _scale_of_sum,
    "AffineThenAdd": lambda normal, *rest: _then_add(_affine(normal, *rest), *rest),
}
ACTIVATIONS: dict[str | None, Callable[[Wide], Wide]] = {
    "silu": lambda g: g / (1 + np.exp(-g)),
    "sigmoid": lambda g: 1 / (1 + np.exp(-g)),
    None: lambda g: g,
}


def _backward(op: Op, given: dict[str, Any]) -> dict[str, Expected | None]:
    """Return dx, and the sums over rows in gamma's dtype: None for those without a gamma."""
    group = given.get("group")
    if group is not None:
        of_groups = _backward(op, given | _groups_of(op, given, group))
        return {name: _out_of_groups(a) for name, a in of_groups.items()}
    x, dy, dresidual = given["x"], given["dy"], given.get("dresidual")
    (gamma,) = (given[name] for name in op.parameters)
    precision = Precision.of(x.dtype)
    wide, u, tiny = precision.wide, precision.u, precision.tiny
    one_axis = given.get("of_groups", False)
    data, axes, count = _normalised(x, None if one_axis else gamma, wide)
    given_dy = dy.astype(wide)
    factor = _factor(given, precision)
    gate_first = given.get("gate_first", False)
    data_error: Wide = given.get("x_error", np.zeros(()))
    if gate_first:
        product = _times_gate(Near(data, data_error), given, precision)
        data, data_error = product.value, product.error
    elif "gate" in op.reads:
        factor = _times_gate(factor, given, precision)
    upstream, upstream_error = given_dy * factor.value, np.abs(given_dy) * factor.error
    upstream_error = upstream_error + given.get("dy_error", 0) * np.abs(factor.value)
    kept = {name: _beside_rows(given[name], axes, wide) for name in op.family.saves}
    r, r_error = kept["rstd"].value, kept["rstd"].error
    weight = _weight(gamma, given.get("gamma_offset", 0.0), precision)

    def average(values: Wide) -> Wide:
        means: Wide = np.mean(values, axes, keepdims=True)
        return means

    # Each error is carried along beside its value: x - mean, n, g * dy, their means, dx.
    centred, normal_error = data, tiny * (1 + r) + data_error * r
    if "mean" in kept:
        centred = data - kept["mean"].value
        normal_error = normal_error + (u * np.abs(centred) + kept["mean"].error) * r
    normal = centred * r
    normal_error = normal_error + u * np.abs(normal) + np.abs(centred) * r_error
    weighted = upstream * weight.value
    weighted_error = np.abs(upstream) * weight.error + upstream_error * np.abs(weight.value)
    weighted_error = weighted_error + (gamma is not None) * u * np.abs(weighted)
    weighted_error = weighted_error + tiny
    walk = u * (_walk(count) + 2)
    product = weighted * normal
    size = np.abs(weighted) * normal_error + weighted_error * np.abs(normal) + tiny
    slope = average(product)
    slope_error = average(size) + walk * average(np.abs(product))
    inner = weighted - normal * slope
    inner_error = weighted_error + np.abs(normal) * slope_error + normal_error * np.abs(slope)
    if "mean" in kept:
        level = average(weighted)
        inner = inner - level
        inner_error = inner_error + average(weighted_error) + walk * average(np.abs(weighted))
        inner_error = inner_error + u * np.abs(weighted - level)
    dx = r * inner
    slack = r * (inner_error + u * np.abs(inner)) + (r_error + u * r) * np.abs(inner) + tiny
    if dresidual is not None:
        dx = dx + dresidual.astype(wide)
        slack = slack + u * np.abs(dx)
    beta = given.get("beta")
    biased = np.zeros(()) if beta is None else beta.astype(wide)
    value = normal * weight.value + biased
    error = normal_error * np.abs(weight.value) + np.abs(normal) * weight.error
    error = error + 2 * u * (np.abs(normal * weight.value) + np.abs(biased)) + tiny
    made: dict[str, Expected | None] = {}
    if "gate" in op.reads:
        # What the gate has multiplied, and the gradient of what came of it.
        first, second = (Near(x.astype(wide), np.zeros(())), Near(dx, slack))
        if not gate_first:
            first, second = Near(given_dy, np.zeros(())), Near(value, error)
        made["dgate"] = _of_gate(first, second, given, precision)
        if gate_first:
            both = _times_gate(Near(dx, slack), given, precision)
            dx, slack = both.value, both.error
    made |= {"dx": Expected(dx, slack, x.dtype)}
    made |= dict.fromkeys(op.totals)
    if gamma is not None and given["sums"]:
        # The first parameter multiplies n, and the others are added.
        rows = tuple(range(x.ndim - gamma.ndim))
        steps = u * _walk_of_rows(math.prod(x.shape[: len(rows)]))
        terms = upstream * normal
        slack = np.sum(np.abs(upstream) * normal_error + upstream_error * np.abs(normal), rows)
        slack = slack + math.prod(x.shape[: len(rows)]) * tiny
        slack = slack + steps * np.sum(np.abs(terms), rows)
        made |= {op.totals[0]: Expected(np.sum(terms, rows), slack, gamma.dtype)}
        slack = steps * np.sum(np.abs(upstream), rows) + np.sum(upstream_error, rows) + tiny
        for name in op.totals[1:]:
            made[name] = Expected(np.sum(upstream, rows), slack, gamma.dtype)
    ones = Near(np.ones(x.shape, wide), np.zeros(()))
    for name, times in (("scale", Near(value, error)), ("shift", ones)):
        operand = given.get(name)
        if operand is not None:
            made[f"d{name}"] = _sum_to(operand, given_dy, times, precision)
    return made


def _groups_of(op: Op, given: dict[str, Any], group: int) -> dict[str, Any]:
    """Return the arrays of a backward op, whose rows are groups of columns."""
    names = [name for name in (*op.reads, *op.parameters, "beta") if given.get(name) is not None]
    arrays = {name: _in_groups(given[name], group) for name in names}
    return arrays | {"group": None, "of_groups": True}


def _out_of_groups(made: Expected | None) -> Expected | None:
    if made is None:
        return None
    shape = (*made.value.shape[:-2], -1)
    slack = np.broadcast_to(made.slack, made.value.shape)
    return Expected(made.value.reshape(shape), slack.reshape(shape), made.dtype)


def _of_gate(first: Near, second: Near, given: dict[str, Any], precision: Precision) -> Expected:
    """Return the gradient of a gate: a product of two times the slope of the activation."""
    gate, u = given["gate"].astype(precision.wide), precision.u
    sigmoid = 1 / (1 + np.exp(-gate))
    slope, error = np.ones(()), np.zeros(())
    if given["activation"] == "sigmoid":
        slope, error = sigmoid * (1 - sigmoid), 8 * u * sigmoid
    elif given["activation"] == "silu":
        slope = sigmoid * (1 + gate * (1 - sigmoid))
        error = 8 * u * sigmoid * (1 + np.abs(gate))
    product = first.value * second.value
    slack = (np.abs(first.value) * second.error + 2 * u * np.abs(product)) * np.abs(slope)
    slack = slack + np.abs(product) * error + precision.tiny * (1 + np.abs(slope))
    return Expected(product * slope, slack, given["gate"].dtype)


def _factor(given: dict[str, Any], precision: Precision) -> Near:
    """Return scale + scale_offset and its error; 1 without a scale."""
    scale = given.get("scale")
    if scale is None:
        return Near(np.ones((), precision.wide), np.zeros(()))
    offset = np.asarray(given["scale_offset"], scale.dtype).astype(precision.wide)
    factor = scale.astype(precision.wide) + offset
    return Near(factor, 2 * precision.u * (np.abs(factor) + np.abs(offset)))


def _sum_to(operand: npt.NDArray[Any], dy: Wide, times: Near, precision: Precision) -> Expected:
    """Return the sum of ``dy * times`` over the axes along which an operand broadcasts."""
    own = (1,) * (dy.ndim - operand.ndim) + operand.shape
    axes = tuple(i for i, n in enumerate(own) if n == 1)

    def total(values: Wide) -> Wide:
        made: Wide = np.sum(values, axes, keepdims=True).reshape(operand.shape)
        return made

    # One after the other at most, and by a tree where the row is added up too.
    steps = precision.u * math.sqrt(dy.size // operand.size + 16)
    terms = dy * times.value
    slack = total(np.abs(dy) * times.error + precision.tiny) + steps * total(np.abs(terms))
    return Expected(total(terms), slack, operand.dtype)


def _beside_rows(
    statistic: npt.NDArray[Any] | Expected, axes: tuple[int, ...], wide: type[np.floating]
) -> Near:
    """Return a statistic in the shape of its rows, and how far off the kernel's may be."""
    if isinstance(statistic, Expected):
        off = statistic.slack + ulp(statistic.value, statistic.dtype) / 2
        return Near(np.expand_dims(statistic.value, axes), np.expand_dims(off, axes))
    value = np.expand_dims(statistic.astype(wide), axes)
    return Near(value, np.zeros_like(value))


def _walk_of_rows(count: int) -> float:
    """Return the error of a sum over `count` rows, in units of u of the sum of sizes."""
    return math.sqrt(min(count, max(32, count / 1024) + 112))


def _normalised(
    x: npt.NDArray[np.generic], parameter: npt.NDArray[np.generic] | None, wide: type[np.floating]
) -> tuple[Wide, tuple[int, ...], int]:
    """Return x made wide, the axes that are normalised and how many elements they hold."""
    axes = tuple(range(-1 if parameter is None else -parameter.ndim, 0))
    return x.astype(wide), axes, math.prod(x.shape[axis] for axis in axes)


def _walk(count: int) -> float:
    """Return the error of a sum of `count` terms, in units of u of the sum."""
    return math.sqrt(min(count, 32 + count / 65536) + 15)


def _weight(gamma: npt.NDArray[Any] | None, offset: float, precision: Precision) -> Near:
    """Return gamma + gamma_offset and its error."""
    plain = np.ones(()) if gamma is None else gamma
    weight = plain.astype(precision.wide) + precision.wide(offset)
    error = precision.u * (np.abs(weight) + abs(offset)) if offset else np.zeros_like(weight)
    return Near(weight, error)


def _statistic(statistic: Near, axes: tuple[int, ...], dtype: np.dtype) -> Expected:
    """Return a statistic of each row: float32, or float64 for float64 data."""
    own = dtype if dtype == DTYPES["float64"] else DTYPES["float32"]
    return Expected(np.squeeze(statistic.value, axes), np.squeeze(statistic.error, axes), own)


# Of heads that are rotated. Each product and each sum is good to u of itself; cos and sin are exact
# as given.


def rms_norm_rope_fwd(
    x: npt.NDArray[Any],
    gamma: npt.NDArray[Any] | None,
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    positions: npt.NDArray[Any] | None = None,
    eps: float = ROPE.eps,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: str = "before",
) -> tuple[Expected, Expected]:
    """Return what is expected of the op of this name, which has the same arguments but `out`."""
    precision = Precision.of(x.dtype)
    rounds = cast == "before"
    product = _promoted(x.dtype, cos.dtype)
    rows = _rows(cos, positions, x), _rows(sin, positions, x)
    kept: list[Near] = []

    def normalise(h: Near, dtype: np.dtype[Any]) -> Near:
        shape = (*x.shape[:-2], -1) if across_heads else x.shape
        h = Near(h.value.reshape(shape), np.broadcast_to(h.error, x.shape).reshape(shape))
        wide_eps = precision.wide(eps)
        normal, saved = _mean_square(h, (-1,), h.value.shape[-1], wide_eps, precision)
        kept.extend(saved)
        of = {"x": np.empty(0, dtype), "gamma": gamma, "gamma_offset": gamma_offset, "cast": cast}
        n = _scale(normal, of, precision)
        n = Near(n.value.reshape(x.shape), n.error.reshape(x.shape))
        return _operated(n, dtype, rounds, precision)

    def rotate(n: Near) -> Near:
        return _rotated(n, rows, interleaved, product if rounds else None, precision)

    exact = Near(x.astype(precision.wide), np.zeros(x.shape))
    y = rotate(normalise(exact, x.dtype)) if norm_first else normalise(rotate(exact), product)
    (rstd,) = kept
    return Expected(y.value, y.error, x.dtype), _statistic(rstd, (-1,), x.dtype)


def rms_norm_rope(*given: Any, **named: Any) -> Expected:
    """Return what is expected of the op of this name."""
    return rms_norm_rope_fwd(*given, **named)[0]


def qk_norm_rope_fwd(
    q: npt.NDArray[Any],
    k: npt.NDArray[Any],
    q_gamma: npt.NDArray[Any] | None,
    k_gamma: npt.NDArray[Any] | None,
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    *given: Any,
    **options: Any,
) -> tuple[Expected, Expected, Expected, Expected]:
    """Return what is expected of q and of k, each as `rms_norm_rope_fwd` has it."""
    of_q = rms_norm_rope_fwd(q, q_gamma, cos, sin, *given, **options)
    of_k = rms_norm_rope_fwd(k, k_gamma, cos, sin, *given, **options)
    return of_q[0], of_k[0], of_q[1], of_k[1]


def qk_norm_rope(*given: Any, **named: Any) -> tuple[Expected, Expected]:
    """Return what is expected of q and of k, each as `rms_norm_rope` has it."""
    return qk_norm_rope_fwd(*given, **named)[:2]


def rms_norm_rope_bwd(
    dy: npt.NDArray[Any],
    x: npt.NDArray[Any],
    gamma: npt.NDArray[Any] | None,
    cos: npt.NDArray[Any],
    sin: npt.NDArray[Any],
    rstd: npt.NDArray[Any],
    positions: npt.NDArray[Any] | None = None,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    sums: bool = True,
) -> tuple[Expected, Expected | None]:
    """Return what is expected of the op of this name: no rounding is differentiated."""
    precision = Precision.of(x.dtype)
    rows = _rows(cos, positions, x), _rows(sin, positions, x)
    back = rows[0], -rows[1]
    v, dn = (Near(a.astype(precision.wide), np.zeros(x.shape)) for a in (x, dy))
    dtype = x.dtype
    if norm_first:
        dn = _rotated(dn, back, interleaved, None, precision)
    else:
        dtype = _promoted(dtype, cos.dtype)
        v = _rotated(v, rows, interleaved, dtype, precision)

    def of_norm(head: int | slice, gamma: npt.NDArray[Any] | None) -> tuple[Near, Near | None]:
        """Return the gradients of the norm of some heads, or of all of a token together."""

        def of(a: Wide) -> Wide:
            a = np.broadcast_to(a, x.shape)
            return a.reshape(*x.shape[:-2], -1) if across_heads else a[..., head, :]

        given: dict[str, Any] = {"gamma": gamma, "sums": sums}
        given |= {"x": of(v.value).astype(dtype), "dy": of(dn.value)}
        given |= {"x_error": of(v.error), "dy_error": of(dn.error), "gamma_offset": gamma_offset}
        given |= {"rstd": rstd if across_heads else rstd[..., head]}
        made = _backward(OPS["rms_norm_bwd"], given)
        dx, total = (None if e is None else Near(e.value, e.slack) for e in made.values())
        assert dx is not None
        return dx, total

    if gamma is None or gamma.ndim == 1:
        dv, total = of_norm(slice(None), gamma)
    else:
        of_heads = [of_norm(head, weight) for head, weight in enumerate(gamma)]
        dv = _stacked((dx for dx, _ in of_heads), -2)
        total = _stacked((total for _, total in of_heads if total is not None), 0) if sums else None
    dx = Near(dv.value.reshape(x.shape), dv.error.reshape(x.shape))
    if not norm_first:
        dx = _rotated(dx, back, interleaved, None, precision)
    dgamma = None
    if gamma is not None and total is not None:
        dgamma = Expected(total.value, total.error, gamma.dtype)
    return Expected(dx.value, dx.error, x.dtype), dgamma


def _stacked(parts: Iterable[Near], axis: int) -> Near:
    values, errors = zip(*((near.value, near.error) for near in parts), strict=True)
    return Near(np.stack(values, axis), np.stack(errors, axis))


def _rows(
    table: npt.NDArray[Any], positions: npt.NDArray[Any] | None, x: npt.NDArray[Any]
) -> npt.NDArray[Any]:
    """Return a token's row of a table, beside all of its heads."""
    if positions is not None:
        table = table[positions]
    elif table.ndim == 2:
        table = table[: x.shape[-3]] if x.ndim > 2 else table[0]
    return table[..., None, :]


def _rotated(
    n: Near,
    rows: tuple[npt.NDArray[Any], npt.NDArray[Any]],
    interleaved: bool,
    product: np.dtype[Any] | None,
    precision: Precision,
) -> Near:
    """Return heads with their pairs rotated, and what each result's roundings add."""
    count = 2 * rows[0].shape[-1]
    pairs = slice(0, count // 2), slice(count // 2, count)
    if interleaved:
        pairs = slice(0, count, 2), slice(1, count, 2)
    cos, sin = (row.astype(precision.wide) for row in rows)

    def times(pair: slice, factor: npt.NDArray[Any]) -> Near:
        value, error = n.value[..., pair] * factor, n.error[..., pair] * np.abs(factor)
        return _operated(Near(value, error), product, product is not None, precision)

    def plus(a: Near, b: Near, sign: int) -> Near:
        total = Near(a.value + sign * b.value, a.error + b.error)
        return _operated(total, product, product is not None, precision)

    value, error = n.value.copy(), n.error.copy()
    first = plus(times(pairs[0], cos), times(pairs[1], sin), -1)
    second = plus(times(pairs[1], cos), times(pairs[0], sin), 1)
    for pair, made in zip(pairs, (first, second), strict=True):
        value[..., pair], error[..., pair] = made.value, made.error
    return Near(value, error)


def _operated(near: Near, dtype: np.dtype[Any] | None, rounds: bool, precision: Precision) -> Near:
    """Return the result of an operation, rounded to its dtype where it is."""
    slack = near.error + precision.u * np.abs(near.value) + precision.tiny
    made = Near(near.value, slack)
    return _rounded(made, dtype) if rounds and dtype is not None else made
