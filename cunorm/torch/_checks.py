"""The checks of arguments, with the words of the CuPy ops.

What a user gives meets `tensors`, `number` and `rms_numbers`; CPU tensors and the compiler's fake
ones meet the others, which do what the CuPy ops do with those on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .. import _check
from .._described import Described, Memory, Named, Placed


def tensors(**given: object) -> None:
    """Refuse what is no tensor, or has a tangent. The parameters may be None."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            # PyTorch drops the tangents of a custom operator's arguments without a word.
            if unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
                raise RuntimeError(
                    f"{name} must not have a tangent: there are no forward-mode derivatives, as of "
                    "torch.func.jvp, but gradients by backward() and torch.autograd.grad()"
                )
        elif value is not None or name in ("x", "residual"):
            raise TypeError(f"{name} must be a torch.Tensor, but is a {_check.type_name(value)}")


def number(name: str, value: Any) -> float:
    """Return a real number as the float that operators take."""
    return value if type(value) is float else _check.real(name, value)


def rms_numbers(eps: float, gamma_offset: float, cast: str) -> tuple[float, float, str]:
    """Return the options of RMSNorm as operators take them."""
    _check.cast(cast)
    return number("eps", eps), number("gamma_offset", gamma_offset), cast


def checked(
    arrays: tuple[Tensor, ...],
    parameters: dict[str, Tensor | None],
    eps: float,
    gamma_offset: float = 0.0,
) -> int:
    """Check arguments as the CuPy ops do, and return how many trailing axes are normalised."""
    _strided(**dict(zip(("x", "residual"), arrays, strict=False)), **parameters)
    x, *residual = map(_described, arrays)
    _check.data("x", x)
    if residual:
        _check.residual(residual[0], x)
    axes = _check.parameters(x, **{name: _described(p) for name, p in parameters.items()})
    _check.eps(eps, x)
    _check.gamma_offset(gamma_offset, parameters["gamma"], x)
    return axes


def checked_backward(
    dy: Tensor,
    x: Tensor,
    gamma: Tensor | None,
    statistics: dict[str, Tensor],
    dresidual: Tensor | None,
    gamma_offset: float = 0.0,
) -> None:
    """Check the arguments of a backward operator as the CuPy ops do."""
    _strided(dy=dy, x=x, gamma=gamma, **statistics, dresidual=dresidual)
    numbers = {name: _described(value) for name, value in statistics.items()}
    rows, upstream, residual = map(_described, (x, dy, dresidual))
    _check.backward(rows, upstream, _described(gamma), numbers, residual, gamma_offset)


def apart(arrays: tuple[Tensor, ...], parameters: tuple[Tensor | None, ...]) -> None:
    """Refuse to write over memory that is not one argument's own, as the CuPy ops do."""
    x, residual = map(_placed, (*arrays, None)[:2])
    given = dict(zip(("gamma", "beta"), map(_placed, parameters), strict=False))
    _check.written("out", x, "x", x, residual=residual, **given)
    _check.written("residual_out", residual, "residual", residual, x=x, **given)


def _strided(**given: Tensor | None) -> None:
    for name, tensor in given.items():
        if tensor is not None and tensor.layout is not torch.strided:
            raise TypeError(f"{name} must be a strided tensor, but has layout {tensor.layout}")


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
