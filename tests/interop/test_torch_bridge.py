"""The bridge of torch_bridge.py: it lends a tensor's bytes and no more, and leaves no trace."""

import gc

import cupy
import pytest
import torch
import torch_bridge
from cupy.cuda import runtime

from cunorm import simgpu

pytestmark = pytest.mark.simgpu

READ = """extern "C" __global__ void read(float* y, const float* x, int n) {
  y[threadIdx.x] = x[n + threadIdx.x];
}"""


def kind_of_memory(tensor):
    return runtime.pointerGetAttributes(tensor.data_ptr()).type


def test_memory_is_registered_while_capsules_live():
    x = torch.ones(8)
    with torch_bridge.bridge() as bridge:
        assert kind_of_memory(x) == runtime.memoryTypeUnregistered
        first = cupy.from_dlpack(bridge.to_dlpack(x))
        second = cupy.from_dlpack(bridge.to_dlpack(x[2:]))
        assert second.data.ptr - first.data.ptr == 8
        for array in (first, second):
            assert kind_of_memory(x) == runtime.memoryTypeHost
            del array
        del first
        assert kind_of_memory(x) == runtime.memoryTypeHost
        del second
        gc.collect()
        assert kind_of_memory(x) == runtime.memoryTypeUnregistered


def test_an_access_past_a_tensors_memory_is_caught():
    kernel = cupy.RawKernel(READ, "read")
    x, y = torch.arange(8.0), torch.zeros(4)
    with torch_bridge.bridge() as bridge:
        arrays = [cupy.from_dlpack(bridge.to_dlpack(tensor)) for tensor in (y, x)]
        kernel((1,), (4,), (*arrays, cupy.int32(4)))
        assert y.tolist() == [4, 5, 6, 7]
        with pytest.raises(simgpu.Fault, match="4 bytes past the end of registered"):
            kernel((1,), (4,), (*arrays, cupy.int32(5)))


def test_it_leaves_no_trace():
    places = (torch.Tensor, torch.utils.dlpack, torch.cuda)
    before = [dict(vars(place)) for place in places]
    x = torch.ones(2)
    with torch_bridge.bridge(device=1):
        assert x.is_cuda
        assert x.get_device() == 1
    assert [dict(vars(place)) for place in places] == before
    assert not x.is_cuda
    assert x.get_device() == -1
