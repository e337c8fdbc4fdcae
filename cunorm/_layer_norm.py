"""LayerNorm on CuPy arrays."""

from __future__ import annotations

from . import _calls, _check, _kernels, _launch, _plan
from ._typing import Array, ArrayT, DeviceArray, DeviceArrayT

ARRAYS = ("y", "residual_out", "mean", "rstd", "x", "residual", "gamma", "beta")


def layer_norm(
    x: ArrayT,
    gamma: Array | None = None,
    beta: Array | None = None,
    eps: float = 1e-5,
    *,
    out: ArrayT | None = None,
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
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory that overlaps no other argument, of x's shape and
        dtype.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y in x's dtype, rounded once; `out` where it was given.

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
    arrays = (out, None, None, None, x, None, gamma, beta)
    y: ArrayT = _forward("layer_norm", arrays, (eps,))[0]
    return y


def layer_norm_fwd(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    out: DeviceArrayT | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise rows to zero mean and unit variance, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, beta, eps, out
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
    arrays = (out, None, None, None, x, None, gamma, beta)
    y, _, mean, rstd, *_ = _forward("layer_norm_fwd", arrays, (eps,))
    return y, mean, rstd


def add_layer_norm(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    out: DeviceArrayT | None = None,
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
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape and dtype that overlaps no other
        argument.
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
    arrays = (out, residual_out, None, None, x, residual, gamma, beta)
    y, h, *_ = _forward("add_layer_norm", arrays, (eps,))
    return y, h


def add_layer_norm_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    out: DeviceArrayT | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Add a residual, normalise the sum, and keep what a backward pass needs.

    Parameters
    ----------
    x, residual, gamma, beta, eps, out, residual_out
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
    arrays = (out, residual_out, None, None, x, residual, gamma, beta)
    y, h, mean, rstd, *_ = _forward("add_layer_norm_fwd", arrays, (eps,))
    return y, h, mean, rstd


def work(
    op: str, arrays: _calls.Arrays, eps: float, *, enqueue: bool = True
) -> tuple[_calls.Arrays, tuple[_launch.Launch, ...]]:
    """Return the arrays, as `ARRAYS` has them, with those that were made, and what was launched."""
    out, residual_out, mean, rstd, x, residual, gamma, beta = arrays
    parameters = {"gamma": gamma, "beta": beta}
    _check.data("x", x)
    if op.startswith("add_"):
        _check.residual(residual, x)
    axes = _check.parameters(x, **parameters)
    scalars = {"eps": _check.eps(eps, x)}
    _check.written("out", out, "x", x, residual=residual, residual_out=residual_out, **parameters)
    if residual is not None:
        _check.written("residual_out", residual_out, "residual", residual, x=x, **parameters)

    launches: tuple[_launch.Launch, ...] = ()
    with x.device:
        written, read = _launch.rows(x, residual, out, residual_out)
        if op.endswith("_fwd"):
            mean, rstd = (_launch.statistic(x, axes) for _ in range(2))
        if x.size > 0:
            plan = _plan.layer_norm_fwd(
                _launch.cols(x, axes),
                x.dtype.name,
                _launch.dtype_name(gamma),
                _launch.dtype_name(beta),
                arch=_kernels.arch(x.device.id),
                residual=_launch.dtype_name(residual),
            )
            statistics = {"mean": mean, "rstd": rstd}
            launches = _launch.forward(
                plan, axes, written, statistics, read, parameters, scalars, enqueue=enqueue
            )
    arrays = (written["y"], written.get("residual_out"), mean, rstd, x, residual, gamma, beta)
    return arrays, launches


_forward = _calls.remembered(*ARRAYS)(work)
