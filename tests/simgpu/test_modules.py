"""Modules, functions, what a launch is refused for, and what unloading leaves: nothing."""

import gc
import weakref

import cupy
import numpy as np
import pytest
from cupy_backends.cuda.api import driver

from cunorm import simgpu
from cunorm.simgpu import _tables
from cunorm.simgpu.execution import setup

pytestmark = pytest.mark.simgpu("about the software driver's messages and limits")

SOURCE = r"""
__constant__ int table[4] = {1, 2, 3, 4};
__device__ float zeros[3];
extern "C" __global__ void plain(float *x, int n) { if (n) x[n] = table[n & 3] + zeros[0]; }
extern "C" __global__ void __launch_bounds__(128) bounded(float *x) { x[threadIdx.x] = 0; }
extern "C" __global__ void shared(float *x) {
    __shared__ float held[256];
    extern __shared__ float more[];
    held[threadIdx.x] = more[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    x[threadIdx.x] = held[255 - threadIdx.x] + more[255 - threadIdx.x];
}
"""
KIB = 1024


@pytest.fixture(scope="module")
def module():
    return cupy.RawModule(code=SOURCE)


@pytest.fixture
def array():
    return cupy.zeros(256, np.float32)


def enqueue(kernel, grid, block, arguments, **options):
    with simgpu.enqueue_only():
        kernel(grid, block, arguments, **options)


def test_an_unloaded_module_leaves_nothing_of_its_kernels_behind(array, monkeypatch):
    kept = []
    start = setup.Launch.__init__

    def noting(self, function, *rest):
        kept.extend(map(weakref.ref, (self, function)))
        start(self, function, *rest)

    monkeypatch.setattr(setup.Launch, "__init__", noting)
    module = cupy.RawModule(
        code="""extern "C" __global__ void left(float *x) {
        x[threadIdx.y * 16 + threadIdx.x] = threadIdx.x; }"""
    )
    with simgpu.profile():
        module.get_function("left")((1,), (16, 16), (array,))
    gc.collect()
    assert [ref() is None for ref in kept] == [True, False]
    del module
    cupy.clear_memo()
    gc.collect()
    assert [ref() for ref in kept] == [None, None]


def test_global_variables_start_with_their_values_and_can_be_written(module):
    table = cupy.ndarray(4, np.int32, module.get_global("table"))
    assert table.get().tolist() == [1, 2, 3, 4]
    table.set(np.array([5, 6, 7, 8], np.int32))
    again = cupy.ndarray(4, np.int32, module.get_global("table"))
    assert again.get().tolist() == [5, 6, 7, 8]


def test_an_unknown_name_is_not_found(module):
    with pytest.raises(driver.CUDADriverError, match=r"NOT_FOUND: .* \(absent\)"):
        module.get_function("absent")
    with pytest.raises(driver.CUDADriverError, match="NOT_FOUND"):
        module.get_global("absent")


def test_globals_are_freed_with_their_module():
    free = cupy.cuda.runtime.memGetInfo()[0]
    loaded = cupy.cuda.function.Module()
    loaded.load(b".version 8.0\n.target sm_75\n.address_size 64\n.global .align 4 .b8 g[4096];\n")
    assert cupy.cuda.runtime.memGetInfo()[0] == free - 4096
    del loaded
    assert cupy.cuda.runtime.memGetInfo()[0] == free


def test_machine_code_is_refused():
    with pytest.raises(simgpu.NotEmulated, match="machine code"):
        cupy.cuda.function.Module().load(b"\x7fELF" + bytes(64))


def test_ptx_for_a_later_architecture_is_refused():
    with pytest.raises(driver.CUDADriverError, match=r"INVALID_PTX.*sm_121"):
        cupy.cuda.function.Module().load(b".version 8.8\n.target sm_121\n.address_size 64\n")


def test_attributes_are_those_of_the_code(module):
    assert module.get_function("bounded").max_threads_per_block == 128
    shared = module.get_function("shared")
    assert shared.shared_size_bytes == 256 * 4
    assert shared.max_dynamic_shared_size_bytes == 47 * KIB
    arch = int(cupy.cuda.Device().compute_capability)
    assert shared.binary_version == arch
    assert shared.ptx_version >= 70


@pytest.mark.parametrize(
    ("name", "grid", "block", "shared", "message"),
    [
        ("plain", (1,), (1025,), 0, r"a block of \(1025, 1, 1\)"),
        ("plain", (1,), (1, 1, 65), 0, r"a block of \(1, 1, 65\)"),
        ("plain", (1,), (64, 32), 0, "2048 threads a block, where it allows 1024"),
        ("bounded", (1,), (129,), 0, "129 threads a block, where it allows 128"),
        ("plain", (1, 65536), (1,), 0, r"a grid of \(1, 65536, 1\)"),
        ("plain", (1,), (1,), 48 * KIB + 1, "49153 bytes of dynamic shared memory, where 49152"),
        ("shared", (1,), (1,), 47 * KIB + 4, "max_dynamic_shared_size_bytes may raise that to"),
    ],
)
def test_an_impossible_launch_says_what_was_asked_and_what_is_allowed(
    name, grid, block, shared, message, module, array
):
    arguments = (array, np.int32(0)) if name == "plain" else (array,)
    with pytest.raises(simgpu.LaunchError, match=message) as raised:
        enqueue(module.get_function(name), grid, block, arguments, shared_mem=shared)
    assert raised.value.place.kernel == name


def test_shared_memory_beyond_48_kib_is_there_after_it_was_asked_for(array):
    # A module of its own: functions keep what was set, and CuPy shares modules of the same source.
    kernel = cupy.RawModule(code=SOURCE + "// alone").get_function("shared")
    most = cupy.cuda.Device().attributes["MaxSharedMemoryPerBlockOptin"] - 256 * 4
    kernel.max_dynamic_shared_size_bytes = most
    enqueue(kernel, (1,), (256,), (array,), shared_mem=most)
    kernel.max_dynamic_shared_size_bytes = 1024
    with pytest.raises(simgpu.LaunchError, match="where 1024 are allowed"):
        enqueue(kernel, (1,), (256,), (array,), shared_mem=most)
    with pytest.raises(driver.CUDADriverError, match=f"where the device allows {most}"):
        kernel.max_dynamic_shared_size_bytes = most + 1


def test_no_arguments_at_all_is_an_error_and_not_a_crash(module):
    with pytest.raises(simgpu.LaunchError, match="takes 2 arguments, and number 1"):
        enqueue(module.get_function("plain"), (1,), (1,), ())


@pytest.mark.parametrize("nowhere", [0, 1 << 60])
@pytest.mark.parametrize("before", [0, 2, 64, 100])
def test_an_argument_that_points_nowhere_is_an_error_and_not_a_crash(nowhere, before):
    value = np.arange(200, dtype=np.int32)
    pointers = value.ctypes.data + 4 * np.arange(before + 2)
    pointers[before] = nowhere
    read = _tables.read_arguments(pointers.ctypes.data, (4,) * (before + 2))
    assert read == [value[i : i + 1].tobytes() for i in range(before)] + [None, None]


def test_a_list_of_arguments_that_is_nowhere_is_an_error_and_not_a_crash():
    assert _tables.read_arguments(0, (4,)) == [None]


def test_no_array_may_be_a_null_pointer(module):
    enqueue(module.get_function("plain"), (1,), (1,), (None, np.int32(0)))


def test_enqueue_only_executes_nothing(module, array):
    filled = cupy.asarray(np.ones(128, np.float32))
    enqueue(module.get_function("bounded"), (1,), (128,), (filled,))
    assert filled.get().all()


@pytest.mark.skipif(
    "__import__('cupy').cuda.runtime.getDeviceCount() < 2", reason="needs two devices"
)
def test_a_stream_of_another_device_is_an_invalid_handle(module, array):
    with cupy.cuda.Device(1):
        elsewhere = cupy.cuda.Stream()
    with pytest.raises(driver.CUDADriverError, match="the stream is another device's"):
        enqueue(module.get_function("bounded"), (1,), (1,), (array,), stream=elsewhere)


def test_occupancy_is_that_of_the_scarcest_resource(module):
    plain, shared = (module.get_function(name).kernel.ptr for name in ("plain", "shared"))
    device = cupy.cuda.Device()
    threads = device.attributes["MaxThreadsPerMultiProcessor"]
    occupancy = driver.occupancyMaxActiveBlocksPerMultiprocessor
    assert occupancy(plain, 512, 0) == threads // 512
    assert occupancy(shared, 32, 47 * KIB) == (
        device.attributes["MaxSharedMemoryPerMultiprocessor"]
        // (48 * KIB + device.attributes["ReservedSharedMemoryPerBlock"])
    )
    assert occupancy(plain, 32, 49 * KIB) == 0
    grid, block = driver.occupancyMaxPotentialBlockSize(plain, 0, 0)
    assert grid == occupancy(plain, block, 0) * device.attributes["MultiProcessorCount"]
    assert grid * block == threads * device.attributes["MultiProcessorCount"]


def test_a_cooperative_grid_must_be_resident_at_once():
    kernel = cupy.RawKernel(
        'extern "C" __global__ void alone() {}', "alone", enable_cooperative_groups=True
    )
    most = driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, 1024, 0)
    blocks = most * cupy.cuda.Device().attributes["MultiProcessorCount"]
    arguments = (kernel.kernel.ptr, blocks + 1, 1, 1, 1024, 1, 1, 0, 0, 0)
    with pytest.raises(driver.CUDADriverError, match="COOPERATIVE_LAUNCH_TOO_LARGE"):
        driver.launchCooperativeKernel(*arguments)
    with simgpu.enqueue_only():
        driver.launchCooperativeKernel(kernel.kernel.ptr, blocks, *arguments[2:])
