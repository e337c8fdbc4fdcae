"""Numbers of codes and scales, on CuPy arrays: checked, allocated, planned and launched."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .. import _check
from .._check import quantised as check
from .._launch import kernels
from .._launch.launches import Launch
from .._plan import Dequantised, Reach
from .._quant import Quant
from . import remembered

if TYPE_CHECKING:
    from .._families import Op
    from .._typing import Arrays

SCALE_STRIDES = np.dtype([("row", "i8"), ("group", "i8"), ("rows", "i8"), ("given", "f4")], True)


def work(op: Op, arrays: Arrays, options: tuple[object, ...]) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with the one that was made, and what was launched."""
    q, scale = arrays["x"], arrays["factors"]
    (quant, dtype) = options
    scheme: Quant = _check.OPTIONS["quant"]("quant", quant, arrays)
    own = _check.dtype(dtype)
    shape = check.codes_and_scales(q, scale, scheme)
    launches: tuple[Launch, ...] = ()
    with q.device:
        y = cupy.empty(shape, own)
        if y.size > 0:
            taken = {"y": y, "x": cupy.ascontiguousarray(q), "factors": _as_table(scale, scheme)}
            launch = _launch(scheme, taken)
            launch.enqueue(taken.values())
            if taken["x"] is q and taken["factors"].data.ptr == scale.data.ptr:
                launches = (launch,)
    return {**arrays, "y": y}, launches


def _as_table(scale: cupy.ndarray, quant: Quant) -> cupy.ndarray:
    """Return scales of a row on the last axis and rows on the one before, which has any stride."""
    if quant.static is not None:
        return scale.reshape(1, 1)
    if quant.layout == "swizzled":
        return cupy.ascontiguousarray(scale)
    return scale.reshape(prod(scale.shape[:-1]), scale.shape[-1])


def _launch(quant: Quant, arrays: Arrays) -> Launch:
    y, scales = arrays["y"], arrays["factors"]
    plan = Dequantised(quant, y.shape[-1], y.dtype.name)
    rows = y.size // y.shape[-1]
    is_table = quant.static is None and quant.layout != "swizzled"
    steps = [s // scales.itemsize for s in scales.strides] if is_table else [0, 0]
    device = y.device.id
    return Launch(
        kernels.load(plan, Reach(()), device).kernel,
        plan.grid(rows),
        plan.block,
        plan.shared_bytes,
        CNumpyArray(np.array((*steps, rows, quant.global_scale or 1.0), SCALE_STRIDES)),
        device,
        tuple(arrays),
        {},
    )


dequantised = remembered.remembered(work)
