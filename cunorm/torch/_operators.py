"""The operators behind `cunorm.torch`: what PyTorch's dispatcher and compiler see.

They follow from the ops of `_families/`: one for each that returns statistics, one for each that
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

from .._families import OPS, QUANT, Input, Op, Option
from . import _cpu
from ._checks import TAKEN, accumulator, apart, checked, named

Arguments = tuple[Input | Option, ...]
# The fields of a `Quant`, and their types in a schema.
FIELDS = {
    "format": "str",
    "group": "int?",
    "scale": "str",
    "layout": "str",
    "floor": "float",
    "minimum": "float",
    "ceiling": "float?",
    "static": "float?",
    "global_scale": "float?",
}


def _defined(op: Op) -> CustomOpDef:
    """Define the operator of an op that returns new tensors."""
    arguments = op.of_tensors
    returned = (*op.returns, *(f"d{name}" for name in op.operands if op.is_backward))

    def call(*given: Any) -> tuple[Tensor, ...]:
        own = named(arguments, given)
        if is_on_cuda(op, own):
            results = getattr(cunorm, op.name)(**detached(own))
            if not op.is_backward:
                return results  # type: ignore[no-any-return]
            made = dict(zip(op.returned(own), results, strict=True))
        else:
            tensors, options, _ = checked(op, own)
            made = (_cpu.backward if op.is_backward else _cpu.forward)(op, tensors, options)
        return tuple(
            own["x"].new_empty(0) if made.get(name) is None else made[name] for name in returned
        )

    def fake(*given: Any) -> tuple[Tensor, ...]:
        tensors, options, axes = checked(op, named(arguments, given))
        shapes = _gradients if op.is_backward else _rows
        made = shapes(op, tensors, options, axes)
        return tuple(made.get(name, tensors["x"].new_empty(0)) for name in returned)

    operator = torch.library.custom_op(
        f"cunorm::{op.name}", call, mutates_args=(), schema=schema(arguments, len(returned))
    )
    operator.register_fake(fake)
    return operator


def _defined_in_place(op: Op) -> CustomOpDef:
    """Define the operator that writes what an op returns over the inputs that are like it."""
    arguments = op.of_tensors_in_place
    written = tuple(output.like for output in op.writes)

    def call(*given: Any) -> None:
        own = named(arguments, given)
        if is_on_cuda(op, own):
            write_over(op, own)
            return
        tensors, options, _ = checked(op, own)
        apart(op, tensors)
        made = _cpu.forward(op, tensors, options)
        for output in op.writes:
            tensors[output.like].copy_(made[output.name])

    return torch.library.custom_op(
        f"cunorm::{op.name}_", call, mutates_args=written, schema=schema(arguments, 0, written)
    )


def schema(arguments: Arguments, returned: int, written: tuple[str, ...] = ()) -> str:
    """Return an operator's schema, of how many tensors it returns and which ones it writes."""
    taken = ", ".join(declared(argument, written) for argument in arguments)
    return f"({taken}) -> ({', '.join(['Tensor'] * returned)})"


def declared(argument: Input | Option, written: tuple[str, ...]) -> str:
    """Return an argument as a schema has it: of a `Quant` each of its fields."""
    if argument.name == QUANT.name:
        return ", ".join(f"{type_} quant_{name}" for name, type_ in FIELDS.items())
    if isinstance(argument, Option):
        return f"{TAKEN[argument.check][0]} {argument.name}"
    name = argument.name
    alias = f"(a{written.index(name)}!)" if name in written else ""
    return f"Tensor{alias}{'?' if argument.optional else ''} {name}"


def is_on_cuda(op: Op, given: dict[str, Any]) -> bool:
    """Return whether the CuPy ops do the work; if not, `_cpu` does."""
    x = given[op.leader]
    if x.is_cuda:
        return True
    if x.device.type != "cpu":
        raise TypeError(f"{op.leader} must be on a CUDA device or on the CPU, but is on {x.device}")
    return False


def write_over(op: Op, given: dict[str, Any]) -> None:
    """Have the CuPy op write over the tensors that its results are like."""
    plain = detached(given)
    outputs = {output.argument: plain[output.like] for output in op.writes}
    getattr(cunorm, op.name)(**plain, **outputs)


def detached(given: dict[str, Any]) -> dict[str, Any]:
    """Return arguments for a CuPy op.

    DLPack exports nothing that requires a gradient. The operators have formulas for that.
    """
    return {
        name: value.detach() if value is not None and isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def _rows(op: Op, tensors: dict[str, Any], options: dict[str, Any], axes: int) -> dict[str, Tensor]:
    """Return empty tensors for the results of a forward op, by name."""
    x, group = tensors["x"], options.get("group")
    lead = x.shape[: x.ndim - axes] if group is None else (*x.shape[:-1], x.shape[-1] // group)
    made = {name: x.new_empty(lead, dtype=accumulator(x.dtype)) for name in op.family.saves}
    for output in op.writes:
        like = tensors[output.like]
        asked = options.get("dtype") if output.of_any_dtype else None
        made[output.name] = like.new_empty(like.shape, dtype=asked or like.dtype)
    return made


def _gradients(
    op: Op, tensors: dict[str, Any], options: dict[str, Any], axes: int
) -> dict[str, Tensor]:
    """Return empty tensors for the results of a backward op, by name."""
    (weight,) = (tensors[name] for name in op.parameters)
    likes = {name: tensors[name.removeprefix("d")] for name in op.gradients}
    likes |= {f"d{name}": tensors[name] for name in op.operands if tensors[name] is not None}
    if weight is not None and options["sums"]:
        likes |= dict.fromkeys(op.totals, weight)
    return {name: like.new_empty(like.shape) for name, like in likes.items()}


# By the name of the op, and for those in place with an underscore after it.
OPERATORS: dict[str, CustomOpDef] = {}
for _op in OPS.values():
    if _op.keeps or _op.is_backward:
        OPERATORS[_op.name] = _defined(_op)
    else:
        OPERATORS[f"{_op.name}_"] = _defined_in_place(_op)
