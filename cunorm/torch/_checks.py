"""The checks of the CuPy ops on tensors that do not go there: those on the CPU, and fake ones.

Errors have the same words. CUDA tensors are checked by the CuPy ops themselves.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._described import Described, Memory, Named, Placed


def checked(
    arrays: tuple[Tensor, ...],
    parameters: dict[str, Tensor | None],
    eps: float,
    gamma_offset: float = 0.0,
) -> int:
    """Check arguments as the CuPy ops do, and return how many trailing axes are normalised."""
    for name, tensor in {
        **dict(zip(("x", "residual"), arrays, strict=False)),
        **parameters,
    }.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a strided tensor, but has layout {tensor.layout}")
    x, *residual = map(_described, arrays)
    _check.data("x", x)
    if residual:
        _check.residual(residual[0], x)
    axes = _check.parameters(x, **{name: _described(p) for name, p in parameters.items()})
    _check.eps(eps, x)
    _check.gamma_offset(gamma_offset, parameters["gamma"])
    return axes


def apart(arrays: tuple[Tensor, ...], parameters: tuple[Tensor | None, ...]) -> None:
    """Refuse to write over memory that is not one argument's own, as the CuPy ops do."""
    x, residual = map(_placed, (*arrays, None)[:2])
    given = dict(zip(("gamma", "beta"), map(_placed, parameters), strict=False))
    _check.written("out", x, "x", x, residual=residual, **given)
    _check.written("residual_out", residual, "residual", residual, x=x, **given)


def _described(tensor: Tensor | None) -> Any:
    """Return what the checks ask of a tensor."""
    if tensor is None:
        return None
    dtype = str(tensor.dtype).removeprefix("torch.")
    device = str(tensor.device)
    return Described(tuple(tensor.shape), Named(dtype), Named(device))


def _placed(tensor: Tensor | None) -> Any:
    """Return what the checks ask of a tensor in memory that is written or must not be."""
    if tensor is None:
        return None
    size = tensor.element_size()
    return Placed(
        **vars(_described(tensor)),
        strides=tuple(stride * size for stride in tensor.stride()),
        itemsize=size,
        data=Memory(tensor.data_ptr()),
    )
