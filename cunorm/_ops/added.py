# mypy: disable-error-code="no-any-return"
"""Gradients of the norms of ``h = residual + gate * x``, and of what makes h."""

from __future__ import annotations

from typing import Any

from .._call.backward import backward
from .._families import OPS
from .._typing import DeviceArray, DeviceArrayT, Operand


def add_rms_norm_bwd(
    dy: DeviceArray,
    h: DeviceArrayT,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    x: DeviceArray,
    gate: Operand,
    *,
    gamma_offset: float = 0.0,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[Any, ...]:
    """Return the gradients of `add_rms_norm` with a gate, of all that it was given.

    Of ``h = residual + gate * x`` and ``y = rms_norm(h, gamma)``: dh, which is the gradient of
    residual too, is what `rms_norm_bwd` makes of h; ``dx = gate * dh``, and ``dgate = sum(dh * x)``
    over the axes along which the gate broadcasts. One kernel reads dy, h and x once, and writes dh
    and dx once. The arguments are those of `rms_norm_bwd`, with h for x, then x and the gate.

    Parameters
    ----------
    dy : cupy.ndarray, shape (..., N)
        The gradient with respect to y, of h's shape and dtype, laid out in any way.
    h : cupy.ndarray, shape (..., N)
        What was normalised: residual_out of `add_rms_norm_fwd`.
    gamma : cupy.ndarray or None
        The weight, as it was given to the forward op.
    rstd : cupy.ndarray, shape (...)
        What `add_rms_norm_fwd` returned: one number for each row of h.
    x : cupy.ndarray, shape (..., N)
        As it was given to the forward op: what the gate has multiplied.
    gate : cupy.ndarray or float
        As it was given to the forward op. Without one ``dx`` is dh, which `rms_norm_bwd` returns.
    gamma_offset, scale, shift, scale_offset
        As in `rms_norm_bwd`.
    dresidual : cupy.ndarray, optional
        The gradient that reaches h by another way, of h's shape and dtype. It is added before dh is
        rounded, for one more read.
    sums
        As in `rms_norm_bwd`. Gradients of operands are always made.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dh : cupy.ndarray, shape (..., N)
        In h's dtype, C-contiguous: the gradient with respect to residual.
    dgamma : cupy.ndarray or None
        As of `rms_norm_bwd`.
    dscale, dshift : cupy.ndarray
        In the shape and dtype of scale and of shift: those that are given.
    dgate : cupy.ndarray
        In gate's shape and dtype, after all others; of a number an array without axes.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_bwd`.

    See Also
    --------
    add_rms_norm_fwd : What gives h and rstd.
    rms_norm_bwd : Without a gate.
    add_layer_norm_bwd : The same of `add_layer_norm`.

    Notes
    -----
    dh has the bits that `rms_norm_bwd` gives it. It is rounded to residual's dtype before the gate
    multiplies, as PyTorch's ``residual + gate * x`` has it, and the product is rounded once, to x's
    dtype: dx has the bits of ``gate * dh`` where h and x have one dtype. Products with x are added
    up unrounded. Sums are added up as those of `rms_norm_bwd` with a scale: rows that have one row
    of every operand, and then what they give, in turn, without atomics.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 2.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.0, 5.0]], dtype="float32")
    >>> gate = cupy.asarray([0.5, 1.0], dtype="float32")
    >>> y, h, rstd = cunorm.add_rms_norm_fwd(x, residual, gate=gate)
    >>> dy = cupy.ones_like(y)
    >>> dx, dh, dgamma, dgate = cunorm.add_rms_norm_bwd(dy, h, None, rstd, x, gate)
    >>> dh.round(3), dx.round(3), dgate.round(3)
    (array([[ 0.186, -0.013]], dtype=float32), array([[ 0.093, -0.013]], dtype=float32), \
array([ 0.186, -0.027], dtype=float32))
    """
    return backward(
        OPS["add_rms_norm_bwd"],
        (dy, h, gamma, rstd, x, gate, scale, shift, dresidual),
        (gamma_offset, scale_offset, sums),
    )


def add_layer_norm_bwd(
    dy: DeviceArray,
    h: DeviceArrayT,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    x: DeviceArray,
    gate: Operand,
    *,
    gamma_offset: float = 0.0,
    beta: DeviceArray | None = None,
    scale: Operand | None = None,
    shift: Operand | None = None,
    scale_offset: float = 1.0,
    dresidual: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[Any, ...]:
    """Return the gradients of `add_layer_norm` with a gate, of all that it was given.

    Of ``h = residual + gate * x`` and ``y = layer_norm(h, gamma, beta)``: dh, which is the gradient
    of residual too, is what `layer_norm_bwd` makes of h; ``dx = gate * dh``, and
    ``dgate = sum(dh * x)`` over the axes along which the gate broadcasts.

    Parameters
    ----------
    dy, h, gamma
        As in `add_rms_norm_bwd`.
    mean, rstd : cupy.ndarray, shape (...)
        What `add_layer_norm_fwd` returned: one number for each row of h.
    x, gate
        As in `add_rms_norm_bwd`.
    gamma_offset, beta, scale, shift, scale_offset
        As in `layer_norm_bwd`.
    dresidual, sums
        As in `add_rms_norm_bwd`.

    Returns
    -------
    dx, dh : cupy.ndarray, shape (..., N)
        As of `add_rms_norm_bwd`.
    dgamma, dbeta : cupy.ndarray or None
        As of `layer_norm_bwd`.
    dscale, dshift, dgate : cupy.ndarray
        As of `add_rms_norm_bwd`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_bwd`.

    See Also
    --------
    add_layer_norm_fwd : What gives h, mean and rstd.
    layer_norm_bwd : Without a gate.
    add_rms_norm_bwd : The same of `add_rms_norm`.

    Notes
    -----
    As those of `add_rms_norm_bwd`.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x, residual = cupy.ones((2, 4), "float32"), cupy.arange(8, dtype="float32").reshape(2, 4)
    >>> y, h, mean, rstd = cunorm.add_layer_norm_fwd(x, residual, gate=0.5)
    >>> dy = cupy.eye(2, 4, dtype="float32")
    >>> dx, dh, *_, dgate = cunorm.add_layer_norm_bwd(dy, h, None, mean, rstd, x, 0.5)
    >>> bool((dx == dh / 2).all()), dgate.shape
    (True, ())
    """
    return backward(
        OPS["add_layer_norm_bwd"],
        (dy, h, gamma, mean, rstd, x, gate, beta, scale, shift, dresidual),
        (gamma_offset, scale_offset, sums),
    )
