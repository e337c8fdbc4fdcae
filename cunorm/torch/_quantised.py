"""The operators that return codes and scales, and the one that takes them.

As in `_operators.py`. A `Quant` comes as its fields, and codes and scales are the integers that the
CuPy ops return: PyTorch's checks and its compiler compute with those. CPU tensors are quantised in
NumPy, by the definition that the kernels are held to. What writes y, too, is an operator of its
own: the compiler is free to move and to drop what writes nothing.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch import Tensor

import cunorm

from .. import _check
from .._check import quantised as check
from .._check.memory import of_shape_and_dtype
from .._families import DEQUANTIZE, QUANT, QUANTISED, QUANTIZE, UNQUANTISED, Y_BESIDE, Input, Op
from .._quant import (
    Quant,
    buffer_shape,
    codes_dtype,
    codes_shape,
    from_buffer,
    scales_dtype,
)
from . import _cpu
from ._checks import named, parted, placed
from ._operators import FIELDS, Arguments, detached, is_on_cuda, schema


def _define(op: Op, y_out: Input | None = None) -> None:
    """Define the operator of an op that returns codes, or the one that writes y too."""
    own_arguments = op.arguments if y_out is None else (*op.arguments, y_out)
    written = () if y_out is None else (y_out.name,)

    def call(*given: Any) -> tuple[Tensor, ...]:
        own = _named(own_arguments, given)
        if is_on_cuda(op, own):
            return tuple(getattr(cunorm, op.name)(**_arguments(op, own)))
        tensors, settings = _checked(op, own)
        x, quant = tensors["x"], settings["quant"]
        if y_out is not None:
            places = {name: placed(tensor) for name, tensor in tensors.items()}
            check.outputs(op, dict.fromkeys(op.slots) | places, quant, places["x"])
        made = _norm(op, tensors, settings)
        if y_out is not None:
            tensors[y_out.name].copy_(made["y"])
        from .._quant_reference import codes_and_buffer

        codes, buffer = codes_and_buffer(_array(made["y"]), quant)
        scales = from_buffer(quant, torch.from_numpy(buffer), x.shape[:-1])
        return (torch.from_numpy(codes), scales, *(made[o.name] for o in op.source.writes))

    def fake(*given: Any) -> tuple[Tensor, ...]:
        own = _named(own_arguments, given)
        tensors, settings = _checked(op, own)
        x, quant = tensors["x"], settings["quant"]
        q = x.new_empty(codes_shape(quant, x.shape), dtype=_dtype(codes_dtype(quant)))
        buffer = x.new_empty(buffer_shape(quant, x.shape), dtype=_dtype(scales_dtype(quant)))
        likes = (tensors[output.like] for output in op.source.writes)
        rest = (like.new_empty(like.shape) for like in likes)
        return (q, from_buffer(quant, buffer, x.shape[:-1]), *rest)

    torch.library.custom_op(
        f"cunorm::{'_'.join((op.name, *written))}",
        call,
        mutates_args=written,
        schema=schema(own_arguments, len(op.returns), written),
    ).register_fake(fake)


def _define_dequantize() -> None:
    """Define the operator that makes numbers of codes and scales."""

    def call(*given: Any) -> Tensor:
        own = _named(DEQUANTIZE.arguments, given)
        if is_on_cuda(DEQUANTIZE, own):
            q, scale = (own[name].detach() for name in DEQUANTIZE.reads)
            made: Tensor = cunorm.dequantize(q, scale, own["quant"], own["dtype"])
            return made
        shape = _shape(own)
        from .._quant_reference import dequantize

        q, scale = (own[name].numpy() for name in DEQUANTIZE.reads)
        numbers = dequantize(q, scale, own["quant"], _check.dtype(own["dtype"]))
        return _tensor(numbers.reshape(shape))

    def fake(*given: Any) -> Tensor:
        own = _named(DEQUANTIZE.arguments, given)
        made: Tensor = own["x"].new_empty(_shape(own), dtype=own["dtype"])
        return made

    torch.library.custom_op(
        "cunorm::dequantize", call, mutates_args=(), schema=schema(DEQUANTIZE.arguments, 1)
    ).register_fake(fake)


def _named(arguments: Arguments, given: tuple[Any, ...]) -> dict[str, Any]:
    """Return what an operator is given by name, with its `Quant`."""
    at = [argument.name for argument in arguments].index(QUANT.name)
    quant = Quant(*given[at : at + len(FIELDS)])
    return named(arguments, (*given[:at], quant, *given[at + len(FIELDS) :]))


def _arguments(op: Op, own: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of the CuPy op, by the names that it has for users."""
    plain = detached(own)
    return {"y": plain.pop("x"), **plain} if op is QUANTIZE else plain


def _checked(op: Op, own: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check an operator's arguments as the CuPy ops do, and return its tensors and options."""
    tensors, described, values = parted(op, own)
    if op is QUANTIZE:
        _check.data("y", described["x"])
        settings = _check.options(op, values, described)
        check.rows("y", described["x"], settings["quant"])
        return tensors, settings
    _, settings = _check.forward(op, described, values)
    check.rows("x", described["x"], settings["quant"])
    check.one_axis(described, op.parameters)
    y_out, like = described.get(Y_BESIDE.argument), described[Y_BESIDE.like]
    if y_out is not None:
        of_shape_and_dtype(Y_BESIDE.argument, y_out, Y_BESIDE.like, like, like.dtype)
    return tensors, settings


def _norm(op: Op, tensors: dict[str, Any], settings: dict[str, Any]) -> dict[str, Tensor]:
    """Return what the op without codes makes of CPU tensors."""
    if op is QUANTIZE:
        return {"y": tensors["x"]}
    plain = UNQUANTISED[op.name]
    options = {option.name: option.default for option in plain.options} | settings
    return _cpu.forward(plain, dict.fromkeys(plain.names) | tensors, options)


def _shape(own: dict[str, Any]) -> tuple[int, ...]:
    """Check codes and scales, and return the shape of the numbers."""
    _, described, _ = parted(DEQUANTIZE, own)
    q, scale = (described[name] for name in DEQUANTIZE.reads)
    return check.codes_and_scales(q, scale, own["quant"])


def _dtype(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _array(tensor: Tensor) -> Any:
    """Return a tensor as a NumPy array, which has bfloat16 of ml_dtypes."""
    plain = tensor.detach().contiguous()
    if plain.dtype == torch.bfloat16:
        return plain.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return plain.numpy()


def _tensor(array: Any) -> Tensor:
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


for _op in QUANTISED.values():
    _define(_op)
    _define(_op, Input(Y_BESIDE.argument))
_define(QUANTIZE)
_define_dequantize()
