"""Arrays that have ``__cuda_array_interface__`` alone, Numba's among them, as `_interop.py` asks.

CuPy's own import lets the host wait for the producer's stream. Here the memory is wrapped, and
CuPy's stream waits on the device.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from .streams import Handle


class CudaArrayImport:
    """What turns an array into CuPy's.

    Parameters
    ----------
    name : str
        What users call it.
    array : object
        The array, which the result keeps alive.
    interface : mapping
        Its ``__cuda_array_interface__``.
    written : bool
        Whether it is to be written.

    Attributes
    ----------
    stream : tuple of (int, cupy.cuda.Stream) or None
        The device, and the stream on which the producer may still be at work on the array.

    Raises
    ------
    TypeError, ValueError
        For an array that cannot cross.
    """

    def __init__(self, name: str, array: Any, interface: Mapping[str, Any], written: bool) -> None:
        self._array = array
        self._interface = interface
        pointer, read_only = interface["data"]
        if interface.get("mask") is not None:
            raise ValueError(f"{name} must have no mask, but its __cuda_array_interface__ has one")
        if written and read_only:
            raise ValueError(f"{name} must be writable, but is read-only")
        self._dtype = np.dtype(interface["typestr"])
        if self._dtype.kind == "V" or not self._dtype.isnative:
            raise TypeError(
                f"{name} must be float16, float32 or float64 of this machine's byte order where it "
                f"has __cuda_array_interface__ alone, but is {interface['typestr']!r}; bfloat16 "
                "crosses by DLPack"
            )
        # What has no elements may have no address.
        self._device = runtime.pointerGetAttributes(pointer).device if pointer else -1
        if self._device < 0:
            self._device = runtime.getDevice()
        stream = interface.get("stream")
        self.stream = None if stream is None else (self._device, _stream(name, stream))

    def __call__(self, array: Any) -> cupy.ndarray:
        """Return CuPy's array over the memory."""
        shape, strides = self._interface["shape"], self._interface.get("strides")
        nbytes = prod(shape) * self._dtype.itemsize
        pointer, _ = self._interface["data"]
        memory = cupy.cuda.UnownedMemory(pointer or 0, nbytes, self._array, self._device)
        return cupy.ndarray(shape, self._dtype, cupy.cuda.MemoryPointer(memory, 0), strides)


def _stream(name: str, number: int) -> cupy.cuda.Stream:
    """Return the stream that an interface names."""
    if number == 0:
        raise ValueError(
            f"{name} must say 1 or 2 for a default stream in its __cuda_array_interface__, "
            "but says 0, which may be either"
        )
    if number == 1:
        return cupy.cuda.Stream.null
    if number == 2:
        return cupy.cuda.Stream.ptds
    return cupy.cuda.Stream.from_external(Handle(number))
