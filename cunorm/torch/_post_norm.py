"""Norms that are added to a residual, on tensors, and those that write over it."""

from __future__ import annotations

import torch
from torch import Tensor

from .._typing import Cast
from . import _autograd  # noqa: F401  (gives the operators their gradients)
from ._checks import in_place, operand, options, tensors

_operators = torch.ops.cunorm


def rms_norm_add(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> Tensor:
    """Normalise rows by their root mean square, and add them to a residual, differentiably.

    ``h = residual + gate * rms_norm(x, gamma, eps)``, in one pass of two reads and one write.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual : torch.Tensor, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64.
    gamma, eps
        As in `rms_norm`.
    gate : torch.Tensor or float, optional
        What the norm is multiplied with before it is added: it broadcasts against `x`, with any
        strides; float16, bfloat16 or float32; float64 or float32 where `x` is float64.
    gamma_offset, cast
        As in `rms_norm`: those of the norm. Its result is rounded to x's dtype with either cast,
        and the product and the sum to the dtypes that promotion gives them.

    Returns
    -------
    torch.Tensor, shape (..., N)
        h in residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    rms_norm_add_ : Write over residual, for inference.
    rms_norm_add_rms_norm : Normalise h in turn.
    add_rms_norm : Add first, and normalise the sum.
    cunorm.rms_norm_add : The same of CuPy arrays.

    Notes
    -----
    For the backward pass x, gamma, the gate and rstd are kept, and h's gradient is cast to x's
    dtype for the kernel. The gate's gradient is that kernel's too.

    The definition is that of the layers of OLMo 2, "2 OLMo 2 Furious", 2024.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 7.0]]), torch.tensor([[10.0, 20.0]])
    >>> cunorm.torch.rms_norm_add(x, residual)
    tensor([[10.2000, 21.4000]])
    """
    tensors(x=x, residual=residual, gamma=gamma)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    gate = operand(x, "gate", gate)
    h, _ = _operators.rms_norm_add_fwd(x, residual, gamma, eps, gate, gamma_offset, cast)
    return h  # type: ignore[no-any-return]


def layer_norm_add(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
) -> Tensor:
    """Normalise rows to mean 0 and variance 1, and add them to a residual, differentiably.

    ``h = residual + gate * layer_norm(x, gamma, beta, eps)``, in one pass of two reads and one
    write.

    Parameters
    ----------
    x
        As in `layer_norm`.
    residual
        As in `rms_norm_add`.
    gamma, beta, eps
        As in `layer_norm`.
    gate
        As in `rms_norm_add`.
    gamma_offset
        As in `layer_norm`. The norm is rounded to x's dtype, and the product and the sum to the
        dtypes that promotion gives them.

    Returns
    -------
    torch.Tensor, shape (..., N)
        h in residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    layer_norm_add_ : Write over residual, for inference.
    add_layer_norm : Add first, and normalise the sum.
    rms_norm_add : Leave the mean where it is.
    cunorm.layer_norm_add : The same of CuPy arrays.

    Notes
    -----
    As those of `rms_norm_add`; mean is kept too, and beta beside a gate.

    The definition is that of Liu et al., "Swin Transformer V2", 2022: res-post-norm.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0, 20.0]])
    >>> cunorm.torch.layer_norm_add(x, residual, gate=0.5)
    tensor([[ 9.5000, 20.5000]])
    """
    tensors(x=x, residual=residual, gamma=gamma, beta=beta)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    gate = operand(x, "gate", gate)
    h, *_ = _operators.layer_norm_add_fwd(x, residual, gamma, beta, eps, gate, gamma_offset)
    return h  # type: ignore[no-any-return]


def rms_norm_add_rms_norm(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    gamma2: Tensor | None = None,
    eps: float = 1e-6,
    *,
    eps2: float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> tuple[Tensor, Tensor]:
    """Normalise x, add it to a residual and normalise the sum, in one pass, differentiably.

    ``h = residual + rms_norm(x, gamma, eps)``, rounded to residual's dtype;
    ``y = rms_norm(h, gamma2, eps2)`` of h as rounded, in x's dtype.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual
        As in `rms_norm_add`. With another dtype than x's the norms are a kernel each.
    gamma
        As in `rms_norm`.
    gamma2 : torch.Tensor, optional
        The weight of the second norm, as `gamma`.
    eps
        As in `rms_norm`.
    eps2 : float, optional
        Added to the mean square of h; `eps` if left out.
    gamma_offset, cast
        As in `rms_norm`, of both norms.

    Returns
    -------
    y : torch.Tensor, shape (..., N)
        In x's dtype, contiguous.
    h : torch.Tensor, shape (..., N)
        In residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    rms_norm_add_rms_norm_ : Write over x and residual, for inference.
    rms_norm_add : Return h alone.
    add_rms_norm : Without the first norm.
    cunorm.rms_norm_add_rms_norm : The same of CuPy arrays.

    Notes
    -----
    For the backward pass x, h, both weights and both rstd are kept. It is one kernel for each norm,
    and that of the second adds h's own gradient.

    The definition is that of the layers of Gemma 2, "Improving Open Language Models at a Practical
    Size", 2024, which have ``gamma_offset=1, cast="after"``.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.8, 5.6]])
    >>> cunorm.torch.rms_norm_add_rms_norm(x, residual)
    (tensor([[0.2000, 1.4000]]), tensor([[1., 7.]]))
    """
    tensors(x=x, residual=residual, gamma=gamma, gamma2=gamma2)
    numbers = options(eps=eps, eps2=eps2, gamma_offset=gamma_offset, cast=cast)
    y, h, *_ = _operators.rms_norm_add_rms_norm_fwd(x, residual, gamma, gamma2, *numbers)
    return y, h


def rms_norm_add_(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> Tensor:
    """Write over residual what `rms_norm_add` returns, and return residual.

    Parameters
    ----------
    x, residual, gamma, eps, gate, gamma_offset, cast
        As in `rms_norm_add`. `residual` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `residual` itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_`.

    See Also
    --------
    rms_norm_add : Leave residual as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 7.0]]), torch.tensor([[10.0, 20.0]])
    >>> cunorm.torch.rms_norm_add_(x, residual) is residual
    True
    """
    tensors(x=x, residual=residual, gamma=gamma)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    gate = operand(x, "gate", gate)
    in_place("rms_norm_add", x=x, residual=residual, gamma=gamma, gate=gate)
    _operators.rms_norm_add_(x, residual, gamma, eps, gate, gamma_offset, cast)
    return residual


def layer_norm_add_(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
) -> Tensor:
    """Write over residual what `layer_norm_add` returns, and return residual.

    Parameters
    ----------
    x, residual, gamma, beta, eps, gate, gamma_offset
        As in `layer_norm_add`. `residual` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `residual` itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_`.

    See Also
    --------
    layer_norm_add : Leave residual as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 3.0]]), torch.tensor([[10.0, 20.0]])
    >>> cunorm.torch.layer_norm_add_(x, residual) is residual
    True
    """
    tensors(x=x, residual=residual, gamma=gamma, beta=beta)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    gate = operand(x, "gate", gate)
    in_place("layer_norm_add", x=x, residual=residual, gamma=gamma, beta=beta, gate=gate)
    _operators.layer_norm_add_(x, residual, gamma, beta, eps, gate, gamma_offset)
    return residual


def rms_norm_add_rms_norm_(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    gamma2: Tensor | None = None,
    eps: float = 1e-6,
    *,
    eps2: float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> tuple[Tensor, Tensor]:
    """Write over x and residual what `rms_norm_add_rms_norm` returns, and return both.

    Parameters
    ----------
    x, residual, gamma, gamma2, eps, eps2, gamma_offset, cast
        As in `rms_norm_add_rms_norm`. What is written must not overlap itself, nor another
        argument.

    Returns
    -------
    tuple of torch.Tensor
        `x` and `residual` themselves.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_`.

    See Also
    --------
    rms_norm_add_rms_norm : Leave both as they are, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.8, 5.6]])
    >>> y, h = cunorm.torch.rms_norm_add_rms_norm_(x, residual)
    >>> y is x and h is residual
    True
    """
    tensors(x=x, residual=residual, gamma=gamma, gamma2=gamma2)
    numbers = options(eps=eps, eps2=eps2, gamma_offset=gamma_offset, cast=cast)
    in_place("rms_norm_add_rms_norm", x=x, residual=residual, gamma=gamma, gamma2=gamma2)
    _operators.rms_norm_add_rms_norm_(x, residual, gamma, gamma2, *numbers)
    return x, residual
