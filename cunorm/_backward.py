"""The backward passes of RMSNorm and LayerNorm on CuPy arrays."""

from __future__ import annotations

import cupy

from . import _calls, _check, _kernels, _launch, _launch_backward, _plan_backward


def rms_norm_bwd(
    dy: cupy.ndarray,
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    rstd: cupy.ndarray,
    *,
    gamma_offset: float = 0.0,
    dresidual: cupy.ndarray | None = None,
    sums: bool = True,
) -> tuple[cupy.ndarray, cupy.ndarray | None]:
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

    Notes
    -----
    Products and sums are float32, float64 for float64 data. dx of a row has the same bits alone and
    in any batch, at any alignment and any strides. dgamma has the same bits on every run, for given
    numbers of rows and columns, dtypes and device: rows come in groups of R, as many as share a
    block (``BackwardPlan.rows``; 1 where a row is a block), and block b of B adds up groups b,
    b + B, b + 2 B, ... one after the other; then 16 sums, of blocks s, s + 16, ..., are added up in
    turn. B follows from the number of groups and of the device's multiprocessors
    (``BackwardPlan.persistent_grid``). There are no atomics. Up to eight groups for each
    multiprocessor, further rows whose dy is 0 change no bit of dgamma: those of padding, say. No
    rounding of ``cast="before"`` is differentiated. The work is enqueued on CuPy's current stream.
    """
    arrays = (None, None, None, None, x, dy, dresidual, gamma, None, rstd)
    dx, dgamma, *_ = _backward("rms_norm_bwd", arrays, (gamma_offset, sums))
    return dx, dgamma


def layer_norm_bwd(
    dy: cupy.ndarray,
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    mean: cupy.ndarray,
    rstd: cupy.ndarray,
    *,
    dresidual: cupy.ndarray | None = None,
    sums: bool = True,
) -> tuple[cupy.ndarray, cupy.ndarray | None, cupy.ndarray | None]:
    """Return the gradients of `layer_norm` with respect to x, gamma and beta.

    With ``n = (x - mean) * rstd``:
    ``dx = rstd * (gamma * dy - mean(gamma * dy) - n * mean(gamma * dy * n)) + dresidual``, the
    means over the normalised axes; over all rows, ``dgamma = sum(dy * n)`` and ``dbeta = sum(dy)``.

    Parameters
    ----------
    dy, x, gamma, dresidual, sums
        As in `rms_norm_bwd`.
    mean, rstd : cupy.ndarray, shape (...)
        What `layer_norm_fwd` returned: float32 (float64 for float64 data), one number for each row.

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

    Notes
    -----
    As those of `rms_norm_bwd`.
    """
    arrays = (None, None, None, None, x, dy, dresidual, gamma, mean, rstd)
    dx, dgamma, dbeta, *_ = _backward("layer_norm_bwd", arrays, (0.0, sums))
    return dx, dgamma, dbeta


@_calls.remembered(
    *("dx", "dgamma", "dbeta", "partial"),
    *("x", "dy", "dresidual", "gamma", "mean", "rstd"),
)
def _backward(
    op: str, arrays: _calls.Arrays, gamma_offset: float, sums: bool
) -> tuple[_calls.Arrays, tuple[_launch.Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
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
                plan, axes, made, partial, read, gamma, statistics, offset
            )
    totals = (made.get("dgamma"), made.get("dbeta"))
    return (made["dx"], *totals, partial, x, dy, dresidual, gamma, mean, rstd), launches


def _planned(
    op: str,
    x: cupy.ndarray,
    axes: int,
    gamma: cupy.ndarray | None,
    offset: bool,
    dresidual: bool,
    sums: bool,
) -> _plan_backward.BackwardPlan:
    row = (_launch.cols(x, axes), x.dtype.name, _launch.dtype_name(gamma))
    arch = _kernels.arch(x.device.id)
    if op == "rms_norm_bwd":
        return _plan_backward.rms_norm_bwd(
            *row, gamma_offset=offset, dresidual=dresidual, arch=arch, sums=sums
        )
    return _plan_backward.layer_norm_bwd(*row, dresidual=dresidual, arch=arch, sums=sums)
