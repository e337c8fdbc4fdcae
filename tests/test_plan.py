"""The plan: every column has one owner, and only N, the dtypes and the architecture decide who."""

from __future__ import annotations

import inspect

import pytest

from cunorm import _plan, _plan_backward

DTYPES = sorted(_plan.ITEMSIZE)
ARCHS = [75, 80, 86, 89, 90, 100, 120]
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


def rms(cols: int, dtype: str, arch: int = 90) -> _plan.Plan:
    return _plan.rms_norm_fwd(cols, dtype, dtype, cast_before=True, gamma_offset=False, arch=arch)


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", SIZES)
def test_what_lanes_keep_covers_the_row_and_no_packet_more_than_a_turn(cols, dtype, arch):
    plan = rms(cols, dtype, arch)
    packets = max(1, cols * _plan.ITEMSIZE[dtype] // 16)  # the tail is apart
    kept, lanes = plan.packets + plan.shared, plan.lanes * plan.cluster
    assert (kept - 1) * lanes < packets
    # What is left over is read again, and then shared memory has no room for another packet.
    if packets > kept * lanes:
        room = _plan.SHARED_BYTES[arch] - _plan.SUMS_BYTES
        assert plan.shared_bytes <= room < plan.shared_bytes + plan.lanes * 16


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("cols", SIZES)
def test_a_lane_has_registers_and_a_block_shared_memory_for_what_it_keeps(cols, arch):
    plan = rms(cols, "float16", arch)
    assert 1 <= plan.packets <= 10
    assert plan.shared_bytes + _plan.SUMS_BYTES <= _plan.SHARED_BYTES[arch]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", SIZES)
def test_blocks_are_whole_warps_that_every_device_can_launch(cols, dtype):
    plan = rms(cols, dtype)
    lanes, rows = plan.block
    assert lanes * rows % 32 == 0
    assert lanes * rows <= 1024
    # A sub-warp divides a warp, so that its shuffles stay inside it; more lanes are whole warps.
    assert 32 % lanes == 0 if lanes < 32 else lanes % 32 == 0
    # Only rows that meet in shuffles share a block: a barrier is for all of a block's threads.
    assert rows == 1 or lanes <= 32


@pytest.mark.parametrize(
    ("dtype", "longest"),
    [("float16", 65536), ("bfloat16", 65536), ("float32", 32768), ("float64", 16384)],
)
@pytest.mark.parametrize("arch", [*ARCHS, 87, 103, 121])
def test_rows_up_to_the_promised_length_are_read_once_everywhere(dtype, longest, arch):
    plan = rms(longest, dtype, arch)
    assert kept_bytes(plan) >= longest * _plan.ITEMSIZE[dtype]


def kept_bytes(plan):
    return (plan.packets + plan.shared) * plan.lanes * plan.cluster * 16


# Shared memory, and 9 packets of 16 bytes for each of 512 lanes: in all of a cluster's 8 blocks
# where there are clusters.
@pytest.mark.parametrize(
    ("arch", "kib"),
    [
        *((75, 56 + 72), (80, 160 + 72), (86, 96 + 72), (89, 96 + 72), (120, 96 + 72)),
        *((90, 8 * (224 + 72)), (100, 8 * (224 + 72))),
    ],
)
def test_the_longest_row_that_is_read_once(arch, kib):
    longest = kib << 10
    assert kept_bytes(rms(longest // 2, "float16", arch)) >= longest
    assert kept_bytes(rms(longest // 2 + 8, "float16", arch)) < longest


def test_clusters_serve_rows_that_would_keep_a_second_block_off_the_multiprocessor():
    assert [rms(cols, "bfloat16").cluster for cols in (65536, 131072, 262144)] == [1, 2, 4]
    assert rms(262144, "bfloat16", arch=80).cluster == 1


# Of a multiprocessor, of which each block costs 1 KiB besides what it asks for.
@pytest.mark.parametrize(
    ("arch", "kib"), [(75, 64), (80, 164), (86, 100), (89, 100), (90, 228), (100, 228), (120, 100)]
)
@pytest.mark.parametrize("cols", SIZES)
def test_a_block_is_alone_where_a_multiprocessor_cannot_hold_two(cols, arch, kib):
    plan = rms(cols, "float16", arch)
    of_block = plan.shared_bytes + _plan.SUMS_BYTES + 1024
    assert dict(plan.defines)["ALONE"] == (2 * of_block > kib << 10)


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (32, 1), (33, 2), (2**33, 2**28)])
def test_the_grid_covers_the_rows(rows, blocks):
    plan = rms(64, "float32")
    assert plan.rows == 32
    assert plan.grid(rows) == (blocks,)


@pytest.mark.parametrize(
    ("rows", "blocks"),
    [(1, 1), (9, 9), (132, 132), (1000, 132), (8 * 200, 200), (10_000, 396), (2**33, 396)],
)
def test_a_backward_grid_fills_the_device_and_gives_each_block_rows(rows, blocks):
    # 384 threads of a multiprocessor, at least eight rows for each block past one a multiprocessor.
    plan = _plan_backward.layer_norm_bwd(2048, "float32", "float32", dresidual=False, arch=90)
    assert (plan.rows, plan.lanes) == (1, 128)
    assert plan.persistent_grid(rows, 132) == (blocks,)


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
    plan = _plan_backward.rms_norm_bwd(
        cols, dtype, dtype, gamma_offset=False, dresidual=True, arch=90
    )
    assert (plan.rows, plan.lanes) == (1, lanes)
    assert plan.persistent_grid(10**6, 132) == (132 * blocks,)
    assert dict(plan.defines)["RESIDENT_THREADS"] == plan.resident_threads


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", SIZES)
def test_what_a_backward_kernel_keeps_fits_and_is_not_more_than_the_row(cols, dtype, arch):
    plan = _plan_backward.layer_norm_bwd(cols, dtype, dtype, dresidual=True, arch=arch)
    packets = max(1, cols * _plan.ITEMSIZE[dtype] // 16)
    assert (plan.packets + plan.shared - 1) * plan.lanes < packets
    assert 1 <= plan.packets <= 4
    assert plan.lanes * plan.rows in (128, *range(32, 385, 32))
    assert plan.shared_bytes + _plan.SUMS_BYTES <= _plan.SHARED_BYTES[arch]


def test_no_plan_function_is_told_the_number_of_rows():
    for function in (
        _plan.rms_norm_fwd,
        _plan.layer_norm_fwd,
        _plan_backward.rms_norm_bwd,
        _plan_backward.layer_norm_bwd,
    ):
        parameters = set(inspect.signature(function).parameters)
        assert parameters <= {
            "cols",
            "x",
            "residual",
            "gamma",
            "beta",
            "cast_before",
            "dresidual",
            "sums",
            "gamma_offset",
            "arch",
        }


@pytest.mark.parametrize(
    ("dtype", "gamma", "kernels"),
    [("float16", "float16", 2), ("float16", None, 1), ("float32", "float32", 1)],
)
def test_both_casts_share_a_kernel_where_nothing_is_rounded_between(dtype, gamma, kernels):
    plans = {
        _plan.rms_norm_fwd(64, dtype, gamma, cast_before=before, gamma_offset=False, arch=90)
        for before in (True, False)
    }
    assert len(plans) == kernels


def test_an_absent_parameter_is_compiled_away():
    defines = dict(_plan.layer_norm_fwd(64, "float16", None, "float32", arch=90).defines)
    assert defines["HAS_GAMMA"] == 0
    assert defines["HAS_BETA"] == 1
    assert defines["BETA_TYPE"] == "float"


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_backward_rows_up_to_the_promised_length_are_kept_whole(dtype, arch):
    cols = 9216 if dtype != "float64" else 4608
    if arch == 90:
        cols = {2: 24576, 4: 19456, 8: 9216}[_plan.ITEMSIZE[dtype]]
    rms = _plan_backward.rms_norm_bwd(
        cols, dtype, dtype, gamma_offset=True, dresidual=True, arch=arch
    )
    layer = _plan_backward.layer_norm_bwd(cols, dtype, dtype, dresidual=True, arch=arch)
    for plan in (rms, layer):
        assert (plan.packets + plan.shared) * plan.lanes * plan.vec >= cols
