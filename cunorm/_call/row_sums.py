"""Sums over rows, of CuPy arrays: checked, planned and launched."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from .. import _check, _plan
from .._launch import kernels
from .._launch import launches as of_forward

if TYPE_CHECKING:
    from .._typing import Arrays

KINDS = ("squares", "moments")


def row_sums(x: Any, kind: Any, axes: Any, out: Any) -> cupy.ndarray:
    """Return the sums of each row: see `cunorm.row_sums`."""
    _check.data("x", x)
    _check.word(kind, "kind", KINDS)
    if isinstance(axes, (bool, np.bool_)) or not isinstance(axes, Integral):
        raise TypeError(f"axes must be an int, but is a {_check.type_name(axes)}")
    axes = int(axes)
    if not 1 <= axes <= x.ndim:
        raise ValueError(f"axes must be from 1 to the {x.ndim} axes of x, but is {axes}")
    numbers = () if kind == "squares" else (2,)
    shape = (*x.shape[: x.ndim - axes], *numbers)
    acc = _plan.accumulator(x.dtype.name)
    if out is not None:
        _check.sums_out(out, x, shape, acc)
    with x.device:
        sums = cupy.empty(shape, acc) if out is None else out
        if x.size > 0:
            _launch(x, kind, axes, sums)
        else:
            sums[...] = 0
            if kind == "moments":
                sums[..., 0] = np.nan
    return sums


def _launch(x: cupy.ndarray, kind: str, axes: int, sums: cupy.ndarray) -> None:
    cols = of_forward.cols(x, axes)
    plan = _plan.row_sums(kind, cols, x.dtype.name, kernels.arch(x.device.id))
    arrays: Arrays = {"x": x, "sums": sums}
    of_forward.forward(plan, axes, arrays, {}, {}, enqueue=True)
