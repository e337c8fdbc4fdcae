"""RMSNorm against its float64 definition, PyTorch, and Qwen2RMSNorm as its model file defines it.

The grid is the union of what vLLM, FlashInfer, quack, Apex and Liger test: sizes that are and are
not multiples of a packet, of a warp's share and of a block's, and each side of where a kernel
changes its mapping. Named tests below it are what users of those systems ran into.
"""

import cupy
import numpy as np
import plans
import pytest
import torch
from arrays import EVERY, NARROW, assert_matches, bits, each_size, random, to_numpy, to_torch
from kinds import some_of

import cunorm
from cunorm import _reference
from cunorm._launch import kernels, launches
from cunorm._selfcheck.layouts import GUARD, GUARDS, place

SIZES = [
    *(1, 2, 7, 8, 64, 111, 128, 129, 256, 500, 512, 760, 769, 1024, 1025, 1029, 2041, 3000, 4096),
    *(5120, 5125, 5137, 8192, 16384, 32768, 65536, 65537, 131072),
]
# Gamma's dtype and an offset; an offset needs a gamma to be added to.
PARAMETERS = [
    (None, 0.0),
    *((dtype, offset) for dtype in NARROW for offset in (0.0, 1.0, -0.5)),
]


@pytest.mark.slow("in every dtype; KINDS has each way of keeping a row")
@pytest.mark.parametrize(("dtype", "cols"), each_size(SIZES))
def test_every_size_matches_the_definition(dtype, cols):
    # Enough rows that a block of several rows is full, and another is not.
    rows = 37 if cols <= 129 else 3 if cols < 8192 else 1
    x = random((rows, cols), dtype)
    gamma = random(cols, dtype, seed=1, scale=0.1, shift=1)
    y, rstd = cunorm.rms_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x, gamma), strict=True):
        assert_matches(actual, expected)


@pytest.mark.slow("large arrays of kernels that KINDS has")
@pytest.mark.parametrize(
    ("dtype", "shape"),
    [("float16", (989, 5120)), ("bfloat16", (199, 16384)), ("float32", (4096, 769))],
)
def test_large_arrays_match_the_definition(dtype, shape):
    x, gamma = random(shape, dtype), random(shape[-1], dtype, seed=1)
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma))
    assert_matches(y, _reference.rms_norm(x, gamma))


# The first keeps most packets in registers, and its second row is shifted; the other is read again.
@pytest.mark.slow("millions of columns; KINDS has rows that are read again", shares=30)
@pytest.mark.parametrize(("dtype", "shape"), [("float16", (2, 1_200_003)), ("float32", (1, 2**24))])
def test_the_longest_rows_match_the_definition(dtype, shape):
    x, gamma = random(shape, dtype), random(shape[1], dtype, seed=1, shift=1)
    y, rstd = cunorm.rms_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x, gamma), strict=True):
        assert_matches(actual, expected)


@pytest.mark.parametrize("rows", [0, 1, 7, 199, 989, 4096])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_number_of_rows_matches_the_definition(dtype, rows):
    x = random((rows, 33), dtype)
    gamma = random(33, dtype, seed=1)
    y, rstd = cunorm.rms_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x, gamma), strict=True):
        assert_matches(actual, expected)


@some_of(
    [
        (dtype, parameter, cast)
        for i, dtype in enumerate(NARROW)
        for j, parameter in enumerate(PARAMETERS)
        for k, cast in enumerate(["before", "after"])
        # Each mix in one of the casts, and no offset that has the other's kernel.
        if (i + j) % 2 == k and parameter[1] != -0.5
    ],
    "each mix in the other cast",
    dtype=NARROW,
    parameter=PARAMETERS,
    cast=["before", "after"],
)
def test_every_mix_of_dtypes_casts_and_offsets_matches(dtype, parameter, cast):
    gamma_dtype, gamma_offset = parameter
    x = random((5, 136), dtype, scale=3)
    gamma = None if gamma_dtype is None else random(136, gamma_dtype, seed=1)
    y = cunorm.rms_norm(
        cupy.asarray(x),
        None if gamma is None else cupy.asarray(gamma),
        gamma_offset=gamma_offset,
        cast=cast,
    )
    assert_matches(y, _reference.rms_norm(x, gamma, gamma_offset=gamma_offset, cast=cast))


@pytest.mark.parametrize("gamma_dtype", ["float32", "float64"])
def test_float64_takes_float32_and_float64_parameters(gamma_dtype):
    x, gamma = random((5, 136), "float64"), random(136, gamma_dtype, seed=1)
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), gamma_offset=1.0)
    assert_matches(y, _reference.rms_norm(x, gamma, gamma_offset=1.0))


@pytest.mark.parametrize("eps", [0, 1e-6, 1e-4, 0.1, 10])
@pytest.mark.parametrize("dtype", EVERY)
def test_every_eps_matches_the_definition(dtype, eps):
    x = random((4, 24), dtype, scale=0.01)
    assert_matches(cunorm.rms_norm(cupy.asarray(x), eps=eps), _reference.rms_norm(x, eps=eps))


@pytest.mark.slow("each layout in each dtype, as KINDS has in pairs")
@pytest.mark.parametrize(
    "layout",
    ["contiguous", "row-strided", "base + 1 element", "strided heads", "transposed", "2-D gamma"],
)
@pytest.mark.parametrize("dtype", EVERY)
def test_every_layout_matches_the_definition(dtype, layout):
    x = random((3, 5, 72), dtype)
    gamma = random((5, 72) if layout == "2-D gamma" else 72, dtype, seed=1)
    y, rstd = cunorm.rms_norm_fwd(place(x, layout)[1], place(gamma, layout)[1])
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x, gamma), strict=True):
        assert_matches(actual, expected)


@pytest.mark.parametrize("shape", [(6,), (2, 3, 4, 5, 6), (1, 1, 6), (4, 1, 6)])
def test_any_number_of_leading_axes(shape):
    x, gamma = random(shape, "float32"), random(shape[-1], "float32", seed=1)
    y, rstd = cunorm.rms_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x, gamma), strict=True):
        assert_matches(actual, expected)


@pytest.mark.parametrize("dtype", NARROW)
def test_cast_after_is_torch_rms_norm_within_one_ulp(dtype):
    x, gamma = random((17, 896), dtype, scale=5), random(896, dtype, seed=1)
    theirs = torch.nn.functional.rms_norm(to_torch(x), (896,), to_torch(gamma), eps=1e-6)
    ours = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), cast="after").get()
    expected = _reference.rms_norm(x, gamma, cast="after")
    # In 16 bits both round the same number once. In float32 each has the arithmetic's own error.
    if dtype == "float32":
        assert expected.accepts(ours).all()
        assert np.abs(ours - to_numpy(theirs)).max() < 4e-6
    else:
        wide = to_numpy(theirs).astype(np.float64)
        assert _reference.ulps(ours, wide, expected.dtype).max() <= 1


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_cast_before_has_the_bits_of_qwen2_rms_norm(dtype):
    # The same roundings in the same places; rstd itself may differ by an ulp of float32, which can
    # tip the rounding of x * rstd: one ulp there, and up to two after gamma.
    x, gamma = random((64, 896), dtype, scale=5), random(896, dtype, seed=1)
    theirs = to_numpy(qwen2_rms_norm(to_torch(x), to_torch(gamma), 1e-6))
    ours = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma)).get()
    assert np.mean(ours.view(np.uint16) == theirs.view(np.uint16)) >= 0.995
    assert _reference.ulps(ours, theirs.astype(np.float64), ours.dtype).max() <= 2


def test_cast_before_and_after_differ_in_bfloat16():
    # Otherwise the tests of either would prove nothing about the other.
    x, gamma = random((8, 512), "bfloat16"), random(512, "bfloat16", seed=1)
    before, after = (
        cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), cast=cast)
        for cast in ("before", "after")
    )
    assert bits(before) != bits(after)


def test_eight_line_use_as_in_the_readme():
    x = cupy.asarray([[3.0, 4.0], [0.0, 0.0]], dtype="float32")
    y = cunorm.rms_norm(x, cupy.asarray([1.0, 2.0], dtype="float32"), eps=0.5)
    np.testing.assert_allclose(y.get(), [[3 / 13**0.5, 8 / 13**0.5], [0, 0]], rtol=1e-6)


# What users of other systems ran into.


def test_gemma_adds_one_to_gamma_in_float32():
    """vllm#29810: 1 + w rounded to bfloat16 loses what is small in w."""
    x = random((4, 64), "bfloat16")
    gamma = np.full(64, 2.0**-9).astype(x.dtype)  # 1 + 2^-9 is 1 in bfloat16
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), gamma_offset=1.0, cast="after")
    expected = _reference.rms_norm(x, gamma, gamma_offset=1.0, cast="after")
    assert_matches(y, expected)
    assert bits(y) != bits(cunorm.rms_norm(cupy.asarray(x), cast="after"))


def test_float32_gamma_with_bfloat16_x_is_no_garbage():
    """sglang#32807: a float32 weight was read as bfloat16 and gave NaN in silence."""
    x, gamma = random((7, 136), "bfloat16"), random(136, "float32", seed=1, scale=0.1, shift=1)
    y = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma))
    assert_matches(y, _reference.rms_norm(x, gamma))


def test_a_slice_of_fused_qkv_is_normalised_in_place():
    """vllm#28103, vllm#24247: heads cut out of qkv gave wrong values in silence."""
    qkv = random((5, 3, 4, 128), "float16")
    on_device = cupy.asarray(qkv)
    q = on_device[:, 0]
    assert cunorm.rms_norm(q, out=q) is q
    assert_matches(q, _reference.rms_norm(qkv[:, 0]))
    assert bits(on_device[:, 1:]) == bits(qkv[:, 1:])


@pytest.mark.parametrize("dtype", NARROW)
def test_769_columns_do_not_reach_into_the_next_row(dtype):
    """ROCm/aiter#5044: at N=769 the last packet of a row was written whole, into the next one."""
    x = random((1, 769), dtype)
    whole, view = place(x, "contiguous")
    cunorm.rms_norm(view, out=view)
    around = whole.get()
    assert (around[:GUARDS] == GUARD).all()
    assert (around[-GUARDS:] == GUARD).all()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rows_of_1e30_stay_finite(dtype):
    """pytorch#162489: float32 squares overflow at 1.8e19, and the row came out as zeros."""
    x = random((3, 96), dtype, scale=1e30)
    y, rstd = cunorm.rms_norm_fwd(cupy.asarray(x))
    for actual, expected in zip((y, rstd), _reference.rms_norm_fwd(x), strict=True):
        assert_matches(actual, expected)
    assert np.abs(y.get().astype(np.float64)).max() > 1


def test_float64_rows_of_1e200_stay_finite():
    x = random((3, 96), "float64", scale=1e200)
    y = cunorm.rms_norm(cupy.asarray(x))
    assert_matches(y, _reference.rms_norm(x))


def test_a_float16_row_of_zeros_is_zeros():
    """DeepSpeed#581: eps of 1e-8 is 0 in float16, and zeros became NaN."""
    y = cunorm.rms_norm(cupy.zeros((2, 40), "float16"), eps=1e-8)
    assert bits(y) == bytes(160)


@pytest.mark.parametrize("dtype", EVERY)
def test_eps_is_1e_6_unless_given_whatever_the_dtype(dtype):
    """pytorch#155527: the default was that of the dtype computed in, not of the data."""
    x = cupy.asarray(random((3, 24), dtype, scale=1e-3))
    assert bits(cunorm.rms_norm(x)) == bits(cunorm.rms_norm(x, eps=1e-6))


@pytest.mark.parametrize("eps", [np.float32(0.25), np.float64(0.25), np.float16(0.25)])
def test_eps_may_be_any_real_scalar(eps):
    """cupy#8485: a Python float reaches a kernel as 8 bytes, whatever the kernel takes."""
    x = cupy.asarray(random((3, 24), "float32"))
    assert bits(cunorm.rms_norm(x, eps=eps)) == bits(cunorm.rms_norm(x, eps=0.25))


def test_65537_rows():
    """apex#411: rows beyond the 65,535 blocks of a grid's second axis were wrong."""
    x = random((65537, 8), "float16")
    assert_matches(cunorm.rms_norm(cupy.asarray(x)), _reference.rms_norm(x))


def test_65536_rows_in_three_strided_levels():
    """llama.cpp#27901: the y and z axes of a grid end at 65,535."""
    wide = random((2, 65536, 2, 8), "float16")
    x = wide[:, :, :1, :4]
    y = cunorm.rms_norm(cupy.asarray(wide)[:, :, :1, :4])
    assert_matches(y, _reference.rms_norm(x))


def test_offsets_past_two_to_the_31_elements():
    """vllm#42862, flashinfer#3005: row offsets of 32 bits wrapped around."""
    # Only the pages of the two rows are touched; the 4 GiB between them stay virtual.
    stride = 2**31
    buffer = cupy.empty(stride + 128, "float16")
    x = random((2, 128), "float16")
    buffer[:128] = cupy.asarray(x[0])
    buffer[stride:] = cupy.asarray(x[1])
    rows = cupy.lib.stride_tricks.as_strided(buffer, (2, 128), (2 * stride, 2))
    assert_matches(cunorm.rms_norm(rows), _reference.rms_norm(x))


@pytest.mark.parametrize("inner", [2**20, 2**31])
def test_more_rows_than_32_bits_count_are_counted_in_64(monkeypatch, inner):
    """One row over and over: its launch is prepared, and not made."""
    asked = []
    load = kernels.load

    def asking(plan, reach, device):
        asked.append(reach)
        return load(plan, reach, device)

    monkeypatch.setattr(kernels, "load", asking)
    plan = plans.rms_norm(64, "float32", None, cast="after", arch=kernels.arch(0))
    rows = cupy.lib.stride_tricks.as_strided(
        cupy.empty(64 * 3, "float32"), (3, inner, 64), (256, 0, 4)
    )
    arrays, scalars = {"y": rows, "x": rows}, {"eps": 0.0, "gamma_offset": 0.0, "scale_offset": 1.0}
    launch = launches.prepare(plan, 1, arrays, {}, scalars, ("y", "x"), {})
    assert launch.grid == (3 * inner // 32,)
    assert [(reach.levels, reach.wide_index) for reach in asked] == [(2, inner == 2**31)]
    numbers = launches.numbers_of((3, inner), ((256, 0),), "float32", ())
    assert numbers["count"] == 3 * inner
    assert numbers["extent"].tolist() == [3, inner]
    assert numbers["strides"].tolist() == [[0, 256, 0]]


def test_no_rows_give_no_rows():
    """pytorch#28614, dask#5992: empty arrays reached the kernel with a grid of zero blocks."""
    y, rstd = cunorm.rms_norm_fwd(cupy.empty((0, 4, 16), "bfloat16"))
    assert (y.shape, y.dtype) == ((0, 4, 16), _reference.BFLOAT16)
    assert (rstd.shape, rstd.dtype) == ((0, 4), np.float32)


@pytest.mark.parametrize("shape", [(4, 0), (0, 0), (2, 3, 0)])
def test_rows_without_columns_give_rows_without_columns(shape):
    """pytorch#80893: the mean of nothing has no number, and nothing is to be normalised."""
    y, rstd = cunorm.rms_norm_fwd(cupy.empty(shape, "float32"))
    assert y.shape == shape
    assert rstd.shape == shape[:-1]
    assert np.isnan(rstd.get()).all()


@pytest.mark.slow("a kernel each, and no size has one of its own")
@pytest.mark.parametrize("cols", [192, 384, 1536, 2304, 12288, 14336, 18432])
def test_any_hidden_size_works(cols):
    """flash-attention#120, apex#1866, TensorRT-LLM#16702: sizes missing from a list."""
    x = random((2, cols), "bfloat16")
    assert_matches(cunorm.rms_norm(cupy.asarray(x)), _reference.rms_norm(x))


def qwen2_rms_norm(hidden_states, weight, variance_epsilon):
    """Qwen2RMSNorm.forward of Hugging Face transformers, from its definition."""
    input_dtype = hidden_states.dtype
    hidden_states = hidden_states.to(torch.float32)
    variance = hidden_states.pow(2).mean(-1, keepdim=True)
    hidden_states = hidden_states * torch.rsqrt(variance + variance_epsilon)
    return weight * hidden_states.to(input_dtype)
