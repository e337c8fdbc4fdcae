"""The statistics of rows on CPU tensors: what is normalised with, and the gradient through it."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import accumulator

# As in kernels/packet.cuh: a power of two that brings any float64's square back into range, and the
# mean square from which on no square was lost. Squares of what is narrower stay in float64's range.
RESCUE = 2.0**-560
SMALLEST = 2.0**-960


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
        return fma(centred, self._rstd, -self._correction * self._rstd)

    def gradient(self, weighted: Tensor, normal: Tensor, axes: tuple[int, ...]) -> Tensor:
        """Return dx, given the gradient of the normalised rows."""
        level = weighted.mean(axes, keepdim=True)
        slope = (weighted * normal).mean(axes, keepdim=True)
        return self._rstd * (weighted - level - normal * slope)


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


def fma(a: Tensor, b: Tensor, c: Tensor) -> Tensor:
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
