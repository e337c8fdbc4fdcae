"""rms_norm_bwd and layer_norm_bwd against their definitions, of mean and rstd as they are given.

Sizes are each side of where a kernel changes what keeps a row: sub-warps, a warp, a block,
registers, shared memory, memory. Rows are none, one, less than a block's, and more than its device
holds at once. test_backward_gradients.py has what other people say of gradients.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import product

import cupy
import numpy as np
import plans
import pytest
from arrays import EVERY, NARROW, assert_matches, bits, each_size, random
from kinds import in_pairs, some_of, these

import cunorm
from cunorm import _reference, simgpu
from cunorm._launch import kernels
from cunorm._plan.backward_kernel import FEWEST_BLOCKS, GROUPS_OF_BLOCK, SUM_SLICES
from cunorm._plan.devices import SHARED_BYTES
from cunorm._selfcheck.layouts import place

OPS = ["rms_norm", "layer_norm"]
ops = pytest.mark.parametrize("op", OPS)
SIZES = [1, 7, 128, 769, 1024, 5125, 20000]


def statistics(op, x, axes=1):
    """Return what a forward op keeps of x, on the device: rstd, or mean and rstd."""
    gamma = np.ones(x.shape[x.ndim - axes :], x.dtype)
    kept = getattr(_reference, f"{op}_fwd")(x, gamma)[1:]
    return [cupy.asarray(k.value.astype(k.dtype)) for k in kept]


def backward(op, dy, x, gamma, *kept, **options):
    """Return the op's gradients; arrays may still be on the host."""
    dy, x, gamma, *kept = (None if a is None else cupy.asarray(a) for a in (dy, x, gamma, *kept))
    return getattr(cunorm, f"{op}_bwd")(dy, x, gamma, *kept, **options)


def assert_is_the_definition(op, dy, x, gamma, *, dresidual=None, **options):
    """Run an op and hold every gradient against the definition; return the gradients."""
    kept = statistics(op, x, 1 if gamma is None else gamma.ndim)
    beside = None if dresidual is None else cupy.asarray(dresidual)
    actual = backward(op, dy, x, gamma, *kept, dresidual=beside, **options)
    expected = getattr(_reference, f"{op}_bwd")(
        dy, x, gamma, *(k.get() for k in kept), dresidual=dresidual, **options
    )
    for a, e in zip(actual, expected, strict=True):
        if e is None:
            assert a is None
        else:
            assert_matches(a, e)
    return actual


@pytest.mark.slow("in every dtype; KINDS has each way of keeping a row")
@pytest.mark.parametrize(("dtype", "cols"), each_size(SIZES))
@ops
def test_every_size_matches_the_definition(op, dtype, cols):
    rows = 37 if cols <= 1024 else 3
    x, dy, dresidual = (random((rows, cols), dtype, seed=seed) for seed in range(3))
    gamma = random(cols, dtype, seed=3, scale=0.1, shift=1)
    assert_is_the_definition(op, dy, x, gamma, dresidual=dresidual)


@some_of(
    [("layer_norm", "float16", 40000)],
    "KINDS has rows that nothing can keep",
    op=OPS,
    dtype=["float16", "float32"],
    cols=[40000, 40003],
)
def test_rows_that_nothing_can_keep_match_the_definition(op, dtype, cols):
    plan = getattr(plans, f"{op}_bwd")(
        cols,
        dtype,
        dtype,
        dresidual=True,
        arch=90,
    )
    assert (plan.split.packets + plan.split.shared) * plan.split.lanes * plan.vec < cols
    x, dy, dresidual = (random((2, cols), dtype, seed=seed) for seed in range(3))
    assert_is_the_definition(op, dy, x, random(cols, dtype, seed=3), dresidual=dresidual)


ROWS = [1, 3, 37, 1000]
OF_EACH_DTYPE = [
    *(("rms_norm", "float16", 600), ("layer_norm", "bfloat16", 7)),
    *(("layer_norm", "float32", 600), ("rms_norm", "float64", 7)),
]


@some_of(
    [(*kernel, rows) for kernel in OF_EACH_DTYPE for rows in ROWS],
    "in other kernels, of which none knows how many rows there are",
    op=OPS,
    dtype=EVERY,
    cols=[7, 600],
    rows=ROWS,
)
def test_every_number_of_rows_matches_the_definition(op, dtype, cols, rows):
    x, dy = (random((rows, cols), dtype, seed=seed, shift=0.5) for seed in range(2))
    assert_is_the_definition(op, dy, x, random(cols, dtype, seed=3))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (4, 0), (0, 0)])
@ops
def test_no_rows_give_no_dx_and_zeros(op, shape):
    x = np.zeros(shape, np.float16)
    gamma = np.ones(shape[-1], np.float32)
    kept = [np.zeros(shape[:-1], np.float32)] * (1 if op == "rms_norm" else 2)
    dx, *totals = backward(op, x, x, gamma, *kept)
    assert (dx.shape, dx.dtype) == (shape, np.float16)
    for total in totals:
        assert (total.shape, total.dtype) == (gamma.shape, np.float32)
        assert not total.get().any()


@some_of(
    [
        ("rms_norm", "float16", "bfloat16"),
        ("layer_norm", "bfloat16", "float16"),
        ("rms_norm", "float32", "bfloat16"),
        ("layer_norm", "float16", None),
    ],
    "mixes that KINDS has too",
    op=OPS,
    dtype=NARROW,
    gamma_dtype=[None, *NARROW],
)
def test_every_mix_of_dtypes_matches_the_definition(op, dtype, gamma_dtype):
    x, dy = (random((5, 200), dtype, seed=seed) for seed in range(2))
    gamma = None if gamma_dtype is None else random(200, gamma_dtype, seed=3)
    assert_is_the_definition(op, dy, x, gamma)


@pytest.mark.parametrize("gamma_dtype", ["float32", "float64"])
@ops
def test_float64_takes_float32_and_float64_parameters(op, gamma_dtype):
    x, dy = (random((5, 136), "float64", seed=seed) for seed in range(2))
    assert_is_the_definition(op, dy, x, random(136, gamma_dtype, seed=3))


@pytest.mark.parametrize("gamma_offset", [1.0, -0.5])
@pytest.mark.parametrize("dtype", EVERY)
def test_gamma_offset_is_added_to_gamma(dtype, gamma_offset):
    x, dy = (random((5, 136), dtype, seed=seed) for seed in range(2))
    gamma = random(136, dtype, seed=3, scale=0.1)
    assert_is_the_definition("rms_norm", dy, x, gamma, gamma_offset=gamma_offset)


@some_of(
    [
        ("rms_norm", "bfloat16", 72, "transposed"),
        ("layer_norm", "float32", 600, "transposed"),
        ("rms_norm", "float32", 600, "2-D gamma"),
        ("layer_norm", "bfloat16", 72, "2-D gamma"),
    ],
    "layouts that KINDS has too",
    op=OPS,
    dtype=["bfloat16", "float32"],
    cols=[72, 600],
    layout=[
        *("contiguous", "row-strided", "base + 1 element", "strided heads", "transposed"),
        "2-D gamma",
    ],
)
def test_every_layout_has_the_bits_of_contiguous_rows(op, dtype, cols, layout):
    arrays = [random((3, 5, cols), dtype, seed=seed) for seed in range(3)]
    gamma = random((5, cols) if layout == "2-D gamma" else cols, dtype, seed=3)
    dy, x, dresidual = arrays
    expected = assert_is_the_definition(op, dy, x, gamma, dresidual=dresidual)
    placed = [place(a, layout) for a in (*arrays, gamma)]
    before = [bits(whole) for whole, _ in placed]
    (dy, x, dresidual, gamma) = (view for _, view in placed)
    kept = statistics(op, x.get(), gamma.ndim)
    actual = backward(op, dy, x, gamma, *kept, dresidual=dresidual)
    assert [bits(a) for a in actual] == [bits(e) for e in expected]
    assert [bits(whole) for whole, _ in placed] == before


SHIFTS = [0, 1, 2, 3, 5]


@these(
    "op,cols,shift",
    [(*row, shift) for row in (("rms_norm", 24), ("layer_norm", 768)) for shift in SHIFTS],
    list(product(OPS, [24, 768, 2048], SHIFTS)),
    "five kernels each, which KINDS has with all arrays shifted",
)
def test_each_array_may_start_anywhere_on_its_own(op, cols, shift):
    dy, x, dresidual = (random((9, cols), "float16", seed=seed) for seed in range(3))
    gamma = random(cols, "float16", seed=3)
    kept = statistics(op, x)
    expected = [
        bits(a) for a in backward(op, dy, x, gamma, *kept, dresidual=cupy.asarray(dresidual))
    ]

    def moved(a):
        flat = cupy.zeros(a.size + shift, a.dtype)
        flat[shift:] = cupy.asarray(a.ravel())
        return flat[shift:].reshape(a.shape)

    for which in range(4):
        given = [
            moved(a) if i == which else cupy.asarray(a)
            for i, a in enumerate((dy, x, gamma, dresidual))
        ]
        actual = backward(op, *given[:3], *kept, dresidual=given[3])
        assert [bits(a) for a in actual] == expected


@in_pairs(
    op=OPS,
    which=["dy", "x", "dresidual"],
    layout=["row-strided", "strided heads", "transposed"],
)
def test_each_array_may_have_strides_of_its_own(op, which, layout):
    names = ("dy", "x", "dresidual")
    host = {name: random((3, 5, 72), "bfloat16", seed=i) for i, name in enumerate(names)}
    gamma, kept = random(72, "float32", seed=3), statistics(op, host["x"])
    given = {name: cupy.asarray(a) for name, a in host.items()}
    results = [
        backward(op, arrays["dy"], arrays["x"], gamma, *kept, dresidual=arrays["dresidual"])
        for arrays in (given, given | {which: place(host[which], layout)[1]})
    ]
    assert [bits(a) for a in results[0]] == [bits(a) for a in results[1]]


@ops
def test_a_gradient_broadcast_over_all_columns_is_copied_and_right(op):
    x = random((4, 40), "float32")
    dy = np.broadcast_to(np.float32(2), x.shape)
    gamma, kept = cupy.asarray(random(40, "float32", seed=1)), statistics(op, x)
    broadcast = cupy.broadcast_to(cupy.asarray(np.float32(2)), x.shape)
    one = backward(op, broadcast, x, gamma, *kept)
    other = backward(op, np.ascontiguousarray(dy), x, gamma, *kept)
    assert [bits(a) for a in one] == [bits(a) for a in other]


@some_of(
    [("rms_norm", 769), ("layer_norm", 40)],
    "large batches of the other op",
    op=OPS,
    cols=[40, 769],
)
def test_dx_of_a_row_has_the_same_bits_alone_and_in_a_batch(op, cols):
    x, dy = (random((1000, cols), "bfloat16", seed=seed) for seed in range(2))
    gamma = random(cols, "float32", seed=3)
    kept = statistics(op, x)
    whole = backward(op, dy, x, gamma, *kept)[0]
    for row in (0, 1, 500, 999):
        one = slice(row, row + 1)
        alone = backward(op, dy[one], x[one], gamma, *(k[one] for k in kept))[0]
        assert bits(alone) == bits(whole[one])


@some_of(
    [("rms_norm", "bfloat16", 769), ("layer_norm", "float32", 40)],
    "ten runs of 300 rows; KINDS has two of a few",
    op=OPS,
    dtype=["bfloat16", "float32"],
    cols=[40, 769],
)
def test_sums_over_rows_have_the_same_bits_on_ten_runs_wherever_rows_lie(op, dtype, cols):
    x, dy = (random((300, cols), dtype, seed=seed) for seed in range(2))
    gamma = cupy.asarray(random(cols, "float32", seed=3))
    kept = statistics(op, x)
    layouts = ["contiguous", "row-strided", "base + 1 element"]
    given = [[place(a, layout)[1] for a in (dy, x)] for layout in layouts]
    runs = {
        tuple(bits(a) for a in backward(op, *given[run % 3], gamma, *kept)) for run in range(10)
    }
    assert len(runs) == 1


def in_turn(terms, start=None):
    """Add terms up in float32, one after the other."""
    return reduce(np.add, terms, np.float32(0) if start is None else start)


def sums_as_documented(plan, terms_of_row, rows):
    """Return the sums over rows in the order that `rms_norm_bwd` documents.

    `terms_of_row(row, total)` adds a row to what its lane has added up so far.
    """
    (blocks,) = plan.grid(rows)

    def of_block(block):
        def of_lane(place):
            total = np.float32(0)
            for group in range(block, -(-rows // plan.split.rows), blocks):
                if group * plan.split.rows + place < rows:
                    total = terms_of_row(group * plan.split.rows + place, total)
            return total

        return in_turn(of_lane(place) for place in range(plan.split.rows))

    partials = [of_block(block) for block in range(blocks)]
    slices = SUM_SLICES
    return in_turn(in_turn(partials[s::slices]) for s in range(slices))


# On either side of where the grid stops growing with the rows, at 128 blocks, and grows on, when
# each block has eight groups of 1 or of 32 rows.
@pytest.mark.parametrize(
    ("cols", "rows"), [(600, 127), (600, 129), (600, 1031), (600, 1032), (40, 1000), (8, 33050)]
)
def test_sums_over_rows_are_added_up_in_the_order_that_is_documented(cols, rows):
    x, dy = (random((rows, cols), "float32", seed=seed) for seed in range(2))
    mean, rstd = (k.get() for k in statistics("layer_norm", x))
    _, dgamma, dbeta = backward("layer_norm", dy, x, np.ones(cols, np.float32), mean, rstd)
    plan = plans.layer_norm_bwd(cols, "float32", "float32", dresidual=False, arch=kernels.arch(0))
    normal = (x - mean[:, None]) * rstd[:, None]

    def multiply_and_add(row, total):  # an FMA: 64 bits hold the product, and the sum but for ties
        wide = dy[row].astype(np.longdouble) * normal[row] + total
        return wide.astype(np.float32)

    for actual, terms in ((dbeta, lambda row, total: total + dy[row]), (dgamma, multiply_and_add)):
        assert bits(actual) == bits(sums_as_documented(plan, terms, rows))


@pytest.mark.parametrize(("cols", "group"), [(40, 32), (600, 1)])
@ops
def test_rows_without_a_gradient_change_no_sum_until_the_grid_grows(op, cols, group):
    """Padding: up to eight groups for each of 128 blocks, rows stay where they are in the order.

    A padded batch, or one whose last rows are masked, so has the bits of the rows that count.
    """
    plan = getattr(plans, f"{op}_bwd")(
        *(cols, "float32", "float32"),
        dresidual=False,
        arch=kernels.arch(0),
    )
    most = GROUPS_OF_BLOCK * FEWEST_BLOCKS * group
    assert plan.split.rows == group
    assert plan.grid(most) == (FEWEST_BLOCKS,)
    x, dy = (random((300, cols), "float32", seed=seed) for seed in range(2))
    gamma = random(cols, "float32", seed=3)
    kept = [k.get() for k in statistics(op, x)]
    expected = [bits(a) for a in backward(op, dy, x, gamma, *kept)[1:]]
    for rows in (301, most):

        def padded(a, rows=rows):
            return np.concatenate([a, np.zeros((rows - 300, *a.shape[1:]), a.dtype)])

        actual = backward(op, padded(dy), padded(x), gamma, *map(padded, kept))
        assert [bits(a) for a in actual[1:]] == expected


@some_of(
    [("rms_norm", 512), ("layer_norm", 32)],
    "large batches of the other op",
    op=OPS,
    cols=[32, 128, 512, 4096],
)
def test_rows_without_a_gradient_add_nothing_wherever_they_are(op, cols):
    """Padding in front of other rows moves those, but what it holds does not matter."""
    x, dy = (random((300, cols), "float32", seed=seed) for seed in range(2))
    gamma = random(cols, "float32", seed=3)
    padding = [0, 1, 37, 38, 150, 299]
    dy[padding] = 0
    expected = backward(op, dy, x, gamma, *(k.get() for k in statistics(op, x)))[1:]
    x[padding] = random((len(padding), cols), "float32", seed=4, scale=1e3)
    actual = backward(op, dy, x, gamma, *(k.get() for k in statistics(op, x)))[1:]
    assert [bits(a) for a in actual] == [bits(a) for a in expected]


@ops
def test_rows_may_lie_2_to_the_31_elements_apart(op):
    """Offsets of 64 bits: x, dy and dresidual, each within one buffer of 4 GiB."""
    host = {name: random((2, 128), "float16", seed=i) for i, name in enumerate(("dy", "x", "dr"))}
    gamma = random(128, "float16", seed=3)
    expected = assert_is_the_definition(op, host["dy"], host["x"], gamma, dresidual=host["dr"])
    buffer = cupy.empty(2**31 + 3 * 128, "float16")
    given = {}
    for i, (name, values) in enumerate(host.items()):
        first = buffer[i * 128 :]
        first[:128] = cupy.asarray(values[0])
        buffer[2**31 + i * 128 : 2**31 + (i + 1) * 128] = cupy.asarray(values[1])
        given[name] = cupy.lib.stride_tricks.as_strided(first, (2, 128), (2**32, 2))
    kept = statistics(op, host["x"])
    actual = backward(op, given["dy"], given["x"], gamma, *kept, dresidual=given["dr"])
    assert [bits(a) for a in actual] == [bits(e) for e in expected]


# What is refused.


def arguments(op, shape=(4, 8), dtype="float32"):
    x = cupy.ones(shape, dtype)
    kept = [cupy.ones(shape[:-1], "float64" if dtype == "float64" else "float32")]
    return {
        "dy": x.copy(),
        "x": x,
        "gamma": cupy.ones(shape[-1], dtype),
        **({} if op == "rms_norm" else {"mean": kept[0]}),
        "rstd": kept[0],
    }


@pytest.mark.parametrize(
    ("name", "value", "error", "message"),
    [
        ("x", np.ones((4, 8)), TypeError, r"x must be a cupy\.ndarray, but is a numpy\.ndarray"),
        ("dy", None, TypeError, r"dy must be a cupy\.ndarray, but is a NoneType"),
        ("dresidual", 3, TypeError, r"dresidual must be a cupy\.ndarray or None, but is a int"),
        ("rstd", 1.0, TypeError, r"rstd must be a cupy\.ndarray, but is a float"),
        ("x", ((4, 8), "int32"), TypeError, "x must be float16, bfloat16.* but is int32"),
        ("dy", ((4, 8), "float16"), TypeError, "dy must have the dtype of x, float32, but has fl"),
        ("dy", ((4, 7), "float32"), ValueError, r"dy must have the shape of x, \(4, 8\), but has"),
        (
            *("dresidual", ((4, 8), "float64"), TypeError),
            "dresidual must have the dtype of x, float32, but has float64",
        ),
        (
            *("dresidual", ((8,), "float32"), ValueError),
            r"dresidual must have the shape of x, \(4, 8\), but has \(8,\)",
        ),
        ("gamma", ((4,), "float32"), ValueError, "gamma must have the shape of trailing axes of x"),
        ("gamma", ((8,), "float64"), TypeError, "gamma must be float16.* but is float64"),
        (
            *("rstd", ((4,), "float16"), TypeError),
            "rstd must be float32 where x is float32, but is float16",
        ),
        (
            *("rstd", ((4, 1), "float32"), ValueError),
            r"rstd must have one number a row, \(4,\), but has \(4, 1\)",
        ),
    ],
)
@ops
def test_a_wrong_argument_is_named_with_what_it_must_be_and_what_it_was(
    op, name, value, error, message
):
    if isinstance(value, tuple):
        value = cupy.ones(*value)
    with pytest.raises(error, match=message):
        getattr(cunorm, f"{op}_bwd")(**(arguments(op) | {name: value}))


def test_mean_is_checked_like_rstd():
    given = arguments("layer_norm") | {"mean": cupy.ones(3, "float32")}
    with pytest.raises(ValueError, match=r"mean must have one number a row, \(4,\), but has \(3,"):
        cunorm.layer_norm_bwd(**given)


@pytest.mark.parametrize(
    ("gamma", "offset", "error", "message"),
    [
        (True, float("inf"), ValueError, "gamma_offset must be finite in float32, but is inf"),
        (True, "1", TypeError, "gamma_offset must be a real number, but is a str"),
        (False, 1.0, ValueError, r"gamma_offset must be 0 where gamma is None, but is 1\.0"),
    ],
)
def test_a_wrong_gamma_offset_is_refused(gamma, offset, error, message):
    given = arguments("rms_norm")
    if not gamma:
        given["gamma"] = None
    with pytest.raises(error, match=message):
        cunorm.rms_norm_bwd(**given, gamma_offset=offset)


@ops
def test_arrays_on_two_devices_are_refused(op):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    given = arguments(op)
    with cupy.cuda.Device(1):
        given["dy"] = cupy.ones((4, 8), "float32")
    with pytest.raises(ValueError, match="dy must be on the device of x, 0, but is on 1"):
        getattr(cunorm, f"{op}_bwd")(**given)


@ops
def test_work_runs_on_the_device_of_x_whichever_is_current(op):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    expected = [bits(a) for a in getattr(cunorm, f"{op}_bwd")(**arguments(op))]
    with cupy.cuda.Device(1):
        given = arguments(op)
    actual = getattr(cunorm, f"{op}_bwd")(**given)
    assert [a.device.id for a in actual] == [1] * len(actual)
    assert [bits(a) for a in actual] == expected


# What it moves.


def packets_read_again(plan):
    """Return how many packets of a row its warps cannot keep: each has a share of neighbours."""
    packets = plan.cols // plan.vec
    share = 32 * -(-packets // plan.split.lanes)
    shares = (min(share, packets - first) for first in range(0, packets, share))
    return sum(
        max(0, packets - 32 * (plan.split.packets + plan.split.shared)) for packets in shares
    )


@pytest.mark.simgpu
@some_of(
    [
        ("rms_norm", "float16", 4096),
        ("layer_norm", "bfloat16", 1024),
        ("rms_norm", "float32", 128),
        ("layer_norm", "float32", 16384),
        ("rms_norm", "float64", 16384),
    ],
    "counted of more kernels by tests/benchmarks/test_kernel_counters.py",
    op=OPS,
    dtype=EVERY,
    cols=[128, 1024, 4096, 16384],
)
def test_sectors_of_the_backward_pass_are_its_floor(op, dtype, cols):
    """x, dy, dresidual and dx once each, and the blocks' sums written once and read once."""
    rows = max(2, 8192 // cols)
    x = random((rows, cols), dtype)
    x, dy, dresidual = (cupy.asarray(x) for _ in range(3))
    gamma = cupy.asarray(random(cols, dtype))
    kept = statistics(op, x.get())
    run = partial(getattr(cunorm, f"{op}_bwd"), dy, x, gamma, *kept, dresidual=dresidual)
    with simgpu.profile(registers=False) as profile:
        dx, *totals = run()
    main, sums = profile.launches
    plan = getattr(plans, f"{op}_bwd")(cols, dtype, dtype, dresidual=True, arch=kernels.arch(0))
    again = packets_read_again(plan)
    has_less = SHARED_BYTES[kernels.arch(0)] < SHARED_BYTES[90]
    assert again == 0 or (cols > 9216 and (has_less or dtype == "float64"))
    traffic = {array.address: array for array in main.arrays}
    for a in (x, dy):
        # What a long row leaves over is read again, from L2.
        ratio = traffic[a.data.ptr].loads.requested_per_distinct
        assert ratio == 1 + again * plan.vec / cols
        assert traffic[a.data.ptr].loads.distinct * 32 == x.nbytes
    assert traffic[dresidual.data.ptr].loads.bytes == x.nbytes
    assert traffic[dresidual.data.ptr].loads.requested_per_distinct == 1
    assert traffic[dx.data.ptr].stores.bytes == x.nbytes
    assert traffic[dx.data.ptr].stores.requested_per_distinct == 1
    # All that the kernel needs, and not more: the rest is gamma, statistics and the blocks' sums.
    (blocks,) = plan.grid(rows)
    partials = len(totals) * blocks * cols * np.dtype(plan.accumulator).itemsize
    small = gamma.nbytes + sum(-(-k.nbytes // 32) * 32 for k in kept)  # in sectors
    assert main.dram_floor_bytes == 4 * x.nbytes + small + partials
    assert sums.dram_floor_bytes == partials + len(totals) * gamma.nbytes


@pytest.mark.simgpu
@some_of(
    [("layer_norm", 40), ("rms_norm", 1024), ("layer_norm", 40000)],
    "the other op at each way of keeping a row",
    op=OPS,
    cols=[40, 1024, 40000],
)
def test_without_gamma_no_sums_are_written_and_nothing_adds_them_up(op, cols):
    x, dy = (cupy.asarray(random((3, cols), "float32", seed=seed)) for seed in range(2))
    kept = statistics(op, x.get())
    with simgpu.profile(registers=False) as profile:
        dx, *totals = getattr(cunorm, f"{op}_bwd")(dy, x, None, *kept)
    (launch,) = profile.launches
    assert [(a.address, a.stores.bytes) for a in launch.arrays if a.stores.bytes] == [
        (dx.data.ptr, x.nbytes)
    ]
    assert totals == [None] * len(totals)
