# mypy: disable-error-code="no-any-return"
"""RMSNorm of heads with rotary position embedding, of one array or of queries and keys."""

from __future__ import annotations

from typing import Literal, overload

from .._call.rope import rope
from .._call.rope_backward import rope_backward
from .._families import ROPE_OPS
from .._typing import DeviceArray, DeviceArrayT, RopeCast


def rms_norm_rope(
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    positions: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
    out: DeviceArray | None = None,
) -> DeviceArrayT:
    """Normalise heads by their root mean square and rotate them by their token's position.

    ``n = rms_norm(x, gamma, eps)`` of each head; then a pair ``(a, b) = (n[i], n[i + R / 2])`` of
    its first R columns becomes ``(a * c - b * s, b * c + a * s)``, where ``c = cos[p, i]`` and
    ``s = sin[p, i]`` are those of the token's position p. One read and one write.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., H, d)
        Heads of an even number of columns: float16, bfloat16, float32 or float64. Any strides, as
        slices of a packed projection have; an array whose rows are not one unit-stride run, or
        whose leading axes do not merge into three strided levels, is copied first.
    gamma : cupy.ndarray or None
        The weight, of shape (d,), or (H, d) for one of each head; (H * d,) where `across_heads`.
        float16, bfloat16 or float32; float64 or float32 where `x` is float64.
    cos, sin : cupy.ndarray, shape (P, R / 2)
        Cosines and sines of each position, in one dtype, such as gamma may have. R is at most d,
        and the columns past it are not rotated. A cache that holds both is given as two slices. Or
        a row for each token, of shape (..., R / 2), which broadcasts.
    positions : cupy.ndarray of int, shape (...)
        The row of `cos` and `sin` for each token, in any integer dtype; it broadcasts against x's
        axes before the heads. If None, a token's row is its index in the last of those axes. One
        that is no row of the tables is the caller's fault: the kernel reads past their ends, as the
        software GPU says and hardware may not.
    eps : float
        Added to the mean square; finite and not negative.
    interleaved : bool
        Whether pairs are neighbours, ``(n[2 * i], n[2 * i + 1])``, as GPT-J and Flux have them.
    norm_first : bool
        Whether the norm comes before the rotation. If not, the rotated head is what is normalised.
    across_heads : bool
        Whether a token's heads have one mean square together, as in OLMo 2.
    gamma_offset : float
        Added to `gamma` in float32: 1 for models that store the weight less one, like Gemma's.
    cast : {"before", "between", "after"}
        Where 16-bit results are rounded. "before" rounds as `rms_norm` and operators on arrays do:
        n, which has x's dtype, then each product and each sum, to the dtype that promotion of x's
        and cos's gives. "between" rounds n once, after gamma, as ``rms_norm(cast="after")``, and
        then the same: Gemma's and OLMo's. "after" rounds once, at the end.
    out : cupy.ndarray, optional
        Where y is written: `x` itself, or memory of x's shape that overlaps no other argument.

    Returns
    -------
    cupy.ndarray, shape (..., H, d)
        y in x's dtype; `out` where it was given.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap. Nothing is written then.

    See Also
    --------
    qk_norm_rope : Of queries and keys, in one launch.
    rms_norm_rope_fwd : With what the gradient takes.
    rms_norm : The norm alone.

    Notes
    -----
    y has the bits of `rms_norm` followed by CuPy's operators, each result rounded to its dtype, and
    by a cast to x's. With `cos` in bfloat16 beside such an `x` those are the bits of the models of
    Hugging Face's transformers; with a float32 `cos`, those of a float32 rotation of the rounded n.
    A head has the same bits alone and in any batch, at any alignment and any strides. The work is
    enqueued on CuPy's current stream. It is one kernel, but for rows of more than 32 KiB where
    `across_heads`, of which the norm is one and the rotation another.

    Tensors and arrays of other libraries may stand for each array, as in `rms_norm`.

    The definitions are those of Zhang and Sennrich, "Root Mean Square Layer Normalization", 2019,
    and of Su et al., "RoFormer: Enhanced Transformer with Rotary Position Embedding", 2021.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[[1.0, 7.0]], [[1.0, 7.0]]], dtype="float32")
    >>> angle = cupy.asarray([[0.0], [cupy.pi / 2]], dtype="float32")
    >>> cunorm.rms_norm_rope(x, None, cupy.cos(angle), cupy.sin(angle)).round(3)
    array([[[ 0.2,  1.4]],
    <BLANKLINE>
           [[-1.4,  0.2]]], dtype=float32)

    In place, of tokens at given positions:

    >>> positions = cupy.asarray([1, 0])
    >>> cunorm.rms_norm_rope(x, None, cupy.cos(angle), cupy.sin(angle), positions, out=x) is x
    True
    """
    return rope(
        ROPE_OPS["rms_norm_rope"],
        (x, gamma, cos, sin, positions, out),
        (eps, interleaved, norm_first, across_heads, gamma_offset, cast),
    )


def qk_norm_rope(
    q: DeviceArrayT,
    k: DeviceArray,
    q_gamma: DeviceArray | None,
    k_gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    positions: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
    q_out: DeviceArray | None = None,
    k_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise and rotate the heads of queries and keys, in one launch.

    As ``rms_norm_rope(q, q_gamma, ...)`` and ``rms_norm_rope(k, k_gamma, ...)``, bit for bit.

    Parameters
    ----------
    q : cupy.ndarray, shape (..., Hq, d)
        Queries, as x of `rms_norm_rope`.
    k : cupy.ndarray, shape (..., Hk, d)
        Keys of the same tokens, in as many heads as there are, or fewer or more.
    q_gamma, k_gamma : cupy.ndarray or None
        Their weights.
    cos, sin, positions, eps, interleaved, norm_first, across_heads, gamma_offset, cast
        As in `rms_norm_rope`.
    q_out, k_out : cupy.ndarray, optional
        Where the results are written: `q` and `k` themselves, or memory of their shapes that
        overlaps no other argument.

    Returns
    -------
    q : cupy.ndarray, shape (..., Hq, d)
        In q's dtype; `q_out` where it was given.
    k : cupy.ndarray, shape (..., Hk, d)
        In k's dtype; `k_out` where it was given.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_rope`.

    See Also
    --------
    rms_norm_rope : Of one array.

    Examples
    --------
    Slices of a packed projection, in place:

    >>> import cupy
    >>> import cunorm
    >>> tokens, heads, d = 3, 4, 8
    >>> packed = cupy.ones((tokens, heads + 2 + 2, d), "float16")
    >>> q, k, v = packed[:, :4], packed[:, 4:6], packed[:, 6:]
    >>> angle = cupy.arange(16, dtype="float32")[:, None] * 0.1 ** cupy.arange(d // 2)
    >>> cos, sin = cupy.cos(angle).astype("float16"), cupy.sin(angle).astype("float16")
    >>> positions = cupy.asarray([7, 8, 9])
    >>> out = {"q_out": q, "k_out": k}
    >>> y, z = cunorm.qk_norm_rope(q, k, None, None, cos, sin, positions, **out)
    >>> y is q and z is k
    True
    """
    return rope(
        ROPE_OPS["qk_norm_rope"],
        (q, k, q_gamma, k_gamma, cos, sin, positions, q_out, k_out),
        (eps, interleaved, norm_first, across_heads, gamma_offset, cast),
    )


def rms_norm_rope_fwd(
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    positions: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
    out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT]:
    """Normalise and rotate heads, and return what the gradient takes.

    Parameters
    ----------
    x, gamma, cos, sin, positions, eps, interleaved, norm_first, across_heads, gamma_offset, cast
        As in `rms_norm_rope`.
    out : cupy.ndarray, optional
        As there. With `x` itself nothing is left to differentiate.

    Returns
    -------
    y : cupy.ndarray, shape (..., H, d)
        As `rms_norm_rope` returns it, bit for bit.
    rstd : cupy.ndarray, shape (..., H), or (...) where `across_heads`
        ``1 / sqrt(mean(v * v) + eps)`` of what was normalised, one number for each head, or for all
        heads of a token: float32, float64 for float64 data. v is x, or the rotated x where
        `norm_first` is False.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_rope`.

    See Also
    --------
    rms_norm_rope_bwd : The gradient.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[[1.0, 7.0], [4.0, 3.0]]], dtype="float32")
    >>> cos, sin = cupy.ones((1, 1), "float32"), cupy.zeros((1, 1), "float32")
    >>> y, rstd = cunorm.rms_norm_rope_fwd(x, None, cos, sin)
    >>> rstd.round(3)
    array([[0.2  , 0.283]], dtype=float32)
    """
    return rope(
        ROPE_OPS["rms_norm_rope_fwd"],
        (x, gamma, cos, sin, positions, out),
        (eps, interleaved, norm_first, across_heads, gamma_offset, cast),
    )


def qk_norm_rope_fwd(
    q: DeviceArrayT,
    k: DeviceArray,
    q_gamma: DeviceArray | None,
    k_gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    positions: DeviceArray | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
    q_out: DeviceArray | None = None,
    k_out: DeviceArray | None = None,
) -> tuple[DeviceArrayT, DeviceArrayT, DeviceArrayT, DeviceArrayT]:
    """Normalise and rotate queries and keys, and return what their gradients take.

    In one launch, as ``rms_norm_rope_fwd(q, q_gamma, ...)`` and ``rms_norm_rope_fwd(k, k_gamma,
    ...)``, bit for bit.

    Parameters
    ----------
    q, k, q_gamma, k_gamma, cos, sin, positions, eps, interleaved, norm_first, across_heads
        As in `qk_norm_rope`.
    gamma_offset, cast
        As in `rms_norm_rope`.
    q_out, k_out : cupy.ndarray, optional
        As in `qk_norm_rope`. With `q` and `k` themselves nothing is left to differentiate.

    Returns
    -------
    q : cupy.ndarray, shape (..., Hq, d)
        As `qk_norm_rope` returns it.
    k : cupy.ndarray, shape (..., Hk, d)
        The same of keys.
    q_rstd, k_rstd : cupy.ndarray, shape (..., Hq) and (..., Hk), or (...) where `across_heads`
        The statistics of each, as rstd of `rms_norm_rope_fwd`.

    Raises
    ------
    TypeError, ValueError
        As `rms_norm_rope`.

    See Also
    --------
    rms_norm_rope_bwd : The gradient, of q and of k in turn.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> q, k = cupy.ones((3, 4, 8), "float16"), cupy.ones((3, 2, 8), "float16")
    >>> cos, sin = cupy.ones((3, 4), "float16"), cupy.zeros((3, 4), "float16")
    >>> *_, q_rstd, k_rstd = cunorm.qk_norm_rope_fwd(q, k, None, None, cos, sin)
    >>> q_rstd.shape, k_rstd.shape
    ((3, 4), (3, 2))
    """
    return rope(
        ROPE_OPS["qk_norm_rope_fwd"],
        (q, k, q_gamma, k_gamma, cos, sin, positions, q_out, k_out),
        (eps, interleaved, norm_first, across_heads, gamma_offset, cast),
    )


@overload
def rms_norm_rope_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray,
    cos: DeviceArray,
    sin: DeviceArray,
    rstd: DeviceArray,
    positions: DeviceArray | None = ...,
    *,
    interleaved: bool = ...,
    norm_first: bool = ...,
    across_heads: bool = ...,
    gamma_offset: float = ...,
    sums: Literal[True] = ...,
) -> tuple[DeviceArrayT, DeviceArrayT]: ...


@overload
def rms_norm_rope_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    rstd: DeviceArray,
    positions: DeviceArray | None = ...,
    *,
    interleaved: bool = ...,
    norm_first: bool = ...,
    across_heads: bool = ...,
    gamma_offset: float = ...,
    sums: bool = ...,
) -> tuple[DeviceArrayT, DeviceArrayT | None]: ...


def rms_norm_rope_bwd(
    dy: DeviceArray,
    x: DeviceArrayT,
    gamma: DeviceArray | None,
    cos: DeviceArray,
    sin: DeviceArray,
    rstd: DeviceArray,
    positions: DeviceArray | None = None,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    sums: bool = True,
) -> tuple[DeviceArrayT, DeviceArrayT | None]:
    """Return the gradients of `rms_norm_rope` with respect to x and gamma.

    A pair (a, b) of dy is turned back, to ``(a * c + b * s, b * c - a * s)``; columns that are not
    rotated pass. Of what that gives, dn, and with ``g = gamma + gamma_offset`` and
    ``n = x * rstd``: ``dx = rstd * (g * dn - n * mean(g * dn * n))``, the mean over a head, or over
    all heads of a token where `across_heads`, and ``dgamma = sum(dn * n)`` over all tokens, and
    over heads where they have one gamma. cos and sin get no gradient.

    Where `norm_first` is False, x is the rotated x in those, rounded as `rms_norm_rope` rounds it,
    and dn is dy; what is dx there is turned back last.

    Parameters
    ----------
    dy : cupy.ndarray, shape (..., H, d)
        The gradient with respect to y, of x's shape and dtype, laid out in any way.
    x : cupy.ndarray, shape (..., H, d)
        As it was given to the forward op: q or k of `qk_norm_rope_fwd`, say.
    gamma : cupy.ndarray or None
        The weight, as it was given there.
    cos, sin : cupy.ndarray
        As they were given there.
    rstd : cupy.ndarray, shape (..., H), or (...) where `across_heads`
        What that returned: float32, float64 for float64 data.
    positions : cupy.ndarray of int, optional
        As they were given there.
    interleaved, norm_first, across_heads, gamma_offset
        As there.
    sums : bool
        Whether dgamma is wanted: False where gamma is frozen. Then nothing of it is returned.

    Returns
    -------
    dx : cupy.ndarray, shape (..., H, d)
        In x's dtype, C-contiguous.
    dgamma : cupy.ndarray or None
        In gamma's shape and dtype; zeros where there are no heads. None where `gamma` is None, or
        `sums` is False.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device or value.

    See Also
    --------
    rms_norm_rope_fwd, qk_norm_rope_fwd : What give rstd.
    rms_norm_bwd : The gradient of the norm alone.

    Notes
    -----
    Products and sums are float32, float64 for float64 data, and dn is not rounded. dx of a head has
    the same bits alone and in any batch, at any alignment and any strides, and dgamma has those of
    `rms_norm_bwd`: the same on every run and every device. No rounding of ``cast="before"`` is
    differentiated. The work is enqueued on CuPy's current stream.

    One kernel reads x and dy once and writes dx once, and another adds up dgamma. There are several
    with arrays of x's shape in float32 (float64) between them, which are the same definition within
    rounding, where `norm_first` is False, where gamma has the shape (H, d), and where
    `across_heads` has rows of more than 12 KiB of 16-bit data, 24 KiB of wider.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> x = cupy.asarray([[[1.0, 7.0]]], dtype="float32")
    >>> gamma = cupy.ones(2, "float32")
    >>> angle = cupy.full((1, 1), cupy.pi / 2, "float32")
    >>> cos, sin = cupy.cos(angle), cupy.sin(angle)
    >>> y, rstd = cunorm.rms_norm_rope_fwd(x, gamma, cos, sin)
    >>> dy = cupy.asarray([[[-1.0, 1.0]]], dtype="float32")
    >>> dx, dgamma = cunorm.rms_norm_rope_bwd(dy, x, gamma, cos, sin, rstd)
    >>> dx.round(3), dgamma.round(3)
    (array([[[ 0.168, -0.024]]], dtype=float32), array([0.2, 1.4], dtype=float32))
    """
    return rope_backward(
        ROPE_OPS["rms_norm_rope_bwd"],
        (dy, x, gamma, cos, sin, rstd, positions),
        (interleaved, norm_first, across_heads, gamma_offset, sums),
    )
