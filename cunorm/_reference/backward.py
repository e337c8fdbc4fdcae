"""The definitions of backward ops: no rounding is differentiated."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from .._families import Op
from .forward import in_groups, times_gate
from .near import (
    Expected,
    Near,
    Precision,
    Wide,
    rounded,
    ulp,
    walk_of_columns,
    walk_of_rows,
    weight_of,
)


def backward(op: Op, given: dict[str, Any]) -> dict[str, Expected | None]:
    """Return dx, and the sums over rows in gamma's dtype: None for those without a gamma."""
    group = given.get("group")
    if group is not None:
        of_groups = backward(op, given | _groups_of(op, given, group))
        return {name: _out_of_groups(a) for name, a in of_groups.items()}
    x, dy, dresidual = given[op.leader], given["dy"], given.get("dresidual")
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
        product = times_gate(Near(data, data_error), given, precision)
        data, data_error = product.value, product.error
    elif "gate" in op.reads:
        factor = times_gate(factor, given, precision)
    upstream, upstream_error = given_dy * factor.value, np.abs(given_dy) * factor.error
    upstream_error = upstream_error + given.get("dy_error", 0) * np.abs(factor.value)
    kept = {name: _beside_rows(given[name], axes, wide) for name in op.family.saves}
    r, r_error = kept["rstd"].value, kept["rstd"].error
    weight = weight_of(gamma, given.get("gamma_offset", 0.0), precision)

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
    walk = u * (walk_of_columns(count) + 2)
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
            both = times_gate(Near(dx, slack), given, precision)
            dx, slack = both.value, both.error
    made |= {f"d{op.leader}": Expected(dx, slack, x.dtype)}
    if "gate" in op.operands:
        made |= _of_addend(Near(dx, slack), given, precision)
    made |= dict.fromkeys(op.totals)
    if gamma is not None and given["sums"]:
        # The first parameter multiplies n, and the others are added.
        rows = tuple(range(x.ndim - gamma.ndim))
        steps = u * walk_of_rows(math.prod(x.shape[: len(rows)]))
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
    arrays = {name: in_groups(given[name], group) for name in names}
    return arrays | {"group": None, "of_groups": True}


def _out_of_groups(made: Expected | None) -> Expected | None:
    if made is None:
        return None
    shape = (*made.value.shape[:-2], -1)
    slack = np.broadcast_to(made.slack, made.value.shape)
    return Expected(made.value.reshape(shape), slack.reshape(shape), made.dtype)


def _of_addend(dh: Near, given: dict[str, Any], precision: Precision) -> dict[str, Expected]:
    """Return the gradients of x and of the gate that it is added with, of dh as it is rounded."""
    x, gate, dh = given["x"], given["gate"], rounded(dh, given["h"].dtype)
    factor = gate.astype(precision.wide)
    dx = factor * dh.value
    slack = np.abs(factor) * dh.error + precision.u * np.abs(dx) + precision.tiny
    dgate = _sum_to(gate, x.astype(precision.wide), dh, precision)
    return {"dx": Expected(dx, slack, x.dtype), "dgate": dgate}


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


def _normalised(
    x: npt.NDArray[np.generic], parameter: npt.NDArray[np.generic] | None, wide: type[np.floating]
) -> tuple[Wide, tuple[int, ...], int]:
    """Return x made wide, the axes that are normalised and how many elements they hold."""
    axes = tuple(range(-1 if parameter is None else -parameter.ndim, 0))
    return x.astype(wide), axes, math.prod(x.shape[axis] for axis in axes)
