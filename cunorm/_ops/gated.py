# mypy: disable-error-code="no-any-return"
"""Norms that a gate multiplies, and their gradients."""

from __future__ import annotations

from typing import Any

from .._call.backward import backward
from .._call.forward import forward
from .._families import OPS
from .._typing import Activation, Cast, DeviceArray, DeviceArrayT


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
        What the gate becomes before it multiplies, in float32 (float64 for float64 data), within
        2.5 ulp; None leaves it as it is.
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


def rms_norm_gated_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None,
    rstd: DeviceArray,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT | None]:
    """Return the gradients of `rms_norm_gated` with respect to x, the gate and gamma.

    With ``s = activation(gate)``, ``g = gamma + gamma_offset`` and ``n = x * rstd``: dx is that of
    `rms_norm_bwd` for ``dy * s``, ``dgate = dy * g * n * s'`` and ``dgamma = sum(dy * s * n)``.
    Where the gate comes first, dv is that of `rms_norm_bwd` for ``v = x * s``, ``dx = dv * s`` and
    ``dgate = dv * x * s'``.

    Parameters
    ----------
    dy : cupy.ndarray, shape (..., N)
        The gradient with respect to y, of x's shape and dtype, laid out in any way.
    x, gate, gamma
        As they were given to the forward op.
    rstd : cupy.ndarray, shape (...) or (..., N / group)
        What `rms_norm_gated_fwd` returned: float32 (float64 for float64 data).
    activation, gate_first, group, gamma_offset
        As they were given to the forward op.
    sums : bool
        Whether dgamma is wanted: False where gamma is frozen.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgate : cupy.ndarray, shape (..., N)
        In gate's dtype, C-contiguous.
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
    rms_norm_gated_fwd : What gives rstd.
    rms_norm_bwd : Without a gate, and how sums are added up.
    layer_norm_gated_bwd : The same of `layer_norm_gated`.

    Notes
    -----
    One kernel, and one for the sums: x, dy and the gate are read once, dx and dgate written once.
    Of a row that is longer than what registers hold, the gate is read twice. No rounding of
    ``cast="before"`` is differentiated.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> gate, gamma = cupy.zeros_like(x), cupy.ones(2, "float32")
    >>> y, rstd = cunorm.rms_norm_gated_fwd(x, gate, gamma)
    >>> dx, dgate, dgamma = cunorm.rms_norm_gated_bwd(cupy.ones_like(y), x, gate, gamma, rstd)
    >>> dgate.round(3)
    array([[0.1, 0.7]], dtype=float32)
    """
    options = (activation, gate_first, group, gamma_offset, sums)
    return backward(OPS["rms_norm_gated_bwd"], (dy, x, gate, gamma, rstd), options)


def layer_norm_gated_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gate: DeviceArray,
    gamma: DeviceArray | None,
    mean: DeviceArray,
    rstd: DeviceArray,
    *,
    activation: Activation = "silu",
    gate_first: bool = False,
    group: int | None = None,
    gamma_offset: float = 0.0,
    beta: DeviceArray | None = None,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT | None, DeviceArrayT | None]:
    """Return the gradients of `layer_norm_gated` with respect to x, the gate, gamma and beta.

    As `rms_norm_gated_bwd`, of ``n = (x - mean) * rstd``; where the gate follows, ``dgate = dy * (g
    * n + beta) * s'``, and ``dbeta = sum(dy * s)``.

    Parameters
    ----------
    dy, x, gate, gamma
        As in `rms_norm_gated_bwd`.
    mean, rstd : cupy.ndarray, shape (...) or (..., N / group)
        What `layer_norm_gated_fwd` returned: float32 (float64 for float64 data).
    activation, gate_first, group, gamma_offset
        As they were given to the forward op.
    beta : cupy.ndarray, optional
        As it was given to the forward op: the gradient of the gate needs it.
    sums : bool
        Whether dgamma and dbeta are wanted: False where they are frozen.

    Returns
    -------
    dx : cupy.ndarray, shape (..., N)
        In x's dtype, C-contiguous.
    dgate : cupy.ndarray, shape (..., N)
        In gate's dtype, C-contiguous.
    dgamma, dbeta : cupy.ndarray or None
        In gamma's shape and dtype. Both None where `gamma` is None, or `sums` is False.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_gated_bwd`.

    See Also
    --------
    layer_norm_gated_fwd : What gives mean and rstd.
    layer_norm_bwd : Without a gate.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0]], dtype="float32")
    >>> gate, gamma = cupy.zeros_like(x), cupy.ones(2, "float32")
    >>> y, mean, rstd = cunorm.layer_norm_gated_fwd(x, gate, gamma)
    >>> dy = cupy.ones_like(y)
    >>> dx, dgate, dgamma, dbeta = cunorm.layer_norm_gated_bwd(dy, x, gate, gamma, mean, rstd)
    >>> dgate.round(3)
    array([[-0.5,  0.5]], dtype=float32)
    """
    options = (activation, gate_first, group, gamma_offset, sums)
    return backward(OPS["layer_norm_gated_bwd"], (dy, x, gate, gamma, mean, rstd, beta), options)
