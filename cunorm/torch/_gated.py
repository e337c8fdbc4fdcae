"""Norms that a gate multiplies, on tensors, and those that write over x."""

from __future__ import annotations

import torch
from torch import Tensor

from .._typing import Activation, Cast
from . import _autograd  # noqa: F401  (gives the operators their gradients)
from ._checks import in_place, options, tensors

_operators = torch.ops.cunorm


def rms_norm_gated(
    x: Tensor,
    gate: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise rows by their root mean square, and multiply them by a gate, differentiably.

    ``y = rms_norm(x, gamma, eps) * silu(gate)``; with `gate_first`
    ``y = rms_norm(x * silu(gate), gamma, eps)``; ``silu(g) = g / (1 + exp(-g))``.

    Parameters
    ----------
    x
        As in `rms_norm`.
    gate : torch.Tensor, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64. Any strides, as
        of a slice of a wider projection.
    gamma, eps
        As in `rms_norm`.
    activation : {"silu", "sigmoid", None}
        What the gate becomes before it multiplies, in float32 (float64 for float64 data); None
        leaves it as it is.
    gate_first : bool
        Whether the gate multiplies before the norm, in float32 that is not rounded, as in Mamba2.
        If not, it multiplies the norm, as in Qwen3-Next.
    group : int, optional
        Columns that are normalised together, a divisor of N. `gamma` has one axis then, and spans
        all columns.
    gamma_offset
        As in `rms_norm`.
    cast : {"before", "after"}
        Where 16-bit results are rounded. "before" rounds where `rms_norm` does, and, where a gate
        follows, the norm to x's dtype before it multiplies, in float32. "after" rounds once, at the
        end.
    dtype
        As in `rms_norm`.

    Returns
    -------
    torch.Tensor, shape (..., N)
        y in x's dtype, or `dtype`, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`, and for a `group` that does not divide N.

    See Also
    --------
    rms_norm_gated_ : Write over x, for inference.
    RMSNormGated : As a module.
    rms_norm : Without a gate.
    layer_norm_gated : The same of LayerNorm.
    cunorm.rms_norm_gated : The same of CuPy arrays.

    Notes
    -----
    For the backward pass x, the gate, gamma and rstd are kept. One kernel makes the gradients of
    x and the gate, and another adds up gamma's. No rounding is differentiated.

    The definitions are those of the gated norms of Mamba2 (Dao and Gu, "Transformers are SSMs",
    2024; `gate_first`) and of Qwen3-Next.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, gate = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    >>> cunorm.torch.rms_norm_gated(x, gate)
    tensor([[0.0000, 1.0235]])
    """
    tensors(x=x, gate=gate, gamma=gamma)
    eps, activation, gate_first, group, gamma_offset, cast, dtype = options(
        eps=eps,
        activation=activation,
        gate_first=gate_first,
        group=group,
        gamma_offset=gamma_offset,
        cast=cast,
        dtype=dtype,
    )
    y, _ = _operators.rms_norm_gated_fwd(
        x, gate, gamma, eps, activation, gate_first, group, gamma_offset, cast, dtype
    )
    return y  # type: ignore[no-any-return]


def layer_norm_gated(
    x: Tensor,
    gate: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Normalise rows to mean 0 and variance 1, and multiply them by a gate, differentiably.

    ``y = layer_norm(x, gamma, beta, eps) * silu(gate)``; with `gate_first`
    ``y = layer_norm(x * silu(gate), gamma, beta, eps)``; ``silu(g) = g / (1 + exp(-g))``.

    Parameters
    ----------
    x
        As in `layer_norm`.
    gate
        As in `rms_norm_gated`.
    gamma, beta, eps
        As in `layer_norm`.
    activation, gate_first, group, gamma_offset
        As in `rms_norm_gated`; with a `group`, `beta` has one axis too.
    cast : {"before", "after"}
        Where a gate follows: "before" rounds the norm to x's dtype before it multiplies, in
        float32, and "after" rounds once, at the end.
    dtype
        As in `rms_norm`.

    Returns
    -------
    torch.Tensor, shape (..., N)
        y in x's dtype, or `dtype`, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `layer_norm`, and for a `group` that does not divide N.

    See Also
    --------
    layer_norm_gated_ : Write over x, for inference.
    layer_norm : Without a gate.
    rms_norm_gated : Without a mean.
    cunorm.layer_norm_gated : The same of CuPy arrays.

    Notes
    -----
    As those of `rms_norm_gated`; mean and beta are kept too. Where gamma is None or has another
    dtype than beta, beta's gradient is summed by PyTorch.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, gate = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    >>> cunorm.torch.layer_norm_gated(x, gate)
    tensor([[-0.0000, 0.7311]])
    """
    tensors(x=x, gate=gate, gamma=gamma, beta=beta)
    eps, activation, gate_first, group, gamma_offset, cast, dtype = options(
        eps=eps,
        activation=activation,
        gate_first=gate_first,
        group=group,
        gamma_offset=gamma_offset,
        cast=cast,
        dtype=dtype,
    )
    y, *_ = _operators.layer_norm_gated_fwd(
        x, gate, gamma, beta, eps, activation, gate_first, group, gamma_offset, cast, dtype
    )
    return y  # type: ignore[no-any-return]


def rms_norm_gated_(
    x: Tensor,
    gate: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> Tensor:
    """Write over x what `rms_norm_gated` returns, and return x.

    Parameters
    ----------
    x, gate, gamma, eps, activation, gate_first, group, gamma_offset, cast
        As in `rms_norm_gated`. `x` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `x` itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_`.

    See Also
    --------
    rms_norm_gated : Leave x as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, gate = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    >>> cunorm.torch.rms_norm_gated_(x, gate) is x
    True
    """
    tensors(x=x, gate=gate, gamma=gamma)
    numbers = options(
        eps=eps,
        activation=activation,
        gate_first=gate_first,
        group=group,
        gamma_offset=gamma_offset,
        cast=cast,
    )
    in_place("rms_norm_gated", x=x, gate=gate, gamma=gamma)
    _operators.rms_norm_gated_(x, gate, gamma, *numbers)
    return x


def layer_norm_gated_(
    x: Tensor,
    gate: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
) -> Tensor:
    """Write over x what `layer_norm_gated` returns, and return x.

    Parameters
    ----------
    x, gate, gamma, beta, eps, activation, gate_first, group, gamma_offset, cast
        As in `layer_norm_gated`. `x` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `x` itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_`.

    See Also
    --------
    layer_norm_gated : Leave x as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, gate = torch.tensor([[1.0, 7.0]]), torch.tensor([[0.0, 1.0]])
    >>> cunorm.torch.layer_norm_gated_(x, gate) is x
    True
    """
    tensors(x=x, gate=gate, gamma=gamma, beta=beta)
    numbers = options(
        eps=eps,
        activation=activation,
        gate_first=gate_first,
        group=group,
        gamma_offset=gamma_offset,
        cast=cast,
    )
    in_place("layer_norm_gated", x=x, gate=gate, gamma=gamma, beta=beta)
    _operators.layer_norm_gated_(x, gate, gamma, beta, *numbers)
    return x
