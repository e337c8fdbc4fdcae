"""Norms of tensors whose results are quantised in the same kernel, and quantisation alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _check
from .._quant import Quant, codes_dtype, scales_dtype
from .._typing import Cast
from . import _quantised  # noqa: F401  (defines the operators)
from ._checks import DTYPES, no_gradient, operand, options, tensors
from ._operators import FIELDS

_operators = torch.ops.cunorm

CODES = {
    "e4m3": torch.float8_e4m3fn,
    "e5m2": torch.float8_e5m2,
    "int8": torch.int8,
    "e2m1": getattr(torch, "float4_e2m1fn_x2", torch.uint8),  # PyTorch has it since 2.8
}
SCALES = {
    "float32": torch.float32,
    "e8m0": getattr(torch, "float8_e8m0fnu", torch.uint8),  # since 2.7
    "e4m3": torch.float8_e4m3fn,
}


def rms_norm_quant(
    x: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    quant: Quant,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    y_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise rows by their root mean square, and quantise them, in one pass.

    ``q, scale = quantize(rms_norm(x, gamma, eps), quant)``, bit for bit: ``q = round(y / s)`` of y
    as rounded to x's dtype, with the scales s of `cunorm.Quant`.

    Parameters
    ----------
    x : torch.Tensor, shape (..., N)
        float16, bfloat16 or float32, on a CUDA device or on the CPU, with any strides.
    gamma : torch.Tensor, optional
        The weight, of shape (N,): float16, bfloat16 or float32.
    eps
        As in `rms_norm`.
    quant : cunorm.Quant
        The formats of codes and scales, what shares a scale, and how scales lie in memory. Its
        groups divide N.
    gamma_offset, cast
        As in `rms_norm`.
    y_out : torch.Tensor, optional
        Where y is written too, for one more write: `x` itself, or memory of x's shape and dtype
        that overlaps no other argument.

    Returns
    -------
    q : torch.Tensor, shape (..., N), or (..., N / 2) of e2m1
        The codes, in PyTorch's own dtype: float8_e4m3fn, float8_e5m2, int8 or float4_e2m1fn_x2.
    scale : torch.Tensor
        The scales: float32, float8_e8m0fnu or float8_e4m3fn, and int32 of the layout "packed".
        Shapes and strides are those of `cunorm.rms_norm_quant`.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device or value.
    RuntimeError
        Where a tensor requires a gradient and gradients are recorded: codes have none.

    See Also
    --------
    rms_norm : Return y.
    dequantize : Back to numbers.
    add_rms_norm_quant : Add a residual first.
    cunorm.rms_norm_quant : The same of CuPy arrays.

    Notes
    -----
    ``torch.compile`` takes it as one node, with a `quant` that is made outside of what is compiled.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 7.0]])
    >>> q, scale = cunorm.torch.rms_norm_quant(x, quant=cunorm.Quant.fp8_row())
    >>> q.dtype, (q.float() * scale).round(decimals=1)
    (torch.float8_e4m3fn, tensor([[0.2000, 1.4000]]))
    """
    tensors(x=x, gamma=gamma, y_out=y_out)
    _no_gradient("rms_norm_quant", x=x, gamma=gamma, y_out=y_out)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    given = (x, gamma, eps, *_fields(quant), gamma_offset, cast)
    return _codes(quant, *_written("rms_norm_quant", given, y_out))


def layer_norm_quant(
    x: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    quant: Quant,
    gamma_offset: float = 0.0,
    y_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Normalise rows by their mean and variance, and quantise them, in one pass.

    ``q, scale = quantize(layer_norm(x, gamma, beta, eps), quant)``, bit for bit.

    Parameters
    ----------
    x
        As in `rms_norm_quant`.
    gamma, beta : torch.Tensor, optional
        Weight and bias, of shape (N,) each.
    eps
        As in `layer_norm`.
    quant, gamma_offset, y_out
        As in `rms_norm_quant`.

    Returns
    -------
    q : torch.Tensor
        The codes, as of `rms_norm_quant`.
    scale : torch.Tensor
        The scales, as of `rms_norm_quant`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm_quant`.

    See Also
    --------
    layer_norm : Return y.
    rms_norm_quant : Leave the mean where it is.
    cunorm.layer_norm_quant : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[1.0, 2.0, 6.0]])
    >>> q, scale = cunorm.torch.layer_norm_quant(x, quant=cunorm.Quant.int8_row())
    >>> q
    tensor([[-85, -42, 127]], dtype=torch.int8)
    """
    tensors(x=x, gamma=gamma, beta=beta, y_out=y_out)
    _no_gradient("layer_norm_quant", x=x, gamma=gamma, beta=beta, y_out=y_out)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    given = (x, gamma, beta, eps, *_fields(quant), gamma_offset)
    return _codes(quant, *_written("layer_norm_quant", given, y_out))


def add_rms_norm_quant(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    eps: float = 1e-6,
    *,
    gate: Tensor | float | None = None,
    quant: Quant,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    y_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a residual, normalise the sum and quantise that, in one pass.

    ``y, h = add_rms_norm(x, residual, gamma, eps)`` and ``q, scale = quantize(y, quant)``, bit for
    bit.

    Parameters
    ----------
    x
        As in `rms_norm_quant`.
    residual
        As in `add_rms_norm`.
    gamma, eps
        As in `rms_norm_quant`.
    gate
        As in `add_rms_norm`.
    quant, gamma_offset, cast, y_out
        As in `rms_norm_quant`.

    Returns
    -------
    q, scale : torch.Tensor
        As of `rms_norm_quant`.
    h : torch.Tensor, shape (..., N)
        In residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm_quant`.

    See Also
    --------
    rms_norm_quant : Of x alone.
    add_layer_norm_quant : Subtract the mean too.
    cunorm.add_rms_norm_quant : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 5.0]])
    >>> quant = cunorm.Quant.fp8_static(0.25)
    >>> q, scale, h = cunorm.torch.add_rms_norm_quant(x, residual, quant=quant)
    >>> h
    tensor([[1., 7.]])
    """
    tensors(x=x, residual=residual, gamma=gamma, y_out=y_out)
    gate = operand(x, "gate", gate)
    _no_gradient("add_rms_norm_quant", x=x, residual=residual, gamma=gamma, gate=gate, y_out=y_out)
    eps, gamma_offset, cast = options(eps=eps, gamma_offset=gamma_offset, cast=cast)
    given = (x, residual, gamma, eps, gate, *_fields(quant), gamma_offset, cast)
    q, scale, h = _written("add_rms_norm_quant", given, y_out)
    return (*_codes(quant, q, scale), h)


def add_layer_norm_quant(
    x: Tensor,
    residual: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    eps: float = 1e-5,
    *,
    gate: Tensor | float | None = None,
    quant: Quant,
    gamma_offset: float = 0.0,
    y_out: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add a residual, normalise the sum by mean and variance and quantise that, in one pass.

    ``y, h = add_layer_norm(x, residual, gamma, beta, eps)`` and ``q, scale = quantize(y, quant)``,
    bit for bit.

    Parameters
    ----------
    x
        As in `rms_norm_quant`.
    residual
        As in `add_layer_norm`.
    gamma, beta, eps
        As in `layer_norm_quant`.
    gate
        As in `add_layer_norm`.
    quant, gamma_offset, y_out
        As in `layer_norm_quant`.

    Returns
    -------
    q, scale : torch.Tensor
        As of `rms_norm_quant`.
    h : torch.Tensor, shape (..., N)
        In residual's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm_quant`.

    See Also
    --------
    layer_norm_quant : Of x alone.
    add_rms_norm_quant : Without the mean.
    cunorm.add_layer_norm_quant : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x, residual = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[0.0, 0.0, 3.0]])
    >>> quant = cunorm.Quant.int8_row()
    >>> q, scale, h = cunorm.torch.add_layer_norm_quant(x, residual, quant=quant)
    >>> q
    tensor([[-85, -42, 127]], dtype=torch.int8)
    """
    tensors(x=x, residual=residual, gamma=gamma, beta=beta, y_out=y_out)
    gate = operand(x, "gate", gate)
    own = {"x": x, "residual": residual, "gamma": gamma, "beta": beta, "gate": gate}
    _no_gradient("add_layer_norm_quant", **own, y_out=y_out)
    eps, gamma_offset = options(eps=eps, gamma_offset=gamma_offset)
    given = (x, residual, gamma, beta, eps, gate, *_fields(quant), gamma_offset)
    q, scale, h = _written("add_layer_norm_quant", given, y_out)
    return (*_codes(quant, q, scale), h)


def quantize(y: Tensor, quant: Quant) -> tuple[Tensor, Tensor]:
    """Quantise rows as they are: what ``*_quant`` does with the result of a norm.

    ``q = round(y / s)``, with the scales s of `cunorm.Quant`.

    Parameters
    ----------
    y : torch.Tensor, shape (..., N)
        float16, bfloat16 or float32, as x of `rms_norm_quant`.
    quant
        As in `rms_norm_quant`.

    Returns
    -------
    q : torch.Tensor
        The codes, as of `rms_norm_quant`.
    scale : torch.Tensor
        The scales, as of `rms_norm_quant`.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm_quant`.

    See Also
    --------
    dequantize : The way back.
    rms_norm_quant : Of a norm, in the same pass.
    cunorm.quantize : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> q, scale = cunorm.torch.quantize(torch.tensor([[0.5, -2.0, 1.0]]), cunorm.Quant.int8_row())
    >>> q
    tensor([[  32, -127,   64]], dtype=torch.int8)
    """
    tensors(y=y)
    _no_gradient("quantize", y=y)
    return _codes(quant, *_operators.quantize(y, *_fields(quant)))


def dequantize(q: Tensor, scale: Tensor, quant: Quant, dtype: torch.dtype) -> Tensor:
    """Return the numbers that codes and scales stand for.

    ``y = q * s``, in float32, rounded to `dtype`; e4m3 scales are divided by quant's `global_scale`
    first.

    Parameters
    ----------
    q : torch.Tensor, shape (..., N), or (..., N / 2) of e2m1
        Codes, as `rms_norm_quant` returns them.
    scale : torch.Tensor
        Their scales, of the shape and dtype that it returns.
    quant : cunorm.Quant
        How they were made.
    dtype : torch.dtype
        That of y: float16, bfloat16, float32 or float64.

    Returns
    -------
    torch.Tensor, shape (..., N)
        y, contiguous.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape or device.
    RuntimeError
        As `rms_norm_quant`.

    See Also
    --------
    quantize : The way there.
    cunorm.dequantize : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> quant = cunorm.Quant.mxfp8(layout="rows")
    >>> q, scale = cunorm.torch.quantize(torch.full((1, 32), 0.75), quant)
    >>> cunorm.torch.dequantize(q, scale, quant, torch.float32)[0, :2]
    tensor([0.7500, 0.7500])
    """
    tensors(q=q, scale=scale)
    _no_gradient("dequantize", q=q, scale=scale)
    fields = _fields(quant)
    if dtype not in DTYPES:
        raise TypeError(f"dtype must be float16, bfloat16, float32 or float64, but is {dtype}")
    for name, given, own in (("q", q, _code(quant)), ("scale", scale, _scale(quant))):
        if given.dtype != own:
            raise TypeError(f"{name} must be {own} with this quant, but is {given.dtype}")
    plain = q.view(_integers(codes_dtype(quant))), scale.view(_integers(scales_dtype(quant)))
    y: Tensor = _operators.dequantize(*plain, *fields, dtype)
    return y


def _fields(quant: Any) -> tuple[Any, ...]:
    """Return a scheme as the operators take it."""
    _check.OPTIONS["quant"]("quant", quant, {})
    return tuple(getattr(quant, name) for name in FIELDS)


def _written(op: str, given: tuple[Any, ...], y_out: Tensor | None) -> Any:
    """Return what an operator returns, or the one that writes y too."""
    if y_out is None:
        return getattr(_operators, op)(*given)
    return getattr(_operators, f"{op}_y_out")(*given, y_out)


def _codes(quant: Quant, q: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and scales in PyTorch's own dtypes."""
    return q.view(_code(quant)), scale.view(_scale(quant))


def _code(quant: Quant) -> torch.dtype:
    return CODES[quant.format]


def _scale(quant: Quant) -> torch.dtype:
    return torch.int32 if quant.layout == "packed" else SCALES[quant.scale]


def _integers(name: str) -> torch.dtype:
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def _no_gradient(op: str, **given: Tensor | None) -> None:
    hint = "codes have no gradient, and torch.no_grad() says that none is wanted"
    no_gradient(op, hint, **given)
