# mypy: disable-error-code="no-any-return"
"""Norms that are added to a residual, which may be normalised in turn."""

from __future__ import annotations

from .._call.forward import forward
from .._families import OPS
from .._typing import Cast, DeviceArray, DeviceArrayT, Operand


def rms_norm_add(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    residual_out: DeviceArray | None = None,
) -> DeviceArrayT:
    """Normalise rows by their root mean square, and add them to a residual: post-norm.

    ``h = residual + gate * rms_norm(x, gamma, eps)``, in one pass of two reads and one write.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual : cupy.ndarray, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64.
    gamma, eps
        As in `rms_norm`.
    gate : cupy.ndarray or float, optional
        What the norm is multiplied with before it is added: it broadcasts against `x`, with any
        strides; float16, bfloat16 or float32; float64 or float32 where `x` is float64.
    gamma_offset, cast
        As in `rms_norm`: those of the norm. Its result is rounded to x's dtype with either cast,
        and the product and the sum to the dtypes that NumPy gives them.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap. Nothing is written then.

    See Also
    --------
    rms_norm_add_fwd : Return rstd too.
    rms_norm_add_rms_norm : Normalise h in turn.
    add_rms_norm : Add first, and normalise the sum.
    layer_norm_add : Subtract the mean too.

    Notes
    -----
    The bits are those of ``residual + gate * cunorm.rms_norm(x, gamma, eps)``, an operator of CuPy
    after the other.

    The definition is that of the layers of OLMo 2, "2 OLMo 2 Furious", 2024.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> residual = cupy.asarray([[10.0, 20.0]], dtype="float32")
    >>> cunorm.rms_norm_add(x, residual).round(3)
    array([[10.2, 21.4]], dtype=float32)

    The residual stream stays where it is:

    >>> cunorm.rms_norm_add(x, residual, gate=0.5, residual_out=residual) is residual
    True
    """
    return forward(
        OPS["rms_norm_add"],
        (x, residual, gamma, gate, residual_out),
        (eps, gamma_offset, cast),
    )


def rms_norm_add_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise rows by their root mean square, add them to a residual, and keep rstd.

    Parameters
    ----------
    x, residual, gamma, eps, gate, gamma_offset, cast, residual_out
        As in `rms_norm_add`.

    Returns
    -------
    residual_out : cupy.ndarray, shape (..., N)
        What `rms_norm_add` returns, bit for bit.
    rstd : cupy.ndarray, shape (...)
        ``1 / sqrt(mean(x**2) + eps)`` of each row, float32 (float64 for float64 data).

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_add`.

    See Also
    --------
    rms_norm_add : Return h alone.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> h, rstd = cunorm.rms_norm_add_fwd(x, cupy.ones_like(x))
    >>> h.round(3), rstd.round(3)
    (array([[1.2, 2.4]], dtype=float32), array([0.2], dtype=float32))
    """
    return forward(
        OPS["rms_norm_add_fwd"],
        (x, residual, gamma, gate, residual_out),
        (eps, gamma_offset, cast),
    )


def layer_norm_add(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    residual_out: DeviceArray | None = None,
) -> DeviceArrayT:
    """Normalise rows to mean 0 and variance 1, and add them to a residual: post-norm.

    ``h = residual + gate * layer_norm(x, gamma, beta, eps)``, in one pass of two reads and one
    write.

    Parameters
    ----------
    x
        As in `layer_norm`.
    residual
        As in `rms_norm_add`.
    gamma, beta, eps
        As in `layer_norm`.
    gate
        As in `rms_norm_add`.
    gamma_offset
        As in `layer_norm`. The norm is rounded to x's dtype, and the product and the sum to the
        dtypes that NumPy gives them.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `layer_norm`.

    See Also
    --------
    layer_norm_add_fwd : Return the statistics too.
    add_layer_norm : Add first, and normalise the sum.
    rms_norm_add : Leave the mean where it is.

    Notes
    -----
    The bits are those of ``residual + gate * cunorm.layer_norm(x, gamma, beta, eps)``, an operator
    of CuPy after the other.

    The definition is that of Liu et al., "Swin Transformer V2", 2022: res-post-norm.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0]], dtype="float32")
    >>> residual = cupy.asarray([[10.0, 20.0]], dtype="float32")
    >>> cunorm.layer_norm_add(x, residual).round(3)
    array([[ 9., 21.]], dtype=float32)
    """
    return forward(
        OPS["layer_norm_add"],
        (x, residual, gamma, beta, gate, residual_out),
        (eps, gamma_offset),
    )


def layer_norm_add_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    beta: DeviceArray | None = None,
    eps: float = 1e-5,
    *,
    gate: Operand | None = None,
    gamma_offset: float = 0.0,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise rows to mean 0 and variance 1, add them to a residual, and keep the statistics.

    Parameters
    ----------
    x, residual, gamma, beta, eps, gate, gamma_offset, residual_out
        As in `layer_norm_add`.

    Returns
    -------
    residual_out : cupy.ndarray, shape (..., N)
        What `layer_norm_add` returns, bit for bit.
    mean, rstd : cupy.ndarray, shape (...)
        The mean of each row of x, and ``1 / sqrt(var + eps)`` of its biased variance: float32
        (float64 for float64 data).

    Raises
    ------
    TypeError, ValueError
        As `layer_norm_add`.

    See Also
    --------
    layer_norm_add : Return h alone.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 3.0]], dtype="float32")
    >>> h, mean, rstd = cunorm.layer_norm_add_fwd(x, cupy.ones_like(x))
    >>> mean, rstd.round(3)
    (array([2.], dtype=float32), array([1.], dtype=float32))
    """
    return forward(
        OPS["layer_norm_add_fwd"],
        (x, residual, gamma, beta, gate, residual_out),
        (eps, gamma_offset),
    )


def rms_norm_add_rms_norm(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    gamma2: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    eps2: float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise x, add it to a residual and normalise the sum: the end of a layer and the next one.

    ``h = residual + rms_norm(x, gamma, eps)``, rounded to residual's dtype and written once;
    ``y = rms_norm(h, gamma2, eps2)`` of h as rounded, in x's dtype: two reads and two writes.

    Parameters
    ----------
    x
        As in `rms_norm`.
    residual : cupy.ndarray, of x's shape
        float16, bfloat16 or float32, whatever x's is; float64 where `x` is float64. With another
        dtype than x's the norms are a kernel each.
    gamma
        As in `rms_norm`.
    gamma2 : cupy.ndarray, optional
        The weight of the second norm, as `gamma`.
    eps
        As in `rms_norm`.
    eps2 : float, optional
        Added to the mean square of h; `eps` if left out.
    gamma_offset, cast
        As in `rms_norm`, of both norms.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape and dtype that overlaps no other
        argument.
    residual_out : cupy.ndarray, optional
        Where h is written: `residual` itself, or memory of its shape and dtype that overlaps no
        other argument.

    Returns
    -------
    y : cupy.ndarray, shape (..., N)
        In x's dtype; `out` where it was given.
    residual_out : cupy.ndarray, shape (..., N)
        h in residual's dtype; `residual_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm`.

    See Also
    --------
    rms_norm_add_rms_norm_fwd : Return the statistics too.
    rms_norm_add : Return h alone.
    add_rms_norm : Without the first norm.

    Notes
    -----
    The bits are those of ``h = residual + cunorm.rms_norm(x, gamma, eps)`` and ``cunorm.rms_norm(h,
    gamma2, eps2)``.

    The definition is that of the layers of Gemma 2, "Improving Open Language Models at a Practical
    Size", 2024, which have ``gamma_offset=1, cast="after"``.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> residual = cupy.asarray([[0.8, 5.6]], dtype="float32")
    >>> y, h = cunorm.rms_norm_add_rms_norm(x, residual)
    >>> h.round(3), y.round(3)
    (array([[1., 7.]], dtype=float32), array([[0.2, 1.4]], dtype=float32))
    """
    return forward(
        OPS["rms_norm_add_rms_norm"],
        (x, residual, gamma, gamma2, out, residual_out),
        (eps, eps2, gamma_offset, cast),
    )


def rms_norm_add_rms_norm_fwd(
    x: DeviceArrayT,
    residual: DeviceArray,
    gamma: DeviceArray | None = None,
    gamma2: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    eps2: float | None = None,
    gamma_offset: float = 0.0,
    cast: Cast = "before",
    out: DeviceArray | None = None,
    residual_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise x, add it to a residual, normalise the sum, and keep the statistics of both.

    Parameters
    ----------
    x, residual, gamma, gamma2, eps, eps2, gamma_offset, cast, out, residual_out
        As in `rms_norm_add_rms_norm`.

    Returns
    -------
    y, residual_out : cupy.ndarray, shape (..., N)
        What `rms_norm_add_rms_norm` returns, bit for bit.
    rstd, rstd2 : cupy.ndarray, shape (...)
        ``1 / sqrt(mean(x**2) + eps)`` of each row of x, and that of h: float32 (float64 for float64
        data).

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_add_rms_norm`.

    See Also
    --------
    rms_norm_add_rms_norm : Return y and h alone.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[1.0, 7.0]], dtype="float32")
    >>> y, h, rstd, rstd2 = cunorm.rms_norm_add_rms_norm_fwd(x, x)
    >>> rstd.round(3), rstd2.round(3)
    (array([0.2], dtype=float32), array([0.167], dtype=float32))
    """
    return forward(
        OPS["rms_norm_add_rms_norm_fwd"],
        (x, residual, gamma, gamma2, out, residual_out),
        (eps, eps2, gamma_offset, cast),
    )
