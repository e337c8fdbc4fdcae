"""The backward passes of RMSNorm and LayerNorm on CuPy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cupy

from . import _check, _kernels, _launch, _plan_backward


def rms_norm_bwd(
    dy: cupy.ndarray,
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    rstd: cupy.ndarray,
    *,
    gamma_offset: float = 0.0,
    dresidual: cupy.ndarray | None = None,
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

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgamma : cupy.ndarray or None
        In gamma's shape and dtype; zeros where there are no rows. None where `gamma` is None.

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
    (``BackwardPlan.persistent_grid``). There are no atomics. No rounding of ``cast="before"`` is
    differentiated. The work is enqueued on CuPy's current stream.
    """
    dx, totals = _backward(
        _plan_backward.rms_norm_bwd,
        dy,
        x,
        gamma,
        {"rstd": rstd},
        ("dgamma",),
        gamma_offset,
        dresidual,
    )
    return dx, totals.get("dgamma")


def layer_norm_bwd(
    dy: cupy.ndarray,
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    mean: cupy.ndarray,
    rstd: cupy.ndarray,
    *,
    dresidual: cupy.ndarray | None = None,
) -> tuple[cupy.ndarray, cupy.ndarray | None, cupy.ndarray | None]:
    """Return the gradients of `layer_norm` with respect to x, gamma and beta.

    With ``n = (x - mean) * rstd``:
    ``dx = rstd * (gamma * dy - mean(gamma * dy) - n * mean(gamma * dy * n)) + dresidual``, the
    means over the normalised axes; over all rows, ``dgamma = sum(dy * n)`` and ``dbeta = sum(dy)``.

    Parameters
    ----------
    dy, x, gamma, dresidual
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
    statistics = {"mean": mean, "rstd": rstd}
    dx, totals = _backward(
        _plan_backward.layer_norm_bwd, dy, x, gamma, statistics, ("dgamma", "dbeta"), 0.0, dresidual
    )
    return dx, totals.get("dgamma"), totals.get("dbeta")


def _backward(
    planned: Callable[..., _plan_backward.BackwardPlan],
    dy: cupy.ndarray,
    x: cupy.ndarray,
    gamma: cupy.ndarray | None,
    statistics: Mapping[str, cupy.ndarray],
    names: tuple[str, ...],
    gamma_offset: float,
    dresidual: cupy.ndarray | None,
) -> tuple[cupy.ndarray, dict[str, cupy.ndarray]]:
    """Return dx, and by their `names` the gradients of the parameters where there is a gamma."""
    _check.data("x", x)
    _check.like_x("dy", dy, x)
    axes = _check.parameters(x, gamma=gamma)
    for name, value in statistics.items():
        _check.statistic(name, value, x, axes)
    offset = _check.gamma_offset(gamma_offset, gamma)
    read = {"x": x, "dy": dy}
    if dresidual is not None:
        _check.like_x("dresidual", dresidual, x)
        read["dresidual"] = dresidual

    with x.device:
        dx = _launch.empty_like(x)
        make = cupy.empty if x.size > 0 else cupy.zeros
        totals = {} if gamma is None else {name: make(gamma.shape, gamma.dtype) for name in names}
        if x.size == 0:
            return dx, totals
        options = {"dresidual": dresidual is not None}
        if "mean" not in statistics:
            options["gamma_offset"] = offset != 0
        gamma_dtype = _launch.dtype_name(gamma)
        plan = planned(
            _launch.cols(x, axes),
            x.dtype.name,
            gamma_dtype,
            arch=_kernels.arch(x.device.id),
            **options,
        )
        sums = (
            None if gamma_dtype is None else _plan_backward.column_sums(x.dtype.name, gamma_dtype)
        )
        _launch.backward(plan, sums, axes, dx, totals, read, gamma, statistics, offset)
    return dx, totals
