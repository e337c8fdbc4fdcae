"""Registers, spills and stack, against a compilation with `--ptxas-options=-v` made here."""

import re

import cupy
import pytest
from cupy_backends.cuda.libs import nvrtc

from cunorm import simgpu
from cunorm.simgpu.device import assembler
from cunorm.simgpu.device.assembler import Resources

pytestmark = pytest.mark.simgpu

SOURCE = r"""
template <int N> __global__ void wide(float *x) {
    float v[N];
    for (int i = 0; i < N; i++) v[i] = x[i * threadIdx.x];
    __syncthreads();
    for (int i = 0; i < N; i++) x[i * 3 + threadIdx.x] = v[N - 1 - i] * v[i];
}
extern "C" __global__ void spilled(float *x) {
    __shared__ float held[64];
    float v[64];
    for (int i = 0; i < 64; i++) v[i] = 0;
    // An index that only memory knows keeps the array out of registers.
    for (int i = 0; i < 64; i++) v[int(x[i]) & 63] += x[i + 64];
    held[threadIdx.x] = v[3];
    __syncthreads();
    x[0] = held[0] + v[int(x[1]) & 63];
}
"""
LOG = """\
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'a' for 'sm_75'
ptxas info    : Function properties for a
ptxas         .     96 bytes stack frame, 12 bytes spill stores, 4 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 104 bytes cumulative stack size, 360 bytes cmem
ptxas info    : Compile time = 23.350 ms
ptxas info    : Function properties for _Z1gPfi
ptxas         .     0 bytes stack frame, 84 bytes spill stores, 88 bytes spill loads
ptxas info    : Compiling entry function 'b' for 'sm_75'
ptxas info    : Function properties for b
    8 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 4 registers
"""


NARROW = "--maxrregcount=32"


def compiled(name, *names, options=()):
    """Return (registers, spill stores, spill loads, stack) of a kernel, by plain words."""
    arch = cupy.cuda.Device().compute_capability
    program = nvrtc.createProgram(SOURCE, "", (), ())
    for each in names:
        nvrtc.addNameExpression(program, each)
    options += (f"-arch=sm_{arch}", "-ftz=true", "--ptxas-options=-v", "-default-device")
    nvrtc.compileProgram(program, options)
    lowered = nvrtc.getLoweredName(program, name) if names else name
    log = nvrtc.getProgramLog(program)
    nvrtc.destroyProgram(program)
    after = log.split(f"Compiling entry function '{lowered}'")[1].split("Compile time")[0]
    numbers = re.search(r"(\d+) bytes stack frame, (\d+) .* stores, (\d+) .* loads", after)
    stack, stores, loads = map(int, numbers.groups())
    return int(re.search(r"Used (\d+) reg", after)[1]), stores, loads, stack


def test_the_log_is_read_kernel_by_kernel():
    assert assembler.read_log(LOG) == {
        "a": Resources(32, 12 + 84, 4 + 88, 104),
        "b": Resources(4, 0, 0, 8),
    }


def test_attributes_are_what_the_assembler_says():
    kernel = cupy.RawModule(code=SOURCE).get_function("spilled")
    registers, _, _, stack = compiled("spilled")
    assert stack >= 256
    assert kernel.num_regs == registers
    assert 256 <= kernel.local_size_bytes <= stack  # PTX's own; spills are the assembler's


def test_a_profile_says_registers_and_spills():
    names = ["wide<4>", "wide<90>"]
    module = cupy.RawModule(code=SOURCE, name_expressions=names, options=(NARROW,))
    x = cupy.ones(100_000, "f4")
    with simgpu.profile() as profile:
        for name in names:
            module.get_function(name)((1,), (1,), (x,))
    small, large = profile.launches
    for name, launch in zip(names, profile.launches, strict=True):
        assert launch.resources == Resources(*compiled(name, *names, options=(NARROW,)))
    assert small.resources.spill_stores == 0 < large.resources.spill_stores


def test_a_kernel_from_the_disk_cache_is_known_too(tmp_path, monkeypatch):
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path))
    source = SOURCE + "// of this test alone\n"
    counts = []
    for _ in range(2):
        cupy.clear_memo()
        counts.append(cupy.RawModule(code=source).get_function("spilled").num_regs)
    assert counts == [compiled("spilled")[0]] * 2


def test_cupys_own_kernels_are_known():
    with simgpu.profile() as profile:
        cupy.arange(5) + 1
    assert all(launch.resources.registers >= 8 for launch in profile.launches)


def test_a_kernel_loaded_as_ptx_has_no_registers_to_tell(tmp_path):
    path = tmp_path / "k.ptx"
    path.write_text(".version 8.0\n.target sm_75\n.address_size 64\n.visible .entry k() { ret; }\n")
    kernel = cupy.RawModule(path=str(path)).get_function("k")
    assert (kernel.num_regs, kernel.local_size_bytes) == (-1, 0)
    with simgpu.profile() as profile:
        kernel((1,), (1024,), ())
    (launch,) = profile.launches
    assert launch.resources == Resources(unknown="it was loaded as PTX, without its CUDA source")
    assert "registers" not in launch.occupancy.limits


def test_what_cannot_be_compiled_again_says_why():
    source = assembler.Source("int i = absent;", (), ())
    with pytest.raises(assembler.AssemblyError, match=r"sm_90: .*absent"):
        assembler.assemble(source, 90)


def test_without_registers_nothing_is_assembled(monkeypatch):
    def refuse(*_):
        raise AssertionError("assembled")

    kernel = cupy.RawModule(code=SOURCE).get_function("spilled")
    monkeypatch.setattr(assembler, "assemble", refuse)
    with simgpu.profile(registers=False) as profile:
        kernel((1,), (1,), (cupy.ones(4096, "f4"),))
    assert profile.launches[0].resources == Resources(unknown="registers were not asked for")


def test_registers_limit_what_cuda_says_of_occupancy():
    kernel = cupy.RawModule(code=SOURCE).get_function("spilled")
    from cupy_backends.cuda.api import driver

    device = cupy.cuda.Device()
    per_warp = -(-kernel.num_regs * 32 // 256) * 256
    most = device.attributes["MaxRegistersPerMultiprocessor"] // 4 // per_warp * 4 // 2
    found = driver.occupancyMaxActiveBlocksPerMultiprocessor(kernel.kernel.ptr, 64, 0)
    threads = device.attributes["MaxThreadsPerMultiProcessor"] // 64
    blocks = device.attributes["MaxBlocksPerMultiprocessor"]
    assert found == min(most, threads, blocks)
