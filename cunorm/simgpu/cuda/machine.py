"""The state that all handlers share: the devices, their memory, who is current, and handles."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from ..device import tables as devices
from ..memory.space import GlobalMemory
from ..options import Options
from ..profiler.profile import Profile
from .errors import Status, runtime_error

# Handles are pointers to CuPy: they must not be 0, 1 or 2, which name the default streams. A range
# that holds no mapping makes a handle used as an address crash at once.
_FIRST_HANDLE = 0x51_0000_0000_0000
_HANDLE_STEP = 16

Held = TypeVar("Held")


class Machine:
    """Simulated devices of one kind, and the host that uses them.

    Parameters
    ----------
    options : Options
        What they were asked to be.
    profiles : list of Profile
        Those that are open, into which every launch is counted.
    """

    def __init__(self, options: Options, profiles: list[Profile]) -> None:
        arch, count, capacity = options[:3]
        self.devices = tuple(devices.make(arch, i, capacity) for i in range(count))
        self.memory = GlobalMemory(capacity)
        self.memory.uninitialised = options.uninitialised
        self.memory.warp_races = options.warp_races
        self.profiles = profiles
        self.executing = True
        self.budget = options.budget
        self.peers: set[tuple[int, int]] = set()  # (a, b) where a may access the memory of b
        # One lock for every operation on the devices: launches never overlap.
        self.lock = threading.RLock()
        self._local = threading.local()
        self._handles = itertools.count(_FIRST_HANDLE, _HANDLE_STEP)

    @property
    def current(self) -> int:
        """The calling thread's current device."""
        return getattr(self._local, "device", 0)

    @current.setter
    def current(self, ordinal: int) -> None:
        self._local.device = self.check_ordinal(ordinal)

    @property
    def device(self) -> devices.Device:
        """The calling thread's current device, as it describes itself."""
        return self.devices[self.current]

    def check_ordinal(self, ordinal: int) -> int:
        """Return `ordinal` where there is such a device."""
        if not 0 <= ordinal < len(self.devices):
            raise runtime_error(Status.INVALID_DEVICE)
        return ordinal

    def unreachable(self, ordinal: int) -> frozenset[int]:
        """Return the devices whose memory a device may not access."""
        others = {device.ordinal for device in self.devices} - {ordinal}
        return frozenset(other for other in others if (ordinal, other) not in self.peers)

    def new_handle(self) -> int:
        """Return a number that no other object has."""
        return next(self._handles)

    @contextmanager
    def enqueue_only(self) -> Iterator[None]:
        """Within it, launches are checked and forgotten instead of executed."""
        before, self.executing = self.executing, False
        try:
            yield
        finally:
            self.executing = before


def held(
    objects: dict[int, Held], handle: int, error: Callable[[], Exception] | None = None
) -> Held:
    """Return the object behind `handle`, or raise what CUDA says to a handle it never gave."""
    found = objects.get(handle)
    if found is None:
        raise error() if error is not None else runtime_error(Status.INVALID_RESOURCE_HANDLE)
    return found
