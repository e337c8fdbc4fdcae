"""The operators on heads that are normalised and rotated, and their definition on CPU tensors.

As in `_operators.py` and `_cpu.py`: an operator for each op that returns new tensors, and one that
writes over its input. They have no gradient.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import cunorm

from .. import _check
from .._families import ROPE_OPS, Op
from . import _cpu
from ._checks import accumulator, named, parted, placed
from ._operators import detached, is_on_cuda, schema
from ._statistics import MeanSquare


def _define(op: Op) -> None:
    """Define the operators of an op."""
    written = tuple(output.like for output in op.writes)

    def call(*given: Any) -> Any:
        own = named(op.arguments, given)
        if is_on_cuda(op, own):
            return getattr(cunorm, op.name)(**detached(own))
        tensors, settings = _checked(op, own)
        return op.results(own, dict(zip(op.returns, _forward(op, tensors, settings), strict=True)))

    def fake(*given: Any) -> Any:
        own = named(op.arguments, given)
        _checked(op, own)
        made = (own[name].new_empty(own[name].shape) for name in written)
        return op.results(own, dict(zip(op.returns, made, strict=True)))

    def call_in_place(*given: Any) -> None:
        own = named(op.arguments, given)
        if is_on_cuda(op, own):
            plain = detached(own)
            outputs = {output.argument: plain[output.like] for output in op.writes}
            getattr(cunorm, op.name)(**plain, **outputs)
            return
        tensors, settings = _checked(op, own, in_place=True)
        for name, y in zip(written, _forward(op, tensors, settings), strict=True):
            tensors[name].copy_(y)

    torch.library.custom_op(
        f"cunorm::{op.name}",
        call,
        mutates_args=(),
        schema=schema(op.arguments, len(written)),
    ).register_fake(fake)
    torch.library.custom_op(
        f"cunorm::{op.name}_",
        call_in_place,
        mutates_args=written,
        schema=schema(op.arguments, 0, written),
    )


def _checked(
    op: Op, own: dict[str, Any], *, in_place: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check an operator's arguments as the CuPy ops do, and return its tensors and options."""
    tensors, described, values = parted(op, own)
    if in_place:
        described = {name: placed(tensor) for name, tensor in tensors.items()}
    outputs = {output.name: described[output.like] if in_place else None for output in op.writes}
    return tensors, _check.rope(op, described | outputs, values)


def _forward(op: Op, tensors: dict[str, Any], settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return heads of CPU tensors, normalised and rotated."""
    tables = {name: tensors[name] for name in ("cos", "sin", "positions")}
    positions = tables["positions"]
    if positions is not None and positions.numel() > 0:
        least, most = (int(end) for end in positions.aminmax())
        if least < 0 or most >= len(tables["cos"]):
            raise ValueError(
                f"positions must be rows of cos, from 0 to {len(tables['cos']) - 1}, but are from "
                f"{least} to {most}"
            )
    return tuple(
        _rotated_norm(tensors[name], tensors[gamma], **tables, **settings)
        for name, gamma in zip(op.reads, op.parameters, strict=True)
    )


def _rotated_norm(
    x: Tensor,
    gamma: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None,
    *,
    eps: float,
    interleaved: bool,
    norm_first: bool,
    across_heads: bool,
    gamma_offset: float,
    cast: str,
) -> Tensor:
    """Return heads normalised and rotated, or the other way about, as `_reference.py` has it."""
    wide = accumulator(x.dtype)
    product = torch.promote_types(x.dtype, cos.dtype)

    def to(value: Tensor, dtype: torch.dtype) -> Tensor:
        return _cpu.rounded(value, dtype) if cast == "before" else value

    def normalise(h: Tensor, dtype: torch.dtype) -> Tensor:
        rows = h.flatten(-2) if across_heads else h
        normal = MeanSquare.of(rows, (-1,), eps).normal(rows)
        own = dtype if cast == "before" else wide
        n = _cpu.scale(normal, gamma, gamma_offset=gamma_offset, cast=cast, dtype=own)
        return _cpu.shaped(n.to(wide), x.shape)

    c, s = (_of_tokens(table, positions, x).to(wide) for table in (cos, sin))
    count = 2 * cos.shape[-1]
    first, second = slice(0, count // 2), slice(count // 2, count)
    if interleaved:
        first, second = slice(0, count, 2), slice(1, count, 2)

    def rotate(n: Tensor) -> Tensor:
        a, b = n[..., first], n[..., second]
        y = n.clone()
        y[..., first] = to(to(a * c, product) - to(b * s, product), product)
        y[..., second] = to(to(b * c, product) + to(a * s, product), product)
        return y

    data = x.to(wide)
    y = rotate(normalise(data, x.dtype)) if norm_first else normalise(rotate(data), product)
    return y.to(x.dtype).contiguous()


def _of_tokens(table: Tensor, positions: Tensor | None, x: Tensor) -> Tensor:
    """Return each token's row of a table, beside all of its heads."""
    if positions is not None:
        table = table[positions.long()]
    elif table.ndim == 2:
        table = table[: x.shape[-3]] if x.ndim > 2 else table[0]
    return table.unsqueeze(-2)


for _op in ROPE_OPS.values():
    _define(_op)
