"""cuSOLVER's handles and errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from .host import Call, Host, StatusError, refuse_capture
from .operand import vector

LIBRARY = "cuSOLVER"
VERSION = 11704
NOT_INITIALISED, INVALID_VALUE = 1, 3
_STATUS = {
    NOT_INITIALISED: "CUSOLVER_STATUS_NOT_INITIALIZED",
    INVALID_VALUE: "CUSOLVER_STATUS_INVALID_VALUE",
}


class CUSOLVERError(StatusError):
    """What CuPy raises for a status of cuSOLVER."""

    names = _STATUS


def require(*conditions: bool) -> None:
    """Raise what cuSOLVER says to arguments that cannot be, unless all conditions hold."""
    if not all(conditions):
        raise CUSOLVERError(INVALID_VALUE)


def worked(call: Call, address: int, info: int = 0) -> None:
    """Write a function's info."""
    target = vector("devInfo", address, 1, 1, np.dtype(np.int32))
    call.write(target, np.full(1, info, np.int32))


class Context:
    """Handles and parameters, which are numbers.

    Parameters
    ----------
    host : Host
        Where functions run.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._streams: dict[int, int] = {}

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return those that are about handles."""
        names = ["create", "destroy", "setStream", "getStream", "createParams", "destroyParams"]
        made = {name: getattr(self, name) for name in names}
        return {**made, "_getVersionNumber": self.version, "_getVersion": self.version_parts}

    def create(self) -> int:
        """Return a new handle."""
        handle = self.host.new_handle()
        self._streams[handle] = 0
        return handle

    def _check(self, handle: int) -> None:
        if handle not in self._streams:
            raise CUSOLVERError(NOT_INITIALISED)

    def destroy(self, handle: int) -> None:
        """Forget a handle."""
        self._check(handle)
        del self._streams[handle]

    def createParams(self) -> int:
        """Return parameters: all are what they are by default."""
        return self.host.new_handle()

    def destroyParams(self, params: int) -> None:
        """Do nothing."""

    def setStream(self, handle: int, stream: int) -> None:
        """Keep a stream; CuPy sets the current one before each call."""
        refuse_capture(LIBRARY, stream)
        self._check(handle)
        self._streams[handle] = stream

    def getStream(self, handle: int) -> int:
        """Return the stream."""
        self._check(handle)
        return self._streams[handle]

    def version(self) -> int:
        """Return the version that the stand-in imitates."""
        return VERSION

    def version_parts(self) -> tuple[int, int, int]:
        """Return the same in three."""
        return VERSION // 1000, VERSION // 100 % 10, VERSION % 100

    def working_memory(self, function: str, dtype: np.dtype, handle: int, *_: int) -> int:
        """Return how many elements a function wants to work in."""
        self._check(handle)
        return 1

    def call(self, handle: int, function: str, operation: Callable[[Call], None]) -> None:
        """Run a function's operation on the current stream."""
        self.setStream(handle, self.host.stream())
        self.host.call(LIBRARY, function, operation)
