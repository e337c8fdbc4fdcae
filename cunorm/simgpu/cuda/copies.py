"""The runtime table's copies and fills, with the check that both ends lie in memory that exists."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import ctypes
from functools import partial

from ..faults import OutOfBounds, UseAfterFree
from ..memory.space import GlobalMemory
from .errors import Status, runtime_error
from .machine import Machine
from .streams import StreamHandlers

# cudaMemcpyKind: whether source and destination are device memory; None: look at the address.
_HOST_TO_HOST, _HOST_TO_DEVICE, _DEVICE_TO_HOST, _DEVICE_TO_DEVICE, _DEFAULT = range(5)
_KINDS: dict[int, tuple[bool | None, bool | None]] = {
    _HOST_TO_HOST: (False, False),
    _HOST_TO_DEVICE: (False, True),
    _DEVICE_TO_HOST: (True, False),
    _DEVICE_TO_DEVICE: (True, True),
    _DEFAULT: (None, None),
}


def check_range(
    memory: GlobalMemory, address: int, nbytes: int, on_device: bool | None, what: str
) -> None:
    """Raise where `nbytes` at `address` are not in one live allocation.

    Host memory that was not allocated through CUDA is unknown here and passes where `on_device`
    allows it.
    """
    allocation = memory.find(address)
    if allocation is None or (allocation.freed and allocation.kind == "registered"):
        # What was unregistered is ordinary host memory again.
        if not on_device:
            return
        nearest = memory.nearest(address)
        near = f"; the nearest below is the {nearest}" if nearest is not None else ""
        raise OutOfBounds(f"{what} {nbytes} bytes at {address:#x}, which no allocation holds{near}")
    if allocation.freed:
        raise UseAfterFree(f"{what} {nbytes} bytes at {address:#x}, in the {allocation}")
    if address + nbytes > allocation.end:
        past = address + nbytes - allocation.end
        raise OutOfBounds(
            f"{what} {nbytes} bytes at {address:#x}, {past} past the end of the {allocation}"
        )


class CopyHandlers:
    """Copies and fills, synchronous and on a stream."""

    def __init__(self, machine: Machine, streams: StreamHandlers) -> None:
        self._machine = machine
        self._memory = machine.memory
        self._streams = streams

    def _copy(self, dst: int, src: int, size: int, kind: int) -> None:
        from_device, to_device = _KINDS[kind]
        check_range(self._memory, src, size, from_device, "a copy reads")
        check_range(self._memory, dst, size, to_device, "a copy writes")
        ctypes.memmove(dst, src, size)
        self._note_copy(dst, src, size)

    def _fill(self, ptr: int, value: int, size: int) -> None:
        check_range(self._memory, ptr, size, True, "cudaMemset writes")
        ctypes.memset(ptr, value, size)
        written = self._memory.find(ptr)
        if written is not None:
            written.write_range(ptr - written.address, ptr - written.address + size)

    def _note_copy(self, dst: int, src: int, size: int) -> None:
        """Keep account of which bytes were written: a copy copies that too.

        Copies to the host pass: whoever looks at bytes there may know which of them matter, as in
        the rows of a buffer with gaps.
        """
        target = self._memory.find(dst)
        if target is None or target.written is None:
            return
        source, start = self._memory.find(src), dst - target.address
        if source is None or source.written is None:
            target.write_range(start, start + size)
        else:
            at = src - source.address
            target.written.copy(start, source.written.map[at : at + size])
            target.forget_if_written()

    def memcpy(self, dst: int, src: int, size: int, kind: int) -> None:
        self._streams.forbid_unsafe()
        self.memcpyAsync(dst, src, size, kind, 0)

    def memcpyAsync(self, dst: int, src: int, size: int, kind: int, stream: int) -> None:
        if kind not in _KINDS:
            raise runtime_error(Status.INVALID_VALUE)
        if size > 0:
            self._streams.submit(stream, partial(self._copy, dst, src, size, kind))

    def memcpyPeer(self, dst: int, dstDevice: int, src: int, srcDevice: int, size: int) -> None:
        self._streams.forbid_unsafe()
        self.memcpyPeerAsync(dst, dstDevice, src, srcDevice, size, 0)

    def memcpyPeerAsync(
        self, dst: int, dstDevice: int, src: int, srcDevice: int, size: int, stream: int
    ) -> None:
        for address, device in ((dst, dstDevice), (src, srcDevice)):
            self._machine.check_ordinal(device)
            allocation = self._memory.find(address)
            if allocation is not None and allocation.device != device:
                raise runtime_error(Status.INVALID_VALUE)
        self.memcpyAsync(dst, src, size, _DEVICE_TO_DEVICE, stream)

    def memcpy2D(
        self, dst: int, dpitch: int, src: int, spitch: int, width: int, height: int, kind: int
    ) -> None:
        self._streams.forbid_unsafe()
        self.memcpy2DAsync(dst, dpitch, src, spitch, width, height, kind, 0)

    def memcpy2DAsync(
        self,
        dst: int,
        dpitch: int,
        src: int,
        spitch: int,
        width: int,
        height: int,
        kind: int,
        stream: int,
    ) -> None:
        if kind not in _KINDS:
            raise runtime_error(Status.INVALID_VALUE)
        if width > dpitch or width > spitch:
            raise runtime_error(Status.INVALID_PITCH_VALUE)

        def copy_rows() -> None:
            for row in range(height):
                self._copy(dst + row * dpitch, src + row * spitch, width, kind)

        if width > 0 and height > 0:
            self._streams.submit(stream, copy_rows)

    def memset(self, ptr: int, value: int, size: int) -> None:
        self.memsetAsync(ptr, value, size, 0)

    def memsetAsync(self, ptr: int, value: int, size: int, stream: int) -> None:
        if size > 0:
            self._streams.submit(stream, partial(self._fill, ptr, value, size))
