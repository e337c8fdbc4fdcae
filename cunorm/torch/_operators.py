"""The operators behind `cunorm.torch`: what PyTorch's dispatcher and compiler see.

Each has one implementation for every device, and a fake kernel that makes outputs of the right
shape. CUDA tensors go to the CuPy op of the same name and come back through `cunorm._interop`; CPU
tensors to `cunorm.torch._cpu`. An operator returns tensors and no None: a gradient that nobody
asked for is a tensor without elements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import cunorm

from . import _cpu
from ._checks import apart, checked, checked_backward


@torch.library.custom_op("cunorm::rms_norm_fwd", mutates_args=())
def rms_norm_fwd(
    x: Tensor, gamma: Tensor | None, eps: float, gamma_offset: float, cast: str
) -> tuple[Tensor, Tensor]:
    """Return y and rstd."""
    options = {"gamma_offset": gamma_offset, "cast": cast}
    y, rstd = _forward("rms_norm_fwd", (x,), (gamma,), eps, **options)
    return y, rstd


@rms_norm_fwd.register_fake
def _(
    x: Tensor, gamma: Tensor | None, eps: float, gamma_offset: float, cast: str
) -> tuple[Tensor, Tensor]:
    axes = checked((x,), {"gamma": gamma}, eps, gamma_offset)
    return _like(x), _statistic(x, axes)


@torch.library.custom_op("cunorm::add_rms_norm_fwd", mutates_args=())
def add_rms_norm_fwd(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None,
    eps: float,
    gamma_offset: float,
    cast: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, h and rstd."""
    options = {"gamma_offset": gamma_offset, "cast": cast}
    y, h, rstd = _forward("add_rms_norm_fwd", (x, residual), (gamma,), eps, **options)
    return y, h, rstd


@add_rms_norm_fwd.register_fake
def _(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None,
    eps: float,
    gamma_offset: float,
    cast: str,
) -> tuple[Tensor, Tensor, Tensor]:
    axes = checked((x, residual), {"gamma": gamma}, eps, gamma_offset)
    return _like(x), _like(residual), _statistic(x, axes)


@torch.library.custom_op("cunorm::layer_norm_fwd", mutates_args=())
def layer_norm_fwd(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y, mean and rstd."""
    y, mean, rstd = _forward("layer_norm_fwd", (x,), (gamma, beta), eps)
    return y, mean, rstd


@layer_norm_fwd.register_fake
def _(
    x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    axes = checked((x,), {"gamma": gamma, "beta": beta}, eps)
    return _like(x), _statistic(x, axes), _statistic(x, axes)


@torch.library.custom_op("cunorm::add_layer_norm_fwd", mutates_args=())
def add_layer_norm_fwd(
    x: Tensor, residual: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return y, h, mean and rstd."""
    y, h, mean, rstd = _forward("add_layer_norm_fwd", (x, residual), (gamma, beta), eps)
    return y, h, mean, rstd


@add_layer_norm_fwd.register_fake
def _(
    x: Tensor, residual: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    axes = checked((x, residual), {"gamma": gamma, "beta": beta}, eps)
    return _like(x), _like(residual), _statistic(x, axes), _statistic(x, axes)


@torch.library.custom_op("cunorm::rms_norm_bwd", mutates_args=())
def rms_norm_bwd(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float,
    dresidual: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor]:
    """Return dx, and dgamma where `sums` asks for it."""
    given = (dy, x, gamma, {"rstd": rstd}, dresidual)
    dx, dgamma = _backward("rms_norm_bwd", *given, sums, gamma_offset=gamma_offset)
    return dx, dgamma


@rms_norm_bwd.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    rstd: Tensor,
    gamma_offset: float,
    dresidual: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor]:
    checked_backward(dy, x, gamma, {"rstd": rstd}, dresidual, gamma_offset)
    return _like(x), _total(x, gamma, sums)


@torch.library.custom_op("cunorm::layer_norm_bwd", mutates_args=())
def layer_norm_bwd(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dresidual: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx, and dgamma and dbeta where `sums` asks for them."""
    given = (dy, x, gamma, {"mean": mean, "rstd": rstd}, dresidual)
    dx, dgamma, dbeta = _backward("layer_norm_bwd", *given, sums)
    return dx, dgamma, dbeta


@layer_norm_bwd.register_fake
def _(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    mean: Tensor,
    rstd: Tensor,
    dresidual: Tensor | None,
    sums: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    checked_backward(dy, x, gamma, {"mean": mean, "rstd": rstd}, dresidual)
    return _like(x), _total(x, gamma, sums), _total(x, gamma, sums)


@torch.library.custom_op("cunorm::rms_norm_", mutates_args=("x",))
def rms_norm_(x: Tensor, gamma: Tensor | None, eps: float, gamma_offset: float, cast: str) -> None:
    """Write y over x."""
    _in_place("rms_norm", (x,), (gamma,), eps, gamma_offset=gamma_offset, cast=cast)


@torch.library.custom_op("cunorm::layer_norm_", mutates_args=("x",))
def layer_norm_(x: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float) -> None:
    """Write y over x."""
    _in_place("layer_norm", (x,), (gamma, beta), eps)


@torch.library.custom_op("cunorm::add_rms_norm_", mutates_args=("x", "residual"))
def add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None,
    eps: float,
    gamma_offset: float,
    cast: str,
) -> None:
    """Write y over x and h over residual."""
    arrays = (x, residual)
    _in_place("add_rms_norm", arrays, (gamma,), eps, gamma_offset=gamma_offset, cast=cast)


@torch.library.custom_op("cunorm::add_layer_norm_", mutates_args=("x", "residual"))
def add_layer_norm_(
    x: Tensor, residual: Tensor, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> None:
    """Write y over x and h over residual."""
    _in_place("add_layer_norm", (x, residual), (gamma, beta), eps)


def _forward(
    op: str,
    arrays: tuple[Tensor, ...],
    parameters: tuple[Tensor | None, ...],
    eps: float,
    **options: Any,
) -> Any:
    """Return what the CuPy op of that name returns."""
    x = arrays[0]
    if _is_on_cuda(x):
        return getattr(cunorm, op)(*_detached(arrays), *_detached(parameters), eps, **options)
    named = dict(zip(("gamma", "beta"), parameters, strict=False))
    checked(arrays, named, eps, options.get("gamma_offset", 0.0))
    norm = getattr(_cpu, op.removeprefix("add_"))
    if len(arrays) == 1:
        return norm(x, *parameters, eps, **options, dtype=x.dtype)
    h = _cpu.add(*arrays)
    y, *statistics = norm(h, *parameters, eps, **options, dtype=x.dtype)
    return (y, h, *statistics)


def _backward(
    op: str,
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    statistics: dict[str, Tensor],
    dresidual: Tensor | None,
    sums: bool,
    **options: float,
) -> Any:
    """Return what the CuPy op of that name returns, tensors without elements for None."""
    arrays = (dy, x, gamma, *statistics.values())
    if _is_on_cuda(x):
        (residual,) = _detached((dresidual,))
        norm, given = getattr(cunorm, op), _detached(arrays)
        dx, *totals = norm(*given, dresidual=residual, sums=sums, **options)
    else:
        checked_backward(dy, x, gamma, statistics, dresidual, **options)
        dx, *totals = getattr(_cpu, op)(*arrays, dresidual=dresidual, sums=sums, **options)
    return (dx, *(x.new_empty(0) if total is None else total for total in totals))


def _in_place(
    op: str,
    arrays: tuple[Tensor, ...],
    parameters: tuple[Tensor | None, ...],
    eps: float,
    **options: Any,
) -> None:
    """Write y over the first of the arrays, and h over the second where there is one."""
    if _is_on_cuda(arrays[0]):
        given = _detached(arrays)
        outputs = dict(zip(("out", "residual_out"), given, strict=False))
        getattr(cunorm, op)(*given, *_detached(parameters), eps, **options, **outputs)
    else:
        results = _forward(f"{op}_fwd", arrays, parameters, eps, **options)
        apart(arrays, parameters)
        for array, result in zip(arrays, results, strict=False):
            array.copy_(result)


def _is_on_cuda(x: Tensor) -> bool:
    """Return whether the CuPy ops do the work; if not, `_cpu` does."""
    if x.is_cuda:
        return True
    if x.device.type != "cpu":
        raise TypeError(f"x must be on a CUDA device or on the CPU, but is on {x.device}")
    return False


def _detached(tensors: tuple[Tensor | None, ...]) -> list[Any]:
    # DLPack exports nothing that requires a gradient. The operators have formulas for that.
    return [None if t is None else t.detach() for t in tensors]


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


def _statistic(x: Tensor, axes: int) -> Tensor:
    return x.new_empty(x.shape[: x.ndim - axes], dtype=_cpu.accumulator(x.dtype))


def _total(x: Tensor, gamma: Tensor | None, sums: bool) -> Tensor:
    return x.new_empty(0) if gamma is None or not sums else _like(gamma)
