# mypy: disable-error-code="no-any-return"
"""The ops on CuPy arrays, as users call them; `_families.py` says what each is made of."""

from __future__ import annotations

from typing import Any, Literal, overload

from ._call.backward import backward
from ._call.forward import forward
from ._families import OPS
from ._typing import Activation, Array, ArrayT, Cast, DeviceArray, DeviceArrayT, Operand


def rms_norm(
    x: ArrayT,
    gamma: Array | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> ArrayT:
    """Normalise rows by their root mean square.

    ``y = x / sqrt(mean(x**2) + eps) * (gamma + gamma_offset)``, the mean over the normalised axes:
    the trailing ``gamma.ndim`` axes of `x`, or its last axis where there is no `gamma`.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., N)
        float16, bfloat16, float32 or float64. Any strides; an array whose normalised axes are not
        one unit-stride run, or whose leading axes do not merge into three strided levels, is
        copied first.
    gamma : cupy.ndarray, optional
        The weight, of the shape of trailing axes of `x`: float16, bfloat16 or float32; float64 or
        float32 where `x` is float64. None multiplies by nothing.
    eps : float
        Added to the mean square; finite and not negative.
    gamma_offset : float
        Added to `gamma` in float32: 1 for models that store the weight less one, like Gemma's.
    cast : {"before", "after"}
        Where 16-bit results are rounded. "before" rounds the normalised value to x's dtype before
        `gamma` multiplies and the product again, as Qwen2, Llama and T5 do. "after" rounds once, at
        the end, as ``torch.nn.RMSNorm`` does.
    scale, shift : cupy.ndarray or float, optional
        What follows the norm: ``n * (scale + scale_offset)``, then ``+ shift``, each result rounded
        to the dtype that NumPy's promotion gives it (float32 of float16 and bfloat16). They
        broadcast against `x`, with any strides: by column, by sample, by token, by head, one number
        for each row. Dtypes as of `gamma`.
    scale_offset : float
        Added to `scale`, in its dtype.
    dtype : dtype, optional
        That of y: float16, bfloat16, float32 or float64; x's, or that of `out`, if left out.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y in x's dtype, or `dtype`; `out` where it was given.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap. Nothing is written then.

    See Also
    --------
    rms_norm_fwd : Return the statistics too, for `rms_norm_bwd`.
    add_rms_norm : Add a residual first.
    layer_norm : Subtract the mean too.
    cunorm.torch.rms_norm : The same of tensors, with a gradient.

    Notes
    -----
    Squares and sums are float32, float64 for float64 data. A row gives the same bits alone and in
    any batch, at any alignment and any strides. The work is enqueued on CuPy's current stream.

    Where `x` is a dask array of CuPy chunks, so is the result, and nothing is launched before it is
    computed. The normalised axes must be in one chunk each; gamma may be a dask array in one
    chunk, and is otherwise copied to the host, as it is at the call. There is no `out` then.

    A PyTorch tensor, or another array that exports itself by DLPack, may stand for each array where
    it is on a CUDA device. Nothing is copied, the work is enqueued on its library's current stream,
    and the result is what `x` is. `cunorm.torch.rms_norm` is the same with a gradient. So may an
    array that has ``__cuda_array_interface__`` alone, as Numba's: the work waits on the device for
    the stream that it names, and the result is a CuPy array.

    The definition is that of Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0], [10.0, 10.0]], dtype="float32")
    >>> gamma = cupy.asarray([1.0, 2.0], dtype="float32")
    >>> cunorm.rms_norm(x, gamma).round(3)
    array([[0.2, 2.8],
           [1. , 2. ]], dtype=float32)

    In place:

    >>> cunorm.rms_norm(x, gamma, out=x) is x
    True
    """
    return forward(
        OPS["rms_norm"],
        (x, gamma, scale, shift, out),
        (eps, gamma_offset, cast, scale_offset, dtype),
    )


def rms_norm_fwd(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their root mean square, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, eps, gamma_offset, cast, scale, shift, scale_offset, dtype, out
        As in `rms_norm`.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        What `rms_norm` returns, bit for bit.
    rstd : cupy.ndarray, shape (...)
        ``1 / sqrt(mean(x**2) + eps)`` of each row, float32 (float64 for float64 data).

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    See Also
    --------
    rms_norm : Return y alone.
    rms_norm_bwd : The gradients.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0], [10.0, 10.0]], dtype="float32")
    >>> y, rstd = cunorm.rms_norm_fwd(x)
    >>> rstd.round(3)
    array([0.2, 0.1], dtype=float32)
    """
    return forward(
        OPS["rms_norm_fwd"],
        (x, gamma, scale, shift, out),
        (eps, gamma_offset, cast, scale_offset, dtype),
    )


def add_rms_norm(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Add a residual and normalise the sum, in one pass: two reads and two writes.

    ``h = x + residual``, rounded to residual's dtype and written once;
    ``y = rms_norm(h, gamma, eps)`` of h as rounded, in x's dtype.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual : cupy.ndarray, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64.
    gamma, eps
        As in `rms_norm`.
    gate : cupy.ndarray or float, optional
        What x is multiplied with before it is added: it broadcasts against `x`, as `scale` does,
        and the product is rounded to the dtype that NumPy gives it.
    gamma_offset, cast, scale, shift, scale_offset, dtype
        As in `rms_norm`.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        In x's dtype; `out` where it was given. Where x and residual have one dtype, the bits of
        ``rms_norm(x + residual, gamma, eps)``.
    residual_out : cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    See Also
    --------
    add_rms_norm_fwd : Return the statistics too, for `rms_norm_bwd`.
    rms_norm : Of x alone.
    add_layer_norm : Subtract the mean too.
    cunorm.torch.add_rms_norm : The same of tensors, with a gradient.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 5.0]], dtype="float32")
    >>> y, h = cunorm.add_rms_norm(x, residual)
    >>> h
    array([[1., 7.]], dtype=float32)
    >>> y.round(3)
    array([[0.2, 1.4]], dtype=float32)

    The residual stream stays where it is:

    >>> y, h = cunorm.add_rms_norm(x, residual, out=x, residual_out=residual)
    >>> y is x and h is residual
    True
    """
    return forward(
        OPS["add_rms_norm"],
        (x, residual, gamma, gate, scale, shift, out, residual_out),
        (eps, gamma_offset, cast, scale_offset, dtype),
    )


def add_rms_norm_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dtype: Any = None,
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Add a residual, normalise the sum, and keep what a backward pass needs.

    Parameters
    ----------
    x, residual, gamma, eps, gate, gamma_offset, cast
        As in `add_rms_norm`.
    scale, shift, scale_offset, dtype, out, residual_out
        As in `add_rms_norm`.

    Returns
    -------
    y, residual_out : cupy.ndarray, shape (..., N)
        What `add_rms_norm` returns, bit for bit.
    rstd : cupy.ndarray, shape (...)
        ``1 / sqrt(mean(h**2) + eps)`` of each row of h as rounded, float32 (float64 for float64
        data).

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    See Also
    --------
    add_rms_norm : Return y and h alone.
    rms_norm_bwd : The gradients, with h for x.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 5.0]], dtype="float32")
    >>> y, h, rstd = cunorm.add_rms_norm_fwd(x, residual)
    >>> rstd.round(3)
    array([0.2], dtype=float32)
    """
    return forward(
        OPS["add_rms_norm_fwd"],
        (x, residual, gamma, gate, scale, shift, out, residual_out),
        (eps, gamma_offset, cast, scale_offset, dtype),
    )


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
    computed. The normalised axes must be in one chunk each; gamma and beta may be dask arrays in
    one chunk, and are otherwise copied to the host, as they are at the call. There is no `out`
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
        (x, gamma, beta, scale, shift, out),
        (eps, gamma_offset, scale_offset, dtype),
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
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise rows to zero mean and unit variance, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, beta, eps, gamma_offset, scale, shift, scale_offset, dtype, out
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
        (x, gamma, beta, scale, shift, out),
        (eps, gamma_offset, scale_offset, dtype),
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


def rms_norm_gated(
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> DeviceArrayT:
    """Normalise rows by their root mean square, and multiply them by a gate.

    ``y = rms_norm(x, gamma, eps) * silu(gate)``; with `gate_first`
    ``y = rms_norm(x * silu(gate), gamma, eps)``; ``silu(g) = g / (1 + exp(-g))``.

    Parameters
    ----------
    x
        As in `rms_norm`.
    gate : cupy.ndarray, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64. Any strides, as
        of a slice of a wider projection.
    gamma, eps
        As in `rms_norm`.
    activation : {"silu", "sigmoid", None}
        What the gate becomes before it multiplies, in float32 (float64 for float64 data), within 2
        ulp; None leaves it as it is.
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
    dtype : dtype, optional
        That of y: float16, bfloat16, float32 or float64; x's, or that of `out`, if left out.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y; `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`, and for a `group` that does not divide N.

    See Also
    --------
    rms_norm_gated_fwd : Return the statistics too.
    rms_norm : Without a gate.
    layer_norm_gated : The same of LayerNorm.

    Notes
    -----
    One kernel: x and the gate are read once, and y is written once.

    The definitions are those of the gated norms of Mamba2 (Dao and Gu, "Transformers are SSMs",
    2024; `gate_first`) and of Qwen3-Next.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> gate = cupy.asarray([[0.0, 1.0]], dtype="float32")
    >>> cunorm.rms_norm_gated(x, gate).round(3)
    array([[0.   , 1.023]], dtype=float32)
    """
    options = (eps, activation, gate_first, group, gamma_offset, cast, dtype)
    return forward(OPS["rms_norm_gated"], (x, gate, gamma, out), options)


def rms_norm_gated_fwd(
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows, multiply them by a gate, and keep what a backward pass needs.

    Parameters
    ----------
    x, gate, gamma, eps, activation, gate_first, group, gamma_offset, cast, dtype, out
        As in `rms_norm_gated`.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        What `rms_norm_gated` returns, bit for bit.
    rstd : cupy.ndarray, shape (...) or (..., N / group)
        ``1 / sqrt(mean(v**2) + eps)`` of each row or group, v being what is normalised: float32
        (float64 for float64 data).

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_gated`.

    See Also
    --------
    rms_norm_gated : Return y alone.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[3.0, 3.0, 4.0, 4.0]], dtype="float32")
    >>> y, rstd = cunorm.rms_norm_gated_fwd(x, cupy.ones_like(x), group=2)
    >>> rstd.round(3)
    array([[0.333, 0.25 ]], dtype=float32)
    """
    options = (eps, activation, gate_first, group, gamma_offset, cast, dtype)
    return forward(OPS["rms_norm_gated_fwd"], (x, gate, gamma, out), options)


def layer_norm_gated(
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> DeviceArrayT:
    """Normalise rows to mean 0 and variance 1, and multiply them by a gate.

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
    dtype, out
        As in `rms_norm_gated`.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y; `out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`, and for a `group` that does not divide N.

    See Also
    --------
    layer_norm_gated_fwd : Return the statistics too.
    layer_norm : Without a gate.
    rms_norm_gated : Without a mean.

    Notes
    -----
    One kernel: x and the gate are read once, and y is written once.

    The definition is that of the gated norms of mamba_ssm (Dao and Gu, "Transformers are SSMs",
    2024), with its LayerNorm.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> gate = cupy.asarray([[0.0, 1.0]], dtype="float32")
    >>> cunorm.layer_norm_gated(x, gate).round(3)
    array([[-0.   ,  0.731]], dtype=float32)
    """
    options = (eps, activation, gate_first, group, gamma_offset, cast, dtype)
    return forward(OPS["layer_norm_gated"], (x, gate, gamma, beta, out), options)


def layer_norm_gated_fwd(
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    dtype: Any = None,
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise rows to mean 0 and variance 1, multiply them by a gate, and keep the statistics.

    Parameters
    ----------
    x, gate, gamma, beta, eps, activation, gate_first, group, gamma_offset, cast, dtype, out
        As in `layer_norm_gated`.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        What `layer_norm_gated` returns, bit for bit.
    mean, rstd : cupy.ndarray, shape (...) or (..., N / group)
        The mean of each row or group that is normalised, and ``1 / sqrt(var + eps)`` of its biased
        variance: float32 (float64 for float64 data).

    Raises
    ------
    TypeError, ValueError
        As `layer_norm_gated`.

    See Also
    --------
    layer_norm_gated : Return y alone.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0, 10.0, 14.0]], dtype="float32")
    >>> y, mean, rstd = cunorm.layer_norm_gated_fwd(x, cupy.ones_like(x), group=2)
    >>> mean, rstd.round(3)
    (array([[ 2., 12.]], dtype=float32), array([[1. , 0.5]], dtype=float32))
    """
    options = (eps, activation, gate_first, group, gamma_offset, cast, dtype)
    return forward(OPS["layer_norm_gated_fwd"], (x, gate, gamma, beta, out), options)


@overload
def rms_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: Literal[True] = ...,
) -> tuple[DeviceArrayT, DeviceArrayT]: ...


@overload
def rms_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: bool = ...,
) -> tuple[DeviceArrayT, DeviceArrayT | None]: ...


def rms_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    *,
    gamma_offset: float = 0.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT | None]:
    """Return the gradients of `rms_norm` with respect to x and gamma.

    With ``g = gamma + gamma_offset`` and ``n = x * rstd``:
    ``dx = rstd * (g * dy - n * mean(g * dy * n)) + dresidual``, the mean over the normalised axes,
    and ``dgamma = sum(dy * n)`` over all rows.

    Parameters
    ----------
    dy : cupy.ndarray, shape (..., N)
        The gradient with respect to y, of x's shape and dtype, laid out in any way.
    x : cupy.ndarray, shape (..., N)
        What was normalised: x of `rms_norm_fwd`, or h of `add_rms_norm`.
    gamma : cupy.ndarray or None
        The weight, as it was given to the forward op.
    rstd : cupy.ndarray, shape (...)
        What `rms_norm_fwd` returned: float32 (float64 for float64 data), one number for each row.
    gamma_offset : float
        As it was given to the forward op.
    dresidual : cupy.ndarray, optional
        The gradient that reaches x, or h, by another way, of x's shape and dtype. It is added
        before dx is rounded, for one more read.
    sums : bool
        Whether the sums over rows are wanted: False where parameters are frozen. Then nothing of
        them is computed, and they are None.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgamma : cupy.ndarray or None
        In gamma's shape and dtype; zeros where there are no rows. None where `gamma` is None, or
        `sums` is False.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device or value.

    See Also
    --------
    rms_norm_fwd : What gives rstd.
    add_rms_norm_fwd : What gives it of a sum.
    layer_norm_bwd : The same of `layer_norm`.

    Notes
    -----
    Products and sums are float32, float64 for float64 data. dx of a row has the same bits alone and
    in any batch, at any alignment and any strides. dgamma has the same bits on every run
    and every device, for given numbers of rows and columns and dtypes: rows come in groups of R, as
    many as share a block (1 where a row is a block), and block b of B adds up groups b, b + B,
    b + 2 B, ... one after the other; then 16 sums, of blocks s, s + 16, ..., are added up in turn.
    B follows from the number of groups (``BackwardPlan.grid``). There are no atomics. Rows of
    padding, whose dy is 0, add nothing, whatever finite y they have. After all other rows they
    change no bit of dgamma, up to 1,024 groups; in front of others, or between them, they move
    those to other blocks, which may change the last bits. No rounding of ``cast="before"`` is
    differentiated. The work is enqueued on CuPy's current stream.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> gamma = cupy.ones(2, "float32")
    >>> y, rstd = cunorm.rms_norm_fwd(x, gamma)
    >>> dx, dgamma = cunorm.rms_norm_bwd(cupy.ones_like(y), x, gamma, rstd)
    >>> dx.round(3), dgamma.round(3)
    (array([[ 0.168, -0.024]], dtype=float32), array([0.2, 1.4], dtype=float32))
    """
    return backward(OPS["rms_norm_bwd"], (dy, x, gamma, rstd, dresidual), (gamma_offset, sums))


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


def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    gamma_offset: float = 0.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT | None, DeviceArrayT | None]:
    """Return the gradients of `layer_norm` with respect to x, gamma and beta.

    With ``g = gamma + gamma_offset`` and ``n = (x - mean) * rstd``:
    ``dx = rstd * (g * dy - mean(g * dy) - n * mean(g * dy * n)) + dresidual``, the means over the
    normalised axes; over all rows, ``dgamma = sum(dy * n)`` and ``dbeta = sum(dy)``.

    Parameters
    ----------
    dy, x, gamma
        As in `rms_norm_bwd`.
    mean, rstd : cupy.ndarray, shape (...)
        What `layer_norm_fwd` returned: float32 (float64 for float64 data), one number for each row.
    gamma_offset, dresidual, sums
        As in `rms_norm_bwd`.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgamma, dbeta : cupy.ndarray or None
        In gamma's shape and dtype; zeros where there are no rows. Both None where `gamma` is None:
        then ``dbeta`` is ``dy.sum()`` over the rows, and nothing of it comes for free here.

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
        OPS["layer_norm_bwd"], (dy, x, gamma, mean, rstd, dresidual), (gamma_offset, sums)
    )
