"""Every check of an argument, and every message that a user can get.

Types and dtypes raise TypeError; shapes, layouts and values raise ValueError. A message names the
argument, what it must be and what it was. All checks come before anything is written.

arrays.py checks one array, options.py one option, memory.py where results may lie. An op's checks,
of all that it is given, are here; quantised.py has those of ops that return codes, rope.py those of
heads.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .._words import type_name, word
from .arrays import (
    addend,
    array,
    data,
    is_dask,
    like_x,
    normalised_axes,
    operand,
    parameters,
    rows,
    statistic,
)
from .memory import laid_out_alike, sums_out, written
from .options import (
    ACTIVATIONS,
    CASTS,
    OPTIONS,
    ROPE_CASTS,
    cast,
    dtype,
    eps,
    options,
    real,
    whole,
)
from .rope import rope, rope_backward

if TYPE_CHECKING:
    from .._families import Op
    from .._typing import Arrays

__all__ = [
    "ACTIVATIONS",
    "CASTS",
    "OPTIONS",
    "ROPE_CASTS",
    "array",
    "backward",
    "cast",
    "data",
    "dtype",
    "eps",
    "forward",
    "is_dask",
    "laid_out_alike",
    "normalised_axes",
    "options",
    "outputs",
    "real",
    "rope",
    "rope_backward",
    "rows",
    "sums_out",
    "type_name",
    "whole",
    "word",
]


def forward(op: Op, arrays: Arrays, values: tuple[object, ...]) -> tuple[int, dict[str, Any]]:
    """Check what a forward op reads, and return how many axes are normalised, and the options."""
    x = arrays["x"]
    data("x", x)
    for name in op.reads[1:]:
        addend(name, arrays[name], x)
    axes = parameters(x, **{name: arrays[name] for name in op.parameters})
    for name in op.operands:
        if arrays[name] is not None:
            operand(name, arrays[name], x)
    for name in op.sums:
        if arrays.get(name) is not None:
            numbers = () if name == "squares" else (2,)
            statistic(name, arrays[name], x, (*x.shape[: x.ndim - axes], *numbers))
    return axes, options(op, values, {**dict.fromkeys(op.sums), **arrays})


def backward(op: Op, arrays: Arrays, values: tuple[object, ...]) -> tuple[int, dict[str, Any]]:
    """Check what a backward op reads, and return how many axes are normalised, and the options."""
    rows = arrays[op.leader]
    data(op.leader, rows)
    like_x("dy", arrays["dy"], rows, op.leader)
    x = arrays["x"]
    if x is not rows:
        addend("x", x, rows, op.leader)
    axes = parameters(x, **{name: arrays.get(name) for name in (*op.parameters, "beta")})
    if "gate" in op.reads:
        addend("gate", arrays["gate"], x)
    settings = options(op, values, arrays)
    group = settings.get("group")
    lead = x.shape[: x.ndim - axes] if group is None else (*x.shape[:-1], x.shape[-1] // group)
    for name in op.family.saves:
        statistic(name, arrays[name], x, lead)
    for name in op.operands:
        if arrays.get(name) is not None or name == "gate":  # which only these ops have
            operand(name, arrays[name], x)
    if arrays.get("dresidual") is not None:
        like_x("dresidual", arrays["dresidual"], rows, op.leader)
    return axes, settings


def outputs(op: Op, arrays: Arrays, dtype: Any = None) -> None:
    """Refuse results that are given and cannot be written, or not without harm: see `written`.

    `dtype` is the option of that name, where the op has it.
    """
    parameters = {name: arrays.get(name) for name in (*op.parameters, *op.operands, *op.sums)}
    for index, output in enumerate(op.writes):
        others = {name: arrays[name] for name in op.reads if name != output.like}
        others |= {other.argument: arrays[other.name] for other in op.writes[index + 1 :]}
        given, like = arrays[output.name], arrays[output.like]
        if given is None:
            continue
        asked = dtype if output.of_any_dtype else like.dtype
        written(output.argument, given, output.like, like, asked, **others, **parameters)
