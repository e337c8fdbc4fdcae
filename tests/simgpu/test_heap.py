"""Memory that kernels take from the device's heap, and addresses in module-scope variables."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu


def run(source, n=32, dtype=np.float32):
    x = cupy.zeros(n, dtype)
    cupy.RawKernel(source, "k")((1,), (n,), (x,))
    return x.get()


def test_each_thread_gets_memory_of_its_own_until_it_gives_it_back():
    source = """extern "C" __global__ void k(float *x) {
        float *own = new float[4];
        for (int i = 0; i < 4; ++i) own[i] = threadIdx.x + i;
        x[threadIdx.x] = own[threadIdx.x % 4];
        delete[] own;
    }"""
    thread = np.arange(32)
    np.testing.assert_array_equal(run(source), thread + thread % 4)


def test_what_one_kernel_allocates_the_next_may_use():
    module = cupy.RawModule(
        code="""extern "C" {
        __device__ int *kept;
        __global__ void make() { kept = (int *)malloc(4); *kept = 7; }
        __global__ void use(int *y) { *y = *kept; free(kept); }
        }"""
    )
    y = cupy.zeros(1, np.int32)
    module.get_function("make")((1,), (1,), ())
    module.get_function("use")((1,), (1,), (y,))
    assert y.item() == 7


def test_more_than_the_heap_has_is_a_null_pointer():
    source = """extern "C" __global__ void k(float *x) {
        x[threadIdx.x] = malloc(1ull << 40) == nullptr;
    }"""
    assert run(source).all()


@pytest.mark.parametrize(
    ("body", "fault", "says"),
    [
        ("float *p = new float[4]; p[4] = 1; x[0] = p[4];", "OutOfBounds", "heap allocation of 16"),
        ("float *p = new float[4]; x[0] = p[1];", "Uninitialised", "heap allocation of 16"),
        ("float *p = new float(3); delete p; x[0] = *(volatile float *)p;", "UseAfterFree", "heap"),
        ("void *p = malloc(9); free(p); free(p);", "UseAfterFree", "free of 0x"),
        ("free(x);", "OutOfBounds", "which no malloc in a kernel returned"),
    ],
)
def test_misuse_of_the_heap_is_a_fault(body, fault, says):
    with pytest.raises(getattr(simgpu, fault), match=says):
        run(f'extern "C" __global__ void k(float *x) {{ {body} }}')


def test_variables_may_hold_addresses_of_variables():
    source = """
    __device__ int table[4] = {5, 6, 7, 8};
    __device__ int *second = table + 1;
    __device__ const char *words[2] = {"ab", "cd"};
    __constant__ int *pairs[2] = {table, table + 2};
    extern "C" __global__ void k(float *x) {
        x[0] = *second; x[1] = words[threadIdx.x + 1][1]; x[2] = pairs[threadIdx.x + 1][1];
    }"""
    x = cupy.zeros(3, np.float32)
    cupy.RawKernel(source, "k")((1,), (1,), (x,))
    assert x.get().tolist() == [6, ord("d"), 8]
