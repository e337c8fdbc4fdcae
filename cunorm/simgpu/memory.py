"""Global memory: allocations over host memory, and the question whether an access lies in one.

A device address is the host address of the bytes, so that a copy is a copy and a fault can name
the address that the program saw. Each allocation keeps a distance to its neighbours, and freed memory
is held back for a while, so that an address just past the end, or one used after it was freed, belongs
to nobody.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque

import numpy as np
import numpy.typing as npt

ALIGNMENT = 512  # bytes; cudaMalloc promises 256, and CuPy's pool works in units of 512
RED_ZONE = 512  # bytes that belong to nobody, on both sides of every allocation
QUARANTINE = 64 << 20  # bytes of freed memory held back before their addresses may be used again


class Allocation:
    """One allocation: its address, its size and its bytes.

    Attributes
    ----------
    address, nbytes : int
        Where it starts and how long it is, in bytes.
    kind : str
        ``"device"``, ``"pinned"`` (host memory that kernels may access) or ``"managed"``.
    device : int
        The device that owns it.
    data : ndarray of uint8
        The bytes themselves.
    freed : bool
        Whether it was freed.
    """

    __slots__ = ("_views", "address", "data", "device", "freed", "kind", "nbytes")

    def __init__(self, nbytes: int, kind: str, device: int) -> None:
        # np.zeros maps fresh pages lazily: large allocations cost nothing until they are touched.
        raw = np.zeros(nbytes + 2 * RED_ZONE + ALIGNMENT, np.uint8)
        start = RED_ZONE + -(raw.ctypes.data + RED_ZONE) % ALIGNMENT
        self.data: npt.NDArray[np.uint8] = raw[start : start + nbytes]
        self.address: int = raw.ctypes.data + start
        self.nbytes = nbytes
        self.kind = kind
        self.device = device
        self.freed = False
        self._views: dict[np.dtype, np.ndarray] = {}

    @property
    def end(self) -> int:
        """The first address past the allocation."""
        return self.address + self.nbytes

    def as_type(self, dtype: np.dtype) -> np.ndarray:
        """Return the bytes as a flat array of `dtype`, without an incomplete last element."""
        view = self._views.get(dtype)
        if view is None:
            whole = self.nbytes // dtype.itemsize * dtype.itemsize
            view = self._views[dtype] = self.data[:whole].view(dtype)
        return view

    def __repr__(self) -> str:
        state = "freed " if self.freed else ""
        return f"{state}{self.kind} allocation of {self.nbytes} bytes at {self.address:#x}"


class GlobalMemory:
    """Every allocation of every simulated device, by address.

    Parameters
    ----------
    capacity : int
        Bytes of device memory per device; an allocation past it is refused.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}
        self._freed: deque[Allocation] = deque()
        self._freed_bytes = 0
        self._used: dict[int, int] = {}

    def used(self, device: int) -> int:
        """Return the bytes of device memory allocated on `device`."""
        return self._used.get(device, 0)

    def allocate(self, nbytes: int, kind: str = "device", device: int = 0) -> Allocation:
        """Allocate `nbytes` (at least 1); MemoryError where the device has no more."""
        with self._lock:
            if kind == "device":
                if self.used(device) + nbytes > self.capacity:
                    raise MemoryError(f"{nbytes} bytes asked, {self.used(device)} in use")
                self._used[device] = self.used(device) + nbytes
            allocation = Allocation(nbytes, kind, device)
            bisect.insort(self._starts, allocation.address)
            self._by_start[allocation.address] = allocation
            return allocation

    def free(self, address: int) -> None:
        """Free the live allocation that starts at `address`; KeyError where there is none."""
        with self._lock:
            allocation = self._by_start.get(address)
            if allocation is None or allocation.freed:
                raise KeyError(address)
            allocation.freed = True
            if allocation.kind == "device":
                self._used[allocation.device] -= allocation.nbytes
            self._freed.append(allocation)
            self._freed_bytes += allocation.nbytes
            while self._freed_bytes > QUARANTINE:
                self._forget(self._freed.popleft())

    def _forget(self, allocation: Allocation) -> None:
        self._freed_bytes -= allocation.nbytes
        del self._by_start[allocation.address]
        del self._starts[bisect.bisect_left(self._starts, allocation.address)]

    def find(self, address: int) -> Allocation | None:
        """Return the allocation, live or freed lately, that holds `address`."""
        with self._lock:
            allocation = self.nearest(address)
            return allocation if allocation is not None and address < allocation.end else None

    def nearest(self, address: int) -> Allocation | None:
        """Return the last allocation that starts at or below `address`."""
        with self._lock:
            index = bisect.bisect_right(self._starts, address) - 1
            return self._by_start[self._starts[index]] if index >= 0 else None
