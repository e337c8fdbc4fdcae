"""The promises: what holds for every op, dtype and size, bit for bit."""

import re

import cupy
import numpy as np
import plans
import pytest
from arrays import EVERY, READ_TWICE, bits, each_size, random
from cuda import pathfinder
from cupy.cuda.compiler import _NVRTCProgram
from kinds import some_of

import cunorm
from cunorm import _plan, _reference
from cunorm._launch import kernels
from cunorm._selfcheck.layouts import GUARD, GUARDS, around, place

SIZES = [1, 7, 128, 769, 4096, 5125, 20000]
# Rows of a batch, the more the shorter: always more than there are multiprocessors.
BATCH = {cols: 1000 if cols <= 1024 else 200 for cols in SIZES}

OPS = {
    "rms_norm": lambda x, gamma, beta, **out: cunorm.rms_norm_fwd(x, gamma, **out),
    "layer_norm": lambda x, gamma, beta, **out: cunorm.layer_norm_fwd(x, gamma, beta, **out),
}
ops = pytest.mark.parametrize("op", OPS)
dtypes = pytest.mark.parametrize("dtype", EVERY)


def parameters(cols, dtype):
    return [cupy.asarray(random(cols, dtype, seed=seed)) for seed in (1, 2)]


@some_of(
    [(op, ("float16", cols)) for i, op in enumerate(OPS) for cols in SIZES[i::2]],
    "large batches in every dtype; KINDS has each dtype in small ones",
    op=OPS,
    size=each_size(SIZES),
)
def test_a_row_has_the_same_bits_alone_in_batches_at_any_alignment_and_strides(op, size):
    dtype, cols = size
    norm, (gamma, beta) = OPS[op], parameters(cols, dtype)
    row = random((1, cols), dtype, scale=3, shift=0.5)
    alone = [bits(output) for output in norm(cupy.asarray(row), gamma, beta)]

    three = np.concatenate([random((1, cols), dtype, seed=9), row, row])
    for layout in ("contiguous", "row-strided", "base + 1 element"):
        outputs = norm(place(three, layout)[1], gamma, beta)
        for index in (1, 2):
            assert [bits(output[index]) for output in outputs] == alone, (layout, index)

    batch = np.repeat(random((1, cols), dtype, seed=9), BATCH[cols], axis=0)
    places = [0, 1, len(batch) // 2, len(batch) - 2, len(batch) - 1]
    batch[places] = row
    outputs = norm(cupy.asarray(batch), gamma, beta)
    for index in places:
        assert [bits(output[index]) for output in outputs] == alone, index


@pytest.mark.slow("every dtype and layout; KINDS has each in pairs")
@pytest.mark.parametrize("layout", ["contiguous", "row-strided", "base + 1 element"])
@dtypes
@ops
def test_in_place_equals_out_of_place_bit_for_bit(op, dtype, layout):
    norm, (gamma, beta) = OPS[op], parameters(769, dtype)
    x = random((5, 769), dtype)
    apart = [bits(output) for output in norm(cupy.asarray(x), gamma, beta)]
    _, view = place(x, layout)
    together = norm(view, gamma, beta, out=view)
    assert together[0] is view
    assert [bits(output) for output in together] == apart


@pytest.mark.slow("millions of columns, which KINDS has in place too")
@ops
def test_rows_read_twice_may_be_written_in_place(op):
    # Past what it keeps a row is read again after its sum; each lane must read before it writes.
    norm, (gamma, beta) = OPS[op], parameters(READ_TWICE, "float16")
    x = random((2, READ_TWICE), "float16")
    apart = [bits(output) for output in norm(cupy.asarray(x), gamma, beta)]
    _, view = place(x, "contiguous")
    assert [bits(output) for output in norm(view, gamma, beta, out=view)] == apart


@pytest.mark.parametrize("arch", [75, 80, 86, 89, 90, 100, 120])
def test_what_is_called_read_twice_is(arch):
    both = (
        plans.rms_norm(READ_TWICE, "float16", None, arch=arch),
        plans.layer_norm(READ_TWICE, "float16", None, None, arch=arch),
    )
    for plan in both:
        split = plan.split
        kept = (split.packets + split.shared) * split.lanes * split.cluster
        assert kept < READ_TWICE // plan.vec


@pytest.mark.slow("every size and dtype; KINDS has each in pairs")
@pytest.mark.parametrize(("dtype", "cols"), each_size([1, 7, 8, 769, 1024, 5125]))
@ops
def test_nothing_is_written_outside_out_and_the_input_is_untouched(op, dtype, cols):
    norm, (gamma, beta) = OPS[op], parameters(cols, dtype)
    x = random((3, cols), dtype)
    for layout in ("row-strided", "base + 1 element"):
        source, view = place(x, layout)
        target, out = place(np.full_like(x, np.nan), layout)
        before = bits(source)
        assert norm(view, gamma, beta, out=out)[0] is out
        assert bits(source) == before
        assert np.isfinite(out.get().astype(np.float64)).all()
        beside = around(target, x.shape, layout)
        assert beside.size > 2 * GUARDS - 1
        assert (beside.astype(np.float64) == GUARD).all()


@some_of(
    [
        *(("rms_norm", "float16", 64), ("layer_norm", "bfloat16", 1024)),
        *(("rms_norm", "float32", 4096), ("layer_norm", "float16", 8192)),
    ],
    "the other dtypes at each way of keeping a row in registers",
    op=OPS,
    dtype=["float16", "bfloat16", "float32"],
    cols=[64, 1024, 4096, 8192],
)
def test_a_row_in_registers_is_read_once_and_written_once(op, dtype, cols):
    # Counted in the PTX, where a row of whole packets has no branches around its accesses: each
    # lane has as many 16-byte accesses as it has packets.
    if op == "rms_norm":
        plan = plans.rms_norm(cols, dtype, None, arch=80)
    else:
        plan = plans.layer_norm(cols, dtype, None, None, arch=80)
    text = ptx(plan)
    assert plan.split.shared == 0
    assert len(re.findall(r"^\s*(?:@%p\d+ )?ld\.global", text, re.MULTILINE)) == plan.split.packets
    stores = re.findall(r"^\s*(?:@%p\d+ )?st\.global(\S*)", text, re.MULTILINE)
    assert sum(".v4" in store for store in stores) == plan.split.packets
    statistics = 1 if op == "rms_norm" else 2
    assert len(stores) == plan.split.packets + statistics


def ptx(plan):
    """Compile a plan's kernel for arrays that are aligned, and return its PTX."""
    reach = _plan.Reach(tuple((name, "ALIGNED") for name in (*plan.of_rows, *plan.parameters)))
    unit = plan.unit(reach, next(iter(plan.tries(reach))))
    headers = (kernels.folder(), pathfinder.find_nvidia_header_directory("cudart"))
    options = (*(f"-I{each}" for each in headers), "--std=c++17", "-ftz=true", "-arch=compute_80")
    compiled, _ = _NVRTCProgram(unit, f"{plan.kernel}.cu").compile(options)
    return compiled.decode() if isinstance(compiled, bytes) else compiled


@pytest.mark.slow("every size and dtype; KINDS has each in pairs")
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("cols", [7, 128, 769])
@dtypes
@ops
def test_nan_and_infinity_stay_in_their_row(op, dtype, cols, bad):
    # Small rows share a warp, and its shuffles, with their neighbours.
    norm, (gamma, beta) = OPS[op], parameters(cols, dtype)
    x = random((5, cols), dtype)
    clean = norm(cupy.asarray(x), gamma, beta)
    x[2, cols // 2] = bad
    dirty = norm(cupy.asarray(x), gamma, beta)
    for before, after in zip(clean, dirty, strict=True):
        for row in (0, 1, 3, 4):
            assert bits(after[row]) == bits(before[row]), row
    assert np.isnan(dirty[0][2].get().astype(np.float64)).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@dtypes
def test_a_row_with_nan_or_infinity_is_what_the_definition_makes_of_it(dtype, bad):
    x = random((2, 40), dtype)
    x[1, 3] = bad
    with np.errstate(invalid="ignore"):
        wanted = [_reference.rms_norm(x), _reference.layer_norm(x)]
    for y, expected in zip(
        (cunorm.rms_norm(cupy.asarray(x)), cunorm.layer_norm(cupy.asarray(x))), wanted, strict=True
    ):
        assert np.array_equal(np.isnan(y.get().astype(np.float64)), np.isnan(expected.value))


@dtypes
@ops
def test_the_plain_op_gives_the_bits_of_the_one_with_statistics(op, dtype):
    gamma, beta = parameters(96, dtype)
    x = cupy.asarray(random((4, 96), dtype))
    if op == "rms_norm":
        assert bits(cunorm.rms_norm(x, gamma)) == bits(cunorm.rms_norm_fwd(x, gamma)[0])
    else:
        plain = cunorm.layer_norm(x, gamma, beta)
        assert bits(plain) == bits(cunorm.layer_norm_fwd(x, gamma, beta)[0])


@pytest.mark.slow("again and in other batches, as KINDS has them")
@dtypes
@ops
def test_the_same_call_gives_the_same_bits_again(op, dtype):
    norm, (gamma, beta) = OPS[op], parameters(3000, dtype)
    x = cupy.asarray(random((3, 3000), dtype))
    first, second = norm(x, gamma, beta), norm(x, gamma, beta)
    assert [bits(a) for a in first] == [bits(b) for b in second]


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"gamma": "short"}, ValueError),
        ({"gamma": "integers"}, TypeError),
        ({"eps": -1.0}, ValueError),
        ({"eps": "1e-6"}, TypeError),
        ({"out": "overlapping"}, ValueError),
    ],
)
@ops
def test_a_refused_argument_writes_nothing(op, change, error):
    base = cupy.asarray(random(9 * 16, "float32"))
    x = base[: 8 * 16].reshape(8, 16)
    before = bits(base)
    arguments = {"gamma": cupy.ones(16, "float32"), "eps": 1e-6, "out": x}
    strange = {
        "short": cupy.ones(15, "float32"),
        "integers": cupy.ones(16, "int32"),
        "overlapping": base[16:].reshape(8, 16),
    }
    arguments |= {
        name: strange.get(value, value) if isinstance(value, str) else value
        for name, value in change.items()
    }
    with pytest.raises(error):
        getattr(cunorm, op)(x, **arguments)
    assert bits(base) == before


@ops
def test_an_empty_slice_of_a_strided_array_is_normalised_to_nothing(op):
    """dask#5992: map_blocks calls a function on a 0-size array with the strides of the original."""
    wide = cupy.zeros((6, 2, 16), "float32")
    y = getattr(cunorm, op)(wide[:0, :1, :8])
    assert (y.shape, y.dtype) == ((0, 1, 8), np.float32)
