"""RMSNorm and LayerNorm as modules whose state dicts are those of torch's and Hugging Face's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral

import torch

from .. import _check
from .._typing import Activation, Cast
from ._gated import rms_norm_gated
from ._ops import layer_norm, rms_norm


class RMSNorm(torch.nn.Module):
    """Normalise rows by their root mean square: `rms_norm` with its weight.

    ``y = x / sqrt(mean(x**2) + eps) * (weight + gamma_offset)``, the mean over the axes of
    `normalized_shape`. The state dict has the one key ``weight``, as that of ``torch.nn.RMSNorm``,
    Qwen2RMSNorm, LlamaRMSNorm and GemmaRMSNorm, and loads from and into each of them. The arguments
    say which of them this module computes, to the rounding:

    ===============================  ==================================================
    ``torch.nn.RMSNorm(N)``          ``RMSNorm(N, eps=None, cast="after")``
    Qwen2, Llama, Mistral, T5        ``RMSNorm(N)``
    Olmo2, GPT-OSS, Nemotron-H       ``RMSNorm(N, cast="after")``
    Gemma, Gemma 2 and 3             ``RMSNorm(N, gamma_offset=1.0, cast="after")``
    ===============================  ==================================================

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The trailing axes that are normalised; an int for the last one.
    eps : float or None
        Added to the mean square. None is the machine epsilon of the type that statistics are
        computed in, as ``torch.nn.RMSNorm`` has it: 2**-52 for float64 data, else 2**-23.
    elementwise_affine : bool
        Whether there is a weight.
    gamma_offset : float
        Added to the weight in float32: 1 for models that store the weight less one, like Gemma's.
    cast : {"before", "after"}
        Where 16-bit results are rounded. "before" rounds the normalised value to x's dtype before
        the weight multiplies and the product again; "after" rounds once, at the end.
    copy_inputs : bool
        Whether x is copied first where a gradient is recorded, so that x may be written to before
        the backward pass, as in ``x += norm(x)``. Else x itself is kept, and PyTorch refuses the
        gradient of what was written to since.
    device, dtype
        Of the weight.

    Attributes
    ----------
    weight : torch.nn.Parameter or None
        Of `normalized_shape`, ``1 - gamma_offset`` at first, which multiplies by one.

    See Also
    --------
    rms_norm : What it calls.
    replace_norms : Swap those of a model that exists.

    Notes
    -----
    y has x's dtype, whatever the weight's. Hugging Face's classes with ``cast="before"`` return the
    promoted dtype of the two where they differ; `replace_norms` keeps that.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> norm = cunorm.torch.RMSNorm(2, eps=1e-5, cast="after")
    >>> norm(torch.tensor([[1.0, 7.0]])).detach()
    tensor([[0.2000, 1.4000]])
    >>> list(norm.state_dict())
    ['weight']
    """

    normalized_shape: tuple[int, ...]
    weight: torch.nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = 1e-6,
        elementwise_affine: bool = True,
        *,
        gamma_offset: float = 0.0,
        cast: Cast = "before",
        copy_inputs: bool = False,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = None if eps is None else _eps(eps)
        self.elementwise_affine = elementwise_affine
        _check.cast(cast)
        self.gamma_offset = _check.real("gamma_offset", gamma_offset)
        if self.gamma_offset and not elementwise_affine:
            raise ValueError(f"gamma_offset must be 0 without a weight, but is {gamma_offset}")
        self.cast = cast
        self.copy_inputs = copy_inputs
        weight = None
        if elementwise_affine:
            empty = torch.empty(self.normalized_shape, device=device, dtype=dtype)
            weight = torch.nn.Parameter(empty)
        self.register_parameter("weight", weight)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight with ``1 - gamma_offset``, so that it multiplies by one."""
        if self.weight is not None:
            torch.nn.init.constant_(self.weight, 1.0 - self.gamma_offset)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y, of x's shape and dtype."""
        (given,) = copied((x,), self.weight) if self.copy_inputs else (x,)
        rows = rows_of(given, self.normalized_shape, self.weight)
        eps = machine_epsilon(x) if self.eps is None else self.eps
        y = rms_norm(rows, self.weight, eps, gamma_offset=self.gamma_offset, cast=self.cast)
        return y if rows is given else y.view(x.shape)

    def extra_repr(self) -> str:
        """Return the arguments, for repr."""
        parts = [f"{self.normalized_shape}, eps={self.eps}"]
        if not self.elementwise_affine:
            parts.append("elementwise_affine=False")
        if self.gamma_offset:
            parts.append(f"gamma_offset={self.gamma_offset}")
        parts.append(f"cast={self.cast!r}")
        if self.copy_inputs:
            parts.append("copy_inputs=True")
        return ", ".join(parts)


class LayerNorm(torch.nn.Module):
    """Normalise rows by their mean and variance: `layer_norm` with its weight and bias.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias``, with the biased variance, over the axes of
    `normalized_shape`; 16-bit results are rounded once, at the end. The arguments and the state
    dict are those of ``torch.nn.LayerNorm``.

    Parameters
    ----------
    normalized_shape : int or sequence of int
        The trailing axes that are normalised; an int for the last one.
    eps : float
        Added to the variance.
    elementwise_affine : bool
        Whether there is a weight.
    bias : bool
        Whether there is a bias beside the weight.
    device, dtype
        Of the parameters.
    copy_inputs : bool
        As in `RMSNorm`.

    Attributes
    ----------
    weight, bias : torch.nn.Parameter or None
        Of `normalized_shape`; ones and zeros at first.

    See Also
    --------
    layer_norm : What it calls.
    replace_norms : Swap those of a model that exists.

    Notes
    -----
    y has x's dtype, whatever the parameters'.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> norm = cunorm.torch.LayerNorm(2, bias=False)
    >>> norm.load_state_dict(torch.nn.LayerNorm(2, bias=False).state_dict())
    <All keys matched successfully>
    """

    normalized_shape: tuple[int, ...]
    weight: torch.nn.Parameter | None
    bias: torch.nn.Parameter | None

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
        *,
        copy_inputs: bool = False,
    ) -> None:
        super().__init__()
        self.normalized_shape = _shape(normalized_shape)
        self.eps = _eps(eps)
        self.elementwise_affine = elementwise_affine
        self.copy_inputs = copy_inputs
        for name, wanted in (("weight", True), ("bias", bias)):
            parameter = None
            if elementwise_affine and wanted:
                empty = torch.empty(self.normalized_shape, device=device, dtype=dtype)
                parameter = torch.nn.Parameter(empty)
            self.register_parameter(name, parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight with ones and the bias with zeros."""
        if self.weight is not None:
            torch.nn.init.ones_(self.weight)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return y, of x's shape and dtype."""
        (given,) = copied((x,), self.weight, self.bias) if self.copy_inputs else (x,)
        rows = rows_of(given, self.normalized_shape, self.weight)
        y = layer_norm(rows, self.weight, self.bias, self.eps)
        return y if rows is given else y.view(x.shape)

    def extra_repr(self) -> str:
        """Return the arguments, for repr."""
        return (
            f"{self.normalized_shape}, eps={self.eps}, "
            f"elementwise_affine={self.elementwise_affine}, bias={self.bias is not None}"
            + ", copy_inputs=True"
            * self.copy_inputs
        )


class RMSNormGated(torch.nn.Module):
    """Normalise rows by their root mean square and multiply by a gate: `rms_norm_gated`.

    ``y = rms_norm(x) * weight * silu(gate)``, or ``rms_norm(x * silu(gate)) * weight`` with
    `gate_first`. The state dict has the one key ``weight``, as those of Hugging Face's classes of
    this name. The arguments say which of them this module computes, to the rounding:

    =====================================  ======================================================
    Qwen3-Next, Qwen3.5, OLMo Hybrid       ``RMSNormGated(N)``
    Kimi Linear, Bailing Hybrid            ``RMSNormGated(N, activation="sigmoid", cast="after")``
    Mamba2, Zamba2, Bamba, Nemotron-H      ``RMSNormGated(N, group=g, gate_first=True)``
    Falcon-H1                              ``RMSNormGated(N, group=g, cast="after")``
    =====================================  ======================================================

    Parameters
    ----------
    normalized_shape : int
        The length N of a row.
    eps : float
        Added to the mean square.
    group : int, optional
        Columns that are normalised together, a divisor of N.
    activation : {"silu", "sigmoid", None}
        What the gate becomes before it multiplies.
    gate_first : bool
        Whether the gate multiplies before the norm.
    gamma_offset : float
        Added to the weight in float32.
    cast : {"before", "after"}
        As in `rms_norm_gated`.
    device, dtype
        Of the weight.

    Attributes
    ----------
    weight : torch.nn.Parameter
        Of shape (N,), ``1 - gamma_offset`` at first, which multiplies by one.

    See Also
    --------
    rms_norm_gated : What it calls.
    replace_norms : Swap those of a model that exists.

    Notes
    -----
    y has x's dtype, whatever the weight's. Where the gate comes first, Hugging Face's classes
    return the promoted dtype of the two.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> norm = cunorm.torch.RMSNormGated(2)
    >>> norm(torch.tensor([[1.0, 7.0]]), torch.tensor([[0.0, 1.0]])).detach()
    tensor([[0.0000, 1.0235]])
    >>> list(norm.state_dict())
    ['weight']
    """

    def __init__(
        self,
        normalized_shape: int,
        eps: float = 1e-6,
        *,
        group: int | None = None,
        activation: Activation = "silu",
        gate_first: bool = False,
        gamma_offset: float = 0.0,
        cast: Cast = "before",
        device: torch.device | str | int | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        (size,) = self.normalized_shape = _shape(normalized_shape)[:1]
        self.eps = _eps(eps)
        self.group = _check.whole("group", group)
        if self.group is not None and (self.group < 1 or size % self.group):
            raise ValueError(f"group must divide normalized_shape, {size}, but is {group}")
        self.activation: Activation = activation
        _check.word(activation, "activation", _check.ACTIVATIONS)
        self.gate_first = bool(gate_first)
        self.gamma_offset = _check.real("gamma_offset", gamma_offset)
        _check.cast(cast)
        self.cast = cast
        self.weight = torch.nn.Parameter(torch.empty(size, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the weight with ``1 - gamma_offset``, so that it multiplies by one."""
        torch.nn.init.constant_(self.weight, 1.0 - self.gamma_offset)

    def forward(self, x: torch.Tensor, gate: torch.Tensor) -> torch.Tensor:
        """Return y, of x's shape and dtype."""
        return rms_norm_gated(
            x,
            gate,
            self.weight,
            self.eps,
            activation=self.activation,
            gate_first=self.gate_first,
            group=self.group,
            gamma_offset=self.gamma_offset,
            cast=self.cast,
        )

    def extra_repr(self) -> str:
        """Return the arguments, for repr."""
        parts = [f"{self.normalized_shape}, eps={self.eps}"]
        if self.group is not None:
            parts.append(f"group={self.group}")
        parts.append(f"activation={self.activation!r}")
        if self.gate_first:
            parts.append("gate_first=True")
        if self.gamma_offset:
            parts.append(f"gamma_offset={self.gamma_offset}")
        parts.append(f"cast={self.cast!r}")
        return ", ".join(parts)


def rows_of(
    x: torch.Tensor, normalized_shape: tuple[int, ...], weight: torch.Tensor | None
) -> torch.Tensor:
    """Return x as the ops take it.

    They learn from gamma's shape what is normalised, and take the last axis where there is none:
    several axes without a weight are made one.
    """
    if weight is None:
        count = len(normalized_shape)
        if tuple(x.shape[-count:]) != normalized_shape:
            raise ValueError(
                f"x must end in the axes of normalized_shape, {normalized_shape}, "
                f"but has shape {tuple(x.shape)}"
            )
        if count > 1:
            return x.flatten(-count)
    return x


def copied(
    rows: tuple[torch.Tensor, ...], *parameters: torch.Tensor | None
) -> tuple[torch.Tensor, ...]:
    """Return copies of rows where a gradient is recorded, which keeps what the op is given."""
    given = (*rows, *parameters)
    if torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in given):
        return tuple(x.clone() for x in rows)
    return rows


def machine_epsilon(x: torch.Tensor) -> float:
    """Return the eps that ``torch.nn.RMSNorm(eps=None)`` takes for x."""
    return torch.finfo(torch.float64 if x.dtype == torch.float64 else torch.float32).eps


def _shape(normalized_shape: int | Sequence[int]) -> tuple[int, ...]:
    """Return the shape as a tuple of one positive int or more."""
    given = (normalized_shape,) if isinstance(normalized_shape, Integral) else normalized_shape
    if not isinstance(given, Sequence) or not all(isinstance(size, Integral) for size in given):
        raise TypeError(
            f"normalized_shape must be an int or a sequence of them, but is {normalized_shape!r}"
        )
    if not given or min(given) < 1:
        raise ValueError(
            f"normalized_shape must be of one positive int or more, but is {normalized_shape!r}"
        )
    return tuple(int(size) for size in given)


def _eps(eps: float) -> float:
    """Return eps, a finite number that is not negative."""
    number = _check.real("eps", eps)
    if not (math.isfinite(number) and number >= 0):
        raise ValueError(f"eps must be finite and not negative, but is {eps}")
    return number
