"""CUDA's errors, raised as the exceptions that CuPy would raise for them.

A program may catch them and look at the status, so what CUDA reports with a status is raised here
with the same one. What CUDA leaves undefined or reports too late to be of use is a `faults.Fault`.
"""

from __future__ import annotations

from enum import IntEnum


class Status(IntEnum):
    """``cudaError_t``, as far as it is raised here."""

    INVALID_VALUE = 1
    MEMORY_ALLOCATION = 2
    INVALID_PITCH_VALUE = 12
    INVALID_DEVICE = 101
    UNSUPPORTED_LIMIT = 215
    INVALID_RESOURCE_HANDLE = 400
    NOT_READY = 600
    PEER_ACCESS_ALREADY_ENABLED = 704
    PEER_ACCESS_NOT_ENABLED = 705
    HOST_MEMORY_ALREADY_REGISTERED = 712
    HOST_MEMORY_NOT_REGISTERED = 713
    NOT_SUPPORTED = 801
    STREAM_CAPTURE_UNSUPPORTED = 900
    STREAM_CAPTURE_INVALIDATED = 901
    STREAM_CAPTURE_MERGE = 902
    STREAM_CAPTURE_UNMATCHED = 903
    STREAM_CAPTURE_UNJOINED = 904
    STREAM_CAPTURE_ISOLATION = 905
    STREAM_CAPTURE_IMPLICIT = 906
    CAPTURED_EVENT = 907
    STREAM_CAPTURE_WRONG_THREAD = 908


# CuPy asks the driver for the texts of its errors, and there is no driver here.
_DRIVER_ERRORS = {
    1: ("CUDA_ERROR_INVALID_VALUE", "invalid argument"),
    2: ("CUDA_ERROR_OUT_OF_MEMORY", "out of memory"),
    200: ("CUDA_ERROR_INVALID_IMAGE", "device kernel image is invalid"),
    201: ("CUDA_ERROR_INVALID_CONTEXT", "invalid device context"),
    218: ("CUDA_ERROR_INVALID_PTX", "a PTX JIT compilation failed"),
    301: ("CUDA_ERROR_FILE_NOT_FOUND", "file not found"),
    400: ("CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"),
    500: ("CUDA_ERROR_NOT_FOUND", "named symbol not found"),
    720: (
        "CUDA_ERROR_COOPERATIVE_LAUNCH_TOO_LARGE",
        "too many blocks in cooperative launch",
    ),
}


def runtime_error(status: Status) -> Exception:
    """Return CuPy's ``CUDARuntimeError`` for `status`."""
    from cupy_backends.cuda.api import runtime

    error: Exception = runtime.CUDARuntimeError(int(status))
    return error


def driver_error(status: int, detail: str = "") -> Exception:
    """Return CuPy's ``CUDADriverError`` for `status`, with `detail` after CUDA's own text."""
    from cupy_backends.cuda.api import driver

    name, text = _DRIVER_ERRORS[status]
    # Its constructor would load libcuda for the text, so that it is made without.
    error: Exception = driver.CUDADriverError.__new__(driver.CUDADriverError)
    error.args = (f"{name}: {text}" + (f" ({detail})" if detail else ""),)
    error.status = status  # type: ignore[attr-defined]
    return error
