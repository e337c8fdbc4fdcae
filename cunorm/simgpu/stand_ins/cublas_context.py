"""cuBLAS's handles, errors and enumerations, and how its functions take numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..lanes import Array
from . import blas
from .blas import Handle
from .host import Call, Host, StatusError, refuse_capture
from .operand import Operand, matrix

LIBRARY = "cuBLAS"
VERSION = 120900

CONSTANTS = {
    "CUBLAS_OP_N": blas.OP_N,
    "CUBLAS_OP_T": blas.OP_T,
    "CUBLAS_OP_C": blas.OP_C,
    "CUBLAS_POINTER_MODE_HOST": blas.HOST,
    "CUBLAS_POINTER_MODE_DEVICE": blas.DEVICE,
    "CUBLAS_SIDE_LEFT": blas.LEFT,
    "CUBLAS_SIDE_RIGHT": blas.RIGHT,
    "CUBLAS_FILL_MODE_LOWER": blas.LOWER,
    "CUBLAS_FILL_MODE_UPPER": blas.UPPER,
    "CUBLAS_DIAG_NON_UNIT": blas.NON_UNIT,
    "CUBLAS_DIAG_UNIT": blas.UNIT,
    "CUBLAS_GEMM_DEFAULT": -1,
    "CUBLAS_GEMM_DEFAULT_TENSOR_OP": 99,
    "CUBLAS_GEMM_DFALT": -1,
    "CUBLAS_GEMM_DFALT_TENSOR_OP": 99,
    "CUBLAS_DEFAULT_MATH": 0,
    "CUBLAS_TENSOR_OP_MATH": 1,
    "CUBLAS_COMPUTE_16F": 64,
    "CUBLAS_COMPUTE_16F_PEDANTIC": 65,
    "CUBLAS_COMPUTE_32F": 68,
    "CUBLAS_COMPUTE_32F_PEDANTIC": 69,
    "CUBLAS_COMPUTE_32F_FAST_16F": 74,
    "CUBLAS_COMPUTE_32F_FAST_16BF": 75,
    "CUBLAS_COMPUTE_32F_FAST_TF32": 77,
    "CUBLAS_COMPUTE_64F": 70,
    "CUBLAS_COMPUTE_64F_PEDANTIC": 71,
    "CUBLAS_COMPUTE_32I": 72,
    "CUBLAS_COMPUTE_32I_PEDANTIC": 73,
}

NOT_INITIALISED, INVALID_VALUE, NOT_SUPPORTED = 1, 7, 15
_STATUS = {
    NOT_INITIALISED: "CUBLAS_STATUS_NOT_INITIALIZED",
    INVALID_VALUE: "CUBLAS_STATUS_INVALID_VALUE",
    NOT_SUPPORTED: "CUBLAS_STATUS_NOT_SUPPORTED",
}


class CUBLASError(StatusError):
    """What CuPy raises for a status of cuBLAS."""

    names = _STATUS


def require(*conditions: bool) -> None:
    """Raise what cuBLAS says to arguments that cannot be, unless all conditions hold."""
    if not all(conditions):
        raise CUBLASError(INVALID_VALUE)


# A number that a function takes from the host or from a device, known as the function runs.
Scalar = Callable[[Call], Any]


class Context:
    """Handles, and what a function does with the pointer mode of one.

    Parameters
    ----------
    host : Host
        Where functions run.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._handles: dict[int, Handle] = {}

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return those that are about handles."""
        names = ["create", "destroy", "getVersion", "getPointerMode", "setPointerMode"]
        names += ["setStream", "getStream", "setMathMode", "getMathMode"]
        return {name: getattr(self, name) for name in names}

    def of(self, handle: int) -> Handle:
        """Return what a handle stands for."""
        found = self._handles.get(handle)
        if found is None:
            raise CUBLASError(NOT_INITIALISED)
        return found

    def create(self) -> int:
        """Return a new handle."""
        handle = self.host.new_handle()
        self._handles[handle] = Handle()
        return handle

    def destroy(self, handle: int) -> None:
        """Forget a handle."""
        self.of(handle)
        del self._handles[handle]

    def getVersion(self, handle: int) -> int:
        """Return the version that the stand-in imitates."""
        self.of(handle)
        return VERSION

    def getPointerMode(self, handle: int) -> int:
        """Return where functions find their numbers."""
        return self.of(handle).pointer_mode

    def setPointerMode(self, handle: int, mode: int) -> None:
        """Say where functions find their numbers."""
        require(mode in (blas.HOST, blas.DEVICE))
        self.of(handle).pointer_mode = mode

    def setStream(self, handle: int, stream: int) -> None:
        """Keep a stream; CuPy sets the current one before each call."""
        refuse_capture("cuBLAS", stream)
        self.of(handle).stream = stream

    def getStream(self, handle: int) -> int:
        """Return the stream."""
        return self.of(handle).stream

    def setMathMode(self, handle: int, mode: int) -> None:
        """Keep a mode, which changes nothing here."""
        self.of(handle).math_mode = mode

    def getMathMode(self, handle: int) -> int:
        """Return the mode."""
        return self.of(handle).math_mode

    def call(self, handle: int, function: str, operation: Callable[[Call], None]) -> None:
        """Run a function's operation on the current stream."""
        self.setStream(handle, self.host.stream())
        self.host.call(LIBRARY, function, operation)

    def scalar(self, handle: int, name: str, address: int, dtype: np.dtype[Any]) -> Scalar:
        """Return a number: on the host it is read now, on the device as the function runs."""
        if self.of(handle).pointer_mode == blas.HOST:
            value = self.host.from_host(address, dtype, name)
            return lambda call: value
        return lambda call: call.read(Operand(name, address, (), (), dtype))[()]

    def result(self, handle: int, call: Call, address: int, value: Array) -> None:
        """Write the number that a function returns, to the host or the device."""
        if self.of(handle).pointer_mode == blas.HOST:
            self.host.to_host(address, value, "result")
        else:
            call.write(Operand("result", address, (), (), value.dtype), value)


def stored(
    name: str, address: int, op: int, rows: int, columns: int, ld: int, dtype: np.dtype[Any]
) -> Operand:
    """Return a matrix as it is stored, where ``op`` of it has these rows and columns."""
    if op != blas.OP_N:
        rows, columns = columns, rows
    require(ld >= max(1, rows))
    return matrix(name, address, rows, columns, ld, dtype)
