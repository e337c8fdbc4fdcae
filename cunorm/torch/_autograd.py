"""The gradients of the operators: what a forward pass keeps, and what a backward pass makes of it.

Kept are what was normalised (x, or h = x + residual), the weight, and the statistics: nothing that
would have to be computed first, and no second array of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from .._families import BACKWARD, OPS, Op
from . import _cpu
from ._operators import OPERATORS


def _save(op: Op, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what `_gradients` needs of an operator's inputs and outputs."""
    given = dict(zip(op.torch_names, inputs, strict=True))
    made = dict(zip(op.returns, output, strict=True))
    weight, *biases = op.parameters
    written = op.source.writes
    ctx.set_materialize_grads(False)
    ctx.dtypes = [given[name].dtype for name in op.source.reads]
    ctx.biases = {
        name: None if given[name] is None else (given[name].shape, given[name].dtype)
        for name in biases
    }
    ctx.options = {option.name: given[option.name] for option in op.options if option.backward}
    rows = made[written[-1].name] if written else given["x"]
    statistics = (made[name] for name in op.family.saves)
    ctx.save_for_backward(_kept(rows), _kept(given[weight]), *statistics)


def _kept(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor, or a copy of one that was made under ``torch.inference_mode()``.

    Autograd cannot see those written to, and keeps none of them.
    """
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _gradients(op: Op, ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of an operator's inputs, None for those without one.

    y and h are both differentiable, and one kernel adds up what reaches x and residual by them.
    """
    upstream = dict(zip(op.returns, grads, strict=True))
    dy, dh = upstream["y"], upstream.get(op.writes[-1].name) if op.source.writes else None
    of_h, totals = (dh, {}) if dy is None else _of_norm(op, ctx, dy, dh)
    of_reads = {
        name: None if of_h is None else of_h.to(dtype)
        for name, dtype in zip(op.source.reads, ctx.dtypes, strict=True)
    }
    gradients = {**of_reads, **totals}
    return tuple(gradients.get(name) for name in op.torch_names)


def _of_norm(
    op: Op, ctx: Any, dy: Tensor, dh: Tensor | None
) -> tuple[Tensor, dict[str, Tensor | None]]:
    """Return the gradient of h (or x), and those of the parameters by name."""
    h, gamma, *statistics = ctx.saved_tensors
    dy = dy.to(h.dtype)
    needed = dict(zip(op.torch_names, ctx.needs_input_grad, strict=True))
    weight, *biases = op.parameters
    wanted = [name for name in biases if ctx.biases[name] is not None and needed[name]]
    # The kernel's dbeta has gamma's dtype, and where there is no gamma there is none.
    along = [name for name in wanted if gamma is not None and gamma.dtype == ctx.biases[name][1]]
    of_weight = gamma is not None and needed[weight]
    given = {"dy": dy, "x": h, "dresidual": dh}
    if gamma is None:
        # Without a gamma to say otherwise the kernel's rows have one axis.
        first = statistics[0].ndim
        given = {name: None if t is None else t.flatten(first) for name, t in given.items()}
    given |= {weight: gamma, **dict(zip(op.family.saves, statistics, strict=True)), **ctx.options}
    given["sums"] = of_weight or bool(along)
    backward = BACKWARD[op.family]
    kernel = getattr(torch.ops.cunorm, backward.name)
    dx, *totals = kernel(*(given[name] for name in backward.torch_names))
    made = dict(zip(op.parameters, totals, strict=True))
    gradients: dict[str, Tensor | None] = {weight: made[weight] if of_weight else None}
    for name in wanted:
        gradients[name] = made[name] if name in along else _sum_of_rows(dy, *ctx.biases[name])
    return dx if gamma is not None else dx.reshape(h.shape), gradients


def _sum_of_rows(dy: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    rows = dy.reshape(-1, *shape) if dy.numel() else dy.new_zeros((1, *shape))
    return rows.sum(0, dtype=_cpu.accumulator(dy.dtype)).to(dtype)


def _refuse(op: str, *_: object) -> None:
    raise RuntimeError(
        f"{op} can be differentiated once and not again: its gradient is a kernel without a "
        "gradient of its own. Call backward() or torch.autograd.grad() without create_graph=True"
    )


for _op in OPS.values():
    if not _op.family.is_of_tensors:
        continue
    if _op.is_backward:
        OPERATORS[_op.name].register_autograd(partial(_refuse, _op.norm))
    elif _op.keeps:
        OPERATORS[_op.name].register_autograd(
            partial(_gradients, _op), setup_context=partial(_save, _op)
        )
