"""The runtime table's handlers of devices. Each has the name CUDA gives it."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

from ..device import tables as devices
from .errors import Status, runtime_error
from .machine import Machine
from .streams import StreamHandlers

# The values of cudaLimit, with CUDA's usual defaults: stack size, printf buffer, malloc heap,
# synchronisation depth and pending launches of dynamic parallelism, L2 fetch granularity, and the
# persisting part of L2.
_LIMITS = {0: 1024, 1: 1 << 20, 2: 8 << 20, 3: 2, 4: 2048, 5: 64, 6: 0}


class DeviceHandlers:
    """Which devices there are, what they say of themselves, and which is current."""

    def __init__(self, machine: Machine, version: int, streams: StreamHandlers) -> None:
        self._machine = machine
        self._version = version
        self._streams = streams
        self._attributes = [devices.attributes(device) for device in machine.devices]
        self._limits = [dict(_LIMITS) for _ in machine.devices]

    def check_status(self, status: int) -> None:
        if status != 0:
            from cupy_backends.cuda.api import runtime

            raise runtime.CUDARuntimeError(status)

    def driverGetVersion(self) -> int:
        return self._version

    def runtimeGetVersion(self) -> int:
        return self._version

    def _getCUDAMajorVersion(self) -> int:
        return self._version // 1000

    def getDevice(self) -> int:
        return self._machine.current

    def setDevice(self, device: int) -> None:
        self._machine.current = device

    def getDeviceCount(self) -> int:
        return len(self._machine.devices)

    def getDeviceProperties(self, device: int) -> dict[str, object]:
        return devices.properties(self._machine.devices[self._machine.check_ordinal(device)])

    def deviceGetAttribute(self, attrib: int, device: int) -> int:
        known = self._attributes[self._machine.check_ordinal(device)]
        if attrib not in known:
            # What CUDA says to an attribute it does not know; CuPy then leaves it out.
            raise runtime_error(Status.INVALID_VALUE)
        return known[attrib]

    def deviceGetPCIBusId(self, device: int) -> str:
        return self._machine.devices[self._machine.check_ordinal(device)].pci_bus_id

    def deviceGetByPCIBusId(self, pci_bus_id: str) -> int:
        for device in self._machine.devices:
            if device.pci_bus_id == pci_bus_id.lower():
                return device.ordinal
        raise runtime_error(Status.INVALID_DEVICE)

    def deviceSynchronize(self) -> None:
        self._streams.forbid_while_capturing()

    def deviceCanAccessPeer(self, device: int, peerDevice: int) -> int:
        check = self._machine.check_ordinal
        return int(check(device) != check(peerDevice))

    def deviceEnablePeerAccess(self, peerDevice: int) -> None:
        pair = (self._machine.current, self._machine.check_ordinal(peerDevice))
        if pair[0] == pair[1]:
            raise runtime_error(Status.INVALID_DEVICE)
        if pair in self._machine.peers:
            raise runtime_error(Status.PEER_ACCESS_ALREADY_ENABLED)
        self._machine.peers.add(pair)

    def _deviceEnsurePeerAccess(self, peerDevice: int) -> None:
        self._machine.peers.add((self._machine.current, self._machine.check_ordinal(peerDevice)))

    def deviceDisablePeerAccess(self, peerDevice: int) -> None:
        pair = (self._machine.current, self._machine.check_ordinal(peerDevice))
        if pair not in self._machine.peers:
            raise runtime_error(Status.PEER_ACCESS_NOT_ENABLED)
        self._machine.peers.remove(pair)

    def deviceGetLimit(self, limit: int) -> int:
        limits = self._limits[self._machine.current]
        if limit not in limits:
            raise runtime_error(Status.UNSUPPORTED_LIMIT)
        return limits[limit]

    def deviceSetLimit(self, limit: int, value: int) -> None:
        self.deviceGetLimit(limit)
        self._limits[self._machine.current][limit] = value

    def profilerStart(self) -> None:
        """There is no profiler to start."""

    def profilerStop(self) -> None:
        """There is no profiler to stop."""
