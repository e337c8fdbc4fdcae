"""The backward passes of RMSNorm and LayerNorm on CuPy arrays."""

from __future__ import annotations

from typing import Literal, overload

import cupy

from . import _calls, _check, _kernels, _launch, _launch_backward, _plan
from ._typing import DeviceArray, DeviceArrayT

ARRAYS = (
    *("dx", "dgamma", "dbeta", "partial"),
    *("x", "dy", "dresidual", "gamma", "mean", "rstd"),
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
    in any batch, at any alignment and any strides. dgamma has the same bits on every run, for given
    numbers of rows and columns, dtypes and device: rows come in groups of R, as many as share a
    block (``BackwardPlan.rows``; 1 where a row is a block), and block b of B adds up groups b,
    b + B, b + 2 B, ... one after the other; then 16 sums, of blocks s, s + 16, ..., are added up in
    turn. B follows from the number of groups and of the device's multiprocessors
    (``BackwardPlan.persistent_grid``). There are no atomics. Rows of padding, whose dy is 0, add
    nothing, whatever finite y they have. After all other rows they change no bit of dgamma, up to
    eight groups for each multiprocessor; in front of others, or between them, they move those to
    other blocks, which may change the last bits. No rounding of ``cast="before"`` is
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
    arrays = (None, None, None, None, x, dy, dresidual, gamma, None, rstd)
    dx, dgamma, *_ = _backward("rms_norm_bwd", arrays, (gamma_offset, sums))
    return dx, dgamma


@overload
def layer_norm_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
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
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT | None, DeviceArrayT | None]:
    """Return the gradients of `layer_norm` with respect to x, gamma and beta.

    With ``n = (x - mean) * rstd``:
    ``dx = rstd * (gamma * dy - mean(gamma * dy) - n * mean(gamma * dy * n)) + dresidual``, the
    means over the normalised axes; over all rows, ``dgamma = sum(dy * n)`` and ``dbeta = sum(dy)``.

    Parameters
    ----------
    dy, x, gamma
        As in `rms_norm_bwd`.
    mean, rstd : cupy.ndarray, shape (...)
        What `layer_norm_fwd` returned: float32 (float64 for float64 data), one number for each row.
    dresidual, sums
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
    arrays = (None, None, None, None, x, dy, dresidual, gamma, mean, rstd)
    dx, dgamma, dbeta, *_ = _backward("layer_norm_bwd", arrays, (0.0, sums))
    return dx, dgamma, dbeta


def work(
    op: str, arrays: _calls.Arrays, gamma_offset: float, sums: bool, *, enqueue: bool = True
) -> tuple[_calls.Arrays, tuple[_launch.Launch, ...]]:
    """Return the arrays, as `ARRAYS` has them, with those that were made, and what was launched."""
    *_, x, dy, dresidual, gamma, mean, rstd = arrays
    statistics = {"rstd": rstd} if op == "rms_norm_bwd" else {"mean": mean, "rstd": rstd}
    axes, offset = _check.backward(x, dy, gamma, statistics, dresidual, gamma_offset)
    read = {"x": x, "dy": dy}
    if dresidual is not None:
        read["dresidual"] = dresidual

    partial = None
    launches: tuple[_launch.Launch, ...] = ()
    with x.device:
        made = _launch_backward.gradients(op, x, gamma, sums)
        if x.size > 0:
            plan = _planned(op, x, axes, gamma, offset != 0, dresidual is not None, sums)
            partial = _launch_backward.partial(plan, x, made)
            launches = _launch_backward.backward(
                plan, axes, made, partial, read, gamma, statistics, offset, enqueue=enqueue
            )
    totals = (made.get("dgamma"), made.get("dbeta"))
    return (made["dx"], *totals, partial, x, dy, dresidual, gamma, mean, rstd), launches


_backward = _calls.remembered(*ARRAYS)(work)


def _planned(
    op: str,
    x: cupy.ndarray,
    axes: int,
    gamma: cupy.ndarray | None,
    offset: bool,
    dresidual: bool,
    sums: bool,
) -> _plan.BackwardPlan:
    row = (_launch.cols(x, axes), x.dtype.name, _launch.dtype_name(gamma))
    arch = _kernels.arch(x.device.id)
    if op == "rms_norm_bwd":
        return _plan.rms_norm_bwd(
            *row, gamma_offset=offset, dresidual=dresidual, arch=arch, sums=sums
        )
    return _plan.layer_norm_bwd(*row, dresidual=dresidual, arch=arch, sums=sums)
