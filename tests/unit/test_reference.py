"""The float64 definitions against PyTorch's own, and the measure of error against cases by hand."""

import ml_dtypes
import numpy as np
import pytest
import torch

from cunorm import _reference
from cunorm._reference import DTYPES, round_to, ulp, ulps

NARROW = ["float16", "bfloat16", "float32"]


def test_ulp_is_the_distance_to_the_next_number_up():
    ones = np.array([1.0, 1.5, 2.0, 1024.0])
    assert ulp(ones, DTYPES["float32"]).tolist() == [2**-23, 2**-23, 2**-22, 2**-13]
    assert ulp(ones, DTYPES["bfloat16"]).tolist() == [2**-7, 2**-7, 2**-6, 2**3]
    assert ulp(ones, DTYPES["float16"]).tolist() == [2**-10, 2**-10, 2**-9, 1]


def test_ulp_of_subnormal_numbers_and_zero_is_the_smallest_subnormal():
    values = np.array([0.0, 1e-300])
    assert ulp(values, DTYPES["float16"]).tolist() == [2**-24] * 2
    assert ulp(values, DTYPES["bfloat16"]).tolist() == [2**-133] * 2


@pytest.mark.parametrize("wide", [np.float64, np.longdouble])
@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_ulp_is_numpys_spacing_at_every_exponent_and_the_smallest_past_them(dtype, wide):
    digits = np.finfo(dtype)
    powers = np.ldexp(1.0, np.arange(digits.minexp - digits.nmant, digits.maxexp)).astype(dtype)
    values = np.concatenate((powers, -powers * dtype(1.5)))
    values = values[np.isfinite(values)]
    assert np.array_equal(ulp(values.astype(wide), np.dtype(dtype)), np.spacing(np.abs(values)))
    past = np.array([np.inf, -np.inf, np.nan, -0.0], wide)
    assert (ulp(past, np.dtype(dtype)) == digits.smallest_subnormal).all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_rounding_agrees_with_numpy_where_numpy_rounds_once(dtype):
    rng = np.random.default_rng(1)
    values = rng.standard_normal(10_000) * 10.0 ** rng.integers(-9, 6, 10_000)
    with np.errstate(over="ignore"):
        assert np.array_equal(round_to(values, DTYPES[dtype]), values.astype(dtype))


def test_rounding_to_bfloat16_is_to_nearest_even_and_happens_once():
    # 1 + 2^-8 is the tie between 1 and 1 + 2^-7; what lies above it by less than float32 can see
    # goes up, which ml_dtypes' two roundings miss.
    above = 1 + 2.0**-8 + 2.0**-40
    values = np.array([1 + 2.0**-8, above, 1 + 3 * 2.0**-8, -above])
    assert round_to(values, DTYPES["bfloat16"]).tolist() == [1, 1.0078125, 1.015625, -1.0078125]
    assert float(np.array(above).astype(ml_dtypes.bfloat16)) == 1


def test_rounding_past_the_largest_number_gives_infinity():
    values = np.array([65519.0, 65520.0, -1e9, np.inf])
    assert round_to(values, DTYPES["float16"]).tolist() == [65504, np.inf, -np.inf, np.inf]


def test_ulps_counts_whole_steps_and_halves():
    expected = np.array([1.0, 1.0, 1 + 2.0**-11, -4.0])
    actual = np.array([1.0, 1 + 2.0**-10, 1.0, -4 - 2.0**-8], np.float16)
    assert ulps(actual, expected, DTYPES["float16"]).tolist() == [0, 1, 0.5, 1]


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_nan_or_infinity_that_is_not_expected_is_infinitely_far(wrong):
    assert ulps(np.array([wrong], np.float32), np.array([1.0]), DTYPES["float32"]) == np.inf


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_an_expected_nan_or_infinity_is_at_distance_zero_and_missing_it_is_not(value):
    expected = np.array([value])
    assert ulps(np.array([value], np.float32), expected, DTYPES["float32"]) == 0
    assert ulps(np.array([1], np.float32), expected, DTYPES["float32"]) == np.inf


def test_an_expected_overflow_is_an_infinity_of_the_output_dtype():
    assert ulps(np.array([np.inf], np.float16), np.array([1e6]), DTYPES["float16"]) == 0


@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
@pytest.mark.parametrize("cols", [1, 7, 769])
def test_rms_norm_cast_after_is_torch_rms_norm(dtype, cols):
    x, gamma = _tensors(dtype, (3, cols), (cols,))
    y, _ = _reference.rms_norm_fwd(_numpy(x), _numpy(gamma), eps=1e-6, cast="after")
    theirs = torch.nn.functional.rms_norm(x.double(), (cols,), gamma.double(), eps=1e-6)
    np.testing.assert_allclose(y.value.astype(float), theirs.numpy(), rtol=1e-14)


@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
@pytest.mark.parametrize("shape", [(3, 1), (3, 769), (2, 3, 5)])
def test_layer_norm_is_torch_layer_norm(dtype, shape):
    x, gamma, beta = _tensors(dtype, shape, shape[1:], shape[1:])
    y, mean, rstd = _reference.layer_norm_fwd(_numpy(x), _numpy(gamma), _numpy(beta), eps=1e-5)
    theirs = torch.native_layer_norm(x.double(), shape[1:], gamma.double(), beta.double(), 1e-5)
    for ours, torch_s in zip((y, mean, rstd), theirs, strict=True):
        want = torch_s.numpy().reshape(ours.value.shape)
        np.testing.assert_allclose(ours.value.astype(float), want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_rms_norm_cast_before_rounds_the_normalised_value_as_qwen2_does(dtype):
    x, gamma = _tensors(dtype, (3, 96), (96,))
    narrow = x.double() * torch.rsqrt(x.double().pow(2).mean(-1, keepdim=True) + 1e-6)
    theirs = gamma.double() * narrow.to(x.dtype).double()
    y = _reference.rms_norm(_numpy(x), _numpy(gamma), eps=1e-6, cast="before")
    np.testing.assert_allclose(y.value, theirs.numpy(), rtol=1e-15)


def test_gamma_offset_is_added_to_gamma_and_stands_alone_without_one():
    x, gamma = (_numpy(t) for t in _tensors("float32", (2, 16), (16,)))
    plain = _reference.rms_norm(x, cast="after").value
    offset = _reference.rms_norm(x, gamma, gamma_offset=1.0, cast="after").value
    np.testing.assert_allclose(offset, plain * (gamma.astype(float) + 1), rtol=1e-15)
    alone = _reference.rms_norm(x, gamma_offset=0.5, cast="after").value
    np.testing.assert_allclose(alone, plain * 1.5, rtol=1e-15)


@pytest.mark.parametrize(("dtype", "typical"), [("float16", 2), ("bfloat16", 2), ("float32", 32)])
def test_the_tolerance_accepts_the_rounded_definition_and_refuses_a_few_ulps_off(dtype, typical):
    # Sixteen-bit outputs have float32 to spare: two ulps off is wrong. In float32 the arithmetic
    # itself may be a dozen off, and more where x - mean or adding beta cancels.
    x, gamma, beta = (_numpy(t) for t in _tensors(dtype, (4, 256), (256,), (256,)))
    for expected in (
        _reference.rms_norm(x, gamma, cast="after"),
        _reference.layer_norm(x, gamma, beta),
    ):
        exact = round_to(expected.value, expected.dtype)
        assert expected.accepts(exact).all()
        off = exact + typical * ulp(exact, expected.dtype)
        assert (~expected.accepts(off)).mean() > 0.8


def test_cast_before_allows_a_neighbour_only_next_to_a_tie():
    x, gamma = (_numpy(t) for t in _tensors("bfloat16", (64, 512), (512,)))
    expected = _reference.rms_norm(x, gamma, cast="before")
    quantum = ulp(expected.value, expected.dtype)
    assert (expected.slack > 0.1 * quantum).mean() < 0.001


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8)])
def test_statistics_have_the_leading_shape_and_are_float32(shape):
    x = np.ones(shape, np.float16)
    stats = (*_reference.rms_norm_fwd(x)[1:], *_reference.layer_norm_fwd(x)[1:])
    assert [s.value.shape for s in stats] == [shape[:-1]] * 3
    assert {s.dtype for s in stats} == {np.dtype(np.float32)}


def _tensors(dtype, *shapes):
    generator = torch.Generator().manual_seed(7)
    return [
        (torch.randn(s, generator=generator, dtype=torch.float64) * 3).to(getattr(torch, dtype))
        for s in shapes
    ]


def _numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
