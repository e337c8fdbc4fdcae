"""LayerNorm on CuPy arrays."""

from __future__ import annotations

import cupy

from . import _check, _launch, _plan


def layer_norm(
    x: cupy.ndarray,
    gamma: cupy.ndarray | None = None,
    beta: cupy.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: cupy.ndarray | None = None,
) -> cupy.ndarray:
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

    Notes
    -----
    Statistics are float32, float64 for float64 data, by the corrected two-pass algorithm (Chan,
    Golub and LeVeque, 1983), which keeps the digits of rows with a mean far from zero. A row gives
    the same bits alone and in any batch, at any alignment and any strides. The work is enqueued on
    CuPy's current stream.

    The definition is that of Ba, Kiros and Hinton, "Layer Normalization", 2016.
    """
    return _forward(x, gamma, beta, eps, out, with_statistics=False)[0]


def layer_norm_fwd(
    x: cupy.ndarray,
    gamma: cupy.ndarray | None = None,
    beta: cupy.ndarray | None = None,
    eps: float = 1e-5,
    *,
    out: cupy.ndarray | None = None,
) -> tuple[cupy.ndarray, cupy.ndarray, cupy.ndarray]:
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
    """
    return _forward(x, gamma, beta, eps, out, with_statistics=True)


def _forward(
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    beta: cupy.ndarray | None,
    eps: float,
    out: cupy.ndarray | None,
    *,
    with_statistics: bool,
) -> tuple[cupy.ndarray, cupy.ndarray | None, cupy.ndarray | None]:
    _check.data("x", x)
    parameters = {"gamma": gamma, "beta": beta}
    axes = _check.parameters(x, **parameters)
    scalars = {"eps": _check.eps(eps, x)}
    _check.out(out, x, **parameters)

    with x.device:
        y = _launch.empty_like(x) if out is None else out
        mean, rstd = (_launch.statistic(x, axes) if with_statistics else None for _ in range(2))
        if x.size > 0:
            plan = _plan.layer_norm_fwd(
                _launch.cols(x, axes),
                x.dtype.name,
                _launch.dtype_name(gamma),
                _launch.dtype_name(beta),
            )
            _launch.forward(plan, axes, y, (mean, rstd), x, parameters, scalars)
    return y, mean, rstd
