"""The same results by CuPy's own operators, and by functions under ``cupy.fuse``."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import cupy

from .._families import ADDED, BESIDE_RESIDUAL, LAYER_NORM, NORMED, RMS_NORM
from .._plan import accumulator
from .cases import Case

# What the ops take where nothing is given.
RMS_EPS, LAYER_EPS = (family.eps for family in (RMS_NORM, LAYER_NORM))


def expressed(case: Case, given: dict[str, cupy.ndarray]) -> Any:
    """Return what the op returns, by CuPy's operators, as one writes it without cunorm."""
    if case.is_backward:
        return _expressed_backward(given)
    if case.is_of_heads:
        return rotated(case, _expressed_norm, cupy.concatenate)(given)

    def gated(y: Any, gate: Any) -> Any:
        wide = gate.astype(accumulator(case.dtype))
        return (y * (wide / (1 + cupy.exp(-wide)))).astype(y.dtype)

    made = composed(case, _expressed_norm, gated)(given)
    if case.quant is None:
        return made
    y, *h = made if isinstance(made, tuple) else (made,)
    return (*_int8_of_rows(y), *h)


def _int8_of_rows(y: cupy.ndarray) -> tuple[cupy.ndarray, cupy.ndarray]:
    wide = y.astype(cupy.float32)
    scale = cupy.maximum(abs(wide).max(-1, keepdims=True) / 127, 2.0**-23)
    return cupy.rint(wide / scale).astype(cupy.int8), scale


def rotated(
    case: Case, norm: Callable[..., Any], concatenate: Callable[..., Any]
) -> Callable[[dict[str, Any]], Any]:
    """Return an op on heads, of a norm and what puts halves of heads together."""
    each = tuple(zip(case.kind.reads, case.kind.parameters, strict=True))

    def op(given: dict[str, Any]) -> Any:
        cos, sin = (given[name][:, None] for name in ("cos", "sin"))
        made = []
        for read, weight in each:
            n = norm(case, given[read], given[weight], None)
            a, b = n[..., : n.shape[-1] // 2], n[..., n.shape[-1] // 2 :]
            made.append(concatenate((a * cos - b * sin, b * cos + a * sin), -1))
        return tuple(made) if len(made) > 1 else made[0]

    return op


def composed(
    case: Case, norm: Callable[..., Any], gated: Callable[..., Any]
) -> Callable[[dict[str, Any]], Any]:
    """Return a forward op of arrays or tensors by name, of a function for each of its parts.

    What of it is a question of the case is answered before: a compiler traces arithmetic alone.
    Of an op that returns codes it is what they are made of.
    """
    source = case.kind.source
    before, second = source is ADDED, source is NORMED
    after = second or source is BESIDE_RESIDUAL

    def op(given: dict[str, Any]) -> Any:
        h = given["x"] + given["residual"] if before else given["x"]
        y = norm(case, h, given["gamma"], given.get("beta"))
        if after:
            y = h = given["residual"] + y
        if second:
            y = norm(case, h, given["gamma2"], None)
        if "gate" in given:
            y = gated(y, given["gate"])
        return (y, h) if source.writes else y

    return op


def _expressed_norm(case: Case, h: Any, gamma: Any, beta: Any) -> Any:
    wide = h.astype(accumulator(case.dtype))
    if case.is_layer_norm:
        wide = wide - wide.mean(-1, keepdims=True)
    rstd = 1 / cupy.sqrt((wide * wide).mean(-1, keepdims=True) + case.kind.family.eps)
    y = (wide * rstd).astype(h.dtype) * gamma
    return y if beta is None else y + beta


def _expressed_backward(given: dict[str, cupy.ndarray]) -> tuple[cupy.ndarray, ...]:
    sums = given["rstd"].dtype
    dy, x, gamma = (given[name].astype(sums) for name in ("dy", "x", "gamma"))
    normal = x * given["rstd"][:, None]
    if "mean" in given:
        normal = (x - given["mean"][:, None]) * given["rstd"][:, None]
    weighted = dy * gamma
    inner = weighted - normal * (weighted * normal).mean(-1, keepdims=True)
    if "mean" in given:
        inner = inner - weighted.mean(-1, keepdims=True)
    dx = inner * given["rstd"][:, None]
    if "dresidual" in given:
        dx = dx + given["dresidual"].astype(sums)
    totals = [(dy * normal).sum(0)] + ([dy.sum(0)] if "mean" in given else [])
    return dx.astype(given["x"].dtype), *(t.astype(given["gamma"].dtype) for t in totals)


def fused(case: Case, given: dict[str, cupy.ndarray]) -> Any:
    """Return the same by ``cupy.fuse``, which makes a kernel of each sum and of what follows it.

    It knows no bfloat16, and no sum over rows beside one over columns.
    """
    return composed(case, _fused_norm, _fused_functions(case.dtype)[-1])(given)


def _fused_norm(case: Case, h: Any, gamma: Any, beta: Any) -> Any:
    total, squares, scale, shift, _ = _fused_functions(case.dtype)
    if beta is None:
        return scale(h, (squares(h) / case.cols)[:, None], gamma)
    mean = (total(h) / case.cols)[:, None]
    variance = (squares(h - mean.astype(h.dtype)) / case.cols)[:, None]
    return shift(h, mean, variance, gamma, beta)


@cache
def _fused_functions(dtype: str) -> tuple[Callable[..., Any], ...]:
    """Return the sum, the sum of squares, the last steps of RMSNorm and LayerNorm, and a gate."""
    is_wide = dtype == accumulator(dtype)

    def widen(a: Any) -> Any:
        return a if is_wide else a.astype(cupy.float32)

    def narrow(a: Any) -> Any:
        return a if is_wide else a.astype(cupy.float16)

    def total(h: Any) -> Any:
        return cupy.sum(widen(h), axis=1)

    def squares(h: Any) -> Any:
        return cupy.sum(widen(h) * widen(h), axis=1)

    def scale(h: Any, mean_square: Any, gamma: Any) -> Any:
        return narrow(widen(h) / cupy.sqrt(mean_square + RMS_EPS)) * gamma

    def shift(h: Any, mean: Any, variance: Any, gamma: Any, beta: Any) -> Any:
        return narrow((widen(h) - mean) / cupy.sqrt(variance + LAYER_EPS)) * gamma + beta

    def gated(y: Any, gate: Any) -> Any:
        return narrow(widen(y) * (widen(gate) / (1 + cupy.exp(-widen(gate)))))

    functions = (total, squares, scale, shift, gated)
    return tuple(cupy.fuse()(function) for function in functions)
