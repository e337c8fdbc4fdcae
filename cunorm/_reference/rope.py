"""The definitions of heads that are normalised and rotated.

Each product and each sum is good to u of itself; cos and sin are exact as given.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._families import OPS, ROPE
from .backward import backward
from .forward import mean_square, scaled
from .near import Expected, Near, Precision, Wide, promoted, rounded, statistic_of


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
    rounds, of_norm = cast != "after", "before" if cast == "before" else "after"
    product = promoted(x.dtype, cos.dtype)
    rows = _rows(cos, positions, x), _rows(sin, positions, x)
    kept: list[Near] = []

    def normalise(h: Near, dtype: np.dtype[Any]) -> Near:
        shape = (*x.shape[:-2], -1) if across_heads else x.shape
        h = Near(h.value.reshape(shape), np.broadcast_to(h.error, x.shape).reshape(shape))
        wide_eps = precision.wide(eps)
        normal, saved = mean_square(h, (-1,), h.value.shape[-1], wide_eps, precision)
        kept.extend(saved)
        of = {"x": np.empty(0, dtype), "gamma": gamma, "gamma_offset": gamma_offset}
        n = scaled(normal, of | {"cast": of_norm}, precision)
        n = Near(n.value.reshape(x.shape), n.error.reshape(x.shape))
        return _operated(n, dtype, rounds, precision)

    def rotate(n: Near) -> Near:
        return _rotated(n, rows, interleaved, product if rounds else None, precision)

    exact = Near(x.astype(precision.wide), np.zeros(x.shape))
    y = rotate(normalise(exact, x.dtype)) if norm_first else normalise(rotate(exact), product)
    (rstd,) = kept
    return Expected(y.value, y.error, x.dtype), statistic_of(rstd, (-1,), x.dtype)


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
        dtype = promoted(dtype, cos.dtype)
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
        made = backward(OPS["rms_norm_bwd"], given)
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
    return rounded(made, dtype) if rounds and dtype is not None else made
