"""Streams, events, pinned memory, graphs and several devices, as a program uses them."""

import threading

import cupy
import numpy as np
import pytest

from cunorm import simgpu

DOUBLE = cupy.RawKernel(
    'extern "C" __global__ void twice(float* x) { x[threadIdx.x] *= 2; }', "twice"
)
two_devices = pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")


def test_a_pipeline_of_two_streams_is_ordered_by_an_event():
    first, second = cupy.cuda.Stream(non_blocking=True), cupy.cuda.Stream(non_blocking=True)
    ready = cupy.cuda.Event(disable_timing=True)
    with first:
        x = cupy.ones(64, np.float32)
        DOUBLE((1,), (64,), (x,))
        ready.record()
    with second:
        second.wait_event(ready)
        y = x + 1
    second.synchronize()
    assert ready.done
    assert y.get().tolist() == [3] * 64


def test_elapsed_time_is_positive_and_no_claim():
    start, stop = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    cupy.arange(1000).sum()
    stop.record()
    stop.synchronize()
    assert cupy.cuda.get_elapsed_time(start, stop) > 0


def test_pinned_memory_carries_asynchronous_copies():
    pinned = cupy.cuda.alloc_pinned_memory(4 * 100)
    host = np.frombuffer(pinned, np.float32, 100)
    host[:] = np.arange(100)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.empty(100, np.float32)
        x.set(host, stream=stream)
        x *= 3
    back = np.frombuffer(cupy.cuda.alloc_pinned_memory(4 * 100), np.float32, 100)
    x.get(stream=stream, out=back)
    stream.synchronize()
    np.testing.assert_array_equal(back, 3 * np.arange(100))


def test_a_kernel_writes_pinned_and_managed_memory():
    for allocate in (cupy.cuda.alloc_pinned_memory, cupy.cuda.malloc_managed):
        memory = allocate(4 * 8)
        host = np.ctypeslib.as_array((np.ctypeslib.ctypes.c_float * 8).from_address(memory.ptr))
        host[:] = 5
        DOUBLE((1,), (8,), (np.uintp(memory.ptr),))
        cupy.cuda.Device().synchronize()
        assert host.tolist() == [10] * 8


def test_host_functions_run_in_the_order_of_their_stream():
    seen = []
    stream = cupy.cuda.Stream(non_blocking=True)
    pinned = np.frombuffer(cupy.cuda.alloc_pinned_memory(4), np.int32, 1)
    with stream:
        x = cupy.zeros(1, np.int32)
        for step in range(3):
            x += 1
            x.get(stream=stream, out=pinned, blocking=False)
            stream.launch_host_func(lambda at: seen.append((at, int(pinned[0]))), step)
    stream.synchronize()
    assert seen == [(0, 1), (1, 2), (2, 3)]


def test_a_captured_graph_is_replayed_on_new_data():
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        x = cupy.zeros(32, np.float32)
        total = cupy.zeros((), np.float32)
        cupy.add(x, 1, out=x)
        x.sum(out=total)
        x.fill(1)
        stream.begin_capture()
        DOUBLE((1,), (32,), (x,))
        cupy.add(x, 1, out=x)
        x.sum(out=total)
        graph = stream.end_capture()
        assert x.get().tolist() == [1] * 32
        for expected in (3, 7, 15):
            graph.launch()
            assert float(total.get()) == 32 * expected
        x.fill(0)
        graph.launch()
        assert float(total.get()) == 32


def test_rows_of_a_pitched_image_are_copied():
    image = np.arange(6 * 16, dtype=np.uint8).reshape(6, 16)
    x = cupy.zeros((6, 32), np.uint8)
    kind = cupy.cuda.runtime.memcpyHostToDevice
    cupy.cuda.runtime.memcpy2D(x.data.ptr, 32, image.ctypes.data, 16, 10, 6, kind)
    expected = np.zeros((6, 32), np.uint8)
    expected[:, :10] = image[:, :10]
    np.testing.assert_array_equal(x.get(), expected)


def test_threads_work_side_by_side():
    found = [None] * 4

    def work(index):
        with cupy.cuda.Stream(non_blocking=True):
            found[index] = int((cupy.arange(1000) * index).sum().get())

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [499500 * index for index in range(4)]


@two_devices
def test_each_device_has_its_own_arrays_and_kernels():
    found = []
    for index in range(2):
        with cupy.cuda.Device(index):
            x = cupy.full(32, index + 1, np.float32)
            DOUBLE((1,), (32,), (x,))
            found.append(x)
    assert [x.device.id for x in found] == [0, 1]
    assert [float(x.sum().get()) for x in found[:1]] == [64]
    assert [x.get().tolist() for x in found] == [[2] * 32, [4] * 32]
    assert cupy.cuda.Device().id == 0


@two_devices
def test_arrays_are_copied_between_devices():
    x = cupy.arange(10)
    with cupy.cuda.Device(1):
        y = cupy.asarray(x)
        z = cupy.empty_like(y)
        z.data.copy_from_device_async(x.data, x.nbytes, cupy.cuda.Stream.null)
    assert y.device.id == z.device.id == 1
    assert y.get().tolist() == z.get().tolist() == list(range(10))
    assert cupy.cuda.runtime.deviceCanAccessPeer(0, 1) == 1
    x.fill(0)
    cupy.cuda.runtime.memcpyPeer(x.data.ptr, 0, z.data.ptr, 1, x.nbytes)
    assert x.get().tolist() == list(range(10))


@pytest.fixture
def strangers():
    """Take peer access from device 0 for a test; another may have given it."""
    runtime = cupy.cuda.runtime
    try:
        runtime.deviceDisablePeerAccess(1)
    except runtime.CUDARuntimeError:
        yield
    else:
        yield
        runtime._deviceEnsurePeerAccess(1)


@two_devices
@pytest.mark.simgpu
def test_a_kernel_needs_peer_access_to_another_devices_memory(strangers):
    runtime = cupy.cuda.runtime
    with cupy.cuda.Device(1):
        x = cupy.ones(32, np.float32)
    with pytest.raises(simgpu.NoPeerAccess, match="of device 1, to which there is no peer access"):
        DOUBLE((1,), (32,), (x,))
    runtime.deviceEnablePeerAccess(1)
    DOUBLE((1,), (32,), (x,))
    runtime.deviceDisablePeerAccess(1)
    with pytest.raises(simgpu.NoPeerAccess):
        DOUBLE((1,), (32,), (x,))
    assert x.get().tolist() == [2] * 32


@two_devices
@pytest.mark.simgpu
def test_cupy_takes_peer_access_by_itself_and_says_so(strangers):
    x = cupy.arange(4)
    with cupy.cuda.Device(1):
        y = cupy.arange(4)
    with pytest.warns(cupy._util.PerformanceWarning, match="Peer access"):
        total = x + y
    assert (total.device.id, total.get().tolist()) == (0, [0, 2, 4, 6])
