"""Arrays of other libraries: into the CuPy ops and out again, on their own stream.

A PyTorch tensor on a CUDA device, or any other array that exports its memory by DLPack from there,
or has ``__cuda_array_interface__`` alone, stands wherever a CuPy array does. Nothing is copied, and
the host waits for nothing. What is made comes back as what x is:

- x is a tensor: the work is enqueued on PyTorch's current stream of x's device, in PyTorch's memory
  (`torch_tensor.py`), and results are tensors.
- x is another library's: on CuPy's current stream, for which its producer sees to the order.
  Results come back through ``from_dlpack`` of x's array namespace, and stay CuPy arrays where it
  has none.
- x is CuPy's, and only others are not: as ever, and results are CuPy arrays.

Where arrays of both CuPy and PyTorch meet and their current streams differ, each waits for the
other's work on the device, before the call and after it. So do the stream of a call and the one
that a ``__cuda_array_interface__`` names.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from typing import Any

import cupy

from .._families import Op
from .._typing import Arrays
from . import torch_tensor
from .cuda_array import CudaArrayImport
from .streams import in_order

CUDA_DEVICES = (2, 13)  # kDLCUDA and kDLCUDAManaged

READ_ONLY = 1  # DLPACK_FLAG_BITMASK_READ_ONLY

Import = Callable[[Any], Any]
Export = Callable[[cupy.ndarray], Any]
Call = Callable[[tuple[Any, ...]], Any]


def cross(op: Op, call: Call, arrays: Arrays) -> Any:
    """Run a call whose arrays are not all CuPy's.

    Parameters
    ----------
    op : Op
        The op.
    call : function
        Takes all arrays, as CuPy's and in the same order, and returns what the op returns of them.
    arrays : mapping of str to object
        The arrays of the call by their names in the kernel.

    Returns
    -------
    array, tuple of array, or None
        What the op returns: arrays as they were given, and those that were made as arrays of x's
        library. None where no array is another library's on a CUDA device: the checks say what is
        wrong then.

    Raises
    ------
    TypeError, ValueError
        For a tensor that cannot cross: in host memory, sparse, with a gradient to be lost, or with
        a negation that is only noted; for an array with a mask or of a dtype that its interface has
        no word for; and for an array to be written that is read-only.
    """
    # Who has a tensor, imported torch. Nothing is an instance of no types.
    tensor = getattr(sys.modules.get("torch"), "Tensor", ())
    imports = {
        name: None if array is None else _import(op, name, array, tensor)
        for name, array in arrays.items()
    }
    if not any(imports.values()):
        return None
    x = arrays[op.leader]
    streams = [
        take.stream
        for take in imports.values()
        if isinstance(take, CudaArrayImport) and take.stream is not None
    ]

    def work(export: Export) -> Any:
        own = tuple([a if (take := imports[n]) is None else take(a) for n, a in arrays.items()])
        with in_order(streams) if streams else nullcontext():
            results = call(own)
        for name in op.results_given:
            if isinstance(arrays.get(name), tensor):
                torch_tensor.note_written(arrays[name])
        names = op.returned(arrays)
        made = zip(names, results if len(names) > 1 else (results,), strict=True)
        returned = {name: _returned(arrays.get(name), a, export) for name, a in made}
        return op.results(arrays, returned)

    if isinstance(x, tensor):
        given = [array for array in arrays.values() if array is not None]
        has_cupy = any(isinstance(array, cupy.ndarray) for array in given)
        return torch_tensor.run(work, x, has_cupy)
    devices = {array.get_device() for array in arrays.values() if isinstance(array, tensor)}
    with in_order((device, torch_tensor.current_stream(device)) for device in devices):
        return work(_exporter(x))


def _returned(given: Any, made: cupy.ndarray | None, export: Export) -> Any:
    """Return a result: what the user gave for it, None where there is none, or what was made."""
    return given if given is not None or made is None else export(made)


def _import(op: Op, name: str, array: Any, tensor: Any) -> Import | None:
    """Return what turns an array into CuPy's, None where it stays as it is."""
    if isinstance(array, cupy.ndarray):
        return None
    argument, is_written = op.results_given.get(name, name), name in op.results_given
    if isinstance(array, tensor):
        if not torch_tensor.can_cross(array, name in op.indices):
            torch_tensor.refuse(op.norm, argument, array)
        return torch_tensor.from_torch
    device = getattr(array, "__dlpack_device__", None)
    if device is None:
        interface = getattr(array, "__cuda_array_interface__", None)
        if interface is None:
            return None
        return CudaArrayImport(argument, array, interface, is_written)
    if device()[0] not in CUDA_DEVICES:
        return None
    return partial(_from_writable, argument) if is_written else cupy.from_dlpack


def _exporter(x: Any) -> Export:
    """Return what turns a CuPy array into one of x's library."""
    namespace = getattr(x, "__array_namespace__", None)
    if isinstance(x, cupy.ndarray) or namespace is None:
        return lambda array: array
    from_dlpack: Export = namespace().from_dlpack
    return from_dlpack


def _from_writable(name: str, array: Any) -> cupy.ndarray:
    """Return CuPy's array over memory that is to be written."""
    return cupy.from_dlpack(_Writable(name, array))


class _Writable:
    """Exports an array unless it is read-only, at which CuPy does not look."""

    def __init__(self, name: str, array: Any) -> None:
        self._name = name
        self._array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        device: tuple[int, int] = self._array.__dlpack_device__()
        return device

    def __dlpack__(self, **options: Any) -> Any:
        capsule = self._array.__dlpack__(**options)
        if _is_read_only(capsule):
            raise ValueError(f"{self._name} must be writable, but is read-only")
        return capsule


class _Head(ctypes.Structure):
    """The first members of DLManagedTensorVersioned in dlpack.h."""

    _fields_ = (
        ("version", ctypes.c_uint32 * 2),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
    )


_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_is_valid = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)


def _is_read_only(capsule: object) -> bool:
    """Return whether a capsule says that its memory must not be written; old ones cannot say so."""
    name = b"dltensor_versioned"
    if not _is_valid(capsule, name):
        return False
    return bool(_Head.from_address(_pointer_of(capsule, name)).flags & READ_ONLY)
