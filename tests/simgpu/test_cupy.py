"""CuPy's own kernels, compiled by NVRTC and executed by the device, say what NumPy says."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

CALLS = {
    "arange": lambda m, x: m.arange(10) + 1,
    "half": lambda m, x: x.astype("f2"),
    "bytes": lambda m, x: (m.abs(x) * 50).astype("u1"),
    "sum": lambda m, x: x.sum(),
    "sum of columns": lambda m, x: x.sum(axis=0),
    "variance of rows": lambda m, x: x.var(axis=-1),
    "position of the largest": lambda m, x: x.argmax(axis=1),
    "exponential": lambda m, x: m.exp(x),
    "double": lambda m, x: x.astype("f8") ** 3,
    "complex": lambda m, x: (x + 1j * x) * (x - 1j),
    "transpose": lambda m, x: m.ascontiguousarray(x.T),
    "choice": lambda m, x: m.where(x > 0, x, -1),
    "rows by number": lambda m, x: x[m.asarray([1, 5, 3])],
    "elements by mask": lambda m, x: x[x > 1],
    "integer division": lambda m, x: (x * 100).astype("i4") // 7,
    "sums along rows": lambda m, x: m.cumsum(x, axis=1),
    "sums along long rows": lambda m, x: m.cumsum(m.tile(x[:4], (1, 10))[:, :513], axis=1),
    "tiles": lambda m, x: m.tile(x, (2, 2)),
}


@pytest.mark.parametrize("name", CALLS)
def test_cupy_says_what_numpy_says(name):
    host = np.random.default_rng(0).standard_normal((37, 53)).astype(np.float32)
    expected = np.asarray(CALLS[name](np, host))
    found = cupy.asnumpy(CALLS[name](cupy, cupy.asarray(host)))
    assert found.dtype == expected.dtype
    # Only the order of float32 additions and the last bit of an exponential may differ.
    tolerance = 1e-5 if expected.dtype.kind in "fc" else 0
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_a_captured_kernel_reads_its_arguments_as_they_were():
    kernel = cupy.RawKernel('extern "C" __global__ void add(int *x, int by) { *x += by; }', "add")
    with cupy.cuda.Stream(non_blocking=True) as stream:
        total = cupy.zeros(1, np.int32)
        stream.begin_capture()
        kernel((1,), (1,), (total, np.int32(5)))
        kernel((1,), (1,), (total, np.int32(2)))
        graph = stream.end_capture()
        assert total.get().tolist() == [0]
        for _ in range(3):
            graph.launch()
        assert total.get().tolist() == [21]


@pytest.mark.simgpu("after a fault on hardware a process has no device")
def test_a_fault_leaves_the_process_usable():
    kernel = cupy.RawKernel(
        'extern "C" __global__ void put(float *x) { x[threadIdx.x] = 1; }', "put"
    )
    array = cupy.zeros(32, np.float32)
    with pytest.raises(simgpu.OutOfBounds) as raised:
        kernel((1,), (33,), (array,))
    assert (raised.value.place.kernel, raised.value.place.thread) == ("put", (32, 0, 0))
    kernel((1,), (32,), (array,))
    assert array.get().all()


def test_constant_memory_reaches_the_kernel():
    module = cupy.RawModule(
        code="__constant__ int table[4] = {4, 3, 2, 1};"
        'extern "C" __global__ void look(int *x) { x[threadIdx.x] = table[threadIdx.x]; }'
    )
    found = cupy.zeros(4, np.int32)
    module.get_function("look")((1,), (4,), (found,))
    assert found.get().tolist() == [4, 3, 2, 1]
    cupy.ndarray(4, np.int32, module.get_global("table")).set(np.arange(4, dtype=np.int32))
    module.get_function("look")((1,), (4,), (found,))
    assert found.get().tolist() == [0, 1, 2, 3]


@pytest.mark.skipif(
    "__import__('cupy').cuda.runtime.getDeviceCount() < 2", reason="needs two devices"
)
def test_the_second_device_executes_too():
    with cupy.cuda.Device(1):
        found = cupy.arange(5) * 2
    assert (found.device.id, found.get().tolist()) == (1, [0, 2, 4, 6, 8])


def test_all_of_an_allocation_is_written_after_a_part_of_it():
    # As CuPy's own pool has it, which hands one block of 512 bytes to one array after another.
    block = cupy.cuda.alloc(512)
    whole = cupy.ndarray(128, np.float32, block)
    whole[:100] = cupy.arange(100)  # by a kernel
    block.copy_from_host(np.ones(128, np.float32).ctypes.data, 512)
    assert whole.sum() == 128
    block.memset(0, 512)
    assert whole.sum() == 0
