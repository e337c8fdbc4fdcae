# mypy: disable-error-code="no-any-return"
"""LayerNorm, of x or of x + residual, and its gradients."""

from __future__ import annotations

from typing import Any, Literal, overload

from .._call.backward import backward
from .._call.forward import forward
from .._families import OPS
from .._typing import Array, ArrayT, DeviceArray, DeviceArrayT, Operand


def layer_norm(
    x: ArrayT,
    gamma: Array | None = None,
    beta: Array | None = None,
    eps: float = 1e-5,
    *,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    moments: DeviceArray | None = None,
    count: int | None = None,
    out: DeviceArray | None = None,
) -> ArrayT:
    """Normalise rows to zero mean and unit variance.

    ``y = (x - mean) / sqrt(var + eps) * gamma + beta``, mean and biased variance over the
    normalised axes: the trailing axes of `x` that `gamma` or `beta` has, or its last axis where
    both are None.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., N)
        float16, bfloat16, float32 or float64. Any strides; an array whose normalised axes are not
        one unit-stride run, or whose leading axes do not merge into three strided levels, is
        copied first.
    gamma, beta : cupy.ndarray, optional
        Weight and bias, of the shape of trailing axes of `x`: float16, bfloat16 or float32; float64
        or float32 where `x` is float64. None multiplies by, or adds, nothing.
    eps : float
        Added to the variance; finite and not negative.
    gamma_offset : float
        Added to `gamma` in float32: 1 for models that store the weight less one (LayerNorm1P).
    scale, shift, scale_offset, dtype
        As in `rms_norm`, of the norm as rounded to x's dtype.
    moments : cupy.ndarray, shape (..., 2), optional
        The mean and the sum of squared differences from it of each row, where `x` has a part of its
        columns: float32 (float64 where `x` is float64), as `combine_moments` returns them.
    count : int, optional
        The number of columns that `moments` are of; given with them.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y in x's dtype, rounded once, or `dtype`; `out` where it was given.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap. Nothing is written then.

    See Also
    --------
    layer_norm_fwd : Return the statistics too, for `layer_norm_bwd`.
    add_layer_norm : Add a residual first.
    rms_norm : Leave the mean where it is.
    cunorm.torch.layer_norm : The same of tensors, with a gradient.

    Notes
    -----
    Statistics are float32, float64 for float64 data, by the corrected two-pass algorithm (Chan,
    Golub and LeVeque, 1983), which keeps the digits of rows with a mean far from zero. A row gives
    the same bits alone and in any batch, at any alignment and any strides. The work is enqueued on
    CuPy's current stream.

    Where `x` is a dask array of CuPy chunks, so is the result, and nothing is launched before it is
    computed. Several normalised axes must be in one chunk each; of rows whose columns several
    chunks have the sums come first, and the last bits may differ. gamma and beta may be dask arrays
    in one chunk, and are otherwise copied to the host, as they are at the call. There is no `out`
    then.

    The definition is that of Ba, Kiros and Hinton, "Layer Normalization", 2016.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0], [10.0, 14.0]], dtype="float32")
    >>> gamma = cupy.asarray([1.0, 2.0], dtype="float32")
    >>> beta = cupy.asarray([0.0, 3.0], dtype="float32")
    >>> cunorm.layer_norm(x, gamma, beta).round(3)
    array([[-1.,  5.],
           [-1.,  5.]], dtype=float32)
    """
    return forward(
        OPS["layer_norm"],
        (x, gamma, beta, scale, shift, moments, out),
        (eps, gamma_offset, scale_offset, dtype, count),
    )


def layer_norm_fwd(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    moments: DeviceArray | None = None,
    count: int | None = None,
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise rows to zero mean and unit variance, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, beta, eps, gamma_offset, scale, shift, scale_offset, dtype, moments, count, out
        As in `layer_norm`.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        What `layer_norm` returns, bit for bit.
    mean : cupy.ndarray, shape (...)
        The mean of each row, float32 (float64 for float64 data).
    rstd : cupy.ndarray, shape (...)
        ``1 / sqrt(var + eps)`` of each row, of the same dtype.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    See Also
    --------
    layer_norm : Return y alone.
    layer_norm_bwd : The gradients.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0], [10.0, 14.0]], dtype="float32")
    >>> y, mean, rstd = cunorm.layer_norm_fwd(x)
    >>> mean
    array([ 2., 12.], dtype=float32)
    >>> rstd.round(3)
    array([1. , 0.5], dtype=float32)
    """
    return forward(
        OPS["layer_norm_fwd"],
        (x, gamma, beta, scale, shift, moments, out),
        (eps, gamma_offset, scale_offset, dtype, count),
    )


def add_layer_norm(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Add a residual and normalise the sum, in one pass: two reads and two writes.

    ``h = x + residual``, rounded to residual's dtype and written once;
    ``y = layer_norm(h, gamma, beta, eps)`` of h as rounded, in x's dtype.

    Parameters
    ----------
    x
        As in `layer_norm`.
    residual : cupy.ndarray, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64.
    gamma, beta, eps
        As in `layer_norm`.
    gate : cupy.ndarray or float, optional
        What x is multiplied with before it is added: it broadcasts against `x`, as `scale` does,
        and the product is rounded to the dtype that NumPy gives it.
    gamma_offset, scale, shift, scale_offset, dtype
        As in `layer_norm`.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        In x's dtype; `out` where it was given. Where x and residual have one dtype, the bits of
        ``layer_norm(x + residual, gamma, beta, eps)``.
    residual_out : cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    See Also
    --------
    add_layer_norm_fwd : Return the statistics too, for `layer_norm_bwd`.
    layer_norm : Of x alone.
    add_rms_norm : Leave the mean where it is.
    cunorm.torch.add_layer_norm : The same of tensors, with a gradient.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 1.0]], dtype="float32")
    >>> y, h = cunorm.add_layer_norm(x, residual)
    >>> h
    array([[1., 3.]], dtype=float32)
    >>> y.round(3)
    array([[-1.,  1.]], dtype=float32)
    """
    return forward(
        OPS["add_layer_norm"],
        (x, residual, gamma, beta, gate, scale, shift, out, residual_out),
        (eps, gamma_offset, scale_offset, dtype),
    )


def add_layer_norm_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Add a residual, normalise the sum, and keep what a backward pass needs.

    Parameters
    ----------
    x, residual, gamma, beta, eps, gate, gamma_offset
        As in `add_layer_norm`.
    scale, shift, scale_offset, dtype, out, residual_out
        As in `add_layer_norm`.

    Returns
    -------
    y, residual_out : cupy.ndarray, shape (..., N)
        What `add_layer_norm` returns, bit for bit.
    mean, rstd : cupy.ndarray, shape (...)
        The mean and ``1 / sqrt(var + eps)`` of each row of h as rounded, float32 (float64 for
        float64 data).

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    See Also
    --------
    add_layer_norm : Return y and h alone.
    layer_norm_bwd : The gradients, with h for x.
    add_layer_norm_bwd : The gradients where there is a gate.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 1.0]], dtype="float32")
    >>> y, h, mean, rstd = cunorm.add_layer_norm_fwd(x, residual)
    >>> mean, rstd.round(3)
    (array([2.], dtype=float32), array([1.], dtype=float32))
    """
    return forward(
        OPS["add_layer_norm_fwd"],
        (x, residual, gamma, beta, gate, scale, shift, out, residual_out),
        (eps, gamma_offset, scale_offset, dtype),
    )


@overload
def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: Literal[True] = ...,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]: ...


@overload
def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: bool = ...,
) -> tuple[DeviceArrayT, DeviceArrayT | None, DeviceArrayT | None]: ...


@overload
def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    beta: DeviceArray | None = ...,
    scale: Operand | None = ...,
    shift: Operand | None = ...,
    scale_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: bool = ...,
) -> tuple[Any, ...]: ...


def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = 0.0,
    beta: DeviceArray | None = None,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[Any, ...]:
    """Return the gradients of `layer_norm` with respect to x, gamma, beta, and scale and shift.

    With ``g = gamma + gamma_offset`` and ``n = (x - mean) * rstd``:
    ``dx = rstd * (g * dy - mean(g * dy) - n * mean(g * dy * n)) + dresidual``, the means over the
    normalised axes; over all rows, ``dgamma = sum(dy * n)`` and ``dbeta = sum(dy)``. With a scale,
    ``dscale = sum(dy * (g * n + beta))``, and the others are made of ``dy * (scale +
    scale_offset)``; with a shift, ``dshift = sum(dy)``: over the axes along which those broadcast.

    Parameters
    ----------
    dy, x, gamma
        As in `rms_norm_bwd`.
    mean, rstd : cupy.ndarray, shape (...)
        What `layer_norm_fwd` returned: float32 (float64 for float64 data), one number for each row.
    gamma_offset
        As in `rms_norm_bwd`.
    beta : cupy.ndarray, optional
        As it was given to the forward op: the gradient of scale needs it, and nothing else.
    scale, shift, scale_offset, dresidual, sums
        As in `rms_norm_bwd`.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgamma, dbeta : cupy.ndarray or None
        In gamma's shape and dtype; zeros where there are no rows. Both None where `gamma` is None:
        then ``dbeta`` is ``dy.sum()`` over the rows, and nothing of it comes for free here.
    dscale, dshift : cupy.ndarray
        In the shape and dtype of scale and of shift: those that are given, and after the others.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_bwd`.

    See Also
    --------
    layer_norm_fwd : What gives mean and rstd.
    add_layer_norm_fwd : What gives them of a sum.
    rms_norm_bwd : The same of `rms_norm`.

    Notes
    -----
    As those of `rms_norm_bwd`.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0, 1.0, 3.0]], dtype="float32")
    >>> gamma = cupy.ones(4, "float32")
    >>> y, mean, rstd = cunorm.layer_norm_fwd(x, gamma)
    >>> dy = cupy.asarray([[1.0, 2.0, 3.0, 4.0]], dtype="float32")
    >>> dx, dgamma, dbeta = cunorm.layer_norm_bwd(dy, x, gamma, mean, rstd)
    >>> dgamma.round(3)
    array([-1.,  2., -3.,  4.], dtype=float32)
    >>> dbeta
    array([1., 2., 3., 4.], dtype=float32)
    """
    return backward(
        OPS["layer_norm_bwd"],
        (dy, x, gamma, mean, rstd, beta, scale, shift, dresidual),
        (gamma_offset, scale_offset, sums),
    )
