"""The checks of arguments, with the words of the CuPy ops.

What a user gives meets `tensors` and `options`; CPU tensors and the compiler's fake ones meet the
others, which do what the CuPy ops do with those on CUDA.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .. import _check
from .._check.described import Described, Memory, Named, Placed
from .._families import OPS, OPTIONAL, Op
from .._typing import Arrays


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
        elif value is not None or name not in OPTIONAL:
            raise TypeError(f"{name} must be a torch.Tensor, but is a {_check.type_name(value)}")


# Options that are no numbers, by name: what refuses a wrong one follows from it alone.
WORDS = {
    option.name: _check.OPTIONS[option.check]
    for op in OPS.values()
    for option in op.options
    if not isinstance(option.default, float)
}


def options(**given: Any) -> list[Any]:
    """Return options as operators take them: words that are known, and real numbers as floats."""
    return [_option(name, value) for name, value in given.items()]


def _option(name: str, value: Any) -> Any:
    if name in WORDS:
        return WORDS[name](name, value, {})
    return value if type(value) is float else _check.real(name, value)


def checked(op: Op, given: tuple[Any, ...]) -> tuple[Arrays, dict[str, Any], int]:
    """Check an operator's arguments as the CuPy ops do.

    Parameters
    ----------
    op : Op
        The CuPy op.
    given : tuple
        The arguments: tensors, numbers and words.

    Returns
    -------
    tensors : dict of str to Tensor or None
        Those among the arguments, by name.
    options : dict of str to object
        The others.
    axes : int
        How many trailing axes are normalised.
    """
    named = dict(zip(op.torch_names, given, strict=True))
    values = tuple(named.pop(option.name, option.default) for option in op.options)
    _strided(**named)
    named |= dict.fromkeys(op.operands)
    described = {name: _described(tensor) for name, tensor in named.items()}
    check = _check.backward if op.is_backward else _check.forward
    axes, options = check(op, described, values)
    return named, options, axes


def apart(op: Op, tensors: Arrays) -> None:
    """Refuse to write over memory that is not one argument's own, as the CuPy ops do."""
    placed = {name: _placed(tensor) for name, tensor in tensors.items()}
    _check.outputs(op, placed | {output.name: placed[output.like] for output in op.writes})


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
