"""Threads that meet, as users write it: atomics of every kind and type, warps, locks, groups."""

import operator
from functools import reduce

import cupy
import numpy as np
import pytest
from user_kernels import ARCH, run

from cunorm import simgpu

RANDOM = np.random.default_rng(2)

# Atomics: what is left in memory, and that the lanes found each intermediate value once.

ATOMICS = {
    "int": ("i4", "Add Sub Min Max And Or Xor Exch"),
    "unsigned": ("u4", "Add Sub Min Max And Or Xor Exch Inc Dec"),
    "long long": ("i8", "Min Max And Or Xor"),
    "unsigned long long": ("u8", "Add Min Max And Or Xor Exch"),
    "float": ("f4", "Add Exch"),
    "double": ("f8", "Add"),
}
MEANING = {
    "Add": operator.add, "Sub": operator.sub, "Min": min, "Max": max, "And": operator.and_,
    "Or": operator.or_, "Xor": operator.xor, "Exch": lambda old, new: new,
    "Inc": lambda old, top: 0 if old >= top else old + 1,
    "Dec": lambda old, top: top if old == 0 or old > top else old - 1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in ATOMICS for name in ATOMICS[kind][1].split()]
)
def test_an_atomic_is_applied_once_for_each_thread(kind, name):
    dtype = ATOMICS[kind][0]
    code = f"""extern "C" __global__ void k({kind}* memory, const {kind}* value, {kind}* found) {{
        __shared__ {kind} own; if (threadIdx.x == 0) own = memory[1]; __syncthreads();
        found[threadIdx.x] = atomic{name}(memory, value[threadIdx.x]);
        atomic{name}(&own, value[threadIdx.x]); __syncthreads();
        if (threadIdx.x == 0) memory[1] = own; }}"""
    # One value for all where the order decides what is left.
    values = np.full(40, 6) if name in ("Inc", "Dec", "Exch") else RANDOM.integers(1, 120, 40)
    memory, _, found = run(
        code, 40, np.full(2, 5, dtype), values.astype(dtype), np.zeros(40, dtype)
    )
    expected = np.array(reduce(MEANING[name], values.tolist(), 5)).astype(dtype)
    assert memory.tolist() == [expected, expected]
    if name in ("Add", "Sub"):
        # Each thread's find plus its own value is the next one's find.
        after = sorted((found + values if name == "Add" else found - values).astype(dtype).tolist())
        assert sorted([*found.tolist(), after[-1 if name == "Add" else 0]]) == sorted([5, *after])


@pytest.mark.parametrize(
    ("kind", "dtype"), [("unsigned short", "u2"), ("int", "i4"), ("unsigned long long", "u8")]
)
def test_compare_and_swap_builds_an_addition(kind, dtype):
    code = f"""extern "C" __global__ void k({kind}* x) {{
        {kind} old = *x, seen;
        do {{ seen = old; old = atomicCAS(x, seen, ({kind})(seen + 3)); }}
        while (old != seen); }}"""
    (found,) = run(code, 50, np.full(2, 7, dtype), grid=2)
    assert found.tolist() == [307, 7]


@pytest.mark.parametrize(
    ("kind", "value", "least"),
    [
        ("__half", "__float2half(v)", 70),
        ("__half2", "__floats2half2_rn(v, 2 * v)", 60),
        ("__nv_bfloat16", "__float2bfloat16(v)", 80),
        ("__nv_bfloat162", "__floats2bfloat162_rn(v, 2 * v)", 80),
    ],
)
def test_halves_are_added_atomically(kind, value, least):
    if least > ARCH:
        pytest.skip(f"atomicAdd of {kind} needs sm_{least}")
    code = f"""#include <cuda_fp16.h>
        #include <cuda_bf16.h>
        extern "C" __global__ void k({kind}* x) {{
            float v = threadIdx.x; atomicAdd(x, {value}); }}"""
    (found,) = run(code, 10, np.zeros(2, "u2"))
    totals = [45, 90] if kind.endswith("2") else [45, 0]
    if "bfloat" in kind:
        assert (found.astype("u4") << 16).view("f4").tolist() == totals
    else:
        assert found.view("f2").tolist() == totals


def test_a_lock_in_global_memory_is_taken_in_turn():
    code = """extern "C" __global__ void k(int* lock, volatile int* count) {
        bool done = false;
        while (!done) if (atomicExch(lock, 1) == 0) {
            *count = *count + 1; __threadfence(); atomicExch(lock, 0); done = true; } }"""
    _, count = run(code, 40, np.zeros(1, "i4"), np.zeros(1, "i4"), grid=3)
    assert count.tolist() == [120]


# Warps. Each expression is of the lane `n`; the expectation is a function of all lanes' numbers.

LANES = range(32)
WARP = {
    "__shfl_sync(m, n, 5)": lambda n: 5,
    "__shfl_sync(m, n * 1.5, n ^ 3)": lambda n: int((n ^ 3) * 1.5),
    "__shfl_sync(m, (long long)n << 40, 7) >> 40": lambda n: 7,
    "__shfl_sync(m, n, 9, 8)": lambda n: n // 8 * 8 + 1,
    "__shfl_up_sync(m, n, 3)": lambda n: n - 3 if n >= 3 else n,
    "__shfl_up_sync(m, n, 3, 16)": lambda n: n - 3 if n % 16 >= 3 else n,
    "__shfl_down_sync(m, n, 3, 8)": lambda n: n + 3 if n % 8 < 5 else n,
    "__shfl_xor_sync(m, n, 17)": lambda n: n ^ 17,
    "__ballot_sync(m, n & 1)": lambda n: 0xAAAAAAAA,
    "__all_sync(m, n < 31)": lambda n: 0,
    "__any_sync(m, n == 3)": lambda n: 1,
    "__activemask()": lambda n: 0xFFFFFFFF,
    "__match_any_sync(m, n % 3)": lambda n: sum(1 << k for k in LANES if k % 3 == n % 3),
    "__match_any_sync(m, (long long)(n / 8))": lambda n: 0xFF << n // 8 * 8,
    "__match_all_sync(m, 7, &p) + p": lambda n: 0,
    "__match_all_sync(m, n / 31, &p) + p": lambda n: 0,
    "__popc(n) + __clz(n) + __ffs(n)": lambda n: (
        n.bit_count() + 32 - n.bit_length() + (n & -n).bit_length()
    ),
    "__brev(n)": lambda n: int(f"{n:032b}"[::-1], 2),
    "__byte_perm(n, 0x01020304, 0x4061)": lambda n: 0x04000200 | n << 16,
    "__funnelshift_l(n, ~n, 5)": lambda n: ((~n & 0xFFFFFFFF) << 32 | n) << 5 >> 32,
    "__dp4a(n, 0x01010101, 7)": lambda n: n + 7,
    "__vadd4(n, 0xFFFFFFFF)": lambda n: 0xFFFFFF00 | (n - 1) & 0xFF,
    "__mulhi(n, 1 << 30)": lambda n: n >> 2,
    "__sad(n, 5, 3)": lambda n: abs(n - 5) + 3,
    "__syncthreads_count(n < 3)": lambda n: 6,
    "__syncthreads_and(n < 40)": lambda n: 1,
    "__syncthreads_or(n > 40)": lambda n: 0,
}  # fmt: skip
REDUCE = {
    "__reduce_add_sync(m, n)": lambda n: 496,
    "__reduce_min_sync(m, n - 5)": lambda n: -5,
    "__reduce_max_sync(m, (unsigned)n)": lambda n: 31,
    "__reduce_and_sync(m, n | 8)": lambda n: 8,
    "__reduce_or_sync(m, 1u << n)": lambda n: 0xFFFFFFFF,
    "__reduce_xor_sync(m, n * n)": lambda n: reduce(operator.xor, [k * k for k in LANES]),
}


@pytest.mark.parametrize("expression", [*WARP, *REDUCE])
def test_a_warp_works_together(expression):
    if expression in REDUCE and ARCH < 80:
        pytest.skip("__reduce_*_sync needs sm_80")
    code = f"""extern "C" __global__ void k(int* o) {{
        int n = threadIdx.x & 31, p = 0; unsigned m = 0xFFFFFFFF;
        o[threadIdx.x] = {expression}; }}"""
    (found,) = run(code, 64, np.zeros(64, "i4"))
    function = {**WARP, **REDUCE}[expression]
    expected = [function(lane) & 0xFFFFFFFF for lane in LANES] * 2
    assert found.view("u4").tolist() == expected


def test_some_lanes_of_a_warp_work_together():
    code = """extern "C" __global__ void k(int* o) {
        if (threadIdx.x % 3 == 0) {
            unsigned m = __activemask();
            o[threadIdx.x] = __shfl_sync(m, threadIdx.x, 30) + __popc(__ballot_sync(m, 1));
        } }"""
    (found,) = run(code, 32, np.full(32, -1, "i4"))
    assert found.tolist() == [41 if lane % 3 == 0 else -1 for lane in LANES]


def test_cooperative_groups_and_cub_run_inside_a_kernel():
    code = """#include <cooperative_groups.h>
        #include <cub/block/block_reduce.cuh>
        namespace cg = cooperative_groups;
        extern "C" __global__ void k(int* o) {
            auto tile = cg::tiled_partition<8>(cg::this_thread_block());
            int v = threadIdx.x; for (int i = 4; i > 0; i /= 2) v += tile.shfl_xor(v, i);
            o[threadIdx.x] = v;
            typedef cub::BlockReduce<int, 64> Reduce; __shared__ Reduce::TempStorage storage;
            int sum = Reduce(storage).Sum(threadIdx.x); if (threadIdx.x == 0) o[64] = sum; }"""
    (found,) = run(code, 64, np.zeros(65, "i4"), options=("-std=c++17",))
    assert found[64] == 2016
    np.testing.assert_array_equal(found[:64], np.arange(64).reshape(8, 8).sum(axis=1).repeat(8))


LOCK = r"""
extern "C" __global__ void add(int *lock, int *count, int *served) {
  for (int turn = 0; turn < 32; ++turn) {
    if (threadIdx.x % 32 != turn) continue;
    while (atomicCAS(lock, 0, 1) != 0);
    __threadfence();
    *count += 1;
    __threadfence();
    atomicExch(lock, 0);
    while (*(volatile int *)count < 32);
    atomicAdd(served, 1);
  }
}"""
LOOKBACK = r"""
extern "C" __global__ void scan(const int *x, int *y, volatile int *ready, volatile int *sum) {
  __shared__ int held[64];
  __shared__ int before;
  int i = blockIdx.x * 64 + threadIdx.x;
  held[threadIdx.x] = x[i];
  __syncthreads();
  if (threadIdx.x == 0) {
    for (int j = 1; j < 64; ++j) held[j] += held[j - 1];
    before = 0;
    if (blockIdx.x > 0) {
      while (!ready[blockIdx.x - 1]);
      __threadfence();
      before = sum[blockIdx.x - 1];
    }
    sum[blockIdx.x] = before + held[63];
    __threadfence();
    ready[blockIdx.x] = 1;
  }
  __syncthreads();
  y[i] = before + held[threadIdx.x];
}"""


@pytest.fixture
def few_operations(monkeypatch):
    """A budget that is spent soon by lanes that poll while others could go on."""
    if simgpu.installed():
        monkeypatch.setattr(simgpu._machine, "budget", 30_000)


@pytest.mark.usefixtures("few_operations")
def test_lanes_that_poll_in_vain_make_way_for_those_they_wait_for():
    lock, count, served = (cupy.zeros(1, np.int32) for _ in range(3))
    cupy.RawKernel(LOCK, "add")((3,), (64,), (lock, count, served))
    assert (count.item(), served.item()) == (192, 192)
    x = np.random.default_rng(0).integers(0, 100, 64 * 40).astype(np.int32)
    y, ready, sums = cupy.zeros(x.size, np.int32), *(cupy.zeros(40, np.int32) for _ in range(2))
    cupy.RawKernel(LOOKBACK, "scan")((40,), (64,), (cupy.asarray(x), y, ready, sums))
    np.testing.assert_array_equal(y.get(), np.cumsum(x))
