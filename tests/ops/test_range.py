"""Rows whose squares overflow, or fall below the normal numbers, in the type they are summed in."""

import cupy
import numpy as np
import pytest
from arrays import assert_matches, bits, random

import cunorm
from cunorm import _reference

# How a row is kept: by some lanes of a warp, by a block, past the registers, by a cluster.
COLS = [7, 128, 769, 4096, 40_000, 150_000]
SIZES = [
    ("float32", 1e-20),
    ("float32", 3e-19),  # squares of some values are normal
    ("float32", 1e-30),
    ("float32", 1e30),
    ("bfloat16", 1e-20),
    ("bfloat16", 1e-30),
    ("bfloat16", 1e30),
    ("float64", 1e-155),
    ("float64", 1e-200),
    ("float64", 1e-290),
    ("float64", 1e200),
]
FORWARD = ["rms_norm_fwd", "layer_norm_fwd"]
SHIFTED = pytest.param(769, marks=pytest.mark.slow("kernels that take long to compile"))


def assert_all_match(outputs, expected):
    for actual, wanted in zip(outputs, expected, strict=True):
        assert_matches(actual, wanted)


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize(("dtype", "size"), SIZES)
@pytest.mark.parametrize("cols", [7, SHIFTED])
def test_y_and_statistics_are_as_defined(op, dtype, size, cols):
    """pytorch#162489: float32 squares overflow at 1.8e19, and the row came out as zeros."""
    x = random((3, cols), dtype, scale=size)
    outputs = getattr(cunorm, op)(cupy.asarray(x), eps=0)
    assert_all_match(outputs, getattr(_reference, op)(x, eps=0))


@pytest.mark.slow("both ends, as KINDS has them of each way of keeping a row")
@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("cols", COLS)
@pytest.mark.parametrize("size", [1e-20, 1e30])
def test_however_a_row_is_kept(op, cols, size):
    x = random((1, cols), "float32", scale=size)
    outputs = getattr(cunorm, op)(cupy.asarray(x), eps=0)
    assert_all_match(outputs, getattr(_reference, op)(x, eps=0))


@pytest.mark.parametrize(("dtype", "constant"), [("float32", 1e-20), ("float64", 1e-200)])
def test_a_constant_row_is_one(dtype, constant):
    y = cunorm.rms_norm(cupy.full((1, 256), constant, dtype), eps=0)
    np.testing.assert_allclose(y.get(), 1, rtol=2 * np.finfo(dtype).eps)


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("eps", [2e-38, 1e-37, 1e-36, 1e-31, 1e-30])
@pytest.mark.parametrize("size", [0, 1e-20, 1e-19, 1e-18])
def test_eps_of_the_size_of_the_squares(op, eps, size):
    x = random((3, 256), "float32", scale=size)
    outputs = getattr(cunorm, op)(cupy.asarray(x), eps=eps)
    assert_all_match(outputs, getattr(_reference, op)(x, eps=eps))


@pytest.mark.slow("both ends, as KINDS has them of the sums with a residual")
@pytest.mark.parametrize("op", ["add_rms_norm_fwd", "add_layer_norm_fwd"])
@pytest.mark.parametrize(
    ("dtype", "of_residual", "size"),
    [
        ("float32", "float32", 1e-20),
        ("bfloat16", "float32", 1e-25),
        ("float32", "bfloat16", 1e-25),
        ("float64", "float64", 1e-200),
        ("float32", "float32", 1e30),
    ],
)
def test_with_a_residual(op, dtype, of_residual, size):
    x = random((3, 769), dtype, scale=size)
    residual = random((3, 769), of_residual, seed=1, scale=size)
    outputs = getattr(cunorm, op)(cupy.asarray(x), cupy.asarray(residual), eps=0)
    assert_all_match(outputs, getattr(_reference, op)(x, residual, eps=0))


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_that_share_a_warp_each_have_their_own_scale(op, dtype):
    sizes = np.array([1e30, 1e-30, 1.0, 1e-20, 1e-3, 1e20, 1e-6, 1e-33])
    x = (random((8, 40), "float64") * sizes[:, None]).astype(_reference.DTYPES[dtype])
    outputs = getattr(cunorm, op)(cupy.asarray(x), eps=1e-40)
    alone = [getattr(cunorm, op)(cupy.asarray(row), eps=1e-40) for row in x]
    for i, together in enumerate(outputs):
        assert bits(together) == b"".join(bits(row[i]) for row in alone)
    assert_all_match(outputs, getattr(_reference, op)(x, eps=0))


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
def test_a_row_of_zeros_without_eps_is_nan(op, dtype):
    y, *_, rstd = getattr(cunorm, op)(cupy.zeros((1, 40), dtype), eps=0)
    assert np.isinf(rstd.get()).all()
    assert np.isnan(y.get().astype("float64")).all()


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(("dtype", "size"), SIZES)
@pytest.mark.parametrize("cols", [96, SHIFTED])
def test_gradients_are_as_defined(op, cols, dtype, size):
    x, dy = random((3, cols), dtype, scale=size), random((3, cols), dtype, seed=1)
    gamma = random(cols, dtype, seed=2)
    # dx is of the size of dy / x, which must be a number of the dtype.
    dy = (dy.astype("float64") * (1e-4 if size < 1e-15 else 1e4)).astype(dy.dtype)
    _, *statistics = getattr(cunorm, f"{op}_fwd")(cupy.asarray(x), eps=0)
    _, *expected = getattr(_reference, f"{op}_fwd")(x, eps=0)
    on_device = map(cupy.asarray, (dy, x, gamma))
    outputs = getattr(cunorm, f"{op}_bwd")(*on_device, *statistics)
    assert_all_match(outputs, getattr(_reference, f"{op}_bwd")(dy, x, gamma, *expected))
    dx = outputs[0].get().astype("float64")
    assert np.isfinite(dx).all()
    assert (dx != 0).mean() > 0.9


@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e-37), ("float64", 1e-306)])
def test_as_long_as_rstd_is_a_normal_number(dtype, size):
    x = random((3, 96), dtype, scale=size)
    x = np.where(np.abs(x) < np.finfo(dtype).tiny, 0, x)  # float32 ones count as zero
    outputs = cunorm.rms_norm_fwd(cupy.asarray(x), eps=0)
    assert_all_match(outputs, _reference.rms_norm_fwd(x, eps=0))
