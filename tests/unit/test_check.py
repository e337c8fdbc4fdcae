"""Bad arguments: each is refused with a message that names it, and nothing is written."""

from __future__ import annotations

from fractions import Fraction

import cupy
import ml_dtypes
import numpy as np
import pytest

import cunorm

OPS = [cunorm.rms_norm, cunorm.rms_norm_fwd, cunorm.layer_norm, cunorm.layer_norm_fwd]
RMS_OPS = OPS[:2]
LAYER_OPS = OPS[2:]
ADD_OPS = [
    cunorm.add_rms_norm,
    cunorm.add_rms_norm_fwd,
    cunorm.add_layer_norm,
    cunorm.add_layer_norm_fwd,
]


def y_of(result):
    """Return y of an op's result, which may have statistics beside it."""
    return result[0] if isinstance(result, tuple) else result


def x_of(shape=(4, 8), dtype=np.float32):
    return cupy.ones(shape, dtype)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            np.ones((4, 8)),
            r"x must be a cupy\.ndarray, but is a numpy\.ndarray; cupy\.asarray\(x\) copies it",
        ),
        ([1.0, 2.0], r"x must be a cupy\.ndarray, but is a list"),
        (None, r"x must be a cupy\.ndarray, but is a NoneType"),
    ],
)
def test_x_of_another_type(op, x, message):
    with pytest.raises(TypeError, match=message):
        op(x)


@pytest.mark.parametrize("name", ["out", "residual_out"])
def test_numpy_memory_for_a_result_is_told_how_to_get_it_there(name):
    host = np.zeros((4, 8), np.float32)
    with pytest.raises(TypeError, match=f"^{name} must be a cupy") as caught:
        cunorm.add_rms_norm(x_of(), x_of(), **{name: host})
    # A copy of it on the device would be written, and nobody would see that.
    assert "cupy.asarray" not in str(caught.value)
    assert f"cupy.asnumpy(result, out={name})" in str(caught.value)
    cupy.asnumpy(cunorm.rms_norm(x_of(), eps=0.0), out=host)
    assert (host == 1).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", ["int32", "bool", "complex64"])
def test_x_of_another_dtype(op, dtype):
    with pytest.raises(TypeError, match=f"x must be float16, bfloat16.* but is {dtype}"):
        op(cupy.zeros((4, 8), dtype))


@pytest.mark.parametrize("op", OPS)
def test_x_without_axes(op):
    with pytest.raises(ValueError, match="x must have at least one axis, but is 0-dimensional"):
        op(cupy.ones(()))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(), (7,), (1,), (8, 4), (3, 4, 8), (4, 1)])
def test_gamma_of_a_shape_that_x_does_not_end_in(op, shape):
    with pytest.raises(
        ValueError, match=r"gamma must have the shape of trailing axes of x.*\(4, 8\)"
    ):
        op(x_of(), cupy.ones(shape, np.float32))


@pytest.mark.parametrize("op", LAYER_OPS)
def test_beta_of_another_shape_than_gamma(op):
    with pytest.raises(ValueError, match=r"beta must have the shape of gamma, \(8,\), .* \(4, 8\)"):
        op(x_of(), cupy.ones(8, np.float32), cupy.ones((4, 8), np.float32))


@pytest.mark.parametrize("op", LAYER_OPS)
def test_beta_alone_says_what_is_normalised(op):
    with pytest.raises(ValueError, match="beta must have the shape of trailing axes of x"):
        op(x_of(), None, cupy.ones(4, np.float32))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize(
    ("x_dtype", "gamma_dtype", "allowed"),
    [
        ("float32", "float64", "float16, bfloat16 or float32 where x is float32"),
        ("float16", "float64", "float16, bfloat16 or float32 where x is float16"),
        ("float16", "int8", "float16, bfloat16 or float32 where x is float16"),
        ("float64", "float16", "float64 or float32 where x is float64"),
        ("float64", ml_dtypes.bfloat16, "float64 or float32 where x is float64"),
    ],
)
def test_gamma_of_a_dtype_that_does_not_go_with_x(op, x_dtype, gamma_dtype, allowed):
    name = np.dtype(gamma_dtype).name
    with pytest.raises(TypeError, match=f"gamma must be {allowed}, but is {name}"):
        op(x_of(dtype=x_dtype), cupy.zeros(8, gamma_dtype))


@pytest.mark.parametrize("op", OPS)
def test_gamma_of_another_type(op):
    message = r"gamma must be a cupy\.ndarray or None, but is a "
    with pytest.raises(TypeError, match=message + r"numpy\.ndarray; cupy\.asarray\(gamma\) copies"):
        op(x_of(), np.ones(8, np.float32))
    with pytest.raises(TypeError, match=message + "float$"):
        op(x_of(), 1e-6)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("eps", ["1e-6", None, 1j, True, [1e-6]])
def test_eps_that_is_no_real_number(op, eps):
    with pytest.raises(TypeError, match="eps must be a real number, but is a"):
        op(x_of(), eps=eps)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("eps", [-1e-9, float("nan"), float("inf"), -float("inf"), 1e39])
def test_eps_that_is_negative_or_not_finite_in_float32(op, eps):
    with pytest.raises(ValueError, match="eps must be finite and not negative in float32, but is"):
        op(x_of(), eps=eps)


@pytest.mark.parametrize("op", OPS)
def test_eps_that_no_float_holds(op):
    with pytest.raises(ValueError, match="eps must be finite, but is too large for a float"):
        op(x_of(), eps=10**400)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("eps", [0, 1, 0.5, np.float32(0.5), np.float64(0.5), Fraction(1, 2)])
def test_eps_may_be_any_real_number(op, eps):
    first, second = y_of(op(x_of(), eps=eps)), y_of(op(x_of(), eps=float(eps)))
    assert cupy.asnumpy(first).tobytes() == cupy.asnumpy(second).tobytes()


def test_eps_of_float64_data_may_be_larger_than_float32_goes():
    x = x_of(dtype=np.float64)
    assert cupy.asnumpy(cunorm.rms_norm(x, eps=1e40))[0, 0] == pytest.approx(1e-20)


@pytest.mark.parametrize("op", RMS_OPS)
@pytest.mark.parametrize(
    ("offset", "error", "message"),
    [
        ("1", TypeError, "gamma_offset must be a real number, but is a str"),
        (float("nan"), ValueError, "gamma_offset must be finite in float32, but is nan"),
        (-1e39, ValueError, r"gamma_offset must be finite in float32, but is -1e\+39"),
        (10**400, ValueError, "gamma_offset must be finite, but is too large for a float"),
    ],
)
def test_gamma_offset(op, offset, error, message):
    with pytest.raises(error, match=message):
        op(x_of(), cupy.ones(8, np.float32), gamma_offset=offset)


@pytest.mark.parametrize("op", RMS_OPS)
def test_gamma_offset_without_gamma(op):
    with pytest.raises(
        ValueError, match=r"gamma_offset must be 0 where gamma is None, but is 1\.0"
    ):
        op(x_of(), gamma_offset=1.0)


@pytest.mark.parametrize("op", RMS_OPS)
@pytest.mark.parametrize(
    ("cast", "error", "message"),
    [
        ("hf", ValueError, "cast must be 'before' or 'after', but is 'hf'"),
        (None, TypeError, "cast must be 'before' or 'after', but is a NoneType"),
    ],
)
def test_cast(op, cast, error, message):
    with pytest.raises(error, match=message):
        op(x_of(), cast=cast)


@pytest.mark.parametrize(
    ("op", "name"),
    [
        (lambda x, **flag: cunorm.rms_norm_gated(x, x, **flag), "gate_first"),
        (lambda x, **flag: cunorm.rms_norm_rope(x, None, x, x, **flag), "interleaved"),
        (lambda x, **flag: cunorm.rms_norm_rope(x, None, x, x, **flag), "norm_first"),
        (lambda x, **flag: cunorm.rms_norm_rope(x, None, x, x, **flag), "across_heads"),
        (lambda x, **flag: cunorm.rms_norm_bwd(x, x, None, x[..., 0], **flag), "sums"),
    ],
    ids=["gate_first", "interleaved", "norm_first", "across_heads", "sums"],
)
def test_a_flag_that_is_no_bool(op, name):
    with pytest.raises(TypeError, match=f"{name} must be a bool, but is a str$"):
        op(x_of((2, 2, 8)), **{name: "no"})


@pytest.mark.parametrize(
    ("name", "kinds"), [("scale", ", a number or None"), ("gate", " or a number")]
)
def test_an_operand_that_is_neither_an_array_nor_a_number(name, kinds):
    message = rf"{name} must be a cupy\.ndarray{kinds}, but is a str$"
    with pytest.raises(TypeError, match=message):
        cunorm.add_rms_norm(x_of(), x_of(), **{name: "1"})


def out_cases():
    """`out` made from x and the larger buffer that x is the middle of, and what is said of it."""
    return {
        "another type": (
            lambda x, buffer: np.empty((4, 8)),
            TypeError,
            r"out must be a cupy\.ndarray",
        ),
        "another dtype": (
            lambda x, buffer: cupy.empty((4, 8), np.int16),
            TypeError,
            "out must be float16, bfloat16, float32 or float64, but is int16",
        ),
        "another shape": (
            lambda x, buffer: cupy.empty((8, 4), np.float32),
            ValueError,
            r"out must have the shape of x, \(4, 8\), but has \(8, 4\)",
        ),
        "one row on": (
            lambda x, buffer: buffer[2:6],
            ValueError,
            "out must be x itself or not overlap it",
        ),
        "reversed": (
            lambda x, buffer: x[::-1],
            ValueError,
            "out must be x itself or not overlap it",
        ),
        "broadcast": (
            lambda x, buffer: cupy.broadcast_to(cupy.empty(8, np.float32), (4, 8)),
            ValueError,
            r"out must not overlap itself, but has strides \(0, 4\)",
        ),
    }


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("case", out_cases())
def test_out(op, case):
    make, error, message = out_cases()[case]
    buffer = cupy.arange(64, dtype=np.float32).reshape(8, 8)
    x = buffer[1:5]
    before = cupy.asnumpy(buffer)
    with pytest.raises(error, match=message):
        op(x, out=make(x, buffer))
    assert np.array_equal(cupy.asnumpy(buffer), before)


@pytest.mark.parametrize("op", OPS)
def test_out_over_gamma(op):
    buffer = cupy.ones((5, 8), np.float32)
    with pytest.raises(ValueError, match="out must not overlap gamma, but shares memory with it"):
        op(x_of(), buffer[0], out=buffer[:4])


@pytest.mark.parametrize("op", OPS)
def test_out_interleaved_with_x_overlaps_in_bounds_only_and_is_fine(op):
    buffer = cupy.arange(64, dtype=np.float32).reshape(4, 16)
    x, out = buffer[:, :8], buffer[:, 8:]
    expected = y_of(op(x.copy()))
    y = y_of(op(x, out=out))
    assert y is out
    assert np.array_equal(cupy.asnumpy(y), cupy.asnumpy(expected))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("shape", [(0, 8), (4, 0), (2, 0, 8)])
def test_out_without_elements_is_fine(op, shape):
    x = x_of(shape)
    for out in (x, cupy.empty(shape, np.float32)):
        assert y_of(op(x, out=out)) is out


@pytest.mark.parametrize("op", OPS)
def test_out_is_x_whatever_the_stride_of_an_axis_of_one_element(op):
    x = cupy.arange(1, 9, dtype=np.float32)[None]
    out = cupy.lib.stride_tricks.as_strided(x, x.shape, (4, 4))
    expected = y_of(op(x.copy()))
    assert y_of(op(x, out=out)) is out
    assert bytes(cupy.asnumpy(x)) == bytes(cupy.asnumpy(expected))


@pytest.mark.parametrize("op", OPS)
def test_memory_that_elements_straddle(op):
    memory = cupy.zeros(1024, np.uint8)
    between = memory[1:257].view(np.float32).reshape(4, 16)[:, :8]
    message = r"{} must start at and step by multiples of its itemsize, 4, but is at 0x.* strides"
    stepping = cupy.ndarray((4, 8), np.float32, memory.data, strides=(34, 4))
    for x in (between, stepping):
        with pytest.raises(ValueError, match=message.format("x")):
            op(x)
        with pytest.raises(ValueError, match=message.format("out")):
            op(x_of(), out=x)
    with pytest.raises(ValueError, match=message.format("gamma")):
        op(x_of(), between[0])
    assert not memory.any()


@pytest.mark.parametrize("op", ADD_OPS)
@pytest.mark.parametrize(
    ("residual", "error", "message"),
    [
        (None, TypeError, r"residual must be a cupy\.ndarray, but is a NoneType"),
        (np.ones((4, 8)), TypeError, r"residual must be a .* cupy\.asarray\(residual\) copies it"),
        (cupy.ones((4, 8), "int32"), TypeError, "residual must be float16.* but is int32"),
        (cupy.ones((4, 8)), TypeError, "residual must be float16, .* x is float32, but is float64"),
        (cupy.ones(8, "float32"), ValueError, r"residual must have the shape of x, \(4, 8\), but"),
    ],
    ids=["None", "NumPy", "int32", "float64", "shape"],
)
def test_residual(op, residual, error, message):
    with pytest.raises(error, match=message):
        op(x_of(), residual)


def residual_out_cases():
    """`residual_out` made from x, residual and out, and what is said of it."""
    return {
        "another type": (
            lambda x, residual, out: np.empty((4, 8), np.float32),
            TypeError,
            r"residual_out must be a cupy\.ndarray or None, but is a numpy\.ndarray",
        ),
        "a list": (
            lambda x, residual, out: [1.0],
            TypeError,
            r"residual_out must be a cupy\.ndarray or None, but is a list",
        ),
        "another dtype": (
            lambda x, residual, out: cupy.empty((4, 8), np.float16),
            TypeError,
            "residual_out must have the dtype of residual, float32, but has float16",
        ),
        "another shape": (
            lambda x, residual, out: cupy.empty((8, 4), np.float32),
            ValueError,
            r"residual_out must have the shape of residual, \(4, 8\), but has \(8, 4\)",
        ),
        "x": (lambda x, residual, out: x, ValueError, "residual_out must not overlap x"),
        "out": (lambda x, residual, out: out, ValueError, "out must not overlap residual_out"),
        "reversed": (
            lambda x, residual, out: residual[::-1],
            ValueError,
            "residual_out must be residual itself or not overlap it",
        ),
    }


@pytest.mark.parametrize("op", ADD_OPS)
@pytest.mark.parametrize("case", residual_out_cases())
def test_residual_out_beside_a_proper_out(op, case):
    make, error, message = residual_out_cases()[case]
    x, residual, out = (cupy.full((4, 8), n, np.float32) for n in (1, 2, 3))
    with pytest.raises(error, match=message):
        op(x, residual, out=out, residual_out=make(x, residual, out))
    assert all((a == n).all() for n, a in enumerate((x, residual, out), 1))


@pytest.mark.parametrize("op", ADD_OPS)
def test_residual_out_without_elements_is_fine(op):
    x, residual = x_of((0, 8)), x_of((0, 8))
    y, h, *_ = op(x, residual, out=x, residual_out=residual)
    assert y is x
    assert h is residual


@pytest.mark.parametrize("op", OPS)
def test_arguments_after_the_star_are_by_keyword_only(op):
    with pytest.raises(TypeError, match="positional"):
        op(x_of(), None, None, 1e-6, None, None)


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
@pytest.mark.parametrize("op", OPS)
def test_arrays_of_another_device(op):
    x = x_of()
    with cupy.cuda.Device(1):
        gamma = cupy.ones(8, np.float32)
        out = cupy.ones((4, 8), np.float32)
    with pytest.raises(ValueError, match="gamma must be on the device of x, 0, but is on 1"):
        op(x, gamma)
    with pytest.raises(ValueError, match="out must be on the device of x, 0, but is on 1"):
        op(x, out=out)
