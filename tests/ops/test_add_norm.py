"""add_rms_norm and add_layer_norm: h is written once, and normalised as it was rounded."""

import cupy
import numpy as np
import pytest
from arrays import EVERY, NARROW, READ_TWICE, assert_matches, bits, each_size, random
from kinds import some_of

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import GUARD, GUARDS, place

FUSED = {"rms_norm": cunorm.add_rms_norm, "layer_norm": cunorm.add_layer_norm}
WITH_STATISTICS = {"rms_norm": cunorm.add_rms_norm_fwd, "layer_norm": cunorm.add_layer_norm_fwd}
ops = pytest.mark.parametrize("op", FUSED)


def arguments(op, cols, dtype):
    """Return gamma, and beta where the op has it."""
    return [random(cols, dtype, seed=seed) for seed in ((1,) if op == "rms_norm" else (1, 2))]


@pytest.mark.slow("in every dtype; KINDS has each way of keeping a row")
@pytest.mark.parametrize(
    ("dtype", "cols"), each_size([1, 7, 64, 769, 1025, 4096, 5125, 20000, 140000])
)
@ops
def test_the_bits_are_those_of_an_addition_and_a_norm(op, dtype, cols):
    """vllm#52104, vllm#52151: the variance was that of the sum before it was rounded, or after."""
    x, residual = (random((3, cols), dtype, seed=seed, scale=3) for seed in (3, 4))
    x, residual, *parameters = map(cupy.asarray, (x, residual, *arguments(op, cols, dtype)))
    y, h = FUSED[op](x, residual, *parameters)
    assert bits(h) == bits(x + residual)
    y_of_h, *statistics = getattr(cunorm, f"{op}_fwd")(h, *parameters)
    assert bits(y) == bits(y_of_h)
    kept = WITH_STATISTICS[op](x, residual, *parameters)
    assert [bits(a) for a in kept] == [bits(a) for a in (y, h, *statistics)]


OF_ONE_OP = [
    (("rms_norm", "layer_norm")[(i + j) % 2], dtype, residual_dtype)
    for i, dtype in enumerate(NARROW)
    for j, residual_dtype in enumerate(NARROW)
]


@some_of(OF_ONE_OP, "the other op of each mix", op=FUSED, dtype=NARROW, residual_dtype=NARROW)
def test_every_mix_of_dtypes_matches_the_definition(op, dtype, residual_dtype):
    x, residual = random((5, 200), dtype), random((5, 200), residual_dtype, seed=4, scale=9)
    parameters = arguments(op, 200, "float32")
    outputs = WITH_STATISTICS[op](*map(cupy.asarray, (x, residual, *parameters)))
    expected = getattr(_reference, f"add_{op}_fwd")(x, residual, *parameters)
    for actual, want in zip(outputs, expected, strict=True):
        assert_matches(actual, want)


@some_of(
    [("rms_norm", "float16", "transposed"), ("layer_norm", "float32", "transposed")],
    "KINDS has each dtype, and each other layout, in place",
    op=FUSED,
    dtype=EVERY,
    layout=["contiguous", "row-strided", "base + 1 element", "transposed"],
)
def test_both_may_be_written_in_place_in_any_layout(op, dtype, layout):
    x, residual = random((4, 769), dtype), random((4, 769), dtype, seed=4)
    parameters = [cupy.asarray(p) for p in arguments(op, 769, dtype)]
    apart = [bits(a) for a in FUSED[op](cupy.asarray(x), cupy.asarray(residual), *parameters)]
    (_, x_view), (_, residual_view) = place(x, layout), place(residual, layout)
    y, h = FUSED[op](x_view, residual_view, *parameters, out=x_view, residual_out=residual_view)
    assert y is x_view
    assert h is residual_view
    assert [bits(y), bits(h)] == apart


@ops
def test_statistics_have_the_shape_of_the_leading_axes_and_outputs_are_returned(op):
    x, residual = (cupy.asarray(random((2, 3, 70), "float16", seed=seed)) for seed in (3, 4))
    y, h, *statistics = WITH_STATISTICS[op](x, residual, out=x, residual_out=residual)
    assert y is x
    assert h is residual
    expected = getattr(cunorm, f"{op}_fwd")(residual)[1:]
    assert [(a.shape, a.dtype) for a in statistics] == [((2, 3), np.float32)] * len(expected)
    assert [bits(a) for a in statistics] == [bits(a) for a in expected]


@ops
def test_rows_without_columns_have_statistics_that_are_no_numbers(op):
    x = cupy.zeros((2, 0), "float16")
    y, h, *statistics = WITH_STATISTICS[op](x, x.copy())
    assert y.shape == h.shape == (2, 0)
    assert all(cupy.isnan(a).all() for a in statistics)


@pytest.mark.slow("millions of columns, which KINDS has in place too")
@ops
def test_rows_read_twice_may_be_written_in_place(op):
    x, residual = (random((2, READ_TWICE), "float16", seed=seed) for seed in (1, 4))
    apart = [bits(a) for a in FUSED[op](cupy.asarray(x), cupy.asarray(residual))]
    x, residual = cupy.asarray(x), cupy.asarray(residual)
    together = FUSED[op](x, residual, out=x, residual_out=residual)
    assert [bits(a) for a in together] == apart


@ops
def test_inputs_are_untouched_and_nothing_is_written_outside_the_outputs(op):
    x, residual = random((3, 769), "float16"), random((3, 769), "float32", seed=4)
    sources = [place(a, "base + 1 element") for a in (x, residual)]
    targets = [place(np.zeros_like(a), "base + 1 element") for a in (x, residual)]
    before = [bits(whole) for whole, _ in sources]
    FUSED[op](*(view for _, view in sources), out=targets[0][1], residual_out=targets[1][1])
    assert [bits(whole) for whole, _ in sources] == before
    for whole, _ in targets:
        host = whole.get()
        assert (host[: GUARDS + 1] == GUARD).sum() >= GUARDS
        assert (host[-GUARDS:] == GUARD).all()


@some_of([("layer_norm",)], "a large batch of the other op", op=FUSED)
def test_a_row_has_the_same_bits_alone_and_in_a_batch_of_1000(op):
    rows = [random((1, 769), "bfloat16", seed=seed) for seed in (3, 4)]
    alone = [bits(a) for a in FUSED[op](*map(cupy.asarray, rows))]
    batches = [np.repeat(random((1, 769), "bfloat16", seed=9), 1000, axis=0) for _ in rows]
    for batch, row in zip(batches, rows, strict=True):
        batch[[0, 499, 999]] = row
    outputs = FUSED[op](*map(cupy.asarray, batches))
    for index in (0, 499, 999):
        assert [bits(output[index]) for output in outputs] == alone


@ops
def test_x_in_float16_and_the_residual_kept_in_float32(op):
    """The residual stream keeps digits that x's dtype has not: a feature users ask for."""
    x, residual = random((2, 256), "float16"), random((2, 256), "float32", seed=4, scale=1e4)
    y, h = FUSED[op](cupy.asarray(x), cupy.asarray(residual))
    assert (y.dtype, h.dtype) == (np.float16, np.float32)
    assert np.array_equal(h.get(), x.astype(np.float32) + residual)
