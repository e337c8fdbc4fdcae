"""The definitions of forward ops: a source, a statistic and an epilogue, as families have it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._families import Op
from .near import (
    DTYPES,
    Expected,
    Near,
    Precision,
    Wide,
    promoted,
    round_to,
    rounded,
    statistic_of,
    walk_of_columns,
    weight_of,
)


def forward(op: Op, given: dict[str, Any]) -> dict[str, Expected]:
    """Return the results of a forward op by name: y in x's dtype, and statistics of h as rounded.

    An op is what its family says: a source, a statistic and an epilogue.
    """
    x, group = given["x"], given.get("group")
    if group is not None:
        names = (*op.reads, *op.parameters)
        given = given | {n: in_groups(given[n], group) for n in names if given[n] is not None}
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
        **{name: statistic_of(value, axes, x.dtype) for name, value in kept},
    }


def in_groups(a: npt.NDArray[Any], group: int) -> npt.NDArray[Any]:
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
        addend = round_to(product, promoted(x.dtype, gate.dtype)).astype(narrow)
    total = (addend + residual.astype(narrow)).astype(precision.wide)
    h = round_to(total, residual.dtype).astype(precision.wide)
    made = Expected(total, np.full(total.shape, precision.tiny), residual.dtype)
    return Near(h, np.zeros(())), {"residual_out": made}


def _gated(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    """Return ``v = x * activation(gate)``, not rounded, where the gate comes first."""
    x = _exact(given["x"], precision)
    return times_gate(x, given, precision) if given["gate_first"] else x, {}


def _normed(given: dict[str, Any], axes: tuple[int, ...], precision: Precision) -> Made:
    """Return ``h = residual + n * gamma`` as rounded to residual's dtype, n being x normalised."""
    x, dtype = given["x"], given["residual"].dtype
    count = math.prod(x.shape[axis] for axis in axes)
    eps = precision.wide(given["eps"])
    normal, (rstd,) = mean_square(_exact(x, precision), axes, count, eps, precision)
    h = _then_add(scaled(normal, given, precision), given | {"gate": None}, precision)
    written = {
        "residual_out": Expected(h.value, h.error, dtype),
        "rstd": statistic_of(rstd, axes, x.dtype),
    }
    return rounded(h, dtype), written


def times_gate(value: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Multiply by an activation, which is within a relative error of 4 u."""
    gate = ACTIVATIONS[given["activation"]](given["gate"].astype(precision.wide))
    product = value.value * gate
    relative = 0 if given["activation"] is None else 4 * precision.u
    slack = value.error * np.abs(gate) + (relative + precision.u) * np.abs(product)
    return Near(product, slack + precision.tiny * (1 + np.abs(value.value)))


def mean_square(
    h: Near, axes: tuple[int, ...], count: int, eps: np.floating, precision: Precision
) -> tuple[Near, tuple[Near]]:
    """Return ``n = x * rstd``, and ``rstd = (mean(x^2) + eps)^-1/2``."""
    u, tiny, data = precision.u, precision.tiny, h.value
    rstd = 1 / np.sqrt(np.mean(data**2, axes, keepdims=True) + eps)
    rstd_error = u * ((1 + walk_of_columns(count) + 3) / 2 + 2.2)
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
    mean_error = u * (walk_of_columns(count) + 3) * np.mean(np.abs(centred), axes, keepdims=True)
    mean_error = mean_error + np.mean(np.broadcast_to(h.error, data.shape), axes, keepdims=True)
    rstd = 1 / np.sqrt(np.mean(centred**2, axes, keepdims=True) + eps)
    rstd_error = u * ((5 + walk_of_columns(count) + 3) / 2 + 2.2)
    rstd_error = rstd_error + np.mean(np.abs(centred) * h.error, axes, keepdims=True) * rstd**2
    normal = centred * rstd
    normal_error = (rstd_error + 3 * u) * np.abs(normal) + tiny
    normal_error = normal_error + (mean_error + h.error + tiny) * rstd
    return Near(normal, normal_error), (Near(mean, mean_error), Near(rstd, rstd_error * rstd))


def scaled(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = n * (gamma + gamma_offset)``.

    ``cast="before"`` rounds n to x's dtype before gamma multiplies, as the Llama and Qwen2 models
    define it; ``cast="after"`` rounds only the result, as PyTorch's rms_norm does.
    """
    weight = weight_of(given["gamma"], given["gamma_offset"], precision)
    n = rounded(normal, given["x"].dtype) if given["cast"] == "before" else normal
    y = n.value * weight.value
    slack = n.error * np.abs(weight.value) + np.abs(n.value) * weight.error
    return Near(y, slack + precision.u * np.abs(y) + precision.tiny)


def _modulated(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``n * (scale + scale_offset) + shift``, each result rounded to the dtype it has."""
    u, dtype, near = precision.u, given["x"].dtype, norm
    rounds = given.get("cast") != "after"

    def to(near: Near, dtype: np.dtype) -> Near:
        slack = near.error + u * np.abs(near.value) + precision.tiny
        return rounded(Near(near.value, slack), dtype) if rounds else Near(near.value, slack)

    scale, shift = given.get("scale"), given.get("shift")
    if scale is not None or shift is not None:
        near = to(near, dtype)
    if scale is not None:
        offset = np.asarray(given["scale_offset"], scale.dtype if rounds else precision.wide)
        total = scale.astype(precision.wide) + offset.astype(precision.wide)
        factor = to(Near(total, np.zeros(())), scale.dtype)
        dtype = promoted(dtype, scale.dtype)
        error = near.error * np.abs(factor.value) + np.abs(near.value) * factor.error
        near = to(Near(near.value * factor.value, error), dtype)
    if shift is not None:
        dtype = promoted(dtype, shift.dtype)
        near = to(Near(near.value + shift.astype(precision.wide), near.error), dtype)
    own = given["dtype"]
    return to(near, dtype) if own is not None and own != dtype else near


def _then_gate(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = t * activation(gate)`` of the norm t, unless the gate came first."""
    if given["gate_first"]:
        return _modulated(norm, given, precision)
    if given["cast"] == "before":
        norm = rounded(norm, given["x"].dtype)
    return times_gate(norm, given, precision)


def _then_add(norm: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``h = residual + gate * n`` of the norm n, each result rounded to the dtype it has."""
    x, gate, residual = (given[name] for name in ("x", "gate", "residual"))
    u, dtype = precision.u, x.dtype
    near = rounded(norm, dtype)
    if gate is not None:
        dtype = promoted(dtype, gate.dtype)
        factor = gate.astype(precision.wide)
        product = near.value * factor
        slack = near.error * np.abs(factor) + u * np.abs(product) + precision.tiny
        near = rounded(Near(product, slack), dtype)
    total = near.value + residual.astype(precision.wide)
    near = Near(total, near.error + u * np.abs(total) + precision.tiny)
    dtype = promoted(dtype, residual.dtype)
    return near if dtype == residual.dtype else rounded(near, dtype)


def _scale_of_sum(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = rms_norm(h, gamma2)``, in the dtype of h, which is residual's.

    ``cast="after"`` rounds only the result, which has x's.
    """
    x, residual = given["x"], given["residual"]
    y = scaled(normal, given | {"gamma": given["gamma2"], "x": residual}, precision)
    if x.dtype == residual.dtype or given["cast"] == "after":
        return y
    return rounded(y, residual.dtype)


def _affine(normal: Near, given: dict[str, Any], precision: Precision) -> Near:
    """Return ``y = n * gamma + beta``, rounded once."""
    beta = given["beta"]
    weight = weight_of(given["gamma"], given["gamma_offset"], precision)
    y = normal.value * weight.value
    slack = normal.error * np.abs(weight.value) + precision.u * np.abs(y)
    slack = slack + np.abs(normal.value) * weight.error
    if beta is not None:
        y = y + beta.astype(precision.wide)
    return Near(y, slack + precision.u * np.abs(y) + precision.tiny)


# By the names of `_families/`.
SOURCES: dict[str, Callable[[dict[str, Any], tuple[int, ...], Precision], Made]] = {
    "Loaded": _loaded,
    "Added": _added,
    "Gated": _gated,
    "Normed": _normed,
}
STATISTICS: dict[str, Callable[..., tuple[Near, tuple[Near, ...]]]] = {
    "MeanSquare": mean_square,
    "Moments": _moments,
}
EPILOGUES: dict[str, Callable[[Near, dict[str, Any], Precision], Near]] = {
    "Scale": lambda normal, *rest: _modulated(scaled(normal, *rest), *rest),
    "Affine": lambda normal, *rest: _modulated(_affine(normal, *rest), *rest),
    "ScaleThenGate": lambda normal, *rest: _then_gate(scaled(normal, *rest), *rest),
    "AffineThenGate": lambda normal, *rest: _then_gate(_affine(normal, *rest), *rest),
    "ScaleThenAdd": lambda normal, *rest: _then_add(scaled(normal, *rest), *rest),
    "ScaleOfSum": _scale_of_sum,
    "AffineThenAdd": lambda normal, *rest: _then_add(_affine(normal, *rest), *rest),
}
ACTIVATIONS: dict[str | None, Callable[[Wide], Wide]] = {
    "silu": lambda g: g / (1 + np.exp(-g)),
    "sigmoid": lambda g: 1 / (1 + np.exp(-g)),
    None: lambda g: g,
}
