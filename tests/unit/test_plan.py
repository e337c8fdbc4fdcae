"""The plan: every column has one owner, and only N, the dtypes and the architecture decide who.

Each test asks one question of every plan, and says of which it does not hold.
"""

from __future__ import annotations

import inspect
from itertools import product

import plans
import pytest

from cunorm import _plan
from cunorm._plan.devices import SHARED_BYTES, SUMS_BYTES
from cunorm._plan.unit import Reach

DTYPES = sorted(_plan.ITEMSIZE)
ARCHS = sorted(SHARED_BYTES)
# Around every boundary of the plan: packets of 2, 4 and 8 elements, sub-warps, the warp's share of
# 128 packets, 512 lanes with 4 packets each in registers, shared memory.
SIZES = sorted(
    {1, 2, 7, 64, 80, 96, 769, 5125, 20000, 100_000, 2**24}
    | {
        (16 // itemsize) * packets + step
        for itemsize in (2, 4, 8)
        for packets in (1, 4, 16, 32, 64, 128, 256, 2048, 8192, 16384)
        for step in (-1, 0, 1)
    }
    - {0}
)
ALIGNED = Reach((("y", "ALIGNED"), ("x", "ALIGNED"), ("gamma", "ALIGNED")))


def rms(cols: int, dtype: str, arch: int = 90) -> _plan.Plan:
    return plans.rms_norm(cols, dtype, dtype, arch=arch)


def rms_bwd(cols: int, dtype: str, arch: int = 90) -> _plan.BackwardPlan:
    return plans.rms_norm_bwd(cols, dtype, dtype, gamma_offset=True, dresidual=True, arch=arch)


def layer_bwd(cols: int, dtype: str, arch: int = 90) -> _plan.BackwardPlan:
    return plans.layer_norm_bwd(cols, dtype, dtype, dresidual=True, arch=arch)


def those_that_fail(holds, plan_of):
    """Return N, dtype and architecture of each plan that `holds` does not hold of."""
    return [case for case in product(SIZES, DTYPES, ARCHS) if not holds(plan_of(*case), *case)]


def packets_of(cols: int, dtype: str) -> int:
    return max(1, cols * _plan.ITEMSIZE[dtype] // 16)  # the tail is apart


@pytest.mark.parametrize("plan_of", [rms, rms_bwd, layer_bwd])
def test_what_lanes_keep_covers_the_row_and_less_than_a_leaf_more(plan_of):
    def holds(plan, cols, dtype, arch):
        split = plan.split
        packets, kept = packets_of(cols, dtype), split.packets + split.shared
        lanes = split.lanes * split.cluster
        # What is left over is read again, and then shared memory has no room for another packet.
        room = SHARED_BYTES[arch] - SUMS_BYTES
        of_turn = split.lanes * getattr(plan, "shared_packet_bytes", 16)
        full = plan.shared_bytes <= room < plan.shared_bytes + of_turn
        return (kept - split.depth) * lanes < packets and (packets <= kept * lanes or full)

    assert those_that_fail(holds, plan_of) == []


@pytest.mark.parametrize(("plan_of", "most"), [(rms, 9), (rms_bwd, 4), (layer_bwd, 4)])
def test_a_lane_has_registers_and_a_block_shared_memory_for_what_it_keeps(plan_of, most):
    def holds(plan, cols, dtype, arch):
        return (
            1 <= plan.split.packets <= most and plan.shared_bytes + SUMS_BYTES <= SHARED_BYTES[arch]
        )

    assert those_that_fail(holds, plan_of) == []


@pytest.mark.parametrize("plan_of", [rms, rms_bwd])
def test_blocks_are_whole_warps_that_every_device_can_launch(plan_of):
    def holds(plan, cols, dtype, arch):
        lanes, rows = plan.block
        return (
            lanes * rows % 32 == 0
            and lanes * rows <= 1024
            # A sub-warp divides a warp: its shuffles stay inside it; more lanes are whole warps.
            and (32 % lanes == 0 if lanes < 32 else lanes % 32 == 0)
            # Only rows that meet in shuffles share a block: a barrier is for all of its threads.
            and (rows == 1 or lanes <= 32)
        )

    assert those_that_fail(holds, plan_of) == []


def kept_bytes(plan):
    split = plan.split
    return (split.packets + split.shared) * split.lanes * split.cluster * 16


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_up_to_the_promised_length_are_read_once_everywhere(dtype):
    longest = (128 << 10) // _plan.ITEMSIZE[dtype]
    assert [a for a in ARCHS if kept_bytes(rms(longest, dtype, a)) < 128 << 10] == []


# Shared memory, and 9 packets of 16 bytes for each of 512 lanes: in all of a cluster's 8 blocks
# where there are clusters.
@pytest.mark.parametrize(
    ("arch", "kib"),
    [
        *((75, 128), (80, 192), (86, 128), (89, 128), (120, 128)),
        *((90, 8 * 264), (100, 8 * 264)),
    ],
)
def test_the_longest_row_that_is_read_once(arch, kib):
    longest = kib << 10
    assert kept_bytes(rms(longest // 2, "float16", arch)) >= longest
    longer = longest * 6 // 5  # rows are kept by whole leaves, of which each N has its own
    assert kept_bytes(rms(longer // 2, "float16", arch)) < longer


def test_clusters_serve_rows_that_would_keep_a_second_block_off_the_multiprocessor():
    assert [rms(cols, "bfloat16").split.cluster for cols in (65536, 131072, 262144)] == [1, 2, 4]
    assert rms(262144, "bfloat16", arch=80).split.cluster == 1


# Of a multiprocessor, of which each block costs 1 KiB besides what it asks for.
@pytest.mark.parametrize(
    ("arch", "kib"), [(75, 64), (80, 164), (86, 100), (89, 100), (90, 228), (100, 228), (120, 100)]
)
def test_a_block_is_alone_where_a_multiprocessor_cannot_hold_two(arch, kib):
    for cols in SIZES:
        plan = rms(cols, "float16", arch)
        of_block = plan.shared_bytes + SUMS_BYTES + 1024
        assert plan.alone == (2 * of_block > kib << 10), cols


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (32, 1), (33, 2), (2**33, 2**28)])
def test_the_grid_covers_the_rows(rows, blocks):
    plan = rms(64, "float32")
    assert plan.split.rows == 32
    assert plan.grid(rows) == (blocks,)


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [
        (1, 1),
        (9, 9),
        (128, 128),
        (1000, 128),
        (1600, 200),
        (4096, 256),
        (2**14, 512),
        (2**33, 1024),
    ],
)
def test_a_backward_grid_fills_devices_and_gives_each_block_rows(rows, blocks):
    plan = layer_bwd(2048, "float32")
    assert plan.block == (128, 1)
    assert plan.grid(rows) == (blocks,)


@pytest.mark.parametrize("plan_of", [rms_bwd, layer_bwd])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_backward_grid_is_the_same_on_every_architecture(plan_of, dtype):
    for cols, rows in product(SIZES, (1, 100, 5000, 10**6)):
        assert len({plan_of(cols, dtype, arch).grid(rows) for arch in ARCHS}) == 1, (cols, rows)


@pytest.mark.parametrize("dtype", DTYPES)
def test_gradients_of_heads_are_one_kernel_up_to_the_same_length_on_every_architecture(dtype):
    """Past it they come in parts, which have other bits."""
    itemsize = _plan.ITEMSIZE[dtype]
    longest = (12 if itemsize == 2 else 24) * 1024 // itemsize
    for cols, rows in product((128, 256, 1024, longest), (1, 100, 5000, 10**6)):
        of = [plans.rms_norm_rope_bwd(cols, dtype, "float32", arch=arch) for arch in ARCHS]
        assert len({(plan.grid(rows), plan.split.rows) for plan in of}) == 1, (cols, rows)
    for arch in ARCHS:
        with pytest.raises(_plan.TooLong):
            plans.rms_norm_rope_bwd(longest + 128, dtype, "float32", arch=arch)


@pytest.mark.parametrize(
    ("dtype", "cols", "lanes", "blocks"),
    [
        *(("float16", 2048, 128, 4), ("float16", 4096, 256, 2), ("float16", 4112, 288, 1)),
        *(("float32", 2048, 128, 3), ("float32", 4096, 256, 1), ("float64", 1024, 128, 3)),
    ],
)
def test_a_multiprocessor_has_512_threads_of_16_bit_rows_and_384_of_wider_ones(
    dtype, cols, lanes, blocks
):
    plan = rms_bwd(cols, dtype)
    assert plan.block == (lanes, 1)
    assert next(plan.tries(ALIGNED)).blocks == blocks


def test_a_kernel_is_tried_with_a_block_fewer_each_time_and_then_with_fewer_loads():
    tries = [(t.blocks, t.at_once) for t in rms(4096, "float16").tries(ALIGNED)]
    assert tries == [(4, 4), (3, 4), (2, 4), (1, 4), (1, 3), (1, 2), (1, 1)]


def test_no_plan_function_is_told_the_number_of_rows():
    for function in (_plan.forward, _plan.backward):
        parameters = set(inspect.signature(function).parameters)
        assert parameters - {"sums", "rotary"} == {"op", "cols", "dtypes", "arch", "chosen"}


@pytest.mark.parametrize(
    ("dtype", "gamma", "kernels"),
    [("float16", "float16", 2), ("float16", None, 1), ("float32", "float32", 1)],
)
def test_both_casts_share_a_kernel_where_nothing_is_rounded_between(dtype, gamma, kernels):
    units = set()
    for cast in ("before", "after"):
        plan = plans.rms_norm(64, dtype, gamma, cast=cast, arch=90)
        present = tuple(named for named in ALIGNED.access if named[0] in plan.arrays)
        units.add(plan.unit(Reach(present), _plan.Try(1, 4)))
    assert len(units) == kernels


def test_an_absent_parameter_is_no_argument_of_the_kernel():
    plan = plans.layer_norm(64, "float16", None, "float32", arch=90)
    assert plan.parameters == ("beta",)
    assert "Plus<S, Beta>" in plan.body
    assert "Gamma" not in plan.body


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_rows_up_to_the_promised_length_are_kept_whole(dtype, arch):
    cols = 9216 if dtype != "float64" else 4608
    if arch == 90:
        cols = {2: 24576, 4: 19456, 8: 9216}[_plan.ITEMSIZE[dtype]]
    for plan in (rms_bwd(cols, dtype, arch), layer_bwd(cols, dtype, arch)):
        assert kept_bytes(plans.served(plan)) >= cols * _plan.ITEMSIZE[dtype]
