"""Sums over rows that are divided, among devices say, and what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import cupy
import numpy as np

from .. import _check
from .._call import row_sums as _row_sums


def row_sums(
    x: Any,
    *,
    kind: Literal["squares", "moments"] = "squares",
    axes: int = 1,
    out: Any = None,
) -> Any:
    """Return the sum of squares of each row, or its mean and squared differences from it.

    ``squares = sum(x**2)``; ``moments = mean(x), sum((x - mean(x))**2)``, over the trailing `axes`:
    what `rms_norm` and `layer_norm` take where each device has a part of every row's columns.

    Parameters
    ----------
    x : cupy.ndarray, shape (..., N)
        float16, bfloat16, float32 or float64; any strides.
    kind : {"squares", "moments"}
        Which sums.
    axes : int
        How many trailing axes are a row.
    out : cupy.ndarray, optional
        Where they are written: C-contiguous, of their shape and dtype, apart from `x`.

    Returns
    -------
    cupy.ndarray, shape (...) or (..., 2)
        float32, float64 for float64 data; `out` where it was given. A row without columns has 0,
        and NaN for a mean.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape, device, value or overlap. Nothing is written then.

    See Also
    --------
    rms_norm : Takes squares of all parts, added up.
    layer_norm : Takes moments of all parts, combined.
    combine_moments : Combines them.

    Notes
    -----
    ``rms_norm(x, gamma, squares=row_sums(x), count=N)`` has the bits of ``rms_norm(x, gamma)``,
    where the squares neither overflow nor underflow: what `rms_norm` rescues is lost in a sum.

    Examples
    --------
    A row of four columns, two on each of two devices:

    >>> import cupy
    >>> import cunorm
    >>> left, right = cupy.asarray([[1.0, 7.0]]), cupy.asarray([[5.0, 5.0]])
    >>> squares = cunorm.row_sums(left) + cunorm.row_sums(right)  # by an all-reduce
    >>> cunorm.rms_norm(left, squares=squares, count=4).round(3)
    array([[0.2, 1.4]])
    """
    return _row_sums.row_sums(x, kind, axes, out)


def combine_moments(moments: Any, counts: Any) -> Any:
    """Combine the moments of the parts of rows: those of the rows.

    With ``n = sum(counts)``: ``mean = sum(counts * means) / n``, and the squared differences are
    ``sum(differences + counts * (means - mean)**2)``, over the parts.

    Parameters
    ----------
    moments : cupy.ndarray, shape (R, ..., 2)
        What `row_sums` gave of each of R parts, by ranks: float32 or float64.
    counts : sequence of int or cupy.ndarray, shape (R,)
        The number of columns of each part.

    Returns
    -------
    cupy.ndarray, shape (..., 2)
        In the dtype of `moments`.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype.
    ValueError
        For a wrong shape or value.

    See Also
    --------
    row_sums : What gives moments.
    layer_norm : What takes them.

    Notes
    -----
    The formula is that of Chan, Golub and LeVeque, "Algorithms for Computing the Sample Variance",
    The American Statistician 37, 1983.

    Examples
    --------
    >>> import cupy
    >>> import cunorm
    >>> parts = cupy.asarray([[1.0, 3.0], [5.0, 7.0]])
    >>> moments = cupy.stack([cunorm.row_sums(part, kind="moments") for part in parts])
    >>> cunorm.combine_moments(moments, [2, 2])
    array([ 4., 20.])
    """
    _check.array("moments", moments)
    if moments.dtype.name not in ("float32", "float64"):
        raise TypeError(f"moments must be float32 or float64, but is {moments.dtype.name}")
    if moments.ndim < 2 or moments.shape[-1] != 2:
        raise ValueError(f"moments must have the shape (R, ..., 2), but has {moments.shape}")
    with moments.device:
        own = cupy.asarray(counts, moments.dtype)
        if own.shape != moments.shape[:1]:
            raise ValueError(
                f"counts must have one number for each of the {moments.shape[0]} parts of moments, "
                f"but has the shape {own.shape}"
            )
        if isinstance(counts, Sequence) and not all(np.asarray(counts) > 0):
            raise ValueError(f"counts must be numbers of columns, from 1 up, but are {counts}")
        own = own.reshape(-1, *[1] * (moments.ndim - 2))
        means, differences = moments[..., 0], moments[..., 1]
        mean = (own * means).sum(0) / own.sum()
        made = (differences + own * (means - mean) ** 2).sum(0)
        return cupy.stack((mean, made), -1)
