"""The gradients of the operators: what a forward pass keeps, and what a backward pass makes of it.

Kept are what was normalised (x, or h = x + residual), gamma, and rstd (and mean): nothing that
would have to be computed first, and no second array of rows.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from . import _cpu, _operators


def _save(adds: bool, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what `_gradients` needs of an operator's inputs and outputs."""
    arrays = 2 if adds else 1
    gamma = inputs[arrays]
    beta = inputs[arrays + 1] if isinstance(inputs[arrays + 1], Tensor) else None
    ctx.set_materialize_grads(False)
    ctx.inputs = len(inputs)
    ctx.dtypes = [array.dtype for array in inputs[:arrays]]
    ctx.beta = None if beta is None else (beta.shape, beta.dtype)
    rows = output[1] if adds else inputs[0]
    ctx.save_for_backward(_kept(rows), _kept(gamma), *output[arrays:])


def _kept(tensor: Tensor | None) -> Tensor | None:
    """Return a tensor, or a copy of one that was made under ``torch.inference_mode()``.

    Autograd cannot see those written to, and keeps none of them.
    """
    return tensor.clone() if tensor is not None and tensor.is_inference() else tensor


def _save_rms_norm(
    adds: bool, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]
) -> None:
    ctx.gamma_offset = inputs[-2]
    _save(adds, ctx, inputs, output)


def _gradients(adds: bool, ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Any, ...]:
    """Return the gradients of an operator's inputs, None for those without one.

    y and h are both differentiable, and one kernel adds up what reaches x and residual by them.
    """
    dh = others[0] if adds else None
    arrays = len(ctx.dtypes)
    of_h, of_gamma, of_beta = (dh, None, None) if dy is None else _of_norm(ctx, dy, dh, arrays)
    of_arrays = [None if of_h is None else of_h.to(dtype) for dtype in ctx.dtypes]
    # eps and other numbers follow; where they take beta's place it is None too.
    return (*of_arrays, of_gamma, of_beta, *(None,) * (ctx.inputs - arrays - 2))


def _of_norm(
    ctx: Any, dy: Tensor, dh: Tensor | None, arrays: int
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Return the gradients of h (or x), gamma and beta."""
    h, gamma, *statistics = ctx.saved_tensors
    dy = dy.to(h.dtype)
    wants_gamma = gamma is not None and ctx.needs_input_grad[arrays]
    wants_beta = ctx.beta is not None and ctx.needs_input_grad[arrays + 1]
    # The kernel's dbeta has gamma's dtype, and where there is no gamma there is none.
    comes_along = wants_beta and gamma is not None and gamma.dtype == ctx.beta[1]
    sums = wants_gamma or comes_along
    if len(statistics) == 1:
        dx, dgamma = torch.ops.cunorm.rms_norm_bwd(
            dy, h, gamma, *statistics, ctx.gamma_offset, dh, sums
        )
        return dx, dgamma if wants_gamma else None, None
    if gamma is None:
        # Without a gamma to say otherwise the kernel's rows have one axis.
        first = statistics[0].ndim
        rows, upstream, given = (None if t is None else t.flatten(first) for t in (h, dy, dh))
        dx, *_ = torch.ops.cunorm.layer_norm_bwd(upstream, rows, None, *statistics, given, False)
        dx, dgamma, dbeta = dx.reshape(h.shape), None, None
    else:
        dx, dgamma, dbeta = torch.ops.cunorm.layer_norm_bwd(dy, h, gamma, *statistics, dh, sums)
    if wants_beta and not comes_along:
        dbeta = _sum_of_rows(dy, *ctx.beta)
    return dx, dgamma if wants_gamma else None, dbeta if wants_beta else None


def _sum_of_rows(dy: Tensor, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    rows = dy.reshape(-1, *shape) if dy.numel() else dy.new_zeros((1, *shape))
    return rows.sum(0, dtype=_cpu.accumulator(dy.dtype)).to(dtype)


def _refuse(op: str, *_: object) -> None:
    raise RuntimeError(
        f"{op} can be differentiated once and not again: its gradient is a kernel without a "
        "gradient of its own. Call backward() or torch.autograd.grad() without create_graph=True"
    )


for _adds, _rms, _layer in (
    (False, _operators.rms_norm_fwd, _operators.layer_norm_fwd),
    (True, _operators.add_rms_norm_fwd, _operators.add_layer_norm_fwd),
):
    _rms.register_autograd(partial(_gradients, _adds), setup_context=partial(_save_rms_norm, _adds))
    _layer.register_autograd(partial(_gradients, _adds), setup_context=partial(_save, _adds))

_operators.rms_norm_bwd.register_autograd(partial(_refuse, "rms_norm"))
_operators.layer_norm_bwd.register_autograd(partial(_refuse, "layer_norm"))
