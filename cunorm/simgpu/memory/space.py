"""Global memory: allocations over host memory, and the question whether an access lies in one.

A device address is the host address of the bytes, so that a copy is a copy and a fault can name
the address that the program saw. Each allocation keeps a distance to its neighbours, and freed
memory is held back for a while, so that an address just past the end, or one used after it was
freed, belongs to nobody.
"""

from __future__ import annotations

import bisect
import threading
from collections import deque

import numpy as np

from .. import faults
from .._access import place
from ..lanes import Array
from .access import UNITS, BadAccess, Part, misaligned
from .allocation import Allocation

QUARANTINE = 64 << 20  # bytes of freed memory held back before their addresses may be used again


def held_back(allocation: Allocation) -> int:
    """Return the bytes that a freed allocation counts in the quarantine.

    Memory that was only lent is not kept; what is known of it counts as a page.
    """
    return 4096 if allocation.kind == "registered" else allocation.nbytes


class GlobalMemory:
    """Every allocation of every simulated device, by address.

    Parameters
    ----------
    capacity : int
        Bytes of device memory per device; an allocation past it is refused.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        # Whether kernels may read what nothing has written.
        self.uninitialised = False
        # Whether lanes of one warp are to be checked against each other.
        self.warp_races = False
        self._lock = threading.RLock()
        self._starts: list[int] = []
        self._by_start: dict[int, Allocation] = {}
        self._freed: deque[Allocation] = deque()
        self._freed_bytes = 0
        self._used: dict[int, int] = {}
        # The devices whose memory the launch under way may not access.
        self.unreachable: frozenset[int] = frozenset()

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
            allocation = Allocation.fresh(nbytes, kind, device)
            self._add(allocation)
            return allocation

    def register(self, address: int, nbytes: int, device: int = 0) -> None:
        """Lend memory of the program's own to kernels; KeyError where an allocation has a part."""
        with self._lock:
            if any(not found.freed for found in self._overlapping(address, address + nbytes)):
                raise KeyError(address)
            self._add(Allocation.registered(address, nbytes, device))

    def _add(self, allocation: Allocation) -> None:
        # Memory that was lent has gone back to the program, and may now be somewhere else's.
        for stale in self._overlapping(allocation.address, allocation.end):
            if stale in self._freed:
                self._freed.remove(stale)
                self._freed_bytes -= held_back(stale)
            self._forget(stale)
        bisect.insort(self._starts, allocation.address)
        self._by_start[allocation.address] = allocation

    def _overlapping(self, start: int, stop: int) -> list[Allocation]:
        first = max(bisect.bisect_right(self._starts, start) - 1, 0)
        last = bisect.bisect_left(self._starts, stop)
        found = [self._by_start[at] for at in self._starts[first:last]]
        return [allocation for allocation in found if allocation.end > start]

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
            self._freed_bytes += held_back(allocation)
            while self._freed_bytes > QUARANTINE:
                oldest = self._freed.popleft()
                self._freed_bytes -= held_back(oldest)
                self._forget(oldest)

    def _forget(self, allocation: Allocation) -> None:
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

    def parts(self, addresses: Array, width: int) -> list[Part]:
        """Return where accesses lie: for each allocation its array, the indices, which accesses.

        The common case, every access in one allocation, has one part, and None for "all of them".
        """
        allocation = self.find(int(addresses[0]))
        if (
            allocation is not None
            and not allocation.freed
            and allocation.device not in self.unreachable
        ):
            index, base = np.empty(addresses.size, np.int64), allocation.base
            lead = allocation.address - base
            at = np.ascontiguousarray(addresses)
            if place(index, at, None, 0, base, lead, allocation.data.size, width):
                return [(allocation.as_type(UNITS[width]), index, None)]
        return self._scattered(addresses, width)

    def _scattered(self, addresses: Array, width: int) -> list[Part]:
        """Find each access's allocation, or refuse the first access that has none."""
        refusal = misaligned(addresses, width, "global")
        first_wrong = refusal.position if refusal else addresses.size
        parts: list[Part] = []
        pending = np.arange(addresses.size)
        wrong: BadAccess | None = None
        while pending.size:
            address = int(addresses[pending[0]])
            allocation = self.find(address)
            if (
                allocation is None
                or allocation.freed
                or address + width > allocation.end
                or self._is_unreachable(allocation)
            ):
                wrong = self._refusal(address, width, int(pending[0]))
                break
            offsets = addresses[pending] - np.uint64(allocation.address)
            inside = offsets <= np.uint64(allocation.nbytes - width)
            offsets += np.uint64(allocation.address - allocation.base)
            index = (offsets[inside] >> np.uint64(width.bit_length() - 1)).view(np.int64)
            parts.append((allocation.as_type(UNITS[width]), index, pending[inside]))
            pending = pending[~inside]
        if refusal is not None and (wrong is None or first_wrong <= wrong.position):
            raise refusal
        if wrong is not None:
            raise wrong
        return parts

    def _is_unreachable(self, allocation: Allocation) -> bool:
        return allocation.kind == "device" and allocation.device in self.unreachable

    def _refusal(self, address: int, width: int, position: int) -> BadAccess:
        allocation = self.nearest(address)
        access = f"{width}-byte access to global address {address:#x}"
        if allocation is None:
            what = f"{access}, below every allocation"
            return BadAccess(faults.OutOfBounds, what, position, address, width)
        if allocation.freed and address < allocation.end:
            inside = f"{access}, {address - allocation.address} bytes into {allocation!r}"
            return BadAccess(faults.UseAfterFree, inside, position, address, width)
        if self._is_unreachable(allocation) and address < allocation.end:
            owner = f"device {allocation.device}, to which there is no peer access"
            return BadAccess(
                faults.NoPeerAccess, f"{access}, in the {allocation!r} of {owner}", position
            )
        past = address + width - allocation.end
        where = f"{access}, {past} bytes past the end of {allocation!r}"
        return BadAccess(faults.OutOfBounds, where, position, address, width)
