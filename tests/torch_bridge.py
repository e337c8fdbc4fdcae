"""CUDA tensors for the tests: real ones where PyTorch has CUDA, else host memory passed off so.

A PyTorch without CUDA has CPU tensors only, and the software GPU knows no memory but its own. The
bridge stands on PyTorch's side, at four places: a tensor says that it is on a CUDA device, and on
which; DLPack capsules say so, and their memory is registered with the software GPU for as long as
they live, so that its checks hold at every byte; and PyTorch has a current stream. cunorm, CuPy,
and PyTorch's autograd and dispatcher run unchanged.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections import Counter

import cupy
import pytest
import torch
from cupy.cuda import runtime

from cunorm import simgpu

CUDA = 2  # kDLCUDA


class Capsule(ctypes.Structure):
    """DLManagedTensor of dlpack.h, which a capsule named "dltensor" points to."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", ctypes.c_uint32),
        ("shape", ctypes.c_void_p),
        ("strides", ctypes.c_void_p),
        ("byte_offset", ctypes.c_uint64),
        ("manager_ctx", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


Deleter = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
_pointer_of = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)


# By the address of a capsule's content: its own deleter, its bridge and its storage. An array may
# outlive the bridge, so that what its end calls is kept here.
_deleters = {}


@Deleter
def _take_back(address):
    deleter, bridge, start = _deleters.pop(address)
    bridge.take_back(start)
    deleter(address)


class Stream:
    """A stream as PyTorch shows it: a handle."""

    def __init__(self, stream):
        self.stream = stream
        self.cuda_stream = stream.ptr

    def __cuda_stream__(self):
        return 0, self.cuda_stream


class Bridge:
    """What tensors say while it stands.

    Attributes
    ----------
    device : int
        The device on which they say they are.
    stream : Stream
        PyTorch's current one, on every device.
    registers : bool
        Whether memory is registered: where no kernel is executed, none needs to be.
    keeps : bool
        Whether memory stays registered until the end: a graph uses it after the call.
    """

    def __init__(self, device):
        self.device = device
        self.stream = Stream(cupy.cuda.Stream.null)
        self.registers = True
        self.keeps = False
        self._kept = []
        self._lent = Counter()  # by the address of a storage, how many capsules it has
        self._to_dlpack = torch.utils.dlpack.to_dlpack

    def to_dlpack(self, tensor):
        capsule = self._to_dlpack(tensor.detach())
        address = _pointer_of(capsule, b"dltensor")
        content = Capsule.from_address(address)
        content.device_type, content.device_id = CUDA, self.device
        if not self.registers:
            return capsule
        storage = tensor.untyped_storage()
        start, nbytes = storage.data_ptr(), storage.nbytes()
        if nbytes:
            if not self._lent[start]:
                runtime.hostRegister(start, nbytes, 0)
            self._lent[start] += 1
            if self.keeps:
                self._lent[start] += 1
                self._kept.append(storage)
            _deleters[address] = Deleter(content.deleter), self, start
            content.deleter = ctypes.cast(_take_back, ctypes.c_void_p).value
        return capsule

    def put(self, tensor):
        """Return a tensor, which is passed off where it is."""
        return tensor

    def take_back(self, start):
        self._lent[start] -= 1
        if not self._lent[start]:
            runtime.hostUnregister(start)

    def release(self):
        """Unregister what was kept."""
        while self._kept:
            self.take_back(self._kept.pop().data_ptr())

    def stands_for(self, tensor):
        """Return whether a tensor is passed off: a fake one, of the compiler's, is not."""
        return type(tensor) in (torch.Tensor, torch.nn.Parameter)

    def patch(self, patch):
        is_cuda, get_device = torch._C.TensorBase.is_cuda, torch._C.TensorBase.get_device

        def says_is_cuda(tensor):
            return self.stands_for(tensor) or is_cuda.__get__(tensor)

        def says_device(tensor):
            return self.device if self.stands_for(tensor) else get_device(tensor)

        patch.setattr(torch.Tensor, "is_cuda", property(says_is_cuda))
        patch.setattr(torch.Tensor, "get_device", says_device)
        patch.setattr(torch.utils.dlpack, "to_dlpack", self.to_dlpack)
        patch.setattr(torch.cuda, "current_stream", lambda device=None: self.stream)


@contextlib.contextmanager
def bridge(device=0):
    """Pass CPU tensors off as the software GPU's for as long as the context lasts."""
    bridge = Bridge(device)
    with pytest.MonkeyPatch.context() as patch:
        bridge.patch(patch)
        yield bridge
        bridge.release()


class Cuda:
    """What a bridge offers to tests of streams, for real CUDA tensors."""

    keeps = False  # a bridge's; the memory of a real graph is PyTorch's to keep

    @property
    def stream(self):
        return torch.cuda.current_stream()

    @stream.setter
    def stream(self, stream):
        torch.cuda.set_stream(torch.cuda.ExternalStream(stream.cuda_stream))

    def put(self, tensor):
        """Bring a tensor to the device, for any stream."""
        moved = tensor.cuda()
        torch.cuda.synchronize()
        return moved


@contextlib.contextmanager
def pytorchs_stream():
    """Yield what brings tensors to device 0 by `put`, and sets PyTorch's current `stream`."""
    if torch.cuda.is_available():
        with torch.cuda.stream(torch.cuda.current_stream()):  # which is current again at the end
            yield Cuda()
    elif not simgpu.installed():
        pytest.skip("this PyTorch has no CUDA, and the tests run on hardware")
    else:
        with bridge() as stand_in:
            yield stand_in


@contextlib.contextmanager
def tensors_on(place):
    """Yield a function that brings a tensor to a place, "cpu" or "cuda"."""
    if place == "cpu":
        yield lambda tensor: tensor
    elif torch.cuda.is_available():
        yield lambda tensor: tensor.detach().cuda().requires_grad_(tensor.requires_grad)
    elif not simgpu.installed():
        pytest.skip("this PyTorch has no CUDA, and the tests run on hardware")
    else:
        with bridge():
            yield lambda tensor: tensor
