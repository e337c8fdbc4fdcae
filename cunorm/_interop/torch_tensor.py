"""PyTorch's side of `_interop.py`: its tensors, its memory and its streams, without importing it.

Whoever hands over a tensor has imported torch. A call on tensors runs on PyTorch's current stream,
and all memory that CuPy asks for meanwhile, results and scratch, is PyTorch's: results are
its tensors to the last byte, one library's pool holds all memory, and what ``torch.cuda.graph``
captures lies in the graph's own pool.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from .._plan import ITEMSIZE
from .._quant import CODES
from .streams import Handle, ordered

# Takes what turns arrays that CuPy made into another library's, and returns what an op returns.
Work = Callable[[Callable[[cupy.ndarray], Any]], Any]


def can_cross(tensor: Any, of_integers: bool = False) -> bool:
    """Return whether DLPack hands over a tensor, and all of it.

    Integers are left to the checks of the op that takes them.
    """
    return bool(
        tensor.is_cuda
        and not tensor.requires_grad
        and tensor.layout is sys.modules["torch"].strided
        and (of_integers or tensor.dtype in _dtypes())
        and not tensor.is_neg()
    )


def refuse(norm: str, name: str, tensor: Any) -> None:
    """Say why a tensor cannot cross; `norm` is the op that could take its gradient along."""
    if not tensor.is_cuda:
        raise TypeError(
            f"{name} must be on a CUDA device, but is a torch.Tensor on {tensor.device}: "
            "cunorm.torch computes on CPU tensors too"
        )
    if tensor.layout is not sys.modules["torch"].strided:
        raise TypeError(f"{name} must be a strided tensor, but has layout {tensor.layout}")
    if tensor.requires_grad:
        raise ValueError(
            f"{name} must not require a gradient, which would be lost here: cunorm.torch.{norm} is "
            f"differentiable; pass {name}.detach() where no gradient is wanted"
        )
    if tensor.dtype not in _dtypes():
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise TypeError(f"{name} must be float16, bfloat16, float32 or float64, but is {dtype}")
    raise ValueError(
        f"{name} must hold its numbers as they are, but is a view whose negation is only noted: "
        f"pass {name}.resolve_neg()"
    )


def from_torch(tensor: Any) -> cupy.ndarray:
    """Return CuPy's array over a tensor's memory."""
    # Of a capsule CuPy asks no order of streams, and here there is one already.
    return cupy.from_dlpack(sys.modules["torch"].utils.dlpack.to_dlpack(tensor))


def note_written(tensor: Any) -> None:
    """Tell autograd, which refuses a backward pass that needs what a tensor was before."""
    sys.modules["torch"].autograd.graph.increment_version(tensor)


class TensorMemory:
    """Gives CuPy memory of PyTorch's, and tensors for the arrays in it.

    Parameters
    ----------
    x : torch.Tensor
        On whose device the memory is.
    """

    def __init__(self, x: Any) -> None:
        self._torch = sys.modules["torch"]
        self._device = x.device
        self._made: dict[int, Any] = {}

    def __call__(self, nbytes: int) -> cupy.cuda.MemoryPointer:
        """Allocate, as CuPy asks an allocator to."""
        tensor = self._torch.empty(nbytes, dtype=self._torch.uint8, device=self._device)
        memory: cupy.cuda.MemoryPointer = from_torch(tensor).data
        self._made[memory.ptr] = tensor
        return memory

    def tensor(self, array: cupy.ndarray) -> Any:
        """Return the tensor over the memory that was allocated for a C-contiguous array."""
        dtype = _dtype(array.dtype)
        if array.size == 0:
            return self._torch.empty(array.shape, dtype=dtype, device=self._device)
        storage = self._made[array.data.ptr].untyped_storage()
        # Not a view of the bytes: autograd has rules for views that are written to.
        tensor = self._torch.empty(0, dtype=dtype, device=self._device)
        return tensor.set_(storage, 0, array.shape)


@cache
def _dtype(dtype: np.dtype[Any]) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


@cache
def _dtypes() -> frozenset[Any]:
    """Return the dtypes of the ops. Beside them are some that DLPack or CuPy has no words for."""
    torch = sys.modules["torch"]
    # An older PyTorch has no uint32.
    return frozenset(getattr(torch, n) for n in (*ITEMSIZE, *CODES) if hasattr(torch, n))


def run(work: Work, x: Any, has_cupy: bool) -> Any:
    """Run where x's device, PyTorch's stream of it and memory of PyTorch's are current.

    Parameters
    ----------
    work : function
        Takes what turns arrays that CuPy made there into tensors.
    x : torch.Tensor
        On a CUDA device.
    has_cupy : bool
        Whether arrays of CuPy's take part, so that its current stream must be in order.
    """
    device = x.get_device()
    if runtime.getDevice() != device:
        with cupy.cuda.Device(device):
            return run(work, x, has_cupy)
    stream = current_stream(device)
    if has_cupy:
        with ordered(device, stream, cupy.cuda.get_current_stream()):
            return _run(work, x, stream)
    return _run(work, x, stream)


def _run(work: Work, x: Any, stream: cupy.cuda.Stream) -> Any:
    memory = TensorMemory(x)
    with stream, cupy.cuda.using_allocator(memory):
        return work(memory.tensor)


def current_stream(device: int) -> cupy.cuda.Stream:
    """Return PyTorch's current stream of a device, as CuPy's."""
    stream = sys.modules["torch"].cuda.current_stream(device)
    if not hasattr(stream, "__cuda_stream__"):  # A PyTorch that does not have the protocol yet.
        stream = Handle(stream.cuda_stream)
    return cupy.cuda.Stream.from_external(stream)
