"""The operators on heads that are normalised and rotated, their definition and their gradients.

As in `_operators.py`, `_cpu.py` and `_autograd.py`: an operator for each op that returns statistics
or gradients, and for each of the others one that writes over its input.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

import cunorm

from .. import _check
from .._families import ROPE_BWD, ROPE_OPS, Input, Op
from .._plan import cast_of_norm
from . import _cpu
from ._autograd import refuse
from ._checks import accumulator, named, parted, placed
from ._operators import detached, is_on_cuda, schema, write_over
from ._statistics import MeanSquare


def _define(op: Op) -> None:
    """Define the operator of an op that returns new tensors."""

    def call(*given: Any) -> tuple[Tensor, ...]:
        own = named(op.arguments, given)
        if is_on_cuda(op, own):
            made = getattr(cunorm, op.name)(**detached(own))
        else:
            made = (_backward if op.is_backward else _forward)(op, *_checked(op, own))
        return tuple(own[op.leader].new_empty(0) if a is None else a for a in made)

    def fake(*given: Any) -> tuple[Tensor, ...]:
        own = named(op.arguments, given)
        _checked(op, own)
        return tuple((_gradients if op.is_backward else _rows)(op, own))

    operator = torch.library.custom_op(
        f"cunorm::{op.name}",
        call,
        mutates_args=(),
        schema=schema(op.arguments, len(op.returns)),
    )
    operator.register_fake(fake)
    if op.is_backward:
        operator.register_autograd(partial(refuse, op.norm))
    else:
        operator.register_autograd(partial(_differentiate, op), setup_context=partial(_save, op))


def _define_in_place(op: Op) -> None:
    """Define the operator that writes what an op returns over its input. It has no gradient."""
    written = tuple(output.like for output in op.writes)

    def call(*given: Any) -> None:
        own = named(op.arguments, given)
        if is_on_cuda(op, own):
            write_over(op, own)
            return
        tensors, settings = _checked(op, own, in_place=True)
        for name, y in zip(written, _forward(op, tensors, settings), strict=False):
            tensors[name].copy_(y)

    torch.library.custom_op(
        f"cunorm::{op.name}_",
        call,
        mutates_args=written,
        schema=schema(op.arguments, 0, written),
    )


def _rows(op: Op, given: dict[str, Any]) -> list[Tensor]:
    """Return empty tensors for the results of a forward op."""
    made = [given[output.like].new_empty(given[output.like].shape) for output in op.writes]
    for name in op.reads:
        x = given[name]
        shape = x.shape[: -2 if given["across_heads"] else -1]
        made.append(x.new_empty(shape, dtype=accumulator(x.dtype)))
    return made


def _gradients(op: Op, given: dict[str, Any]) -> list[Tensor]:
    """Return empty tensors for the results of the backward op."""
    x, gamma = given["x"], given["gamma"]
    has_sums = gamma is not None and given["sums"]
    return [x.new_empty(x.shape), gamma.new_empty(gamma.shape) if has_sums else x.new_empty(0)]


def _save(op: Op, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what the gradients are made of: what is given, and the statistics."""
    given = named(op.arguments, inputs)
    made = dict(zip(op.returns, output, strict=True))
    kept = {a.name: given[a.name] for a in op.arguments if isinstance(a, Input)} | {
        name: made[name] for name in op.returns[len(op.writes) :]
    }
    ctx.set_materialize_grads(False)
    tensors = {name: tensor for name, tensor in kept.items() if tensor is not None}
    ctx.names = tuple(tensors)
    ctx.options = {option.name: given[option.name] for option in op.options}
    # Autograd cannot see tensors of torch.inference_mode() written to, and keeps none of them.
    ctx.save_for_backward(*[t.clone() if t.is_inference() else t for t in tensors.values()])


def _differentiate(op: Op, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of an operator's inputs, None for those without one."""
    kept = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
    needed = dict(zip(op.names, ctx.needs_input_grad, strict=True))
    statistics = op.returns[len(op.writes) :]
    found: dict[str, Tensor] = {}
    each = zip(op.reads, op.parameters, statistics, grads[: len(op.writes)], strict=True)
    for name, weight, rstd, dy in each:
        if dy is None:
            continue
        x = kept[name]
        own = {"dy": dy.to(x.dtype), "x": x, "gamma": kept.get(weight), "rstd": kept[rstd]}
        given = kept | ctx.options | own | {"sums": needed[weight]}
        arguments = (given.get(argument.name) for argument in ROPE_BWD.arguments)
        dx, dgamma = torch.ops.cunorm.rms_norm_rope_bwd(*arguments)
        found |= {name: dx} if needed[name] else {}
        found |= {weight: dgamma} if needed[weight] else {}
    return tuple(found.get(name) for name in op.names)


def _checked(
    op: Op, own: dict[str, Any], *, in_place: bool = False
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Check an operator's arguments as the CuPy ops do, and return its tensors and options."""
    tensors, described, values = parted(op, own)
    if in_place:
        described = {name: placed(tensor) for name, tensor in tensors.items()}
    outputs = {output.name: described[output.like] if in_place else None for output in op.writes}
    check = _check.rope_backward if op.is_backward else _check.rope
    return tensors, check(op, described | outputs, values)


def _forward(op: Op, tensors: dict[str, Any], settings: dict[str, Any]) -> tuple[Tensor, ...]:
    """Return heads of CPU tensors, normalised and rotated, and then their statistics."""
    made = [
        _rotated_norm(
            tensors[name], tensors[gamma], _Rotation(tensors[name], tensors, settings), settings
        )
        for name, gamma in zip(op.reads, op.parameters, strict=True)
    ]
    return (*(y for y, _ in made), *(rstd for _, rstd in made))


def _rotated_norm(
    x: Tensor, gamma: Tensor | None, rotation: _Rotation, settings: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """Return heads normalised and rotated, or the other way about, as `_reference` has it."""
    wide = accumulator(x.dtype)
    rounds = settings["cast"] != "after"
    product = rotation.product if rounds else None
    statistics = []

    def normalise(h: Tensor, dtype: torch.dtype) -> Tensor:
        rows = h.flatten(-2) if settings["across_heads"] else h
        statistics.append(MeanSquare.of(rows, (-1,), settings["eps"]))
        n = _cpu.scale(
            statistics[0].normal(rows),
            gamma,
            gamma_offset=settings["gamma_offset"],
            cast=cast_of_norm(settings["cast"]),
            dtype=dtype if rounds else wide,
        )
        return _cpu.shaped(n.to(wide), x.shape)

    data = x.to(wide)
    if settings["norm_first"]:
        y = rotation.turned(normalise(data, x.dtype), product)
    else:
        y = normalise(rotation.turned(data, product), rotation.product)
    (rstd,) = statistics[0].saved
    return y.to(x.dtype).contiguous(), rstd.squeeze(-1)


def _backward(
    op: Op, tensors: dict[str, Any], settings: dict[str, Any]
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients of heads of CPU tensors, and of their weight."""
    x, gamma = tensors["x"], tensors["gamma"]
    wide = accumulator(x.dtype)
    rotation = _Rotation(x, tensors, settings)
    h, dn = x.to(wide), tensors["dy"].to(wide)
    if settings["norm_first"]:
        dn = rotation.turned(dn, back=True)
    else:
        h = rotation.turned(h, rotation.product)
    if settings["across_heads"]:
        h, dn = h.flatten(-2), dn.flatten(-2)
    statistic = MeanSquare(tensors["rstd"].unsqueeze(-1))
    normal = statistic.normal(h)
    factor = 1.0 if gamma is None else gamma.to(wide) + settings["gamma_offset"]
    dx = statistic.gradient(dn * factor, normal, (-1,)).reshape(x.shape)
    if not settings["norm_first"]:
        dx = rotation.turned(dx, back=True)
    dgamma = None
    if gamma is not None and settings["sums"]:
        dgamma = (dn * normal).sum_to_size(gamma.shape).to(gamma.dtype)
    return dx.to(x.dtype).contiguous(), dgamma


class _Rotation:
    """How the heads of each token are turned."""

    def __init__(self, x: Tensor, tensors: dict[str, Any], settings: dict[str, Any]) -> None:
        cos, sin, positions = (tensors[name] for name in ("cos", "sin", "positions"))
        if positions is not None and positions.numel() > 0:
            least, most = (int(end) for end in positions.aminmax())
            if least < 0 or most >= len(cos):
                raise ValueError(
                    f"positions must be rows of cos, from 0 to {len(cos) - 1}, but are from "
                    f"{least} to {most}"
                )
        # The dtype that operators give a product.
        self.product = torch.promote_types(x.dtype, cos.dtype)
        wide = accumulator(x.dtype)
        self._cos, self._sin = (_of_tokens(table, positions, x).to(wide) for table in (cos, sin))
        count = 2 * cos.shape[-1]
        self._first, self._second = slice(0, count // 2), slice(count // 2, count)
        if settings["interleaved"]:
            self._first, self._second = slice(0, count, 2), slice(1, count, 2)

    def turned(self, n: Tensor, to: torch.dtype | None = None, *, back: bool = False) -> Tensor:
        """Return heads turned, or turned back; each product and sum is rounded `to` a dtype."""

        def rounded(value: Tensor) -> Tensor:
            return value if to is None else _cpu.rounded(value, to)

        a, b = n[..., self._first], n[..., self._second]
        c, s = self._cos, -self._sin if back else self._sin
        y = n.clone()
        y[..., self._first] = rounded(rounded(a * c) - rounded(b * s))
        y[..., self._second] = rounded(rounded(b * c) + rounded(a * s))
        return y


def turned(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool) -> Tensor:
    """Return CPU heads rotated and not normalised, as the ops round by default."""
    tables = {"cos": cos, "sin": sin, "positions": None}
    rotation = _Rotation(x, tables, {"interleaved": interleaved})
    return rotation.turned(x.to(accumulator(x.dtype)), rotation.product).to(x.dtype)


def _of_tokens(table: Tensor, positions: Tensor | None, x: Tensor) -> Tensor:
    """Return each token's row of a table, beside all of its heads."""
    if positions is not None:
        table = table[positions.long()]
    elif table.ndim == 2:
        table = table[: x.shape[-3]] if x.ndim > 2 else table[0]
    return table.unsqueeze(-2)


for _op in ROPE_OPS.values():
    if _op.keeps or _op.is_backward:
        _define(_op)
    else:
        _define_in_place(_op)
