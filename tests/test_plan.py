"""The plan: every column has one owner, and only N and the dtypes decide who."""

from __future__ import annotations

import inspect

import pytest

from cunorm import _plan

DTYPES = sorted(_plan.ITEMSIZE)
# Around every boundary of the plan: packets of 2, 4 and 8 elements, sub-warps, the warp's share of
# 128 packets, 1024 lanes with 4 and with 8 packets each.
SIZES = sorted(
    {1, 2, 7, 64, 80, 96, 769, 5125, 20000, 100_000, 2**24}
    | {
        (16 // itemsize) * packets + step
        for itemsize in (2, 4, 8)
        for packets in (1, 4, 16, 32, 64, 128, 256, 4096, 8192)
        for step in (-1, 0, 1)
    }
    - {0}
)


def rms(cols: int, dtype: str) -> _plan.Plan:
    return _plan.rms_norm_fwd(cols, dtype, dtype, cast_before=True, gamma_offset=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cols", SIZES)
def test_lanes_times_packets_cover_the_row_and_no_packet_more_than_a_turn(cols, dtype):
    plan = rms(cols, dtype)
    packets = -(-cols * _plan.ITEMSIZE[dtype] // 16)
    if plan.packets:
        assert (plan.packets - 1) * plan.lanes < packets <= plan.packets * plan.lanes
    else:
        assert packets > 1024 * 8


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
def test_rows_up_to_the_promised_length_stay_in_registers(dtype, longest):
    assert rms(longest, dtype).packets == 8
    assert rms(longest + 1, dtype).packets == 0


@pytest.mark.parametrize(("rows", "blocks"), [(1, 1), (32, 1), (33, 2), (2**33, 2**28)])
def test_the_grid_covers_the_rows(rows, blocks):
    plan = rms(64, "float32")
    assert plan.rows == 32
    assert plan.grid(rows) == (blocks,)


def test_no_plan_function_is_told_the_number_of_rows():
    for function in (_plan.rms_norm_fwd, _plan.layer_norm_fwd):
        parameters = set(inspect.signature(function).parameters)
        assert parameters <= {
            "cols",
            "x",
            "residual",
            "gamma",
            "beta",
            "cast_before",
            "gamma_offset",
        }


@pytest.mark.parametrize(
    ("dtype", "gamma", "kernels"),
    [("float16", "float16", 2), ("float16", None, 1), ("float32", "float32", 1)],
)
def test_both_casts_share_a_kernel_where_nothing_is_rounded_between(dtype, gamma, kernels):
    plans = {
        _plan.rms_norm_fwd(64, dtype, gamma, cast_before=before, gamma_offset=False)
        for before in (True, False)
    }
    assert len(plans) == kernels


def test_an_absent_parameter_is_compiled_away():
    defines = dict(_plan.layer_norm_fwd(64, "float16", None, "float32").defines)
    assert defines["HAS_GAMMA"] == 0
    assert defines["HAS_BETA"] == 1
    assert defines["BETA_TYPE"] == "float"
