"""The ops on CPU tensors: the kernels' definitions in plain PyTorch, forward and backward.

Formula and roundings are those of kernels/statistic.cuh and kernels/epilogue.cuh. What differs is
how sums are added up: the statistics of 16-bit and float32 data are computed in float64 and rounded
once, so that no square overflows, where a kernel's sums are float32. Both are within the bounds of
cunorm/_reference.py, these by a wide margin, and so differ by those at most.

Of given statistics, y of 16-bit and float32 data has the kernels' bits, but where a float32 is
subnormal: kernels flush it to zero. Of float64 rows LayerNorm's multiply-add rounds twice here.

Backward passes are in float32, float64 for float64 data, like the kernels', in the order in which
PyTorch adds. An op is what its family says: a source, a statistic and an epilogue, by the names
that they have in the kernels. Tensors are strided, of one shape where the ops ask for that, and
checked before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import torch
from torch import Tensor

from .._families import Op, Option
from .._typing import Arrays

# As in kernels/packet.cuh: a power of two that brings any float64's square back into range, and the
# mean square from which on no square was lost. Squares of what is narrower stay in float64's range.
RESCUE = 2.0**-560
SMALLEST = 2.0**-960


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and of sums: float32, float64 for float64 data."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def trailing(x: Tensor, *parameters: Tensor | None) -> tuple[int, ...]:
    """Return the normalised axes: those of the first parameter that is there, else the last."""
    axes = next((p.ndim for p in parameters if p is not None), 1)
    return tuple(range(-axes, 0))


def add(x: Tensor, residual: Tensor) -> Tensor:
    """Return ``h = x + residual``, rounded once to residual's dtype."""
    wide = accumulator(x.dtype)
    return (x.to(wide) + residual.to(wide)).to(residual.dtype).contiguous()


class MeanSquare:
    """The statistic of RMSNorm, with axes of length 1."""

    def __init__(self, rstd: Tensor) -> None:
        self._rstd = rstd

    @classmethod
    def of(cls, x: Tensor, axes: tuple[int, ...], eps: float) -> MeanSquare:
        """Compute it of rows."""
        return cls(_rstd(x, axes, eps))

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """What is kept for a backward pass."""
        return (self._rstd,)

    def normal(self, x: Tensor) -> Tensor:
        """Return the normalised rows, not rounded yet."""
        return x.to(accumulator(x.dtype)).contiguous() * self._rstd

    def gradient(self, weighted: Tensor, normal: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return dx, given the gradient of the normalised rows."""
        return self._rstd * (weighted - normal * (weighted * normal).mean(axes, keepdim=True))


class Moments:
    """The statistics of LayerNorm, with axes of length 1, the mean in two parts or in one."""

    def __init__(self, center: Tensor, rstd: Tensor, correction: Tensor | None = None) -> None:
        self._center = center
        self._correction = correction
        self._rstd = rstd

    @classmethod
    def of(cls, x: Tensor, axes: tuple[int, ...], eps: float) -> Moments:
        """Compute them of rows."""
        center, correction, rstd = _moments(x, axes, eps)
        return cls(center, rstd, correction)

    @property
    def saved(self) -> tuple[Tensor, ...]:
        """What is kept for a backward pass."""
        correction = 0 if self._correction is None else self._correction
        return self._center + correction, self._rstd

    def normal(self, x: Tensor) -> Tensor:
        """Return the normalised rows, not rounded yet."""
        centred = x.to(accumulator(x.dtype)).contiguous() - self._center
        if self._correction is None:
            return centred * self._rstd
        return _fma(centred, self._rstd, -self._correction * self._rstd)

    def gradient(self, weighted: Tensor, normal: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return dx, given the gradient of the normalised rows."""
        level = weighted.mean(axes, keepdim=True)
        slope = (weighted * normal).mean(axes, keepdim=True)
        return self._rstd * (weighted - level - normal * slope)


def scale(
    normal: Tensor, gamma: Tensor | None, *, gamma_offset: float, cast: str, dtype: torch.dtype
) -> Tensor:
    """Return y of RMSNorm, given the normalised rows: rounded where the kernel rounds."""
    y = normal
    if gamma is not None:
        if cast == "before":
            y = y.to(dtype).to(normal.dtype)
        y = y * (gamma.to(normal.dtype) + gamma_offset)
    return y.to(dtype)


def affine(
    normal: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    gamma_offset: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return y of LayerNorm, given the normalised rows."""
    y, wide = normal, normal.dtype
    if gamma is not None and beta is not None:
        y = _fma(y, gamma.to(wide) + gamma_offset, beta.to(wide))
    elif gamma is not None:
        y = y * (gamma.to(wide) + gamma_offset)
    elif beta is not None:
        y = y + beta.to(wide)
    return y.to(dtype)


# By the names of `_families.py`.
SOURCES: dict[str, Callable[..., Tensor]] = {"Loaded": lambda x: x, "Added": add}
STATISTICS: dict[str, type[MeanSquare | Moments]] = {"MeanSquare": MeanSquare, "Moments": Moments}
EPILOGUES: dict[str, Callable[..., Tensor]] = {"Scale": scale, "Affine": affine}


def forward(op: Op, tensors: Arrays, options: Mapping[str, Any]) -> tuple[Tensor, ...]:
    """Return what a forward op returns."""
    h = SOURCES[op.source.name](*(tensors[name] for name in op.source.reads))
    parameters = [tensors[name] for name in op.parameters]
    axes = trailing(h, *parameters)
    taken = [a.name for a in op.differentiable if isinstance(a, Option)]
    others = {name: options[name] for name in taken}
    statistic = STATISTICS[op.family.statistic].of(h, axes, others.pop("eps"))
    epilogue = EPILOGUES[op.family.epilogue]
    y = epilogue(statistic.normal(h), *parameters, **others, dtype=tensors["x"].dtype)
    rows = h.shape[: h.ndim - len(axes)]
    kept = (value.reshape(rows) for value in statistic.saved) if op.keeps else ()
    return (y, *(h for _ in op.source.writes), *kept)


def backward(op: Op, tensors: Arrays, options: Mapping[str, Any]) -> tuple[Tensor | None, ...]:
    """Return what a backward op returns: None for sums that nobody wants."""
    x, dy, dresidual = (tensors[name] for name in ("x", "dy", "dresidual"))
    (gamma,) = (tensors[name] for name in op.parameters)
    axes = trailing(x, gamma)
    kept = (_over_columns(tensors[name], axes) for name in op.family.saves)
    statistic = STATISTICS[op.family.statistic](*kept)
    upstream = dy.to(accumulator(x.dtype)).contiguous()
    normal = statistic.normal(x)
    weighted = upstream
    if gamma is not None:
        weight = gamma.to(upstream.dtype)
        if "gamma_offset" in options:
            weight = weight + options["gamma_offset"]
        weighted = upstream * weight
    dx = statistic.gradient(weighted, normal, axes)
    if dresidual is not None:
        dx = dx + dresidual.to(dx.dtype)
    dx = dx.to(x.dtype).contiguous()
    if gamma is None or not options["sums"]:
        return (dx, *(None for _ in op.totals))
    # The first parameter multiplies the normalised rows, and the others are added.
    terms = (upstream * normal, *(upstream for _ in op.totals[1:]))
    return (dx, *(_sum_of_rows(term, gamma) for term in terms))


def _rstd(x: Tensor, axes: tuple[int, ...], eps: float) -> Tensor:
    """Return rstd of RMSNorm, with axes of length 1."""
    data = x.to(torch.float64)
    mean_square = data.square().mean(axes, keepdim=True) + eps
    rstd = mean_square.rsqrt()
    if x.dtype == torch.float64:
        lost, scale = _rescue(mean_square)
        if lost.any():
            scaled = (data * scale).square().mean(axes, keepdim=True) + eps * scale * scale
            rstd = torch.where(lost, scaled.rsqrt() * scale, rstd)
    return rstd.to(accumulator(x.dtype))


def _rescue(mean_square: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows' squares left float64's range, and what to multiply those rows with."""
    lost = ~((mean_square >= SMALLEST) & mean_square.isfinite())
    scale = torch.full_like(mean_square, RESCUE)
    return lost, torch.where(mean_square < SMALLEST, 1 / RESCUE, scale)


def _moments(x: Tensor, axes: tuple[int, ...], eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the mean in two parts, and rstd, all with axes of length 1."""
    data = x.to(torch.float64)
    if x.dtype == torch.float64 or x.numel() == 0:
        center, correction, mean_square = _moments_of(data, axes, eps)
        rstd = mean_square.rsqrt()
        lost, scale = _rescue(mean_square)
        if lost.any():
            *scaled, square = _moments_of(data * scale, axes, eps * scale * scale)
            center, correction = (
                torch.where(lost, s / scale, m)
                for m, s in zip((center, correction), scaled, strict=True)
            )
            rstd = torch.where(lost, square.rsqrt() * scale, rstd)
        wide = accumulator(x.dtype)
        return center.to(wide), correction.to(wide), rstd.to(wide)
    variance, mean = torch.var_mean(data, axes, correction=0, keepdim=True)
    center = mean.to(torch.float32)
    return center, (mean - center).to(torch.float32), (variance + eps).rsqrt().to(torch.float32)


def _moments_of(
    data: Tensor, axes: tuple[int, ...], eps: float | Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return center, correction and 1 / rstd^2 by the corrected two-pass algorithm, in float64."""
    center = data.mean(axes, keepdim=True)
    about = data - center
    correction = about.mean(axes, keepdim=True)
    variance = about.square().mean(axes, keepdim=True) - correction.square()
    return center, correction, variance.clamp(min=0) + eps


def _over_columns(statistic: Tensor, axes: tuple[int, ...]) -> Tensor:
    return statistic.reshape(statistic.shape + (1,) * len(axes))


def _sum_of_rows(terms: Tensor, gamma: Tensor) -> Tensor:
    """Return the sum over all rows, in gamma's shape and dtype."""
    rows = prod(terms.shape[: terms.ndim - gamma.ndim])
    return terms.reshape(rows, *gamma.shape).sum(0).to(gamma.dtype)


def _fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
    """Return a * b + c, of float32 rounded once; of float64 twice, since nothing is wider."""
    if a.dtype == torch.float64:
        return a * b + c
    # The product is exact in float64, and the sum rounded: harmless, unless that puts it halfway
    # between two float32, 29 bits having the pattern of a tie, where it was on one side.
    total = torch.addcmul(c.double(), a.double(), b.double())
    is_tie = (total.view(torch.int64) & (2**29 - 1)) == 2**28
    if is_tie.any():
        product, addend = ((a.double() * b.double())[is_tie], c.double().expand_as(total)[is_tie])
        total[is_tie] = _to_odd(total[is_tie], product, addend)
    return total.to(torch.float32)


def _to_odd(total: Tensor, product: Tensor, addend: Tensor) -> Tensor:
    """Return the float64 sum of two numbers rounded to odd, which keeps the side of a tie.

    Boldo and Melquiond, IEEE Transactions on Computers 57, 2008; the error is Knuth's two-sum.
    """
    share = total - product
    error = (product - (total - share)) + (addend - share)
    bits = total.view(torch.int64)
    away = torch.where((error > 0) == (total > 0), 1, -1)
    return torch.where(error == 0, bits, bits + away).view(torch.float64)
