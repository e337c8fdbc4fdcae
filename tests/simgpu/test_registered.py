"""Host memory that the program registers: kernels use it at its own address, within its bounds."""

import ctypes

import cupy
import numpy as np
import pytest
from cupy_backends.cuda.api import runtime

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("hardware registers whole pages, which these arrays share")

INVALID_VALUE, ALREADY_REGISTERED, NOT_REGISTERED, NOT_SUPPORTED = 1, 712, 713, 801

COPY = """template<typename T> __global__ void copy(T* y, const T* x, int n) {
  int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = x[i];
}"""


def status_of(call):
    with pytest.raises(runtime.CUDARuntimeError) as raised:
        call()
    return raised.value.status


@pytest.fixture
def register():
    """Register arrays, and unregister what is still registered at the end."""
    registered = []

    def call(array, nbytes=None):
        runtime.hostRegister(array.ctypes.data, nbytes or array.nbytes, 0)
        registered.append(array)
        return array

    yield call
    for array in registered:
        if runtime.pointerGetAttributes(array.ctypes.data).type == runtime.memoryTypeHost:
            runtime.hostUnregister(array.ctypes.data)


def at(offset, count, dtype="f4"):
    """Return an array whose address is `offset` bytes past a multiple of 64."""
    dtype = np.dtype(dtype)
    room = np.zeros(128 + offset + count * dtype.itemsize, np.uint8)
    start = -room.ctypes.data % 64 + offset
    return room[start : start + count * dtype.itemsize].view(dtype)


def on_device(array):
    """Return the CuPy array over the same memory."""
    memory = cupy.cuda.UnownedMemory(array.ctypes.data, array.nbytes, array)
    return cupy.ndarray(array.shape, array.dtype, cupy.cuda.MemoryPointer(memory, 0))


def copy(y, x, n=None, ctype="float"):
    kernel = cupy.RawModule(code=COPY, name_expressions=[f"copy<{ctype}>"]).get_function(
        f"copy<{ctype}>"
    )
    n = x.size if n is None else n
    kernel((-(-n // 64),), (64,), (y, x, np.int32(n)))


@pytest.mark.parametrize("offset", [0, 4, 12, 16, 28, 36])
def test_kernels_read_and_write_registered_memory_at_its_own_address(register, offset):
    x, y = register(at(offset, 100)), register(at(offset, 100))
    x[:] = np.arange(100)
    copy(on_device(y), on_device(x))
    np.testing.assert_array_equal(y, x)
    np.testing.assert_array_equal((on_device(y) + 1).get(), x + 1)


def test_what_the_host_writes_after_registering_counts_as_written(register):
    x = register(np.empty(64, np.float32))
    x[:] = 7
    assert on_device(x).sum() == 7 * 64


@pytest.mark.parametrize("offset", [0, 4, 28])
@pytest.mark.parametrize("many", [1, 100])
def test_an_access_past_either_end_is_out_of_bounds(register, offset, many):
    x = register(at(offset, 100))
    y = cupy.zeros(102, np.float32)
    says = rf"4 bytes past the end of registered host memory of 400 bytes at {x.ctypes.data:#x}"
    with pytest.raises(simgpu.OutOfBounds, match=says):
        copy(y, on_device(x), 101)
    shifted = cupy.ndarray((100,), np.float32, on_device(x).data - 4)
    with pytest.raises(simgpu.OutOfBounds):
        copy(y, shifted, many)


def test_a_packet_is_aligned_by_its_address_and_not_by_its_place_in_the_array(register):
    x, y = register(at(8, 66)), cupy.zeros(64, np.float32)
    copy(y, on_device(x)[2:], 16, "float4")
    with pytest.raises(simgpu.Misaligned):
        copy(y, on_device(x), 16, "float4")


def test_use_after_unregistering_is_a_fault_of_kernels_and_device_copies_only(register):
    x = register(np.ones(100, np.float32))
    there = on_device(x)
    runtime.hostUnregister(x.ctypes.data)
    with pytest.raises(simgpu.UseAfterFree, match="unregistered host memory of 400 bytes"):
        copy(cupy.zeros(100, np.float32), there)
    with pytest.raises(simgpu.OutOfBounds, match="which no allocation holds"):
        runtime.memset(x.ctypes.data, 0, 400)
    # It is ordinary host memory again.
    cupy.zeros(100, np.float32).get(out=x)
    assert not x.any()
    register(x)
    copy(there, cupy.ones(100, np.float32))
    assert x.all()


def test_new_allocations_may_lie_where_memory_was_registered(register):
    # The allocator may hand the same pages to the device's memory once the program freed them.
    for _ in range(50):
        x = np.ones(100_000, np.float32)
        runtime.hostRegister(x.ctypes.data, x.nbytes, 0)
        runtime.hostUnregister(x.ctypes.data)
        del x
        assert cupy.ones(100_000, np.float32).sum() == 100_000


def test_two_arrays_in_one_sector_are_told_apart(register):
    both = at(0, 8)
    both[:3] = 1, 2, 3
    register(both[:3])
    register(both[3:])
    with simgpu.profile() as prof:
        copy(on_device(both[3:]), on_device(both[:3]))
    assert both.tolist() == [1, 2, 3, 1, 2, 3, 0, 0]
    assert (prof.launches[0].loads.bytes, prof.launches[0].stores.bytes) == (12, 12)
    with pytest.raises(simgpu.OutOfBounds):
        copy(on_device(both[3:]), cupy.zeros(6, np.float32))


def test_pointers_to_registered_memory_are_host_memory_of_the_same_address(register):
    x = register(np.zeros(10))
    attributes = runtime.pointerGetAttributes(x[3:].ctypes.data)
    assert attributes.type == runtime.memoryTypeHost
    assert attributes.devicePointer == attributes.hostPointer == x[3:].ctypes.data


def test_what_cannot_be_registered_has_cudas_status(register):
    x = register(np.zeros(10))
    address = x.ctypes.data
    assert status_of(lambda: runtime.hostRegister(address + 8, 8, 0)) == ALREADY_REGISTERED
    assert status_of(lambda: runtime.hostRegister(address - 8, 16, 0)) == ALREADY_REGISTERED
    assert status_of(lambda: runtime.hostUnregister(address + 8)) == NOT_REGISTERED
    runtime.hostUnregister(address)
    assert status_of(lambda: runtime.hostUnregister(address)) == NOT_REGISTERED
    assert status_of(lambda: runtime.hostRegister(address, 0, 0)) == INVALID_VALUE
    assert status_of(lambda: runtime.hostRegister(address, 80, 64)) == INVALID_VALUE
    assert status_of(lambda: runtime.hostRegister(address, 80, 8)) == NOT_SUPPORTED
    assert status_of(lambda: runtime.hostRegister(0, 80, 0)) == INVALID_VALUE
    pinned = cupy.cuda.alloc_pinned_memory(64)
    assert status_of(lambda: runtime.hostRegister(pinned.ptr, 64, 0)) == ALREADY_REGISTERED
    assert status_of(lambda: runtime.hostUnregister(pinned.ptr)) == NOT_REGISTERED
    assert status_of(lambda: runtime.freeHost(address)) == INVALID_VALUE


def test_the_device_says_that_it_can():
    device = cupy.cuda.Device()
    assert device.attributes["HostRegisterSupported"] == 1
    assert device.attributes["CanUseHostPointerForRegisteredMem"] == 1


def test_copies_know_the_bounds_of_registered_memory(register):
    x = register(np.zeros(10, np.uint8))
    y = cupy.ones(11, np.uint8)
    with pytest.raises(simgpu.OutOfBounds, match="1 past the end of the registered host memory"):
        y.data.copy_to_host(ctypes.c_void_p(x.ctypes.data), 11)
    y.data.copy_to_host(ctypes.c_void_p(x.ctypes.data), 10)
    assert x.all()
