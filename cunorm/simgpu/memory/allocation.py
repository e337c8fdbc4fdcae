"""One allocation of global memory: where it lies, and which of its bytes are written."""

from __future__ import annotations

import ctypes

import numpy as np
import numpy.typing as npt

from .initialised import Written

ALIGNMENT = 512  # bytes; cudaMalloc promises 256, and CuPy's pool works in units of 512
RED_ZONE = 512  # bytes that belong to nobody, on both sides of every allocation
WIDEST = 32  # bytes of the widest access


class Allocation:
    """One allocation: its address, its size and its bytes.

    Attributes
    ----------
    address, nbytes : int
        Where it starts and how long it is, in bytes.
    kind : str
        ``"device"``, ``"pinned"`` (host memory that kernels may access), ``"registered"`` (the
        program's own memory, lent to kernels) or ``"managed"``.
    device : int
        The device that owns it.
    data : ndarray of uint8
        The bytes themselves, from `base` on.
    base : int
        `address`, or a little below it where that is not aligned, so that what is aligned in
        `data` is aligned for a kernel.
    freed : bool
        Whether it was freed.
    written : Written or None
        Which bytes were written; None where all were, or count as written.
    """

    __slots__ = (
        "_views",
        "address",
        "base",
        "data",
        "device",
        "freed",
        "kind",
        "nbytes",
        "written",
    )

    def __init__(self, data: npt.NDArray[np.uint8], address: int, kind: str, device: int) -> None:
        self.data = data
        self.address = address
        self.base: int = data.ctypes.data
        self.nbytes = data.size - (address - self.base)
        self.kind = kind
        self.device = device
        self.freed = False
        self.written: Written | None = None
        self._views: dict[np.dtype, np.ndarray] = {}

    @classmethod
    def fresh(cls, nbytes: int, kind: str, device: int) -> Allocation:
        """Return an allocation of new memory, with a red zone on both sides."""
        # np.zeros maps fresh pages lazily: large allocations cost nothing until they are touched.
        raw = np.zeros(nbytes + 2 * RED_ZONE + ALIGNMENT, np.uint8)
        start = RED_ZONE + -(raw.ctypes.data + RED_ZONE) % ALIGNMENT
        return cls(raw[start : start + nbytes], raw.ctypes.data + start, kind, device)

    @classmethod
    def registered(cls, address: int, nbytes: int, device: int) -> Allocation:
        """Return an allocation of memory that the program has already."""
        lead = address % WIDEST
        whole = (ctypes.c_uint8 * (lead + nbytes)).from_address(address - lead)
        return cls(np.ctypeslib.as_array(whole), address, "registered", device)

    @property
    def end(self) -> int:
        """The first address past the allocation."""
        return self.address + self.nbytes

    def write_range(self, start: int, stop: int) -> None:
        """Take note that the bytes from `start` to `stop` are written."""
        if self.written is not None:
            self.written.write_range(start, stop)
            self.forget_if_written()

    def forget_if_written(self) -> None:
        """Drop the map of written bytes once it is complete."""
        if self.written is not None and self.written.complete:
            self.written = None

    def as_type(self, dtype: np.dtype) -> np.ndarray:
        """Return the bytes as a flat array of `dtype`, without an incomplete last element."""
        view = self._views.get(dtype)
        if view is None:
            whole = self.data.size // dtype.itemsize * dtype.itemsize
            view = self._views[dtype] = self.data[:whole].view(dtype)
        return view

    def __repr__(self) -> str:
        if self.kind == "registered":
            state = "unregistered host memory" if self.freed else "registered host memory"
            return f"{state} of {self.nbytes} bytes at {self.address:#x}"
        state = "freed " if self.freed else ""
        return f"{state}{self.kind} allocation of {self.nbytes} bytes at {self.address:#x}"
