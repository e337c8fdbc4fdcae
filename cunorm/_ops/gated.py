# mypy: disable-error-code="no-any-return"
"""Norms that a gate multiplies."""

from __future__ import annotations

from typing import Any

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
