"""Arrays laid out on the device in every way that the ops accept, between guard elements."""

from __future__ import annotations

from typing import Any

import cupy
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

GUARD = 96.0  # an ordinary number in every dtype, and no result of a norm of ordinary inputs
GUARDS = 32  # elements on either side of an array; a packet is at most 16


def place(values: Array, layout: str) -> tuple[Any, Any]:
    """Put `values` on the device in `layout`: the guarded buffer, and the view of the values.

    The layouts are "row-strided", "base + 1 element", "strided heads" and "transposed", also as
    part of a longer text; with any other one the values are contiguous.
    """
    padded, offset = _padding(values.shape, layout)
    size = int(np.prod(padded))
    host = np.full(GUARDS + offset + size + GUARDS, GUARD).astype(values.dtype)
    host[_slots(values.shape, layout).ravel()] = values.ravel()
    whole = cupy.asarray(host)
    view = whole[GUARDS + offset : GUARDS + offset + size].reshape(padded)
    if "transposed" in layout:
        return whole, view.T
    return whole, view[tuple(slice(n) for n in values.shape)]


def around(whole: Any, shape: tuple[int, ...], layout: str) -> Array:
    """Return every element of a guarded buffer that is none of the values."""
    host: Array = cupy.asnumpy(whole)
    beside = np.ones(host.shape, bool)
    beside[_slots(shape, layout)] = False
    return host[beside]


def _padding(shape: tuple[int, ...], layout: str) -> tuple[tuple[int, ...], int]:
    """Return the shape of what the array is cut out of, and its distance from a whole alignment."""
    if "transposed" in layout:
        return shape[::-1], 0
    if "strided heads" in layout and len(shape) == 3:
        return (shape[0], 2 * shape[1], 2 * shape[2]), 0
    if "row-strided" in layout:
        return (*shape[:-1], 2 * shape[-1]), 0
    return shape, int("base + 1" in layout)


def _slots(shape: tuple[int, ...], layout: str) -> npt.NDArray[np.intp]:
    """Return where in the guarded buffer each value lies."""
    padded, offset = _padding(shape, layout)
    index = np.arange(int(np.prod(padded))).reshape(padded) + GUARDS + offset
    return index.T if "transposed" in layout else index[tuple(slice(n) for n in shape)]
