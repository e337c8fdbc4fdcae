"""The runtime table's handlers of memory: allocation, pools, and what an address belongs to."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import ctypes
from dataclasses import dataclass, field
from functools import partial

from .._tables import read_arguments
from ..memory.allocation import Allocation
from ..memory.initialised import Written
from .errors import Status, runtime_error
from .machine import Machine, held
from .streams import StreamHandlers

_MEMORY_TYPES = {"pinned": 1, "registered": 1, "device": 2, "managed": 3}
_NO_DEVICE = -2  # cudaInvalidDeviceId

# cudaHostRegister's flags: portable, mapped and memory of a device's own, which say nothing new
# here, and read-only.
_REGISTER_READ_ONLY = 8
_REGISTER_FLAGS = 1 | 2 | 4 | _REGISTER_READ_ONLY

# cudaMemPoolAttr: three switches about reuse, then the release threshold, then what is reserved and
# used, now and at its highest.
_POOL_SWITCHES = {1: 1, 2: 1, 3: 1}
_POOL_THRESHOLD, _POOL_RESERVED, _POOL_RESERVED_HIGH, _POOL_USED, _POOL_USED_HIGH = range(4, 9)


@dataclass
class Pool:
    """A memory pool of CUDA's own: it only counts, the memory comes from `GlobalMemory`."""

    device: int
    settings: dict[int, int] = field(default_factory=lambda: {**_POOL_SWITCHES, _POOL_THRESHOLD: 0})
    used: int = 0
    highest: int = 0


def _readable(address: int, nbytes: int) -> bool:
    """Return whether the first and the last byte of this memory can be read."""
    ends = (ctypes.c_void_p * 2)(address, address + nbytes - 1)
    return None not in read_arguments(ctypes.addressof(ends), (1, 1))


class MemoryHandlers:
    """Allocation, and what an address belongs to."""

    def __init__(self, machine: Machine, streams: StreamHandlers) -> None:
        self._machine = machine
        self._memory = machine.memory
        self._streams = streams
        self._pools = {machine.new_handle(): Pool(d.ordinal) for d in machine.devices}
        self._default_pools = list(self._pools)
        self._current_pools = list(self._pools)
        self._pool_of: dict[int, Pool] = {}

    def _allocate(self, size: int, kind: str, device: int) -> int:
        if size == 0:
            return 0
        try:
            allocation = self._memory.allocate(size, kind, device)
        except MemoryError:
            raise runtime_error(Status.MEMORY_ALLOCATION) from None
        if kind == "device":
            # Into other kinds the host writes, unseen.
            allocation.written = Written(size)
        return allocation.address

    def _release(self, ptr: int) -> None:
        pool = self._pool_of.pop(ptr, None)
        allocation = self._memory.find(ptr)
        if pool is not None and allocation is not None:
            pool.used -= allocation.nbytes
        try:
            self._memory.free(ptr)
        except KeyError:
            raise runtime_error(Status.INVALID_VALUE) from None

    def _free(self, ptr: int, kinds: tuple[str, ...]) -> None:
        if ptr == 0:
            return
        allocation = self._memory.find(ptr)
        if allocation is None or allocation.address != ptr or allocation.kind not in kinds:
            raise runtime_error(Status.INVALID_VALUE)
        release = partial(self._release, ptr)
        if allocation.freed or not self._streams.keep_for_graph(release):
            release()

    def malloc(self, size: int) -> int:
        self._streams.forbid_unsafe()
        return self._allocate(size, "device", self._machine.current)

    def mallocManaged(self, size: int, flags: int = 1) -> int:
        self._streams.forbid_unsafe()
        return self._allocate(size, "managed", self._machine.current)

    def hostAlloc(self, size: int, flags: int) -> int:
        self._streams.forbid_unsafe()
        return self._allocate(size, "pinned", self._machine.current)

    def hostRegister(self, ptr: int, size: int, flags: int) -> None:
        self._streams.forbid_unsafe()
        if size == 0 or flags & ~_REGISTER_FLAGS or not _readable(ptr, size):
            raise runtime_error(Status.INVALID_VALUE)
        if flags & _REGISTER_READ_ONLY:
            # As the attribute cudaDevAttrHostRegisterReadOnlySupported says.
            raise runtime_error(Status.NOT_SUPPORTED)
        try:
            self._memory.register(ptr, size, self._machine.current)
        except KeyError:
            raise runtime_error(Status.HOST_MEMORY_ALREADY_REGISTERED) from None

    def hostUnregister(self, ptr: int) -> None:
        self._streams.forbid_unsafe()
        allocation = self._live(ptr)
        if allocation is None or (allocation.kind, allocation.address) != ("registered", ptr):
            raise runtime_error(Status.HOST_MEMORY_NOT_REGISTERED)
        self._memory.free(ptr)

    def mallocAsync(self, size: int, stream: int) -> int:
        device = self._streams.device_of(stream)
        return self.mallocFromPoolAsync(size, self._current_pools[device], stream)

    def mallocFromPoolAsync(self, size: int, pool: int, stream: int) -> int:
        owner = held(self._pools, pool)
        self._streams.device_of(stream)
        ptr = self._allocate(size, "device", owner.device)
        if ptr != 0:
            self._pool_of[ptr] = owner
            owner.used += size
            owner.highest = max(owner.highest, owner.used)
        return ptr

    def free(self, ptr: int) -> None:
        # CUDA forbids it while a capture is not relaxed. But each array that dies comes here, where
        # on hardware it goes back to CuPy's pool, which is no call to CUDA.
        self._free(ptr, ("device", "managed"))

    def freeAsync(self, ptr: int, stream: int) -> None:
        self._streams.device_of(stream)
        self._free(ptr, ("device",))

    def freeHost(self, ptr: int) -> None:
        self._free(ptr, ("pinned",))

    def memGetInfo(self) -> tuple[int, int]:
        used = self._memory.used(self._machine.current)
        return self._memory.capacity - used, self._memory.capacity

    def _live(self, ptr: int) -> Allocation | None:
        allocation = self._memory.find(ptr)
        return allocation if allocation is not None and not allocation.freed else None

    def pointerGetMemoryType(self, ptr: int) -> int:
        allocation = self._live(ptr)
        return _MEMORY_TYPES[allocation.kind] if allocation is not None else 0

    def pointerGetAttributes(self, ptr: int) -> object:
        from cupy_backends.cuda.api import runtime

        allocation = self._live(ptr)
        if allocation is None:
            return runtime.PointerAttributes(_NO_DEVICE, 0, ptr, 0)
        host = 0 if allocation.kind == "device" else ptr
        return runtime.PointerAttributes(
            allocation.device, ptr, host, _MEMORY_TYPES[allocation.kind]
        )

    def memPrefetchAsync(self, devPtr: int, count: int, dstDevice: int, stream: int) -> None:
        """Check the range; managed memory has one home here, so that nothing moves."""
        self._check_managed(devPtr, count)

    def memAdvise(self, devPtr: int, count: int, advice: int, device: int) -> None:
        """Check the range; advice changes speed, and there is none here."""
        self._check_managed(devPtr, count)

    def _check_managed(self, ptr: int, count: int) -> None:
        allocation = self._live(ptr)
        if allocation is None or allocation.kind != "managed" or ptr + count > allocation.end:
            raise runtime_error(Status.INVALID_VALUE)

    def deviceGetDefaultMemPool(self, device: int) -> int:
        return self._default_pools[self._machine.check_ordinal(device)]

    def deviceGetMemPool(self, device: int) -> int:
        return self._current_pools[self._machine.check_ordinal(device)]

    def deviceSetMemPool(self, device: int, pool: int) -> None:
        if held(self._pools, pool).device != self._machine.check_ordinal(device):
            raise runtime_error(Status.INVALID_VALUE)
        self._current_pools[device] = pool

    def memPoolTrimTo(self, pool: int, size: int) -> None:
        """Check the handle; a pool here holds nothing back."""
        held(self._pools, pool)

    def memPoolGetAttribute(self, pool: int, attr: int) -> int:
        owner = held(self._pools, pool)
        now = {_POOL_RESERVED: owner.used, _POOL_USED: owner.used}
        high = {_POOL_RESERVED_HIGH: owner.highest, _POOL_USED_HIGH: owner.highest}
        answers = {**owner.settings, **now, **high}
        if attr not in answers:
            raise runtime_error(Status.INVALID_VALUE)
        return answers[attr]

    def memPoolSetAttribute(self, pool: int, attr: int, value: int) -> None:
        owner = held(self._pools, pool)
        if attr in (_POOL_RESERVED_HIGH, _POOL_USED_HIGH) and value == 0:
            owner.highest = owner.used
        elif attr in owner.settings:
            owner.settings[attr] = value
        else:
            raise runtime_error(Status.INVALID_VALUE)
