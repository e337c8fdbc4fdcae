# mypy: disable-error-code="no-any-return"
"""Norms whose results are quantised in the same kernel, and quantisation alone."""

from __future__ import annotations

from typing import Any

from .._call.dequantised import dequantised
from .._call.quantised import quantised
from .._families import DEQUANTIZE, QUANTISED, QUANTIZE
from .._quant import Quant
from .._typing import Cast, DeviceArray, DeviceArrayT, Operand


def rms_norm_quant(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    quant: Quant,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArray | None = None,
    scale_out: DeviceArray | None = None,
    y_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their root mean square, and quantise them, in one pass.

    ``q, scale = quantize(rms_norm(x, gamma, eps), quant)``, bit for bit: ``q = round(y / s)`` of y
    as rounded to x's dtype, with the scales s of `Quant`.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., N)
        float16, bfloat16 or float32, with any strides, as in `rms_norm`.
    gamma : cupy.ndarray, optional
        The weight, of shape (N,): float16, bfloat16 or float32.
    eps
        As in `rms_norm`.
    quant : Quant
        The formats of codes and scales, what shares a scale, and how scales lie in memory. Its
        groups divide N.
    gamma_offset, cast
        As in `rms_norm`.
    out : cupy.ndarray, optional
        Where q is written: memory that overlaps no other argument, of q's shape and dtype, with any
        strides.
    scale_out : cupy.ndarray, optional
        Where the scales are written: memory of their shape, dtype and strides, with what fills them
        up, that overlaps no other argument.
    y_out : cupy.ndarray, optional
        Where y is written too, for one more write: `x` itself, or memory of x's shape and dtype
        that overlaps no other argument.

    Returns
    -------
    q : cupy.ndarray, shape (..., N), or (..., N / 2) of e2m1
        The codes: int8 of the format of that name, and uint8 of the others, of which CuPy has no
        dtypes. ``cupy.asnumpy(q).view(ml_dtypes.float8_e4m3fn)`` has their values on the host.
    scale : cupy.ndarray
        float32, or uint8 of e8m0 and e4m3; uint32 of the layout "packed". With M rows of G groups
        each (1 where a row has one scale), the shape is (..., G) of the layouts "rows" and
        "columns", of the latter with M rounded up to a multiple of 4 from one group to the next;
        (..., G / 4), rounded up, of "packed", which lies as "columns"; flat of "swizzled",
        512 bytes for each 128 rows and 4 groups; and () where `quant` is static.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap, and where N is no multiple of the group.
        Nothing is written then.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    add_rms_norm_quant : Add a residual first.
    layer_norm_quant : Subtract the mean too.
    dequantize : What codes and scales stand for.

    Notes
    -----
    One kernel: x is read once, and codes and scales are written once, with zeros where scales are
    filled up. A row gives the same bits alone and in any batch, on every architecture.

    The definitions of the scales are those of vLLM and FBGEMM (a scale a row), of DeepSeek-V3's
    technical report, 2024 (a scale for 128 columns), and of the OCP's "Microscaling Formats (MX)",
    2023.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> q, scale = cunorm.rms_norm_quant(x, quant=cunorm.Quant.int8_row())
    >>> q
    array([[ 18, 127]], dtype=int8)
    >>> scale.round(4)
    array([[0.011]], dtype=float32)
    """
    return quantised(
        QUANTISED["rms_norm_quant"],
        (x, gamma, out, scale_out, y_out),
        (eps, quant, gamma_offset, cast),
    )


def layer_norm_quant(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    quant: Quant,
    gamma_offset: float = 0.0,
    out: DeviceArray | None = None,
    scale_out: DeviceArray | None = None,
    y_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their mean and variance, and quantise them, in one pass.

    ``q, scale = quantize(layer_norm(x, gamma, beta, eps), quant)``, bit for bit.

    Parameters
    ----------
    x
        As in `rms_norm_quant`.
    gamma, beta : cupy.ndarray, optional
        The weight and the bias, of shape (N,): float16, bfloat16 or float32.
    eps
        As in `layer_norm`.
    quant
        As in `rms_norm_quant`.
    gamma_offset
        As in `layer_norm`.
    out, scale_out, y_out
        As in `rms_norm_quant`.

    Returns
    -------
    q : cupy.ndarray, shape (..., N), or (..., N / 2) of e2m1
        The codes, as of `rms_norm_quant`.
    scale : cupy.ndarray
        The scales, as of `rms_norm_quant`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_quant`.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    add_layer_norm_quant : Add a residual first.
    rms_norm_quant : Without the mean.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0, 6.0]], dtype="float32")
    >>> q, scale = cunorm.layer_norm_quant(x, quant=cunorm.Quant.int8_row())
    >>> q
    array([[-85, -42, 127]], dtype=int8)
    """
    return quantised(
        QUANTISED["layer_norm_quant"],
        (x, gamma, beta, out, scale_out, y_out),
        (eps, quant, gamma_offset),
    )


def add_rms_norm_quant(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gate: Operand | None = None,
    quant: Quant,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArray | None = None,
    scale_out: DeviceArray | None = None,
    y_out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Add a residual, normalise the sum and quantise that, in one pass.

    ``y, h = add_rms_norm(x, residual, gamma, eps)`` and ``q, scale = quantize(y, quant)``, bit for
    bit; y is not written unless it is asked for.

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
    quant, gamma_offset, cast, out, scale_out, y_out
        As in `rms_norm_quant`.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    q : cupy.ndarray, shape (..., N), or (..., N / 2) of e2m1
        The codes, as of `rms_norm_quant`.
    scale : cupy.ndarray
        The scales, as of `rms_norm_quant`.
    residual_out : cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_quant`.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    rms_norm_quant : Of x alone.
    add_layer_norm_quant : Subtract the mean too.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 5.0]], dtype="float32")
    >>> q, scale, h = cunorm.add_rms_norm_quant(x, residual, quant=cunorm.Quant.fp8_static(0.25))
    >>> q
    array([[53, 75]], dtype=uint8)
    >>> h
    array([[1., 7.]], dtype=float32)
    """
    return quantised(
        QUANTISED["add_rms_norm_quant"],
        (x, residual, gamma, gate, out, scale_out, y_out, residual_out),
        (eps, quant, gamma_offset, cast),
    )


def add_layer_norm_quant(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gate: Operand | None = None,
    quant: Quant,
    gamma_offset: float = 0.0,
    out: DeviceArray | None = None,
    scale_out: DeviceArray | None = None,
    y_out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
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
    quant, gamma_offset, out, scale_out, y_out
        As in `layer_norm_quant`.
    residual_out
        As in `add_rms_norm_quant`.

    Returns
    -------
    q, scale : cupy.ndarray
        As of `rms_norm_quant`.
    residual_out : cupy.ndarray, shape (..., N)
        As of `add_rms_norm_quant`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_quant`.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    layer_norm_quant : Of x alone.
    add_rms_norm_quant : Without the mean.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0, 3.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 0.0, 3.0]], dtype="float32")
    >>> quant = cunorm.Quant.int8_row()
    >>> q, scale, h = cunorm.add_layer_norm_quant(x, residual, quant=quant)
    >>> q
    array([[-85, -42, 127]], dtype=int8)
    """
    return quantised(
        QUANTISED["add_layer_norm_quant"],
        (x, residual, gamma, beta, gate, out, scale_out, y_out, residual_out),
        (eps, quant, gamma_offset),
    )


def quantize(
    y: DeviceArrayT,
    quant: Quant,
    *,
    out: DeviceArray | None = None,
    scale_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Quantise rows as they are: what ``*_quant`` does with the result of a norm.

    ``q = round(y / s)``, with the scales s of `Quant`.

    Parameters
    ----------
    y : cupy.ndarray, shape (..., N)
        float16, bfloat16 or float32, with any strides, as x of `rms_norm`.
    quant, out, scale_out
        As in `rms_norm_quant`.

    Returns
    -------
    q : cupy.ndarray, shape (..., N), or (..., N / 2) of e2m1
        The codes, as of `rms_norm_quant`.
    scale : cupy.ndarray
        The scales, as of `rms_norm_quant`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_quant`.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    dequantize : The way back.
    rms_norm_quant : Of a norm, in the same pass.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> y = cupy.asarray([[0.5, -2.0, 1.0]], dtype="float32")
    >>> q, scale = cunorm.quantize(y, cunorm.Quant.int8_row())
    >>> q
    array([[  32, -127,   64]], dtype=int8)
    """
    return quantised(QUANTIZE, (y, out, scale_out), (quant,))


def dequantize(q: DeviceArrayT, scale: DeviceArray, quant: Quant, dtype: Any) -> DeviceArrayT:
    """Return the numbers that codes and scales stand for.

    ``y = q * s``, in float32, rounded to `dtype`; e4m3 scales are divided by quant's `global_scale`
    first.

    Parameters
    ----------
    q : cupy.ndarray, shape (..., N), or (..., N / 2) of e2m1
        Codes, as `rms_norm_quant` returns them. An array that is not C-contiguous is copied first.
    scale : cupy.ndarray
        Their scales, of the shape and dtype that it returns.
    quant : Quant
        How they were made.
    dtype : dtype
        That of y: float16, bfloat16, float32 or float64.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y, C-contiguous.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape or device.

    See Also
    --------
    Quant : The schemes, and how scales follow from rows.
    quantize : The way there.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> quant = cunorm.Quant.int8_row()
    >>> q, scale = cunorm.quantize(cupy.asarray([[0.5, -2.0, 1.0]], dtype="float32"), quant)
    >>> cunorm.dequantize(q, scale, quant, "float32").round(2)
    array([[ 0.5 , -2.  ,  1.01]], dtype=float32)
    """
    return dequantised(DEQUANTIZE, (q, scale), (quant, dtype))
