"""Devices, memory and copies, as a CuPy program sees them. What is not marked holds on hardware."""

import ctypes
import gc
import threading

import cupy
import numpy as np
import pytest
from cupy_backends.cuda.api import runtime

from cunorm import simgpu

INVALID_VALUE, INVALID_PITCH, INVALID_DEVICE = 1, 12, 101

needs_two_devices = pytest.mark.skipif(
    "__import__('cupy').cuda.runtime.getDeviceCount() < 2", reason="needs two devices"
)


def status_of(call):
    with pytest.raises(runtime.CUDARuntimeError) as raised:
        call()
    return raised.value.status


@pytest.mark.parametrize("dtype", ["?", "i1", "f2", "f4", "f8", "c16"])
def test_arrays_come_back_as_they_went(dtype):
    sent = np.arange(-7, 8).astype(dtype).reshape(3, 5)
    assert cupy.asnumpy(cupy.asarray(sent)).tobytes() == sent.tobytes()


def test_zeros_are_zero_in_memory_that_was_used_before():
    for _ in range(3):
        full = cupy.asarray(np.full(1000, 255, np.uint8))
        del full
        assert not cupy.zeros(1000, np.uint8).get().any()


def test_device_to_device_copies_leave_the_source_alone():
    source = cupy.asarray(np.arange(10))
    target = cupy.empty_like(source)
    target.data.copy_from_device(source.data, source.nbytes)
    target.data.memset(0, 8)
    assert source.get().tolist() == list(range(10))
    assert target.get().tolist() == [0, *range(1, 10)]


def test_two_dimensional_copies_respect_both_pitches():
    source = cupy.asarray(np.arange(24, dtype=np.uint8).reshape(4, 6))
    target = cupy.zeros((4, 8), np.uint8)
    runtime.memcpy2D(target.data.ptr, 8, source.data.ptr, 6, 5, 4, runtime.memcpyDeviceToDevice)
    expected = np.zeros((4, 8), np.uint8)
    expected[:, :5] = source.get()[:, :5]
    assert (target.get() == expected).all()
    pitch = (target.data.ptr, 4, source.data.ptr, 6, 5, 4, runtime.memcpyDeviceToDevice)
    assert status_of(lambda: runtime.memcpy2D(*pitch)) == INVALID_PITCH


@pytest.mark.simgpu("hardware copies past the end of an array in silence")
def test_a_copy_past_the_end_of_an_array_is_refused_with_its_size():
    source, target = cupy.zeros(10, np.uint8), cupy.zeros(9, np.uint8)
    with pytest.raises(simgpu.OutOfBounds, match=r"writes 10 bytes .* 1 past the end"):
        target.data.copy_from_device(source.data, 10)
    with pytest.raises(simgpu.OutOfBounds, match="reads 11 bytes"):
        source.data.copy_to_host(np.empty(11, np.uint8).ctypes.data, 11)


@pytest.mark.simgpu("hardware may reach the host's memory")
def test_a_copy_to_host_memory_where_device_memory_is_meant_is_refused():
    host = np.zeros(4, np.uint8)
    with pytest.raises(simgpu.OutOfBounds, match="which no allocation holds"):
        runtime.memcpy(host.ctypes.data, host.ctypes.data, 4, runtime.memcpyHostToDevice)


@pytest.mark.simgpu("hardware may write to freed memory in silence")
def test_a_copy_from_freed_memory_is_refused():
    ptr = runtime.malloc(64)
    runtime.free(ptr)
    with pytest.raises(simgpu.UseAfterFree):
        runtime.memset(ptr, 0, 64)


def test_freeing_twice_or_what_was_never_allocated_is_an_invalid_value():
    ptr = runtime.malloc(64)
    assert status_of(lambda: runtime.free(ptr + 16)) == INVALID_VALUE
    assert status_of(lambda: runtime.freeHost(ptr)) == INVALID_VALUE
    runtime.free(ptr)
    assert status_of(lambda: runtime.free(ptr)) == INVALID_VALUE
    runtime.free(0)


@pytest.mark.simgpu("would fill the memory of a device that others use")
def test_memory_is_limited_and_comes_back():
    gc.collect()  # arrays that earlier failures on purpose left in tracebacks
    free, total = runtime.memGetInfo()
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="limit set to"):
        cupy.empty(free + 1, np.uint8)
    half = cupy.empty(free // 2, np.uint8)
    assert runtime.memGetInfo()[0] == free - free // 2
    with pytest.raises(cupy.cuda.memory.OutOfMemoryError):
        cupy.empty(free // 2 + 2, np.uint8)
    del half
    assert runtime.memGetInfo() == (free, total)


@pytest.mark.simgpu("arrays share allocations on hardware, in CuPy's pool")
def test_each_array_has_an_allocation_of_its_own():
    arrays = [cupy.empty(16, np.uint8) for _ in range(4)]
    for array in arrays:
        with pytest.raises(simgpu.OutOfBounds):
            array.data.memset(0, 17)


@pytest.mark.parametrize(
    ("allocate", "kind", "has_host_pointer"),
    [
        (lambda: cupy.cuda.alloc(64), runtime.memoryTypeDevice, False),
        (lambda: cupy.cuda.malloc_managed(64), runtime.memoryTypeManaged, True),
        (lambda: cupy.cuda.alloc_pinned_memory(64), runtime.memoryTypeHost, True),
        (
            lambda: np.zeros(64).ctypes.data_as(ctypes.c_void_p),
            runtime.memoryTypeUnregistered,
            True,
        ),
    ],
    ids=["device", "managed", "pinned", "unknown"],
)
def test_pointers_know_what_they_are(allocate, kind, has_host_pointer):
    memory = allocate()
    attributes = runtime.pointerGetAttributes(getattr(memory, "ptr", None) or memory.value)
    assert attributes.type == kind
    assert bool(attributes.hostPointer) == has_host_pointer


@pytest.mark.simgpu("hardware rounds sizes up")
def test_the_asynchronous_pool_counts_what_it_gave():
    pool = runtime.deviceGetDefaultMemPool(0)
    used = runtime.cudaMemPoolAttrUsedMemCurrent
    before = runtime.memPoolGetAttribute(pool, used)
    stream = cupy.cuda.Stream()
    ptr = runtime.mallocAsync(1000, stream.ptr)
    assert runtime.memPoolGetAttribute(pool, used) == before + 1000
    runtime.freeAsync(ptr, stream.ptr)
    assert runtime.memPoolGetAttribute(pool, used) == before


def test_cupys_own_pools_still_work():
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        array = cupy.asarray(np.arange(5))
        assert pool.used_bytes() == 512
    assert array.get().tolist() == [0, 1, 2, 3, 4]


def test_an_unknown_device_is_refused():
    assert status_of(lambda: runtime.setDevice(99)) == INVALID_DEVICE
    assert status_of(lambda: runtime.getDeviceProperties(-1)) == INVALID_DEVICE


@pytest.mark.simgpu("about the software GPU")
def test_the_name_says_that_it_is_no_hardware():
    assert b"simgpu" in runtime.getDeviceProperties(0)["name"]


def test_limits_keep_what_was_set():
    before = runtime.deviceGetLimit(0)
    runtime.deviceSetLimit(0, 4096)
    assert runtime.deviceGetLimit(0) == 4096
    runtime.deviceSetLimit(0, before)


@needs_two_devices
def test_the_current_device_is_each_threads_own():
    seen = []
    with cupy.cuda.Device(1):
        thread = threading.Thread(target=lambda: seen.append(cupy.cuda.Device().id))
        thread.start()
        thread.join()
        seen.append(cupy.cuda.Device().id)
    seen.append(cupy.cuda.Device().id)
    assert seen == [0, 1, 0]


@needs_two_devices
@pytest.mark.simgpu("CuPy's pool takes more than an array's bytes on hardware")
def test_memory_belongs_to_the_device_it_was_allocated_on():
    before = runtime.memGetInfo()
    with cupy.cuda.Device(1):
        there = runtime.memGetInfo()[0]
        array = cupy.zeros(1000)
        assert runtime.memGetInfo()[0] == there - 8000
    assert runtime.memGetInfo() == before
    assert array.device.id == 1
    assert runtime.pointerGetAttributes(array.data.ptr).device == 1


@needs_two_devices
def test_arrays_cross_from_device_to_device():
    array = cupy.asarray(np.arange(5))
    with cupy.cuda.Device(1):
        other = cupy.asarray(array)
    assert (other.device.id, other.get().tolist()) == (1, [0, 1, 2, 3, 4])


@needs_two_devices
@pytest.mark.simgpu("CUDA leaves open whether hardware goes by the addresses alone")
def test_a_copy_that_names_another_device_than_its_memorys_is_refused():
    array = cupy.zeros(5, np.int64)
    with cupy.cuda.Device(1):
        other = cupy.zeros(5, np.int64)
    wrong = (other.data.ptr, 0, array.data.ptr, 0, 8)
    assert status_of(lambda: runtime.memcpyPeer(*wrong)) == INVALID_VALUE


@needs_two_devices
@pytest.mark.simgpu("which devices are peers is a machine's own affair")
def test_peer_access_is_enabled_once(monkeypatch):
    monkeypatch.setattr(simgpu._machine, "peers", set())  # CuPy enables it where tests copy
    assert runtime.deviceCanAccessPeer(0, 1) == 1
    assert runtime.deviceCanAccessPeer(1, 1) == 0
    with cupy.cuda.Device(1):
        runtime.deviceEnablePeerAccess(0)
        assert status_of(lambda: runtime.deviceEnablePeerAccess(0)) == 704
        runtime.deviceDisablePeerAccess(0)
        assert status_of(lambda: runtime.deviceDisablePeerAccess(0)) == 705
