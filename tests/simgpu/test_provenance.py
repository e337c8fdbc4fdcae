"""`OutOfBounds` names the array that the address was computed from, not the nearest one."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu


@pytest.fixture
def neighbours():
    """Two arrays of 100 numbers in one piece of memory, `low` right below `high`."""
    host = np.zeros(4096, np.float32)
    start = host.ctypes.data + -host.ctypes.data % 512
    lent = [start, start + 2048]
    for address in lent:
        cupy.cuda.runtime.hostRegister(address, 400, 0)
    arrays = []
    for address in lent:
        memory = cupy.cuda.UnownedMemory(address, 400, owner=host)
        arrays.append(cupy.ndarray(100, np.int32, cupy.cuda.MemoryPointer(memory, 0)))
    yield arrays
    for address in lent:
        cupy.cuda.runtime.hostUnregister(address)


def fault_of(source, *arguments, threads=32):
    kernel = cupy.RawKernel(source, "k")
    with pytest.raises(simgpu.Fault) as raised:
        kernel((1,), (threads,), arguments)
    return raised.value


def of(array, where, name):
    return f"{where} registered host memory of 400 bytes at {array.data.ptr:#x}, {name}"


HIST = """extern "C" __global__ void k(const int* idx, int* out) {
  out[idx[threadIdx.x]] = 1;
}"""


def test_a_histogram_that_writes_past_its_end_is_blamed_for_its_own_array(neighbours):
    out, idx = neighbours
    idx[:] = 0
    idx[7] = 900
    error = fault_of(HIST, idx, out)
    assert type(error) is simgpu.OutOfBounds
    assert error.what.endswith(of(out, "3204 bytes past the end of", "arg 1"))
    assert error.place.thread == (7, 0, 0)


def test_so_is_one_that_writes_before_its_start(neighbours):
    idx, out = neighbours
    idx[:] = 0
    idx[7] = -300
    assert fault_of(HIST, idx, out).what.endswith(
        of(out, "1200 bytes before the start of", "arg 1")
    )


def test_memory_that_happens_to_be_freed_there_is_no_use_after_free(neighbours):
    out, _ = neighbours
    freed = cupy.zeros(1000, np.int32)
    address = freed.data.ptr
    del freed
    wide = cupy.RawKernel(
        'extern "C" __global__ void k(char* out, long long at) { out[at] = 1; }', "k"
    )
    with pytest.raises(simgpu.OutOfBounds, match="arg 0"):
        wide((1,), (1,), (out, address + 80 - out.data.ptr))
    with pytest.raises(simgpu.UseAfterFree, match=r"80 bytes into freed .*, arg 0"):
        wide((1,), (1,), (np.uint64(address), 80))


WAYS = {
    "a choice": "int* p = n > 0 ? a : b;\n  p[at] = 1;",
    "a branch": "int* p;\n  if (n > 0) { p = a; b[1] = 2; } else { p = b; a[1] = 2; }\n"
    "  __syncthreads();\n  p[at] = 1;",
    "a loop": "int* p = n > 0 ? a : b;\n"
    "  for (int i = 0; i <= at; i += 1 + (n & 2)) { *(volatile int*)p = i; p += 1 + (n & 2); }",
    "another function": "put(n > 0 ? a + 50 : b + 50, at - 50);",
    "a function that returns it": "*place(n > 0 ? a : b, at) = 1;",
    "a local array": "int* both[2] = {b, a};\n  both[n > 0][at] = 1;",
    "an atomic": "atomicAdd((n > 0 ? a : b) + at, 1);",
    "a wide store": "((int4*)(n > 0 ? a : b))[at / 4] = make_int4(1, 2, 3, 4);",
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("first", [True, False])
def test_the_array_is_found_through(way, first, neighbours):
    a, b = neighbours
    wrong = 652 if first else 900
    source = f"""__device__ __noinline__ void put(int* p, int at) {{
  p[at] = 1;
}}
__device__ __noinline__ int* place(int* p, int at) {{
  return p + at;
}}
extern "C" __global__ void k(int n, int* a, int* b, int at) {{
  {WAYS[way]}
}}"""
    error = fault_of(source, 1 if first else -1, a, b, wrong, threads=1)
    named = a if first else b
    assert f"{named.data.ptr:#x}, arg {1 if first else 2}" in error.what, error
    assert "past the end of" in error.what


def test_a_pointer_from_memory_names_what_it_points_to(neighbours):
    low, high = neighbours
    table = cupy.asarray([low.data.ptr, high.data.ptr], np.uint64)
    source = 'extern "C" __global__ void k(int** table, int at) { table[0][at] = 1; }'
    error = fault_of(source, table, 700, threads=1)
    assert of(low, "past the end of", "by the pointer of PTX line ") in error.what


def test_variables_of_the_module_are_named():
    source = '__device__ int seen[4];\nextern "C" __global__ void k(int at) { seen[at] = 1; }'
    error = fault_of(source, 4, threads=1)
    assert "4 bytes past the end of device allocation of 16 bytes at " in error.what
    assert error.what.endswith(", variable seen")


def test_the_arrays_of_cupys_own_kernels_are_named(neighbours):
    low, high = neighbours
    put = cupy.ElementwiseKernel("raw T x, int32 at", "T y", "y = x[at + i]", "put")
    with pytest.raises(simgpu.OutOfBounds, match=f"{low.data.ptr:#x}, arg 0"):
        put(low, 700, high)


def test_where_it_is_not_known_the_arrays_are_listed_with_their_distances(neighbours):
    low, high = neighbours
    source = """extern "C" __global__ void k(int* low, unsigned long long at, int* high) {
  low[0] = high[0];
  *(int*)at = 1;
}"""
    error = fault_of(source, low, np.uint64(low.data.ptr + 1000), high, threads=1)
    assert "outside the arrays that it may have been computed from: " in error.what
    lent = "registered host memory of 400 bytes at"
    assert f"arg 0, {lent} {low.data.ptr:#x}, ended 600 bytes below; " in error.what
    assert f"arg 2, {lent} {high.data.ptr:#x}, begins 1048 bytes above" in error.what


def test_of_two_that_it_was_computed_from_both_are_listed(neighbours):
    low, high = neighbours
    third = cupy.zeros(3, np.int32)
    source = """extern "C" __global__ void k(char* low, char* high, int* other) {
  other[0] = *(int*)(low + ((unsigned long long)high & ~15ull));
}"""
    what = fault_of(source, low, high, third, threads=1).what
    assert "arg 0, " in what
    assert "arg 1, " in what
    assert "arg 2, " not in what


def test_the_line_of_source_is_shown(tmp_path):
    x = cupy.zeros(8, np.float32)
    source = 'extern "C" __global__ void k(float* x) {\n  x[threadIdx.x] = 1;  // HERE\n}'
    error = fault_of(source, x)
    assert error.place.source_text == "x[threadIdx.x] = 1;  // HERE"
    assert "<source>:2 `x[threadIdx.x] = 1;  // HERE`, block" in str(error)
    (tmp_path / "put.cuh").write_text(source)
    kernel = cupy.RawKernel('#include "put.cuh"\n', "k", (f"-I{tmp_path}",))
    with pytest.raises(simgpu.OutOfBounds, match=r"put\.cuh:2 `x"):
        kernel((1,), (9,), (x,))
    elsewhere = fault_of('#line 1 "elsewhere.cu"\n' + source, x)
    assert elsewhere.place.source.endswith("elsewhere.cu:2")
    assert elsewhere.place.source_text is None


def test_a_race_shows_both_lines():
    source = """extern "C" __global__ void k(int* x) {
  x[blockIdx.x / 2] = blockIdx.x;
}"""
    with pytest.raises(simgpu.GlobalRace) as raised:
        cupy.RawKernel(source, "k")((2,), (1,), (cupy.zeros(1, np.int32),))
    assert str(raised.value).count("<source>:2 `x[blockIdx.x / 2] = blockIdx.x;`") == 2
