"""RMSNorm on CuPy arrays."""

from __future__ import annotations

from . import _calls, _check, _kernels, _launch, _plan
from ._typing import Array, ArrayT, Cast, DeviceArray, DeviceArrayT

ARRAYS = ("y", "residual_out", "rstd", "x", "residual", "gamma")


def rms_norm(
    x: ArrayT,
    gamma: Array | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: ArrayT | None = None,
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
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory that overlaps no other argument, of x's shape and
        dtype.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        y in x's dtype; `out` where it was given.

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
    arrays = (out, None, None, x, None, gamma)
    y: ArrayT = _forward("rms_norm", arrays, (eps, gamma_offset, cast))[0]
    return y


def rms_norm_fwd(
    x: DeviceArrayT,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArrayT | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their root mean square, and keep what a backward pass needs.

    Parameters
    ----------
    x, gamma, eps, gamma_offset, cast, out
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
    arrays = (out, None, None, x, None, gamma)
    y, _, rstd, *_ = _forward("rms_norm_fwd", arrays, (eps, gamma_offset, cast))
    return y, rstd


def add_rms_norm(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArrayT | None = None,
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
    gamma, eps, gamma_offset, cast
        As in `rms_norm`.
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
    arrays = (out, residual_out, None, x, residual, gamma)
    y, h, *_ = _forward("add_rms_norm", arrays, (eps, gamma_offset, cast))
    return y, h


def add_rms_norm_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArrayT | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Add a residual, normalise the sum, and keep what a backward pass needs.

    Parameters
    ----------
    x, residual, gamma, eps, gamma_offset, cast, out, residual_out
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
    arrays = (out, residual_out, None, x, residual, gamma)
    y, h, rstd, *_ = _forward("add_rms_norm_fwd", arrays, (eps, gamma_offset, cast))
    return y, h, rstd


def work(
    op: str,
    arrays: _calls.Arrays,
    eps: float,
    gamma_offset: float,
    cast: str,
    *,
    enqueue: bool = True,
) -> tuple[_calls.Arrays, tuple[_launch.Launch, ...]]:
    """Return the arrays, as `ARRAYS` has them, with those that were made, and what was launched."""
    out, residual_out, rstd, x, residual, gamma = arrays
    _check.data("x", x)
    if op.startswith("add_"):
        _check.residual(residual, x)
    axes = _check.parameters(x, gamma=gamma)
    offset = _check.gamma_offset(gamma_offset, gamma, x)
    scalars = {"eps": _check.eps(eps, x), "gamma_offset": offset}
    _check.cast(cast)
    _check.written("out", out, "x", x, residual=residual, residual_out=residual_out, gamma=gamma)
    if residual is not None:
        _check.written("residual_out", residual_out, "residual", residual, x=x, gamma=gamma)

    launches: tuple[_launch.Launch, ...] = ()
    with x.device:
        written, read = _launch.rows(x, residual, out, residual_out)
        if op.endswith("_fwd"):
            rstd = _launch.statistic(x, axes)
        if x.size > 0:
            plan = _plan.rms_norm_fwd(
                _launch.cols(x, axes),
                x.dtype.name,
                _launch.dtype_name(gamma),
                cast_before=cast == "before",
                gamma_offset=offset != 0,
                arch=_kernels.arch(x.device.id),
                residual=_launch.dtype_name(residual),
            )
            launches = _launch.forward(
                plan,
                axes,
                written,
                {"rstd": rstd},
                read,
                {"gamma": gamma},
                scalars,
                enqueue=enqueue,
            )
    return (written["y"], written.get("residual_out"), rstd, x, residual, gamma), launches


_forward = _calls.remembered(*ARRAYS)(work)
