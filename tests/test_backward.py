"""rms_norm_bwd and layer_norm_bwd against finite differences, autograd and their definitions.

Sizes are each side of where a kernel changes what keeps a row: sub-warps, a warp, a block,
registers, shared memory, memory. Rows are none, one, less than a block's, and more than its device
holds at once.
"""

from __future__ import annotations

from functools import partial, reduce

import cupy
import numpy as np
import pytest
import torch
from arrays import EVERY, NARROW, assert_matches, bits, random, to_torch

import cunorm
from cunorm import _kernels, _plan_backward, _reference, simgpu
from cunorm._layouts import place

OPS = ["rms_norm", "layer_norm"]
ops = pytest.mark.parametrize("op", OPS)
SIZES = [1, 7, 64, 128, 769, 1024, 4096, 5125, 20000]


def statistics(op, x, axes=1):
    """Return what the forward op keeps of x, on the device: rstd, or mean and rstd."""
    gamma = cupy.ones(x.shape[x.ndim - axes :], x.dtype)
    return getattr(cunorm, f"{op}_fwd")(cupy.asarray(x), gamma)[1:]


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


@pytest.mark.parametrize("cols", SIZES)
@pytest.mark.parametrize("dtype", EVERY)
@ops
def test_every_size_matches_the_definition(op, dtype, cols):
    rows = 37 if cols <= 1024 else 3
    x, dy, dresidual = (random((rows, cols), dtype, seed=seed) for seed in range(3))
    gamma = random(cols, dtype, seed=3, scale=0.1, shift=1)
    assert_is_the_definition(op, dy, x, gamma, dresidual=dresidual)


@pytest.mark.parametrize("cols", [140000, 140003])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
@ops
def test_rows_that_nothing_can_keep_match_the_definition(op, dtype, cols):
    plan = getattr(_plan_backward, f"{op}_bwd")(
        cols,
        dtype,
        dtype,
        dresidual=True,
        arch=90,
        **({"gamma_offset": False} if "rms" in op else {}),
    )
    assert (plan.packets + plan.shared) * plan.lanes * plan.vec < cols
    x, dy, dresidual = (random((2, cols), dtype, seed=seed) for seed in range(3))
    assert_is_the_definition(op, dy, x, random(cols, dtype, seed=3), dresidual=dresidual)


@pytest.mark.parametrize("rows", [1, 3, 37, 1000])
@pytest.mark.parametrize("cols", [7, 600])
@pytest.mark.parametrize("dtype", EVERY)
@ops
def test_every_number_of_rows_matches_the_definition(op, dtype, cols, rows):
    x, dy = (random((rows, cols), dtype, seed=seed, shift=0.5) for seed in range(2))
    assert_is_the_definition(op, dy, x, random(cols, dtype, seed=3))


@pytest.mark.parametrize("shape", [(0, 16), (3, 0, 16), (4, 0), (0, 0)])
@ops
def test_no_rows_give_no_dx_and_zeros(op, shape):
    x = np.zeros(shape, np.float16)
    gamma = np.ones(shape[-1], np.float32)
    dx, *totals = backward(op, x, x, gamma, *statistics(op, x))
    assert (dx.shape, dx.dtype) == (shape, np.float16)
    for total in totals:
        assert (total.shape, total.dtype) == (gamma.shape, np.float32)
        assert not total.get().any()


@pytest.mark.parametrize("gamma_dtype", [None, *NARROW])
@pytest.mark.parametrize("dtype", NARROW)
@ops
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


@pytest.mark.parametrize(
    "layout",
    ["contiguous", "row-strided", "base + 1 element", "strided heads", "transposed", "2-D gamma"],
)
@pytest.mark.parametrize("cols", [72, 600])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@ops
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


@pytest.mark.parametrize("shift", [0, 1, 2, 3, 5])
@pytest.mark.parametrize("cols", [24, 768, 2048])
@ops
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


@ops
def test_a_gradient_broadcast_over_all_columns_is_copied_and_right(op):
    x = random((4, 40), "float32")
    dy = np.broadcast_to(np.float32(2), x.shape)
    gamma, kept = cupy.asarray(random(40, "float32", seed=1)), statistics(op, x)
    broadcast = cupy.broadcast_to(cupy.asarray(np.float32(2)), x.shape)
    one = backward(op, broadcast, x, gamma, *kept)
    other = backward(op, np.ascontiguousarray(dy), x, gamma, *kept)
    assert [bits(a) for a in one] == [bits(a) for a in other]


@pytest.mark.parametrize("cols", [40, 769])
@ops
def test_dx_of_a_row_has_the_same_bits_alone_and_in_a_batch(op, cols):
    x, dy = (random((1000, cols), "bfloat16", seed=seed) for seed in range(2))
    gamma = random(cols, "float32", seed=3)
    kept = statistics(op, x)
    whole = backward(op, dy, x, gamma, *kept)[0]
    for row in (0, 1, 500, 999):
        one = slice(row, row + 1)
        alone = backward(op, dy[one], x[one], gamma, *(k[one] for k in kept))[0]
        assert bits(alone) == bits(whole[one])


@pytest.mark.parametrize("cols", [40, 769])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@ops
def test_sums_over_rows_have_the_same_bits_on_ten_runs(op, dtype, cols):
    x, dy = (random((1000, cols), dtype, seed=seed) for seed in range(2))
    gamma = random(cols, "float32", seed=3)
    kept = statistics(op, x)
    x, dy, gamma = map(cupy.asarray, (x, dy, gamma))
    runs = {tuple(bits(a) for a in backward(op, dy, x, gamma, *kept)) for _ in range(10)}
    assert len(runs) == 1


@pytest.mark.parametrize("cols", [40, 600])
def test_dbeta_is_added_up_in_the_order_that_is_documented(cols):
    x, dy = (random((1000, cols), "float32", seed=seed) for seed in range(2))
    dbeta = backward("layer_norm", dy, x, np.ones(cols, np.float32), *statistics("layer_norm", x))[
        2
    ]
    plan = _plan_backward.layer_norm_bwd(
        cols, "float32", "float32", dresidual=False, arch=_kernels.arch(0)
    )
    (blocks,) = plan.persistent_grid(1000, _kernels.multiprocessors(0))
    assert 1 < blocks < 1000

    def in_turn(terms):
        return reduce(np.add, terms, np.zeros(cols, np.float32))

    def of_block(block):
        groups = range(block, -(-1000 // plan.rows), blocks)
        return in_turn(
            in_turn(dy[g * plan.rows + row] for g in groups if g * plan.rows + row < 1000)
            for row in range(plan.rows)
        )

    partials = [of_block(block) for block in range(blocks)]
    slices = _plan_backward.SUM_SLICES
    expected = in_turn(in_turn(partials[s::slices]) for s in range(slices))
    assert bits(dbeta) == bits(expected)


# Other people's gradients.


@pytest.mark.parametrize("cols", [1, 7, 64, 257, 1025])
@ops
def test_float64_gradients_are_those_of_autograd(op, cols):
    x, dy, dresidual = (random((5, cols), "float64", seed=seed) for seed in range(3))
    gamma, beta = (random(cols, "float64", seed=seed) for seed in (3, 4))
    leaves = [to_torch(a.copy()).requires_grad_() for a in (x, gamma, beta)]
    if op == "rms_norm":
        y = torch.nn.functional.rms_norm(leaves[0], (cols,), leaves[1], eps=1e-6)
        _, *kept = cunorm.rms_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    else:
        y = torch.nn.functional.layer_norm(leaves[0], (cols,), *leaves[1:], eps=1e-5)
        _, *kept = cunorm.layer_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    (y * to_torch(dy) + leaves[0] * to_torch(dresidual)).sum().backward()
    actual = backward(op, dy, x, gamma, *kept, dresidual=cupy.asarray(dresidual))
    for a, leaf in zip(actual, leaves, strict=False):
        # One column has no gradient but eps's: what is left is all cancellation.
        np.testing.assert_allclose(a.get(), leaf.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gamma_offset", [0.0, 1.0])
@ops
def test_float64_gradients_are_finite_differences_of_the_forward_op(op, gamma_offset):
    x, dy, gamma = (random(shape, "float64", seed=3) for shape in ((2, 5), (2, 5), (5,)))
    options = {"gamma_offset": gamma_offset} if op == "rms_norm" else {}
    forward = partial(getattr(cunorm, op), **options)
    kept = statistics(op, x)
    gradients = backward(op, dy, x, gamma, *kept, **options)
    step = 1e-5  # balances a third derivative against roundings, each near 1e-10
    for position, gradient in enumerate(gradients[:2]):
        for index in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                arguments = [x.copy(), gamma.copy()]
                arguments[position][index] += sign * step
                y = forward(*map(cupy.asarray, arguments)).get()
                values.append(float((y * dy).sum()))
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.get()[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize("dtype", NARROW)
def test_gradients_of_an_addition_and_a_norm(dtype):
    """What a training step does with add_rms_norm: dresidual is h's other gradient."""
    x, residual, dy, dh = (random((6, 769), dtype, seed=seed) for seed in range(4))
    _, h = cunorm.add_rms_norm(cupy.asarray(x), cupy.asarray(residual))
    assert_is_the_definition("rms_norm", dy, h.get(), random(769, dtype, seed=5), dresidual=dh)


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
        ("dresidual", 3, TypeError, r"dresidual must be a cupy\.ndarray, but is a int"),
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
        (True, float("inf"), ValueError, "gamma_offset must be finite, but is inf"),
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


@pytest.mark.simgpu
@pytest.mark.parametrize("cols", [128, 1024, 4096, 16384])
@pytest.mark.parametrize("dtype", EVERY)
@ops
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
    options = {"gamma_offset": False} if op == "rms_norm" else {}
    plan = getattr(_plan_backward, f"{op}_bwd")(
        cols, dtype, dtype, dresidual=True, arch=_kernels.arch(0), **options
    )
    kept_whole = (plan.packets + plan.shared) * plan.lanes * plan.vec >= cols
    assert kept_whole or (dtype, cols) == ("float64", 16384)
    traffic = {array.address: array for array in main.arrays}
    for a in (x, dy):
        # What the longest rows of float64 leave over is read again, from L2.
        ratio = traffic[a.data.ptr].loads.requested_per_distinct
        assert ratio == 1 if kept_whole else 1 < ratio < 1.4
        assert traffic[a.data.ptr].loads.distinct * 32 == x.nbytes
    assert traffic[dresidual.data.ptr].loads.bytes == x.nbytes
    assert traffic[dresidual.data.ptr].loads.requested_per_distinct == 1
    assert traffic[dx.data.ptr].stores.bytes == x.nbytes
    assert traffic[dx.data.ptr].stores.requested_per_distinct == 1
    # All that the kernel needs, and not more: the rest is gamma, statistics and the blocks' sums.
    (blocks,) = plan.persistent_grid(rows, _kernels.multiprocessors(0))
    partials = len(totals) * blocks * cols * np.dtype(plan.accumulator).itemsize
    small = gamma.nbytes + sum(-(-k.nbytes // 32) * 32 for k in kept)  # in sectors
    assert main.dram_floor_bytes == 4 * x.nbytes + small + partials
    assert sums.dram_floor_bytes == partials + len(totals) * gamma.nbytes
