"""RMSNorm of heads with rotary position embedding, on tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from .._typing import RopeCast
from . import _heads  # noqa: F401  (defines the operators)
from ._checks import no_gradient, options, rope_cast, tensors

_operators = torch.ops.cunorm


def rms_norm_rope(
    x: Tensor,
    gamma: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
) -> Tensor:
    """Normalise heads by their root mean square and rotate them, differentiably.

    ``n = rms_norm(x, gamma, eps)`` of each head; then a pair ``(a, b) = (n[i], n[i + R / 2])`` of
    its first R columns becomes ``(a * c - b * s, b * c + a * s)``, where ``c = cos[p, i]`` and
    ``s = sin[p, i]`` are those of the token's position p. One read and one write.

    Parameters
    ----------
    x : torch.Tensor, shape (..., H, d)
        Heads of an even number of columns: float16, bfloat16, float32 or float64, on a CUDA device
        or on the CPU, with any strides.
    gamma : torch.Tensor or None
        The weight, of shape (d,), or (H, d) for one of each head; (H * d,) where `across_heads`.
        float16, bfloat16 or float32; float64 or float32 where `x` is float64.
    cos, sin : torch.Tensor, shape (P, R / 2)
        Cosines and sines of each position, in one dtype, such as gamma may have. R is at most d,
        and the columns past it are not rotated. Or a row for each token, of shape (..., R / 2),
        which broadcasts.
    positions : torch.Tensor of int, shape (...)
        The row of `cos` and `sin` for each token, in any integer dtype; it broadcasts against x's
        axes before the heads. If None, a token's row is its index in the last of those axes. One
        that is no row of the tables is an error on the CPU, and the caller's fault on a GPU, whose
        kernel reads past their ends.
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
        Where 16-bit results are rounded. "before" rounds as `rms_norm` and PyTorch's operators do:
        n, which has x's dtype, then each product and each sum, to the dtype that promotion of x's
        and cos's gives. "between" rounds n once, after gamma, as ``rms_norm(cast="after")``, and
        then the same: Gemma's and OLMo's. "after" rounds once, at the end.

    Returns
    -------
    torch.Tensor, shape (..., H, d)
        y in x's dtype, contiguous.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device or value.
    RuntimeError
        Where `cos` or `sin` requires a gradient and gradients are recorded: there is none. Where a
        gradient is differentiated again.

    See Also
    --------
    rms_norm_rope_ : Write over x.
    qk_norm_rope : Of queries and keys, in one launch.
    cunorm.rms_norm_rope : The same of CuPy arrays.

    Notes
    -----
    With `cos` in bfloat16 beside such an `x` the bits are those of the models of Hugging Face's
    transformers, given one rstd; with a float32 `cos`, those of a float32 rotation of the rounded
    n. ``torch.compile`` takes it as one node. For the backward pass x, gamma, the tables and rstd
    are kept; no rounding is differentiated.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.tensor([[[1.0, 7.0]], [[1.0, 7.0]]])
    >>> angle = torch.tensor([[0.0], [torch.pi / 2]])
    >>> cunorm.torch.rms_norm_rope(x, None, angle.cos(), angle.sin())
    tensor([[[ 0.2000,  1.4000]],
    <BLANKLINE>
            [[-1.4000,  0.2000]]])
    """
    tensors(x=x, gamma=gamma, cos=cos, sin=sin, positions=positions)
    _no_gradient("rms_norm_rope", cos=cos, sin=sin)
    numbers = options(
        eps=eps,
        interleaved=interleaved,
        norm_first=norm_first,
        across_heads=across_heads,
        gamma_offset=gamma_offset,
    )
    y, _ = _operators.rms_norm_rope_fwd(x, gamma, cos, sin, positions, *numbers, rope_cast(cast))
    return y  # type: ignore[no-any-return]


def qk_norm_rope(
    q: Tensor,
    k: Tensor,
    q_gamma: Tensor | None,
    k_gamma: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
) -> tuple[Tensor, Tensor]:
    """Normalise and rotate the heads of queries and keys, in one launch.

    As ``rms_norm_rope(q, q_gamma, ...)`` and ``rms_norm_rope(k, k_gamma, ...)``, bit for bit.

    Parameters
    ----------
    q : torch.Tensor, shape (..., Hq, d)
        Queries, as x of `rms_norm_rope`.
    k : torch.Tensor, shape (..., Hk, d)
        Keys of the same tokens, in as many heads as there are, or fewer or more.
    q_gamma, k_gamma : torch.Tensor or None
        Their weights.
    cos, sin, positions, eps, interleaved, norm_first, across_heads, gamma_offset, cast
        As in `rms_norm_rope`.

    Returns
    -------
    q : torch.Tensor, shape (..., Hq, d)
        In q's dtype, contiguous.
    k : torch.Tensor, shape (..., Hk, d)
        In k's dtype, contiguous.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        As `rms_norm_rope`.

    See Also
    --------
    qk_norm_rope_ : Write over q and k.
    rms_norm_rope : Of one tensor.
    cunorm.qk_norm_rope : The same of CuPy arrays.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> packed = torch.ones(3, 4 + 2 + 2, 8)
    >>> angle = torch.arange(16.0)[:, None] * 0.1 ** torch.arange(4)
    >>> positions = torch.tensor([7, 8, 9])
    >>> tables = angle.cos(), angle.sin(), positions
    >>> q, k = cunorm.torch.qk_norm_rope(packed[:, :4], packed[:, 4:6], None, None, *tables)
    >>> q.shape, k.shape
    (torch.Size([3, 4, 8]), torch.Size([3, 2, 8]))
    """
    tensors(q=q, k=k, q_gamma=q_gamma, k_gamma=k_gamma, cos=cos, sin=sin, positions=positions)
    _no_gradient("qk_norm_rope", cos=cos, sin=sin)
    numbers = options(
        eps=eps,
        interleaved=interleaved,
        norm_first=norm_first,
        across_heads=across_heads,
        gamma_offset=gamma_offset,
    )
    given = (q, k, q_gamma, k_gamma, cos, sin, positions)
    q, k, *_ = _operators.qk_norm_rope_fwd(*given, *numbers, rope_cast(cast))
    return q, k


def rms_norm_rope_(
    x: Tensor,
    gamma: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
) -> Tensor:
    """Write over x what `rms_norm_rope` returns, and return x.

    Parameters
    ----------
    x, gamma, cos, sin, positions, eps, interleaved, norm_first, across_heads, gamma_offset, cast
        As in `rms_norm_rope`. `x` must not overlap itself, nor another argument.

    Returns
    -------
    torch.Tensor
        `x` itself.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_rope`, and for memory that overlaps. Nothing is written then.

    See Also
    --------
    rms_norm_rope : Leave x as it is.

    Examples
    --------
    >>> import torch
    >>> import cunorm
    >>> x = torch.ones(2, 1, 4)
    >>> cos, sin = torch.ones(2, 2), torch.zeros(2, 2)
    >>> cunorm.torch.rms_norm_rope_(x, None, cos, sin) is x
    True
    """
    tensors(x=x, gamma=gamma, cos=cos, sin=sin, positions=positions)
    _no_gradient("rms_norm_rope_", x=x, gamma=gamma, cos=cos, sin=sin)
    numbers = options(
        eps=eps,
        interleaved=interleaved,
        norm_first=norm_first,
        across_heads=across_heads,
        gamma_offset=gamma_offset,
    )
    _operators.rms_norm_rope_(x, gamma, cos, sin, positions, *numbers, rope_cast(cast))
    return x


def qk_norm_rope_(
    q: Tensor,
    k: Tensor,
    q_gamma: Tensor | None,
    k_gamma: Tensor | None,
    cos: Tensor,
    sin: Tensor,
    positions: Tensor | None = None,
    eps: float = 1e-6,
    *,
    interleaved: bool = False,
    norm_first: bool = True,
    across_heads: bool = False,
    gamma_offset: float = 0.0,
    cast: RopeCast = "before",
) -> tuple[Tensor, Tensor]:
    """Write over q and k what `qk_norm_rope` returns, and return both.

    Parameters
    ----------
    q, k, q_gamma, k_gamma, cos, sin, positions, eps
        As in `qk_norm_rope`. What is written must not overlap itself, nor another argument.
    interleaved, norm_first, across_heads, gamma_offset, cast
        As in `qk_norm_rope`.

    Returns
    -------
    tuple of torch.Tensor
        `q` and `k` themselves.

    Raises
    ------
    RuntimeError, TypeError, ValueError
        As `rms_norm_rope_`.

    See Also
    --------
    qk_norm_rope : Leave both as they are.

    Examples
    --------
    Slices of a packed projection:

    >>> import torch
    >>> import cunorm
    >>> packed = torch.ones(3, 4 + 2 + 2, 8)
    >>> q, k = packed[:, :4], packed[:, 4:6]
    >>> cos, sin = torch.ones(3, 4), torch.zeros(3, 4)
    >>> y, z = cunorm.torch.qk_norm_rope_(q, k, None, None, cos, sin)
    >>> y is q and z is k
    True
    """
    tensors(q=q, k=k, q_gamma=q_gamma, k_gamma=k_gamma, cos=cos, sin=sin, positions=positions)
    given = {"q": q, "k": k, "q_gamma": q_gamma, "k_gamma": k_gamma, "cos": cos, "sin": sin}
    _no_gradient("qk_norm_rope_", **given)
    numbers = options(
        eps=eps,
        interleaved=interleaved,
        norm_first=norm_first,
        across_heads=across_heads,
        gamma_offset=gamma_offset,
    )
    _operators.qk_norm_rope_(q, k, q_gamma, k_gamma, cos, sin, positions, *numbers, rope_cast(cast))
    return q, k


def _no_gradient(op: str, **given: Tensor | None) -> None:
    no_gradient(op, "torch.no_grad() says that no gradient is wanted", **given)
