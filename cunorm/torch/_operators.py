"""The operators behind `cunorm.torch`: what PyTorch's dispatcher and compiler see.

They follow from the ops of `_families.py`: one for each that returns statistics, one for each that
returns gradients, and for each of the others one that writes over its input, whose name ends in an
underscore. Each has one implementation for every device, and a fake kernel that makes outputs of
the right shape. CUDA tensors go to the CuPy op of the same name and come back through
`cunorm._interop`; CPU tensors to `cunorm.torch._cpu`. An operator returns tensors and no None: a
gradient that nobody asked for is a tensor without elements.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch._library.custom_ops import CustomOpDef

import cunorm

from .._families import OPS, Input, Op, Option
from . import _cpu
from ._checks import apart, checked


def _defined(op: Op) -> CustomOpDef:
    """Define the operator of an op that returns new tensors."""

    def call(*given: Any) -> tuple[Tensor, ...]:
        if _is_on_cuda(op, given):
            made = getattr(cunorm, op.name)(**_detached(op, given))
        else:
            tensors, options, _ = checked(op, given)
            made = (_cpu.backward if op.is_backward else _cpu.forward)(op, tensors, options)
        return tuple(given[0].new_empty(0) if tensor is None else tensor for tensor in made)

    def fake(*given: Any) -> tuple[Tensor, ...]:
        tensors, options, axes = checked(op, given)
        return _gradients(op, tensors, options) if op.is_backward else _rows(op, tensors, axes)

    operator = torch.library.custom_op(
        f"cunorm::{op.name}", call, mutates_args=(), schema=_schema(op)
    )
    operator.register_fake(fake)
    return operator


def _defined_in_place(op: Op) -> CustomOpDef:
    """Define the operator that writes what an op returns over the inputs that are like it."""
    written = tuple(output.like for output in op.writes)

    def call(*given: Any) -> None:
        if _is_on_cuda(op, given):
            own = _detached(op, given)
            outputs = {output.argument: own[output.like] for output in op.writes}
            getattr(cunorm, op.name)(**own, **outputs)
            return
        tensors, options, _ = checked(op, given)
        apart(op, tensors)
        for name, result in zip(written, _cpu.forward(op, tensors, options), strict=True):
            tensors[name].copy_(result)

    return torch.library.custom_op(
        f"cunorm::{op.name}_", call, mutates_args=written, schema=_schema(op, written)
    )


def _schema(op: Op, written: tuple[str, ...] = ()) -> str:
    """Return an operator's schema; nothing is returned where something is written."""
    returned = "" if written else ", ".join("Tensor" for _ in op.returns)
    return f"({', '.join(_declared(a, written) for a in op.differentiable)}) -> ({returned})"


def _declared(argument: Input | Option, written: tuple[str, ...]) -> str:
    """Return an argument as a schema has it."""
    if isinstance(argument, Option):
        return f"{type(argument.default).__name__} {argument.name}"
    name = argument.name
    alias = f"(a{written.index(name)}!)" if name in written else ""
    return f"Tensor{alias}{'?' if argument.optional else ''} {name}"


def _is_on_cuda(op: Op, given: tuple[Any, ...]) -> bool:
    """Return whether the CuPy ops do the work; if not, `_cpu` does."""
    x = given[op.torch_names.index("x")]
    if x.is_cuda:
        return True
    if x.device.type != "cpu":
        raise TypeError(f"x must be on a CUDA device or on the CPU, but is on {x.device}")
    return False


def _detached(op: Op, given: tuple[Any, ...]) -> dict[str, Any]:
    # DLPack exports nothing that requires a gradient. The operators have formulas for that.
    plain = (value.detach() if isinstance(value, Tensor) else value for value in given)
    return dict(zip(op.torch_names, plain, strict=True))


def _rows(op: Op, tensors: dict[str, Any], axes: int) -> tuple[Tensor, ...]:
    """Return empty tensors for the results of a forward op."""
    x = tensors["x"]
    statistic = {"size": x.shape[: x.ndim - axes], "dtype": _cpu.accumulator(x.dtype)}
    rows = (_like(tensors[output.like]) for output in op.writes)
    return (*rows, *(x.new_empty(**statistic) for _ in op.family.saves))


def _gradients(op: Op, tensors: dict[str, Any], options: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return empty tensors for the results of a backward op."""
    x = tensors["x"]
    (weight,) = (tensors[name] for name in op.parameters)
    wanted = weight is not None and options["sums"]
    return (_like(x), *(_like(weight) if wanted else x.new_empty(0) for _ in op.totals))


def _like(x: Tensor) -> Tensor:
    return x.new_empty(x.shape)


# By the name of the op, and for those in place with an underscore after it.
OPERATORS: dict[str, CustomOpDef] = {}
for _op in OPS.values():
    if not _op.family.is_of_tensors:
        continue
    if _op.keeps or _op.is_backward:
        OPERATORS[_op.name] = _defined(_op)
    else:
        OPERATORS[f"{_op.name}_"] = _defined_in_place(_op)
