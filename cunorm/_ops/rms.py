# mypy: disable-error-code="no-any-return"
"""RMSNorm, of x or of x + residual, and its gradients."""

from __future__ import annotations

from typing import Any, Literal, overload

from .._call.backward import backward
from .._call.forward import forward
from .._families import OPS
from .._typing import Array, ArrayT, Cast, DeviceArray, DeviceArrayT, Operand


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
    squares: DeviceArray | None = None,
    count: int | None = None,
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
    squares : cupy.ndarray, shape (...), optional
        The sum of squares of each row, where `x` has a part of its columns: float32 (float64 where
        `x` is float64), as `row_sums` returns it, added up over the parts.
    count : int, optional
        The number of columns that `squares` are of; given with them.
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
    row_sums : What gives `squares`.
    cunorm.torch.rms_norm : The same of tensors, with a gradient.

    Notes
    -----
    Squares and sums are float32, float64 for float64 data. A row gives the same bits alone and in
    any batch, at any alignment and any strides. The work is enqueued on CuPy's current stream.

    Where `x` is a dask array of CuPy chunks, so is the result, and nothing is launched before it is
    computed. Several normalised axes must be in one chunk each; of rows whose columns several
    chunks have the sums come first, and the last bits may differ. gamma may be a dask array in one
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
        (x, gamma, scale, shift, squares, out),
        (eps, gamma_offset, cast, scale_offset, dtype, count),
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
    squares: DeviceArray | None = None,
    count: int | None = None,
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their root mean square, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, eps, gamma_offset, cast, scale, shift, scale_offset, dtype, squares, count, out
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
        (x, gamma, scale, shift, squares, out),
        (eps, gamma_offset, cast, scale_offset, dtype, count),
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
    add_rms_norm_bwd : The gradients where there is a gate.

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


@overload
def rms_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    *,
    gamma_offset: float = ...,
    scale: Operand | None = ...,
    shift: Operand | None = ...,
    scale_offset: float = ...,
    dresidual: DeviceArray | None = ...,
    sums: bool = ...,
) -> tuple[Any, ...]: ...


def rms_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    *,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[Any, ...]:
    """Return the gradients of `rms_norm` with respect to x, gamma, and scale and shift.

    With ``g = gamma + gamma_offset`` and ``n = x * rstd``:
    ``dx = rstd * (g * dy - n * mean(g * dy * n)) + dresidual``, the mean over the normalised axes,
    and ``dgamma = sum(dy * n)`` over all rows. With a scale, ``dscale = sum(dy * g * n)``, and dx
    and dgamma are made of ``dy * (scale + scale_offset)``; with a shift, ``dshift = sum(dy)``: over
    the axes along which those broadcast.

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
    scale, shift : cupy.ndarray or float, optional
        As they were given to the forward op; of shift the shape and dtype matter alone. A gate of
        `rms_norm_add` is a scale here, with ``scale_offset=0``.
    scale_offset : float
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
    dscale, dshift : cupy.ndarray
        In the shape and dtype of scale and of shift: those that are given, and after the others.

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
    those to other blocks, which may change the last bits. With a scale or a shift, rows that have
    one row of those are added up so, and then what they give, in turn. No rounding of
    ``cast="before"`` is differentiated. The work is enqueued on CuPy's current stream.

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
    return backward(
        OPS["rms_norm_bwd"],
        (dy, x, gamma, rstd, scale, shift, dresidual),
        (gamma_offset, scale_offset, sums),
    )
