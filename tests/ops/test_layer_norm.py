"""LayerNorm against its float64 definition and PyTorch; the grid is that of test_rms_norm.py."""

import cupy
import numpy as np
import pytest
import torch
from arrays import EVERY, NARROW, assert_matches, bits, each_size, random, to_numpy, to_torch
from kinds import some_of

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import GUARD, GUARDS, place

SIZES = [1, 2, 7, 8, 64, 111, 129, 760, 769, 1024, 1025, 3000, 5125, 8192, 16384, 32768, 65537]
PARAMETERS = [
    (None, None),
    ("float32", None),
    (None, "float32"),
    ("float16", "float16"),
    ("bfloat16", "float32"),
    ("float32", "bfloat16"),
]


@pytest.mark.slow("in every dtype; KINDS has each way of keeping a row")
@pytest.mark.parametrize(("dtype", "cols"), each_size(SIZES))
def test_every_size_matches_the_definition(dtype, cols):
    rows = 37 if cols <= 129 else 3 if cols < 8192 else 1
    x = random((rows, cols), dtype, shift=0.5)
    gamma, beta = random(cols, dtype, seed=1, scale=0.1, shift=1), random(cols, dtype, seed=2)
    outputs = cunorm.layer_norm_fwd(cupy.asarray(x), cupy.asarray(gamma), cupy.asarray(beta))
    for actual, expected in zip(outputs, _reference.layer_norm_fwd(x, gamma, beta), strict=True):
        assert_matches(actual, expected)


# The first keeps most packets in registers, and its second row is shifted; the other is read again.
@pytest.mark.slow("millions of columns; KINDS has rows that are read again", shares=30)
@pytest.mark.parametrize(("dtype", "shape"), [("float16", (2, 1_200_003)), ("float32", (1, 2**24))])
def test_the_longest_rows_match_the_definition(dtype, shape):
    x = random(shape, dtype, shift=0.5)
    gamma, beta = random(shape[1], dtype, seed=1, shift=1), random(shape[1], dtype, seed=2)
    outputs = cunorm.layer_norm_fwd(cupy.asarray(x), cupy.asarray(gamma), cupy.asarray(beta))
    for actual, expected in zip(outputs, _reference.layer_norm_fwd(x, gamma, beta), strict=True):
        assert_matches(actual, expected)


@pytest.mark.parametrize("rows", [0, 1, 7, 199, 989, 4096])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_number_of_rows_matches_the_definition(dtype, rows):
    x = random((rows, 33), dtype)
    outputs = cunorm.layer_norm_fwd(cupy.asarray(x))
    for actual, expected in zip(outputs, _reference.layer_norm_fwd(x), strict=True):
        assert_matches(actual, expected)


@some_of(
    [(NARROW[i % 3], of_parameters) for i, of_parameters in enumerate(PARAMETERS)],
    "each mix in the other dtypes; KINDS has most",
    dtype=NARROW,
    of_parameters=PARAMETERS,
)
def test_every_mix_of_dtypes_matches(dtype, of_parameters):
    gamma_dtype, beta_dtype = of_parameters
    x = random((5, 136), dtype, scale=3, shift=-1)
    gamma = None if gamma_dtype is None else random(136, gamma_dtype, seed=1)
    beta = None if beta_dtype is None else random(136, beta_dtype, seed=2)
    on_device = [None if p is None else cupy.asarray(p) for p in (gamma, beta)]
    y = cunorm.layer_norm(cupy.asarray(x), *on_device)
    assert_matches(y, _reference.layer_norm(x, gamma, beta))


@pytest.mark.parametrize("parameter_dtype", ["float32", "float64"])
def test_float64_takes_float32_and_float64_parameters(parameter_dtype):
    x = random((5, 136), "float64")
    gamma, beta = (random(136, parameter_dtype, seed=seed) for seed in (1, 2))
    y = cunorm.layer_norm(cupy.asarray(x), cupy.asarray(gamma), cupy.asarray(beta))
    assert_matches(y, _reference.layer_norm(x, gamma, beta))


@pytest.mark.parametrize("eps", [0, 1e-6, 1e-3, 0.5, 10])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_eps_matches_the_definition(dtype, eps):
    x = random((4, 24), dtype, scale=0.01)
    assert_matches(cunorm.layer_norm(cupy.asarray(x), eps=eps), _reference.layer_norm(x, eps=eps))


@pytest.mark.slow("each layout in each dtype, as KINDS has in pairs")
@pytest.mark.parametrize(
    "layout",
    ["contiguous", "row-strided", "base + 1 element", "strided heads", "transposed", "2-D gamma"],
)
@pytest.mark.parametrize("dtype", EVERY)
def test_every_layout_matches_the_definition(dtype, layout):
    x = random((3, 5, 72), dtype)
    shape = (5, 72) if layout == "2-D gamma" else (72,)
    gamma, beta = random(shape, dtype, seed=1), random(shape, dtype, seed=2)
    on_device = [place(a, layout)[1] for a in (x, gamma, beta)]
    expected = _reference.layer_norm_fwd(x, gamma, beta)
    for actual, want in zip(cunorm.layer_norm_fwd(*on_device), expected, strict=True):
        assert_matches(actual, want)


@pytest.mark.parametrize(
    ("shape", "normalized"),
    [((4, 5, 5), 1), ((4, 2, 2, 5), 3), ((2, 2, 3), 2), ((1,), 1), ((1, 2), 1), ((3, 32, 16), 2)],
)
def test_torch_s_own_shapes_match_torch(shape, normalized):
    """The shapes of PyTorch's module tests and OpInfo, and Apex's [32, 16]."""
    x = random(shape, "float32")
    gamma, beta = (random(shape[-normalized:], "float32", seed=seed) for seed in (1, 2))
    theirs = torch.nn.functional.layer_norm(
        to_torch(x), shape[-normalized:], to_torch(gamma), to_torch(beta), eps=1e-3
    )
    ours = cunorm.layer_norm(*(cupy.asarray(a) for a in (x, gamma, beta)), eps=1e-3).get()
    assert _reference.layer_norm(x, gamma, beta, 1e-3).accepts(ours).all()
    assert np.abs(ours - theirs.numpy()).max() <= 1e-5


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_16_bit_data_is_torch_layer_norm_within_one_ulp(dtype):
    x = random((17, 896), dtype, scale=5, shift=2)
    gamma, beta = random(896, dtype, seed=1), random(896, dtype, seed=2)
    theirs = to_numpy(
        torch.nn.functional.layer_norm(to_torch(x), (896,), to_torch(gamma), to_torch(beta))
    )
    ours = cunorm.layer_norm(*(cupy.asarray(a) for a in (x, gamma, beta))).get()
    expected = _reference.layer_norm(x, gamma, beta)
    assert expected.accepts(ours).all()
    # PyTorch's float32 sums are less exact than ours, which shows where beta cancels; so the
    # distance is taken in ulps of the larger term.
    size = np.abs(expected.value) + np.abs(beta.astype(np.float64))
    distance = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    assert (distance / _reference.ulp(size, ours.dtype)).max() <= 1


# What users of other systems ran into.


@pytest.mark.parametrize(("mean", "scale"), [(1000, 1), (100, 0.01), (-1449, 0.5), (1e5, 1)])
@some_of(
    [(128,), (769,), (4096,)],
    "rows in shared memory, as are some of KINDS",
    cols=[128, 769, 4096, 32768],
)
def test_rows_far_from_zero_keep_their_digits(mean, scale, cols):
    """pytorch#40307 (100 + 0.01 noise), mlx#2238 (x near 1449): E[x^2] - E[x]^2 cancels."""
    x = random((2, cols), "float32", scale=scale, shift=mean)
    outputs = cunorm.layer_norm_fwd(cupy.asarray(x))
    expected = _reference.layer_norm_fwd(x)
    for actual, want in zip(outputs, expected, strict=True):
        assert_matches(actual, want)
    assert np.abs(outputs[0].get() - expected[0].value).max() <= 1e-5


@pytest.mark.parametrize("dtype", NARROW)
def test_columns_past_the_last_do_not_count(dtype):
    """quack's regression at N=769: lanes past the end held 0, and (0 - mean)^2 entered the sum."""
    x = random((4, 769), dtype, shift=1000)
    outputs = cunorm.layer_norm_fwd(cupy.asarray(x))
    for actual, expected in zip(outputs, _reference.layer_norm_fwd(x), strict=True):
        assert_matches(actual, expected)


@pytest.mark.parametrize("dtype", EVERY)
def test_a_constant_row_is_beta(dtype):
    """llama.cpp's variance is not clamped: a constant row's may come out below 0, and NaN."""
    # Of 1016 columns, sums are rounded, and rows are whole packets.
    x = np.full((3, 1016), 1449.0).astype(dtype if dtype != "bfloat16" else _reference.BFLOAT16)
    beta = random(1016, dtype, seed=2)
    y = cunorm.layer_norm(cupy.asarray(x), beta=cupy.asarray(beta))
    assert bits(y) == bits(np.broadcast_to(beta, x.shape))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_1e30_stay_finite(dtype):
    """pytorch#162489: float32 squares overflow at 1.8e19."""
    x = random((3, 96), dtype, scale=1e30)
    for actual, expected in zip(
        cunorm.layer_norm_fwd(cupy.asarray(x)), _reference.layer_norm_fwd(x), strict=True
    ):
        assert_matches(actual, expected)


def test_float64_rows_of_1e200_stay_finite():
    x = random((3, 96), "float64", scale=1e200)
    assert_matches(cunorm.layer_norm(cupy.asarray(x)), _reference.layer_norm(x))


@pytest.mark.parametrize("dtype", NARROW)
def test_769_columns_do_not_reach_into_the_next_row(dtype):
    """ROCm/aiter#5044: at N=769 the last packet of a row was written whole, into the next one."""
    whole, view = place(random((1, 769), dtype), "contiguous")
    cunorm.layer_norm(view, out=view)
    around = whole.get()
    assert (around[:GUARDS] == GUARD).all()
    assert (around[-GUARDS:] == GUARD).all()


@pytest.mark.parametrize("dtype", EVERY)
def test_eps_is_1e_5_unless_given_whatever_the_dtype(dtype):
    """pytorch#155527: the default was that of the dtype computed in, not of the data."""
    x = cupy.asarray(random((3, 24), dtype, scale=1e-2))
    assert bits(cunorm.layer_norm(x)) == bits(cunorm.layer_norm(x, eps=1e-5))


def test_beta_without_gamma_says_which_axes_are_normalised():
    x, beta = random((3, 4, 6), "float32"), random((4, 6), "float32", seed=2)
    y, mean, rstd = cunorm.layer_norm_fwd(cupy.asarray(x), beta=cupy.asarray(beta))
    assert_matches(y, _reference.layer_norm(x, None, beta))
    assert mean.shape == rstd.shape == (3,)


def test_no_rows_give_no_rows():
    """pytorch#28614, flash-attention#1620: empty input reached the kernel."""
    y, mean, rstd = cunorm.layer_norm_fwd(cupy.empty((0, 4, 16), "bfloat16"))
    assert (y.shape, y.dtype) == ((0, 4, 16), _reference.BFLOAT16)
    assert mean.shape == rstd.shape == (0, 4)
    assert mean.dtype == rstd.dtype == np.float32


def test_rows_without_columns_give_rows_without_columns():
    """pytorch#80893."""
    y, mean, rstd = cunorm.layer_norm_fwd(cupy.empty((5, 0), "float32"))
    assert y.shape == (5, 0)
    assert np.isnan(mean.get()).all()
    assert np.isnan(rstd.get()).all()


def test_65537_rows():
    """apex#411: rows beyond the 65,535 blocks of a grid's second axis were wrong."""
    x = random((65537, 8), "float16")
    assert_matches(cunorm.layer_norm(cupy.asarray(x)), _reference.layer_norm(x))
