"""A row is summed by one tree: however it is shared out, its results have the same bits."""

from itertools import product
from random import Random

import cupy
import plans
import pytest
from arrays import bits, random

import cunorm
from cunorm._call import remembered
from cunorm._launch import kernels
from cunorm._plan.ways import ways

PLANS = {
    "rms_norm_fwd": plans.rms_norm,
    "add_layer_norm_fwd": plans.add_layer_norm,
    "rms_norm_bwd": plans.rms_norm_bwd,
    "layer_norm_bwd": plans.layer_norm_bwd,
}
COLS = (7, 128, 769, 1024, 1540, 4096, 5125, 8192, 32768, 131072)
DTYPES = ("float16", "bfloat16", "float32", "float64")


def called(op, cols, dtype):
    x, dy = (cupy.asarray(random((3, cols), dtype, seed=seed)) for seed in (1, 2))
    gamma, beta = (cupy.asarray(random(cols, "float32", seed=seed)) for seed in (3, 4))
    acc = "float64" if dtype == "float64" else "float32"
    mean, rstd = (cupy.asarray(random(3, acc, seed=seed)) for seed in (5, 6))
    call = getattr(cunorm, op)
    arrays = {
        "rms_norm_fwd": (x, gamma),
        "add_layer_norm_fwd": (x, dy, gamma, beta),
        "rms_norm_bwd": (dy, x, gamma, rstd),
        "layer_norm_bwd": (dy, x, gamma, mean, rstd),
    }
    return [bits(a) for a in call(*arrays[op])]


ALWAYS = [
    *(("rms_norm_fwd", 7, "float16"), ("layer_norm_bwd", 128, "float16")),
    *(("add_layer_norm_fwd", 1024, "float32"), ("rms_norm_bwd", 1024, "bfloat16")),
]
WHY = "each makes six kernels, some of which compile in seconds"
SLOW = [
    pytest.param(*case, marks=pytest.mark.slow(WHY, shares=80))
    for case in product(PLANS, COLS, DTYPES)
    # A backward pass reads longer rows again, and has few other ways to keep them.
    if case not in ALWAYS and not (case[0].endswith("bwd") and case[1] > 40_000)
]


@pytest.mark.parametrize(("op", "cols", "dtype"), [*ALWAYS, *SLOW])
def test_a_row_has_the_same_bits_however_it_is_shared_out(op, cols, dtype):
    own, *others = ways(PLANS[op](cols, dtype, "float32", arch=kernels.arch(0)))
    with remembered.by(own):
        expected = called(op, cols, dtype)
    assert called(op, cols, dtype) == expected  # as of few rows, which these are
    for way in Random(f"{op} {cols} {dtype}").sample(others, min(5, len(others))):
        with remembered.by(way):
            assert called(op, cols, dtype) == expected, way


@pytest.mark.parametrize("op", PLANS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_several_warps_have_a_block_each(op, dtype):
    """The other rows of a block would be read past the last: their warps wait for one another."""
    for cols in COLS:
        for way in ways(PLANS[op](cols, dtype, "float32", arch=kernels.arch(0)), few=True):
            assert way.split.lanes <= 32 or way.split.rows == 1, way


@pytest.mark.parametrize(("rows", "cols"), [(21, 4096), (140, 769), (145, 128)])
def test_devices_of_any_number_of_multiprocessors_have_the_same_bits(monkeypatch, rows, cols):
    """Rows are few on the one and many on the other, which have kernels of their own."""
    device = kernels.device
    x, dy = (cupy.asarray(random((rows, cols), "float16", seed=seed)) for seed in (1, 2))
    gamma = cupy.asarray(random(cols, "float16", seed=3))
    results = []
    for multiprocessors in (1, 20, 132, 148):
        of = device(0)._replace(multiprocessors=multiprocessors)
        monkeypatch.setattr(kernels, "device", lambda _, of=of: of)
        remembered.clear()
        y, mean, rstd = cunorm.layer_norm_fwd(x, gamma)
        gradients = cunorm.layer_norm_bwd(dy, x, gamma, mean, rstd)
        results.append([bits(a) for a in (y, mean, rstd, *gradients)])
    assert all(result == results[0] for result in results)
