"""Norms whose input goes on beside them: one kernel adds up the gradients that reach it by both."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .._families import OPS, Op
from .._typing import Cast
from ._autograd import gradients, save
from ._checks import modulation, options, tensors


def _function(op: Op) -> Callable[..., tuple[Tensor, ...]]:
    """Return an operator that returns x too, after y.

    PyTorch lets no operator of its dispatcher return what it was given; a function of autograd's
    may. The compiler does not look into that, and adds up gradients in a kernel of its own.
    """
    operator = getattr(torch.ops.cunorm, op.name)

    class WithInput(torch.autograd.Function):
        @staticmethod
        def forward(*given: Any) -> tuple[Tensor, ...]:
            y, *statistics = operator(*given)
            return (y, given[0].view_as(given[0]), *statistics)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            y, _, *statistics = output
            ctx.mark_non_differentiable(*statistics)
            save(op, ctx, inputs, (y, *statistics))

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
            dy, dx, *rest = grads
            return gradients(op, ctx, dy, *rest, dx=dx)

    def with_input(x: Tensor, *given: Any) -> tuple[Tensor, ...]:
        if torch.compiler.is_compiling():
            return operator(x, *given)[0], x
        made: tuple[Tensor, ...] = WithInput.apply(x, *given)  # type: ignore[no-untyped-call]
        return made[:2]

    return with_input


_RMS_NORM, _LAYER_NORM = (_function(OPS[name]) for name in ("rms_norm_fwd", "layer_norm_fwd"))


def rms_norm_with_input(
    x: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise rows, and return x beside y for what else uses it, differentiably.

    What reaches x by the norm and by the x that is returned is added up in the norm's own backward
    kernel, and in no other: a pre-norm block, ``y, x = rms_norm_with_input(x, gamma)`` and
    ``x = x + f(y)``, has no addition of gradients left.

    Parameters
    ----------
    x, gamma, eps, gamma_offset, cast, scale, shift, scale_offset, dtype
        As in `rms_norm`.

    Returns
    -------
    y : torch.Tensor, shape (..., N)
        What `rms_norm` returns.
    x : torch.Tensor, shape (..., N)
        A view of `x`, through which its other gradient comes. It must not be written to.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    rms_norm : Return y alone.
    add_rms_norm : Of a sum, which goes on too.
    layer_norm_with_input : The same of LayerNorm.

    Notes
    -----
    Both gradients are added in float32 (float64 for float64 data) and rounded once, where autograd
    would round each of them to x's dtype, and their sum. ``torch.compile`` takes this for a norm
    and its input, and adds the gradients as autograd does.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 7.0]], requires_grad=True)
    >>> y, again = cunorm.torch.rms_norm_with_input(x)
    >>> (y.sum() + again.sum()).backward()
    >>> x.grad
    tensor([[1.1680, 0.9760]])
    """
    tensors(x=x, gamma=gamma)
    eps, gamma_offset, cast, dtype = options(
        eps=eps, gamma_offset=gamma_offset, cast=cast, dtype=dtype
    )
    beside = modulation(x, scale, shift, scale_offset, rounds=cast == "before")
    y, x = _RMS_NORM(x, gamma, eps, gamma_offset, cast, *beside, dtype)
    return y, x


def layer_norm_with_input(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gamma_offset: float = 0.0,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise rows, and return x beside y for what else uses it, differentiably.

    As `rms_norm_with_input`, of `layer_norm`.

    Parameters
    ----------
    x, gamma, beta, eps, gamma_offset, scale, shift, scale_offset, dtype
        As in `layer_norm`.

    Returns
    -------
    y : torch.Tensor, shape (..., N)
        What `layer_norm` returns.
    x : torch.Tensor, shape (..., N)
        A view of `x`, through which its other gradient comes. It must not be written to.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    layer_norm : Return y alone.
    add_layer_norm : Of a sum, which goes on too.
    rms_norm_with_input : The same of RMSNorm.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 3.0]], requires_grad=True)
    >>> y, again = cunorm.torch.layer_norm_with_input(x)
    >>> (y.sum() + again.sum()).backward()
    >>> x.grad
    tensor([[1., 1.]])
    """
    tensors(x=x, gamma=gamma, beta=beta)
    eps, gamma_offset, dtype = options(eps=eps, gamma_offset=gamma_offset, dtype=dtype)
    beside = modulation(x, scale, shift, scale_offset)
    y, x = _LAYER_NORM(x, gamma, beta, eps, gamma_offset, *beside, dtype)
    return y, x
