"""A row is summed by one tree: however it is shared out, its results have the same bits."""

from contextlib import contextmanager
from itertools import product
from random import Random
from unittest.mock import patch

import cupy
import plans
import pytest
from arrays import bits, random

import cunorm
from cunorm import _plan
from cunorm._call import remembered
from cunorm._plan import Split
from cunorm._plan.split import THREADS_OF_SHARED_BLOCK, WARP, whole_packets

OPS = ("rms_norm_fwd", "add_layer_norm_fwd", "rms_norm_bwd", "layer_norm_bwd")
COLS = (7, 128, 769, 1024, 1540, 4096, 5125, 8192, 32768, 131072)
DTYPES = ("float16", "bfloat16", "float32", "float64")
SHARED = 40 << 10  # of what every device has
PACKET = 96  # bytes there of a packet, with all that is beside it


@contextmanager
def shared_out(split):
    """Have every plan made meanwhile share out rows in one way."""

    def forget():
        remembered.clear()
        _plan.forward.cache_clear()
        _plan.backward.cache_clear()

    forget()
    with (
        patch.object(_plan.split, "forward", lambda *_, **__: split),
        patch.object(_plan.split, "backward", lambda *_, **__: split),
        patch.object(_plan.split, "in_registers", lambda *_, **__: None),
    ):
        yield
    forget()


def ways(op, cols, dtype, arch):
    """Yield ways to share out a row: lanes, blocks, and places to keep its packets."""
    forward = op.endswith("fwd")
    if forward:
        own = _plan.split.forward(cols, dtype, arch, residual=op.startswith("add"))
    else:
        own = getattr(plans, op)(cols, dtype, "float32", arch=arch).split
    yield own
    packets, leaf = whole_packets(cols, dtype), own.depth
    if packets <= WARP:
        for lanes in (4, 8, 16, 32):
            turns = -(-packets // lanes)
            yield Split(lanes, 1, turns, 0, THREADS_OF_SHARED_BLOCK // lanes, leaf)
        return
    chunks = -(-packets // (WARP * leaf))
    for leaves in (1, 2, 3, 4, 8, 16, 32):
        for of_block in (chunks, 4, 16, 32):
            cluster = -(-chunks // of_block)
            warps = -(-of_block // leaves)
            of_clusters = forward and arch == 90 and of_block % leaves == 0 and warps > 1
            if warps > 32 or leaves > of_block or cluster > 8 or (cluster > 1 and not of_clusters):
                continue
            turns = -(-packets // (warps * cluster * WARP))
            alone = warps * cluster == 1
            turns = turns if alone else -(-turns // leaf) * leaf
            if cluster > 1 and (warps * turns // leaf).bit_count() > 1:
                continue  # a block of a cluster is a subtree
            for kept in {turns} if alone else {turns, 1, 3, 4}:
                shared = min(turns - kept, SHARED // (PACKET * warps * WARP))
                lanes_fit = kept * warps <= 9 * 16 if forward else kept * warps <= 4 * 12
                if shared >= 0 and kept <= 9 and lanes_fit:
                    yield Split(warps * WARP, cluster, kept, shared, 1, leaf)


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
    pytest.param(*case, marks=pytest.mark.slow(WHY, shares=40))
    for case in product(OPS, COLS, DTYPES)
    # A backward pass reads longer rows again, and has few other ways to keep them.
    if case not in ALWAYS and not (case[0].endswith("bwd") and case[1] > 40_000)
]


@pytest.mark.parametrize(("op", "cols", "dtype"), [*ALWAYS, *SLOW])
def test_a_row_has_the_same_bits_however_it_is_shared_out(op, cols, dtype):
    expected = called(op, cols, dtype)
    arch = int(cupy.cuda.Device().compute_capability)
    own, *others = dict.fromkeys(ways(op, cols, dtype, arch))
    draw = Random(f"{op} {cols} {dtype}")
    for split in (own, *draw.sample(others, min(5, len(others)))):
        with shared_out(split):
            assert called(op, cols, dtype) == expected, split
