"""The ops that write over their input, for inference: they have no gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from .._typing import Cast
from ._checks import in_place, modulation, operand, options, tensors

_operators = torch.ops.cunorm


def rms_norm_(
    x: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
) -> Tensor:
    """Write over x what `rms_norm` returns, and return x.

    Parameters
    ----------
    x, gamma, eps, gamma_offset, cast, scale, shift, scale_offset
        As in `rms_norm`. `x` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `x` itself.

    Raises
    ------
    RuntimeError
        Where a tensor requires a gradient and gradients are recorded: ``torch.no_grad()`` or
        ``torch.inference_mode()`` say that they are not wanted.
    TypeError, ValueError
        As `rms_norm`, and for memory that overlaps; a message calls what is written over x `out`,
        and what is written over residual `residual_out`. Nothing is written then.

    See Also
    --------
    rms_norm : Leave x as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 7.0], [10.0, 10.0]])
    >>> cunorm.torch.rms_norm_(x) is x
    True
    >>> x
    tensor([[0.2000, 1.4000],
            [1.0000, 1.0000]])
    """
    tensors(x=x, gamma=gamma)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    beside = modulation(x, scale, shift, scale_offset, rounds=cast == "before")
    in_place("rms_norm", x=x, gamma=gamma, scale=beside[0], shift=beside[1])
    _operators.rms_norm_(x, gamma, eps, gamma_offset, cast, *beside)
    return x


def layer_norm_(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gamma_offset: float = 0.0,
    scale: Tensor | float | None = None,
    shift: Tensor | float | None = None,
    scale_offset: float = 1.0,
) -> Tensor:
    """Write over x what `layer_norm` returns, and return x.

    Parameters
    ----------
    x, gamma, beta, eps, gamma_offset, scale, shift, scale_offset
        As in `layer_norm`. `x` must not overlap itself, nor another argument.

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
    layer_norm : Leave x as it is, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 3.0], [10.0, 14.0]])
    >>> cunorm.torch.layer_norm_(x) is x
    True
    >>> x.round(decimals=3)
    tensor([[-1.,  1.],
            [-1.,  1.]])
    """
    tensors(x=x, gamma=gamma, beta=beta)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    beside = modulation(x, scale, shift, scale_offset)
    in_place("layer_norm", x=x, gamma=gamma, beta=beta, scale=beside[0], shift=beside[1])
    _operators.layer_norm_(x, gamma, beta, eps, gamma_offset, *beside)
    return x


def add_rms_norm_(
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
) -> tuple[Tensor, Tensor]:
    """Write over x and residual the y and h that `add_rms_norm` returns, and return both.

    Parameters
    ----------
    x, residual, gamma, eps, gate, gamma_offset, cast, scale, shift, scale_offset
        As in `add_rms_norm`. What is written must not overlap itself, nor another argument.

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
    add_rms_norm : Leave both as they are, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    >>> y, h = cunorm.torch.add_rms_norm_(x, residual)
    >>> y is x and h is residual
    True
    >>> residual
    tensor([[1., 7.]])
    """
    tensors(x=x, residual=residual, gamma=gamma)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    beside = modulation(x, scale, shift, scale_offset, rounds=cast == "before")
    given = {"x": x, "residual": residual, "gamma": gamma, "gate": operand(x, "gate", gate)}
    in_place("add_rms_norm", **given, scale=beside[0], shift=beside[1])
    _operators.add_rms_norm_(x, residual, gamma, eps, given["gate"], gamma_offset, cast, *beside)
    return x, residual


def add_layer_norm_(
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
) -> tuple[Tensor, Tensor]:
    """Write over x and residual the y and h that `add_layer_norm` returns, and return both.

    Parameters
    ----------
    x, residual, gamma, beta, eps, gate, gamma_offset, scale, shift, scale_offset
        As in `add_layer_norm`. What is written must not overlap itself, nor another argument.

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
    add_layer_norm : Leave both as they are, with a gradient.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 1.0]])
    >>> y, h = cunorm.torch.add_layer_norm_(x, residual)
    >>> y is x and h is residual
    True
    >>> residual
    tensor([[1., 3.]])
    """
    tensors(x=x, residual=residual, gamma=gamma, beta=beta)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    beside = modulation(x, scale, shift, scale_offset)
    given = {"x": x, "residual": residual, "gamma": gamma, "beta": beta}
    given["gate"] = operand(x, "gate", gate)
    in_place("add_layer_norm", **given, scale=beside[0], shift=beside[1])
    _operators.add_layer_norm_(x, residual, gamma, beta, eps, given["gate"], gamma_offset, *beside)
    return x, residual
