"""CUDA C as users write it: templates, memory of every kind, device functions, numbers."""

import itertools
import math

import cupy
import numpy as np
import pytest
from user_kernels import kernel, run

RANDOM = np.random.default_rng(1)

# Kernels that CuPy writes around a line of the user's.


def test_an_elementwise_kernel_broadcasts_and_indexes():
    scaled = cupy.ElementwiseKernel(
        "T x, raw T y, int32 n", "T z, int64 at", "z = x + y[i % n]; at = i", "scaled"
    )
    x, y = np.arange(12.0).reshape(3, 4), np.array([10.0, 20, 30])
    z, at = scaled(cupy.asarray(x), cupy.asarray(y), 3)
    np.testing.assert_array_equal(z.get(), x + np.resize(y, 12).reshape(3, 4))
    np.testing.assert_array_equal(at.get(), np.arange(12).reshape(3, 4))


def test_a_reduction_kernel_reduces_along_any_axis():
    squares = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = a", "0", "squares")
    x = RANDOM.integers(-9, 9, (5, 6, 7)).astype(np.float32)
    for axis in (None, 0, 1, 2, (0, 2)):
        found = squares(cupy.asarray(x), axis=axis)
        np.testing.assert_array_equal(found.get(), (x * x).sum(axis=axis))


def test_functions_are_fused():
    @cupy.fuse()
    def length(x, y):
        return cupy.sqrt(x * x + y * y)

    @cupy.fuse()
    def total(x):
        return cupy.sum(x * 2 + 1, axis=1)

    x = np.array([[3, 5, 8], [0, 20, 7]], np.float32)
    y = np.array([[4, 12, 15], [1, 21, 24]], np.float32)
    found = length(cupy.asarray(x), cupy.asarray(y))
    np.testing.assert_array_equal(found.get(), [[5, 13, 17], [1, 29, 25]])
    np.testing.assert_array_equal(total(cupy.asarray(x)).get(), (2 * x + 1).sum(axis=1))


@pytest.mark.filterwarnings("ignore:cupyx.jit.rawkernel is experimental:FutureWarning")
def test_python_is_compiled_to_a_kernel():
    from cupyx import jit

    @jit.rawkernel()
    def reversed_sums(x, y, n):
        held = jit.shared_memory(cupy.float32, 32)
        lane = jit.threadIdx.x
        held[lane] = 0
        for at in range(lane, n, jit.blockDim.x):
            held[lane] += x[at]
        jit.syncthreads()
        y[lane] = held[31 - lane]

    x, y = cupy.arange(100, dtype=cupy.float32), cupy.zeros(32, cupy.float32)
    reversed_sums((1,), (32,), (x, y, x.size))
    expected = [sum(range(lane, 100, 32)) for lane in range(31, -1, -1)]
    assert y.get().tolist() == expected


# Modules.


@pytest.mark.parametrize(("kind", "dtype"), [("float", "f4"), ("double", "f8"), ("int", "i4")])
def test_templates_are_named_by_their_arguments(kind, dtype):
    code = "template <typename T, int N> __global__ void k(T* o) { o[threadIdx.x] = T(N) / 2; }"
    names = [f"k<{name}, {n}>" for name in ("float", "double", "int") for n in (5, 8)]
    module = cupy.RawModule(code=code, options=("-std=c++17",), name_expressions=names)
    for n in (5, 8):
        found = cupy.zeros(3, dtype)
        module.get_function(f"k<{kind}, {n}>")((1,), (3,), (found,))
        assert (found.get() == (n // 2 if dtype == "i4" else n / 2)).all()


def test_constant_and_global_variables_are_shared_with_the_host():
    module = cupy.RawModule(
        code="""
        __constant__ float weights[3] = {1, 2, 3};
        __device__ int calls;
        extern "C" __global__ void k(float* o) {
            o[threadIdx.x] = weights[threadIdx.x]; atomicAdd(&calls, 1);
        }"""
    )
    weights = cupy.ndarray(3, np.float32, module.get_global("weights"))
    calls = cupy.ndarray(1, np.int32, module.get_global("calls"))
    found = cupy.zeros(3, np.float32)
    for expected in ([1, 2, 3], [7, 8, 9]):
        module.get_function("k")((1,), (3,), (found,))
        assert found.get().tolist() == expected
        weights.set(np.array([7, 8, 9], np.float32))
    assert calls.get().tolist() == [6]


def test_structures_are_passed_by_value():
    affine = np.array((2.5, 3, 0), dtype=[("slope", "f8"), ("offset", "i4"), ("pad", "i4")])
    code = """struct Affine { double slope; int offset; };
        extern "C" __global__ void k(double* x, Affine f) {
            x[threadIdx.x] = f.slope * x[threadIdx.x] + f.offset; }"""
    (found,) = run(code, 4, np.arange(4.0), affine[()])
    assert found.tolist() == [3, 5.5, 8, 10.5]


# Memory of every kind.


def test_static_and_dynamic_shared_memory_stand_side_by_side():
    code = """extern "C" __global__ void k(int* o) {
        extern __shared__ int dynamic[]; __shared__ int fixed[64];
        fixed[threadIdx.x] = threadIdx.x; dynamic[threadIdx.x] = 100 * threadIdx.x;
        __syncthreads();
        o[threadIdx.x] = fixed[63 - threadIdx.x] + dynamic[threadIdx.x ^ 1]; }"""
    (found,) = run(code, 64, np.zeros(64, "i4"), shared_mem=256)
    lane = np.arange(64)
    np.testing.assert_array_equal(found, 63 - lane + 100 * (lane ^ 1))


def test_more_shared_memory_can_be_asked_for():
    code = """extern "C" __global__ void k(int* o) { extern __shared__ int s[];
        s[threadIdx.x * 200] = threadIdx.x; __syncthreads();
        o[threadIdx.x] = s[(63 - threadIdx.x) * 200]; }"""
    large, found = kernel(code), cupy.zeros(64, np.int32)
    large.max_dynamic_shared_size_bytes = 64 * 200 * 4
    large((1,), (64,), (found,), shared_mem=64 * 200 * 4)
    assert found.get().tolist() == list(range(63, -1, -1))


def test_arrays_of_a_thread_are_indexed_at_run_time():
    code = """extern "C" __global__ void k(int* o, int n) {
        int a[16]; for (int i = 0; i < 16; i++) a[i] = i * i + threadIdx.x;
        for (int i = 0; i < n; i++) a[i * 7 & 15] += a[i * 3 & 15];
        int sum = 0; for (int i = 0; i < 16; i++) sum += a[i] * (i + 1);
        o[threadIdx.x] = sum; }"""
    (found,) = run(code, 8, np.zeros(8, "i4"), np.int32(9))
    for thread in range(8):
        a = [i * i + thread for i in range(16)]
        for i in range(9):
            a[i * 7 & 15] += a[i * 3 & 15]
        assert found[thread] == sum(value * (i + 1) for i, value in enumerate(a))


def test_packets_of_every_width_are_moved():
    code = """extern "C" __global__ void k(const char2* a, char2* b, const short4* c, short4* d,
            const float4* e, float4* f, const double2* g, double2* h) {
        int i = threadIdx.x; b[i] = a[i]; d[i] = c[i]; f[i] = e[i]; h[i] = g[i]; }"""
    arrays = [RANDOM.integers(0, 255, 16 * size).astype("u1") for size in (2, 8, 16, 16)]
    pairs = [pair for a in arrays for pair in (a, np.zeros_like(a))]
    found = run(code, 16, *pairs)
    for before, after in zip(found[::2], found[1::2], strict=True):
        np.testing.assert_array_equal(before, after)


# Functions and numbers.


def test_device_functions_are_called():
    code = """struct P { float a; int b; double c; };
        __device__ __noinline__ P f(P x, int n) { x.a += n; x.b *= n; x.c = x.a * x.b; return x; }
        __device__ __noinline__ int g(int x) { if (x > 3) return x * 2; return x - 1; }
        extern "C" __global__ void k(double* o) {
            P p = {1.5f, (int)threadIdx.x + 1, 0};
            o[threadIdx.x] = f(f(p, g(threadIdx.x)), 2).c; }"""
    (found,) = run(code, 8, np.zeros(8))
    g = [x * 2 if x > 3 else x - 1 for x in range(8)]
    assert found.tolist() == [(1.5 + g[x] + 2) * ((x + 1) * g[x] * 2) for x in range(8)]


def truncated(a, b):
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("int", "i4"), ("unsigned", "u4"), ("long long", "i8"), ("unsigned long long", "u8")],
)
def test_integers_are_divided_towards_zero(kind, dtype):
    code = f"""extern "C" __global__ void k({kind}* a, {kind}* b) {{ int i = threadIdx.x;
        {kind} q = a[i] / b[i], r = a[i] % b[i]; a[i] = q; b[i] = r; }}"""
    limits = np.iinfo(dtype)
    edges = [1, 2, 3, 7, limits.max, limits.max - 1, limits.max // 2 + 1, limits.min + 1]
    draws = RANDOM.integers(limits.min, limits.max, (2, 64), dtype)
    a, b = map(list, zip(*itertools.product([0, *edges], [e for e in edges if e]), strict=True))
    a, b = np.array([*a, *draws[0]], dtype), np.array([*b, *(draws[1] >> 9 | 1)], dtype)
    quotients, remainders = run(code, len(a), a, b)
    for x, y, q, r in zip(a.tolist(), b.tolist(), quotients, remainders, strict=True):
        assert (q, r) == (truncated(x, y), x - truncated(x, y) * y)


def test_integers_of_128_bits_are_multiplied_and_divided():
    code = """typedef unsigned __int128 U; typedef __int128 I;
        extern "C" __global__ void k(const U* a, const U* b, U* q, U* r, I* s, U* m) {
            int i = threadIdx.x; q[i] = a[i] / b[i]; r[i] = a[i] % b[i]; m[i] = a[i] * b[i];
            s[i] = (I)a[i] / (I)b[i]; }"""
    top = 2**128 - 1

    def draw():
        return int.from_bytes(RANDOM.bytes(16), "little") >> int(RANDOM.integers(0, 127)) or 1

    a = [top, top, 2**127, 5, (5 << 64) + 7, *(draw() for _ in range(91))]
    b = [1, 2**64 - 1, 3, top, 9, *(draw() for _ in range(91))]
    arrays = [
        np.frombuffer(b"".join(value.to_bytes(16, "little") for value in column), "u8")
        for column in (a, b)
    ]
    found = run(code, 96, *arrays, *np.zeros((4, 192), "u8"), options=("--device-int128",))
    q, r, s, m = (
        [int.from_bytes(row.tobytes(), "little") for row in array.reshape(96, 2)]
        for array in found[2:]
    )
    signed = [[v - 2**128 if v >> 127 else v for v in column] for column in (a, b)]
    for i, (x, y) in enumerate(zip(a, b, strict=True)):
        assert (q[i], r[i], m[i]) == (x // y, x % y, x * y & top)
        assert s[i] == truncated(signed[0][i], signed[1][i]) & top


def test_complex_numbers_have_functions():
    code = """#include <cupy/complex.cuh>
        extern "C" __global__ void k(complex<double>* z) {
            complex<double> v = z[threadIdx.x];
            z[threadIdx.x] = exp(v) * sqrt(v) / complex<double>(0, 2); }"""
    z = np.arange(1, 5) + 1j * np.arange(4)
    (found,) = run(code, 4, z)
    # Four functions, each a few roundings of its parts.
    np.testing.assert_allclose(found, np.exp(z) * np.sqrt(z) / 2j, rtol=32 * np.finfo(float).eps)


def test_loops_end_where_each_thread_says():
    code = """extern "C" __global__ void k(int* o) { int n = threadIdx.x + 1, steps = 0;
        while (n != 1) { if (steps > 200) break; n = n & 1 ? 3 * n + 1 : n / 2; ++steps; }
        o[threadIdx.x] = steps; }"""

    def collatz(n):
        steps = 0
        while n != 1:
            n, steps = 3 * n + 1 if n % 2 else n // 2, steps + 1
        return steps

    (found,) = run(code, 100, np.zeros(100, "i4"))
    assert found.tolist() == [collatz(n) for n in range(1, 101)]


def test_a_switch_becomes_a_table_of_branches():
    cases = " ".join(f"case {n}: v = v * {n + 3} + {n * n}; break;" for n in range(12))
    code = f"""extern "C" __global__ void k(int* o) {{ int v = threadIdx.x;
        switch (threadIdx.x % 13) {{ {cases} default: v = -1; }} o[threadIdx.x] = v; }}"""
    (found,) = run(code, 64, np.zeros(64, "i4"))
    expected = [t * (t % 13 + 3) + (t % 13) ** 2 if t % 13 < 12 else -1 for t in range(64)]
    assert found.tolist() == expected


def test_rounding_is_chosen_by_intrinsics():
    code = """extern "C" __global__ void k(float* o) { float a = 1, b = 3;
        o[0] = __fdiv_rd(a, b); o[1] = __fdiv_ru(a, b); o[2] = __fadd_rz(-a, 1e-9f);
        o[3] = __fsqrt_ru(b); o[4] = __fmaf_rn(b, 1 / b, -a); o[5] = __float2int_rn(2.5f); }"""
    (found,) = run(code, 1, np.zeros(6, "f4"))
    third = np.float32(1 / 3)
    below, one = np.nextafter(third, np.float32(0)), np.float32(1)
    assert float(below) < 1 / 3 < float(third)
    root = np.float32(math.sqrt(3))
    root = root if float(root) > math.sqrt(3) else np.nextafter(root, np.float32(2))
    last = np.float32(3 * float(third) - 1)
    expected = [below, third, -np.nextafter(one, np.float32(0)), root, last, 2]
    assert found.tolist() == expected
