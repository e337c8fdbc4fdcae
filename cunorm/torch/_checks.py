"""The checks of arguments, with the words of the CuPy ops.

What a user gives meets `tensors`, `operand` and `options`; CPU tensors and the compiler's fake ones
meet the others, which do what the CuPy ops do with those on CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .. import _check
from .._check.described import Described, Memory, Named, Placed
from .._families import OPS, OPTIONAL, RESULTS, ROPE_OPS, Input, Op, Option
from .._typing import Arrays

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensors(**given: object) -> None:
    """Refuse what is no tensor, or has a tangent. Parameters and results may be None."""
    for name, value in given.items():
        if isinstance(value, Tensor):
            # PyTorch drops the tangents of a custom operator's arguments without a word.
            if unpack_dual(value).tangent is not None:  # type: ignore[no-untyped-call]
                raise RuntimeError(
                    f"{name} must not have a tangent: there are no forward-mode derivatives, as of "
                    "torch.func.jvp, but gradients by backward() and torch.autograd.grad()"
                )
        elif value is not None or (name not in OPTIONAL and name not in RESULTS):
            raise TypeError(f"{name} must be a torch.Tensor, but is a {_check.type_name(value)}")


def operand(
    x: Tensor, name: str, value: object, *, added: float = 0.0, rounds: bool = True
) -> Tensor | None:
    """Return what broadcasts against x as a tensor: for a number one of x's dtype.

    Parameters
    ----------
    x : torch.Tensor
        The rows.
    name : str
        What users call the operand.
    value : object
        What they gave for it.
    added : float
        What is added to a number.
    rounds : bool
        Whether what follows is rounded at each step. If not, the tensor is as wide as sums are.
    """
    if isinstance(value, Real):
        number = _check.real(name, value) + added
        return x.new_full((), number, dtype=x.dtype if rounds else accumulator(x.dtype))
    if value is None:
        return None
    if not isinstance(value, Tensor):
        raise TypeError(
            f"{name} must be a torch.Tensor or a number, but is a {_check.type_name(value)}"
        )
    tensors(**{name: value})
    return value


def modulation(
    x: Tensor, scale: object, shift: object, scale_offset: object, *, rounds: bool = True
) -> tuple[Tensor | None, Tensor | None, float]:
    """Return scale, shift and scale_offset; of a scale that is a number, it is part."""
    offset = _real("scale_offset", scale_offset)
    if scale is None and shift is None:
        return None, None, offset
    factor = operand(x, "scale", scale, added=offset, rounds=rounds)
    addend = operand(x, "shift", shift, rounds=rounds)
    return factor, addend, 0.0 if isinstance(scale, Real) else offset


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of statistics and of sums: float32, float64 for float64 data."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def _dtype(name: str, value: Any) -> torch.dtype | None:
    if value is None or (isinstance(value, torch.dtype) and value in DTYPES):
        return value
    if not isinstance(value, torch.dtype):
        raise TypeError(f"{name} must be a torch.dtype or None, but is a {_check.type_name(value)}")
    word = str(value).removeprefix("torch.")
    raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, but is {word}")


def _word(name: str, value: Any) -> Any:
    return _check.OPTIONS[name](name, value, {})


def _real(name: str, value: Any) -> float:
    return value if type(value) is float else _check.real(name, value)


def _whole(name: str, value: Any) -> int | None:
    return value if type(value) is int else _check.whole(name, value)


def _flag(name: str, value: Any) -> bool:
    return value if type(value) is bool else bool(_check.OPTIONS["flag"](name, value, {}))


# By `Option.check`: the type of an option in an operator's schema, and what an operator is given
# of what a user gave.
TAKEN: dict[str, tuple[str, Callable[[str, Any], Any]]] = {
    "eps": ("float", _real),
    "eps2": ("float?", lambda name, value: None if value is None else _real(name, value)),
    "gamma_offset": ("float", _real),
    "scale_offset": ("float", _real),
    "cast": ("str", _word),
    "rope_cast": ("str", lambda _, value: rope_cast(value)),
    "activation": ("str?", _word),
    "group": ("int?", _whole),
    "dtype": ("ScalarType?", _dtype),
    "flag": ("bool", _flag),
}
# What turns an option into that, by its name, but for `rope_cast`; and what needs no look, which
# costs a call.
_CHECKS = {
    option.name: option.check
    for op in (ROPE_OPS | OPS).values()
    for option in op.of_tensors
    if isinstance(option, Option)
}
_BY_NAME = {name: TAKEN[check][1] for name, check in _CHECKS.items()}
_REAL = {name for name, check in _CHECKS.items() if TAKEN[check][0] in ("float", "float?")}
_MAY_BE_NONE = {name for name, check in _CHECKS.items() if TAKEN[check][0].endswith("?")}


def options(**given: Any) -> list[Any]:
    """Return options as operators take them: words that are known, and real numbers as floats."""
    return [
        value
        if (value is None and name in _MAY_BE_NONE) or (type(value) is float and name in _REAL)
        else _BY_NAME[name](name, value)
        for name, value in given.items()
    ]


def rope_cast(value: Any) -> str:
    """Return `cast` of an op on heads, which has a word more."""
    word: str = _check.OPTIONS["rope_cast"]("cast", value, {})
    return word


def named(arguments: tuple[Input | Option, ...], given: tuple[Any, ...]) -> dict[str, Any]:
    """Return what an operator is given by name."""
    return dict(zip([argument.name for argument in arguments], given, strict=True))


def checked(op: Op, given: dict[str, Any]) -> tuple[Arrays, dict[str, Any], int]:
    """Check an operator's arguments as the CuPy ops do.

    Parameters
    ----------
    op : Op
        The CuPy op.
    given : dict of str to object
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
    tensors, described, values = parted(op, given)
    check = _check.backward if op.is_backward else _check.forward
    axes, options = check(op, described, values)
    if options.get("dtype") is not None:
        options["dtype"] = given["dtype"]
    return tensors, options, axes


def parted(op: Op, given: dict[str, Any]) -> tuple[Arrays, dict[str, Any], tuple[Any, ...]]:
    """Return tensors, what the checks ask of them, and the values of an op's options."""
    values = tuple(given.get(option.name, option.default) for option in op.options)
    names = [a.name for a in op.arguments if isinstance(a, Input)]
    names += [name for name in op.results_given.values() if name in given]
    tensors = {name: given.get(name) for name in names}
    _strided(**tensors)
    return tensors, {name: _described(tensor) for name, tensor in tensors.items()}, values


def apart(op: Op, tensors: Arrays) -> None:
    """Refuse to write over memory that is not one argument's own, as the CuPy ops do."""
    own = {name: placed(tensor) for name, tensor in tensors.items()}
    _check.outputs(op, own | {output.name: own[output.like] for output in op.writes})


def no_gradient(op: str, hint: str, **given: Tensor | None) -> None:
    """Refuse a tensor whose gradient would be lost."""
    if not torch.is_grad_enabled():
        return
    for name, value in given.items():
        if value is not None and value.requires_grad:
            raise RuntimeError(
                f"{name} must not require a gradient, which {op} has none of: {hint}"
            )


def in_place(op: str, **given: Tensor | None) -> None:
    """Refuse a gradient where an op is asked to write over its input."""
    hint = f"{op} is differentiable, and torch.no_grad() says that no gradient is wanted"
    no_gradient(f"{op}_", hint, **given)


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


def placed(tensor: Tensor | None) -> Any:
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
