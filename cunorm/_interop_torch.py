"""PyTorch's side of `_interop.py`: its tensors, its memory and its streams, without importing it.

Whoever hands over a tensor has imported torch. A call on tensors runs on PyTorch's current stream,
and all memory that CuPy asks for meanwhile, results and scratch, is PyTorch's: results are
its tensors to the last byte, one library's pool holds all memory, and what ``torch.cuda.graph``
captures lies in the graph's own pool.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import lru_cache
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime


def refuse(op: str, name: str, tensor: Any) -> None:
    """Refuse a tensor that DLPack does not hand over, or not all of it."""
    if not tensor.is_cuda:
        raise TypeError(
            f"{name} must be on a CUDA device, but is a torch.Tensor on {tensor.device}: "
            "cunorm.torch computes on CPU tensors too"
        )
    if tensor.is_sparse or tensor.layout != sys.modules["torch"].strided:
        raise TypeError(f"{name} must be a strided tensor, but has layout {tensor.layout}")
    if tensor.requires_grad:
        norm = op.removesuffix("_fwd").removesuffix("_bwd")
        raise ValueError(
            f"{name} must not require a gradient, which would be lost here: cunorm.torch.{norm} is "
            f"differentiable; pass {name}.detach() where no gradient is wanted"
        )
    if tensor.is_neg():
        raise ValueError(
            f"{name} must hold its numbers as they are, but is a view whose negation is only "
            f"noted: pass {name}.resolve_neg()"
        )


def from_torch(tensor: Any) -> cupy.ndarray:
    """Return CuPy's array over a tensor's memory."""
    # Of a capsule CuPy asks no order of streams, and here there is one already.
    return cupy.from_dlpack(sys.modules["torch"].utils.dlpack.to_dlpack(tensor))


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


@lru_cache(maxsize=16)
def _dtype(dtype: np.dtype[Any]) -> Any:
    return getattr(sys.modules["torch"], dtype.name)


class Place:
    """A context in which x's device, PyTorch's stream of it and memory of PyTorch's are current.

    Parameters
    ----------
    x : torch.Tensor
        On a CUDA device.
    memory : TensorMemory
        What CuPy allocates in.
    has_cupy : bool
        Whether arrays of CuPy's take part, so that its current stream must be in order.
    """

    def __init__(self, x: Any, memory: TensorMemory, has_cupy: bool) -> None:
        self._device = x.get_device()
        self._memory = memory
        self._has_cupy = has_cupy
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with ExitStack() as stack:
            if runtime.getDevice() != self._device:
                stack.enter_context(cupy.cuda.Device(self._device))
            stream = _current_stream(self._device)
            if self._has_cupy:
                stack.enter_context(_ordered(stream, [cupy.cuda.get_current_stream()]))
            stack.enter_context(stream)
            stack.enter_context(cupy.cuda.using_allocator(self._memory))
            self._stack = stack.pop_all()

    def __exit__(self, *raised: Any) -> None:
        self._stack.__exit__(*raised)


@contextmanager
def in_order(devices: Iterable[int]) -> Iterator[None]:
    """Bring CuPy's current stream in order with PyTorch's of these devices."""
    with _ordered(cupy.cuda.get_current_stream(), [_current_stream(d) for d in devices]):
        yield


@contextmanager
def _ordered(stream: cupy.cuda.Stream, others: Iterable[cupy.cuda.Stream]) -> Iterator[None]:
    """Let a stream wait for others, and those for what is enqueued in between."""
    others = [other for other in others if other.ptr != stream.ptr]
    for other in others:
        stream.wait_event(other.record(cupy.cuda.Event(disable_timing=True)))
    yield
    for other in others:
        other.wait_event(stream.record(cupy.cuda.Event(disable_timing=True)))


class _Handle:
    """The protocol of CUDA streams, for the streams of a PyTorch that does not have it yet."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._stream.cuda_stream


def _current_stream(device: int) -> cupy.cuda.Stream:
    """Return PyTorch's current stream of a device, as CuPy's."""
    stream = sys.modules["torch"].cuda.current_stream(device)
    if not hasattr(stream, "__cuda_stream__"):
        stream = _Handle(stream)
    return cupy.cuda.Stream.from_external(stream)
