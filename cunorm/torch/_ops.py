"""The ops on PyTorch tensors: what a user calls."""

from __future__ import annotations

import torch
from torch import Tensor

from .._typing import Cast
from . import _autograd  # noqa: F401  (gives the operators their gradients)
from ._checks import modulation, operand, options, tensors

_operators = torch.ops.cunorm


def rms_norm(
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
) -> Tensor:
    """Normalise rows by their root mean square, differentiably.

    ``y = x / sqrt(mean(x**2) + eps) * (gamma + gamma_offset)``, the mean over the normalised axes:
    the trailing ``gamma.ndim`` axes of `x`, or its last axis where there is no `gamma`.

    Parameters
    ----------
    x : torch.Tensor, shape (..., N)
        float16, bfloat16, float32 or float64, on a CUDA device or on the CPU, with any strides.
    gamma : torch.Tensor, optional
        The weight, of the shape of trailing axes of `x`: float16, bfloat16 or float32, whatever
        x's dtype; float64 or float32 where `x` is float64. None multiplies by nothing.
    eps : float
        Added to the mean square; finite and not negative.
    gamma_offset : float
        Added to `gamma` in float32: 1 for models that store the weight less one, like Gemma's.
    cast : {"before", "after"}
        Where 16-bit results are rounded. "before" rounds the normalised value to x's dtype before
        `gamma` multiplies and the product again, as Qwen2, Llama and T5 do. "after" rounds once, at
        the end, as ``torch.nn.RMSNorm`` does.
    scale, shift : torch.Tensor or float, optional
        What follows the norm: ``n * (scale + scale_offset)``, then ``+ shift``, each result rounded
        to the dtype that promotion gives it (float32 of float16 and bfloat16). They broadcast
        against `x`, with any strides: by column, by sample, by token, by head. Dtypes as of
        `gamma`; a number stands for one of x's dtype.
    scale_offset : float
        Added to `scale`, in its dtype.
    dtype : torch.dtype, optional
        That of y: float16, bfloat16, float32 or float64; x's, if left out.

    Returns
    -------
    torch.Tensor, shape (..., N)
        y in x's dtype, or `dtype`, contiguous.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype, or a device that is neither CUDA nor the CPU.
    ValueError
        For a wrong shape, device or value.
    RuntimeError
        Where a gradient is differentiated again, or an argument has a forward-mode tangent.

    See Also
    --------
    rms_norm_ : Write over x, for inference.
    add_rms_norm : Add a residual first.
    RMSNorm : As a module.
    cunorm.rms_norm : The same of CuPy arrays.

    Notes
    -----
    For the backward pass x, gamma and rstd are kept, which is one float32 (float64 for float64
    data) for each row: x and gamma themselves, so that writing to them before the backward pass is
    an error, and copies of what was made under ``torch.inference_mode()``; so is a scale, and beta
    beside it. The gradients of scale and shift are summed over the axes along which those
    broadcast, in the backward kernel, and y's gradient is cast to x's dtype for it. No rounding is
    differentiated. Autocast changes nothing: y has x's dtype, and sums are float32 anyway. The
    definition is that of Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 7.0], [10.0, 10.0]])
    >>> gamma = torch.ones(2, requires_grad=True)
    >>> y = cunorm.torch.rms_norm(x, gamma)
    >>> y.sum().backward()
    >>> y.detach(), gamma.grad
    (tensor([[0.2000, 1.4000],
            [1.0000, 1.0000]]), tensor([1.2000, 2.4000]))
    """
    tensors(x=x, gamma=gamma)
    eps, gamma_offset, cast, dtype = options(
        eps=eps, gamma_offset=gamma_offset, cast=cast, dtype=dtype
    )
    beside = modulation(x, scale, shift, scale_offset, rounds=cast == "before")
    y, _ = _operators.rms_norm_fwd(x, gamma, eps, gamma_offset, cast, *beside, dtype)
    return y  # type: ignore[no-any-return]


def layer_norm(
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
) -> Tensor:
    """Normalise rows by their mean and variance, differentiably.

    ``y = (x - mean) / sqrt(var + eps) * (gamma + gamma_offset) + beta``, with the biased variance,
    over the normalised axes: the trailing axes that `gamma` or `beta` has, or the last one.

    Parameters
    ----------
    x
        As in `rms_norm`.
    gamma, beta : torch.Tensor, optional
        Weight and bias, each as `gamma` of `rms_norm`; their dtypes may differ.
    eps, gamma_offset, scale, shift, scale_offset, dtype
        As in `rms_norm`.

    Returns
    -------
    torch.Tensor, shape (..., N)
        y in x's dtype, or `dtype`, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    layer_norm_ : Write over x, for inference.
    add_layer_norm : Add a residual first.
    LayerNorm : As a module.
    cunorm.layer_norm : The same of CuPy arrays.

    Notes
    -----
    As those of `rms_norm`; mean is kept too. The definition is that of Ba, Kiros and Hinton, "Layer
    Normalization", 2016.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 3.0], [10.0, 14.0]])
    >>> beta = torch.zeros(2, requires_grad=True)
    >>> y = cunorm.torch.layer_norm(x, torch.ones(2), beta)
    >>> y.sum().backward()
    >>> beta.grad
    tensor([2., 2.])
    """
    tensors(x=x, gamma=gamma, beta=beta)
    eps, gamma_offset, dtype = options(eps=eps, gamma_offset=gamma_offset, dtype=dtype)
    beside = modulation(x, scale, shift, scale_offset)
    y, *_ = _operators.layer_norm_fwd(x, gamma, beta, eps, gamma_offset, *beside, dtype)
    return y  # type: ignore[no-any-return]


def add_rms_norm(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum, in one pass, differentiably.

    ``h = x + residual``, rounded to residual's dtype; ``y = rms_norm(h, gamma, eps)`` of h as
    rounded, in x's dtype. Gradients flow through both, and backward is one pass too.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual : torch.Tensor, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64.
    gamma, eps
        As in `rms_norm`.
    gate : torch.Tensor or float, optional
        What x is multiplied with before it is added: it broadcasts against `x`, as `scale` does,
        and the product is rounded to the dtype that promotion gives it.
    gamma_offset, cast, scale, shift, scale_offset, dtype
        As in `rms_norm`.

    Returns
    -------
    y : torch.Tensor, shape (..., N)
        In x's dtype, or `dtype`, contiguous.
    h : torch.Tensor, shape (..., N)
        In residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    add_rms_norm_ : Write over x and residual, for inference.
    rms_norm : Of x alone.
    cunorm.add_rms_norm : The same of CuPy arrays.

    Notes
    -----
    For the backward pass h is kept, not x and residual; with a gate x too, whose gradient and the
    gate's are made in the same kernel: of h's gradient as it is rounded to h's dtype, like
    ``residual + gate * x`` in PyTorch. Where their dtypes differ, y's gradient is cast to h's dtype
    first; without a gate h's gradient, as it leaves the kernel in that dtype, is cast to x's.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    >>> cunorm.torch.add_rms_norm(x, residual)
    (tensor([[0.2000, 1.4000]]), tensor([[1., 7.]]))
    """
    tensors(x=x, residual=residual, gamma=gamma)
    eps, gamma_offset, cast, dtype = options(
        eps=eps, gamma_offset=gamma_offset, cast=cast, dtype=dtype
    )
    beside = modulation(x, scale, shift, scale_offset, rounds=cast == "before")
    gate = operand(x, "gate", gate)
    y, h, _ = _operators.add_rms_norm_fwd(
        x, residual, gamma, eps, gate, gamma_offset, cast, *beside, dtype
    )
    return y, h


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: Tensor | float | None = None,
    gamma_offset: float = 0.0,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Add a residual and normalise the sum, in one pass, differentiably.

    ``h = x + residual``, rounded to residual's dtype; ``y = layer_norm(h, gamma, beta, eps)`` of h
    as rounded, in x's dtype. Gradients flow through both, and backward is one pass too.

    Parameters
    ----------
    x
        As in `layer_norm`.
    residual : torch.Tensor, of x's shape
        As in `add_rms_norm`.
    gamma, beta, eps
        As in `layer_norm`.
    gate
        As in `add_rms_norm`.
    gamma_offset, scale, shift, scale_offset, dtype
        As in `layer_norm`.

    Returns
    -------
    y : torch.Tensor, shape (..., N)
        In x's dtype, or `dtype`, contiguous.
    h : torch.Tensor, shape (..., N)
        In residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm`.

    See Also
    --------
    add_layer_norm_ : Write over x and residual, for inference.
    layer_norm : Of x alone.
    cunorm.add_layer_norm : The same of CuPy arrays.

    Notes
    -----
    As those of `add_rms_norm`.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    >>> y, h = cunorm.torch.add_layer_norm(x, residual)
    >>> h
    tensor([[1., 3.]])
    """
    tensors(x=x, residual=residual, gamma=gamma, beta=beta)
    eps, gamma_offset, dtype = options(eps=eps, gamma_offset=gamma_offset, dtype=dtype)
    beside = modulation(x, scale, shift, scale_offset)
    gate = operand(x, "gate", gate)
    y, h, *_ = _operators.add_layer_norm_fwd(
        x, residual, gamma, beta, eps, gate, gamma_offset, *beside, dtype
    )
    return y, h
