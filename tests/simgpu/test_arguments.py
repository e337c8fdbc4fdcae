"""Launches whose arguments are not what the kernel would read, and all that CUDA allows."""

import cupy
import numpy as np
import pytest
from cupy.cuda.function import CNumpyArray

from cunorm import simgpu

pytestmark = pytest.mark.simgpu

SOURCE = r"""
#include <cuda_fp16.h>
struct Pair { int first; double second; };
extern "C" {
__global__ void of_int(double* y, int value) { *y = value; }
__global__ void of_unsigned(double* y, unsigned value) { *y = value; }
__global__ void of_long(double* y, long long value) { *y = value; }
__global__ void of_char(double* y, signed char value) { *y = value; }
__global__ void of_bool(double* y, bool value) { *y = value; }
__global__ void of_float(double* y, float value) { *y = value; }
__global__ void of_double(double* y, double value) { *y = value; }
__global__ void of_half(double* y, __half value) { *y = __half2float(value); }
__global__ void of_pointer(double* y, const double* value) { *y = value == nullptr ? -1 : *value; }
__global__ void of_pair(double* y, Pair value) { *y = value.first + value.second; }
__global__ void of_nothing(double* y, int value) { *y = 1; }
__global__ void of_array(double* y, CArray<double, 1, true, true> value) { *y = value[1]; }
}"""
PAIR = np.dtype([("first", "i4"), ("second", "f8")], align=True)


@pytest.fixture(scope="module")
def module():
    return cupy.RawModule(code="#include <cupy/carray.cuh>\n" + SOURCE)


def given(module, name, value):
    y = cupy.full(1, np.nan)
    module.get_function(name)((1,), (1,), (y, value))
    return y.item()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("of_int", np.int32(-5)),
        ("of_int", -5),  # eight bytes, of which the kernel reads four: still -5
        ("of_int", 2**31 - 1),
        ("of_unsigned", 2**32 - 1),
        ("of_int", np.int64(7)),
        ("of_int", np.array(7)),
        ("of_long", -(2**63)),
        ("of_long", np.uint64(12)),
        ("of_char", -128),
        ("of_char", np.int16(127)),
        ("of_bool", True),
        ("of_bool", 1),
        ("of_float", np.float32(0.1)),
        ("of_float", np.array(0.1, np.float32)),
        ("of_float", 0.0),  # every byte of it is zero
        ("of_float", 0),
        ("of_double", 0.1),
        ("of_double", 0),
        ("of_half", np.float16(0.1)),
        ("of_float", CNumpyArray(np.array(0.5, np.float32))),
    ],
)
def test_what_arrives_as_it_was_given_is_let_pass(module, name, value):
    held = np.float32(0.5) if isinstance(value, CNumpyArray) else value
    assert given(module, name, value) == float(held)


def test_pointers_structures_and_arrays_are_let_pass(module):
    x = cupy.asarray([3.0, 4.0])
    assert given(module, "of_pointer", x) == 3
    assert given(module, "of_pointer", x.data) == 3
    assert given(module, "of_pointer", x.data.ptr) == 3
    assert given(module, "of_pointer", np.uintp(x.data.ptr)) == 3
    assert given(module, "of_pointer", None) == given(module, "of_pointer", 0) == -1
    assert given(module, "of_pair", np.array((1, 0.5), PAIR)) == 1.5
    assert given(module, "of_pair", np.array([(1, 0.5)], PAIR)[0]) == 1.5
    assert given(module, "of_array", x) == 4
    # A parameter that is never read, as where a macro leaves its use out.
    assert given(module, "of_nothing", x) == given(module, "of_nothing", 0.5) == 1
    # Bits of another type, on purpose.
    assert given(module, "of_long", np.float64(1.0)) == 0x3FF << 52
    assert given(module, "of_int", np.float32(1.0)) == 0x3F800000


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        (
            "of_float",
            1e-5,
            "1e-05, passed as float64 in 8 bytes, .* numpy.float32",
        ),
        ("of_float", 1.0, "1.0, passed as float64 in 8 bytes"),
        ("of_float", -0.0, "-0.0, passed as float64 in 8 bytes"),
        ("of_float", 1, "1, passed as int64 in 8 bytes, .* numpy.float32"),
        ("of_float", np.float64(2), r"float64\(2.0\).*, passed in 8 bytes"),
        ("of_float", np.array(2.0), r"float64\(2.0\).*, passed in 8 bytes"),
        ("of_float", CNumpyArray(np.array(2.0)), "passed in 8 bytes"),
        ("of_float", np.float16(2), "passed in 2 bytes, where the kernel takes 4"),
        ("of_float", 2j, "2j, passed as complex128 in 16 bytes"),
        ("of_double", 2, "2, passed as int64 in 8 bytes, .* numpy.float64"),
        ("of_double", np.float32(2), "passed in 4 bytes, where the kernel takes 8 bytes"),
        ("of_double", np.float32(0), "passed in 4 bytes, where the kernel takes 8 bytes"),
        (
            "of_int",
            2**32,
            "4294967296, passed as int64 in 8 bytes, .* numpy.int32",
        ),
        ("of_int", -(2**31) - 1, "-2147483649, passed as int64"),
        ("of_int", np.int16(1), "passed in 2 bytes"),
        ("of_int", 1.0, "1.0, passed as float64 in 8 bytes"),
        ("of_long", 1.5, "1.5, passed as float64 in 8 bytes, .* numpy.int64"),
        ("of_long", np.int32(1), "passed in 4 bytes, where the kernel takes 8 bytes"),
        ("of_char", 256, "256, passed as int64 in 8 bytes, where the kernel takes 1 byte "),
        ("of_half", 0.5, "0.5, passed as float64 in 8 bytes, where the kernel takes 2 bytes"),
        ("of_pair", np.float64(1), "passed in 8 bytes, where the kernel takes 16 bytes"),
        ("of_pair", np.array((1, 0.5), "i4,f8"), "a NumPy array of 12 bytes"),
    ],
)
def test_what_the_kernel_would_read_otherwise_is_a_fault(module, name, value, says):
    with pytest.raises(simgpu.LaunchError, match=f"argument 2 of 2 is .*{says}") as raised:
        given(module, name, value)
    assert raised.value.place.kernel == name


@pytest.mark.parametrize("name", ["of_int", "of_float", "of_double", "of_half", "of_bool"])
def test_an_array_where_a_number_belongs_is_a_fault(module, name):
    says = r"argument 2 of 2 is an array \(float64, shape \(\)\), which is passed as a pointer"
    with pytest.raises(simgpu.LaunchError, match=says):
        given(module, name, cupy.asarray(2.0))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((), "takes 2 arguments, and 0 were given"),
        ((0,), "takes 2 arguments, and 1 was given"),
    ],
)
def test_the_wrong_number_of_arguments_is_a_fault(module, arguments, says):
    kernel = module.get_function("of_int")
    for call in (kernel, kernel.kernel):
        with pytest.raises(simgpu.LaunchError, match=says) as raised:
            call((1, 1, 1), (1, 1, 1), arguments)
        assert raised.value.place.kernel == "of_int"


def test_arguments_may_be_named_and_a_failed_call_leaves_none_behind(module):
    kernel = module.get_function("of_float").kernel
    y = cupy.zeros(1)
    with pytest.raises(simgpu.LaunchError, match=r"argument 2 of 2 is 1\.5"):
        kernel((1, 1, 1), (1, 1, 1), args=(y, 1.5))
    with pytest.raises(TypeError, match="Unsupported type"):
        kernel((1, 1, 1), (1, 1, 1), args=(y, "1.5"))
    assert cupy.arange(5).sum() == 10
    kernel((1, 1, 1), (1, 1, 1), args=[y, np.float32(1.5)])
    assert y.item() == 1.5


def test_a_captured_launch_is_held_against_its_arguments_when_it_is_called(module):
    stream = cupy.cuda.Stream(non_blocking=True)
    y = cupy.zeros(1)
    with stream:
        stream.begin_capture()
        with pytest.raises(simgpu.LaunchError):
            module.get_function("of_float")((1,), (1,), (y, 1.5))
        module.get_function("of_float")((1,), (1,), (y, np.float32(1.5)))
        graph = stream.end_capture()
        graph.launch()
    assert y.item() == 1.5
