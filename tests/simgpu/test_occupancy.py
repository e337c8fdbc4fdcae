"""Resident blocks and warps, against tables worked out from the limits by hand."""

import pytest

from cunorm.simgpu.device import tables as device
from cunorm.simgpu.device.occupancy import occupancy

KIB = 1024


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "blocks", "limits"),
    [
        (90, 1024, 32, 0, 2, ("threads", "registers")),
        (90, 32, 32, 0, 32, ("blocks",)),
        (90, 256, 64, 0, 4, ("registers",)),  # 65536 / (64 * 256)
        (90, 128, 32, 100 * KIB, 2, ("shared memory",)),  # 228 / (100 + 1 reserved)
        (90, 33, 32, 0, 32, ("blocks", "threads", "registers")),  # a part of a warp is a whole one
        (90, 1024, 32, 227 * KIB, 1, ("shared memory",)),
        # 33 registers are given as 40: 65536 / 4 / (40 * 32) = 12 warps a partition, 48 in all.
        (90, 128, 33, 0, 12, ("registers",)),
        (90, 128, 40, 0, 12, ("registers",)),
        (90, 128, 41, 0, 10, ("registers",)),  # 48 * 32 = 1536: 10 warps a partition
        # 5 warps are 8 where a launch is checked, 5 where they are placed: 64 * 32 = 2048 registers
        # a warp, 32 warps in all.
        (90, 160, 64, 0, 6, ("registers",)),
        (90, 1024, 65, 0, 0, ("registers",)),
        (90, 992, 66, 0, 0, ("registers",)),  # 31 warps count as 32
        (90, 32, 256, 0, 0, ("registers",)),
        (90, 1024, None, 0, 2, ("threads",)),
        (75, 1024, 64, 0, 1, ("threads", "registers")),
        (75, 64, 64, 0, 16, ("blocks", "threads", "registers")),
        (75, 64, 32, 4 * KIB + 1, 15, ("shared memory",)),  # given as 4.25 KiB, nothing reserved
        (80, 64, 32, 4 * KIB + 129, 31, ("shared memory",)),  # as 4.25 KiB, and 1 KiB reserved
        (86, 512, 40, 0, 3, ("threads", "registers")),
        (86, 64, 32, 0, 16, ("blocks",)),
        (120, 64, 40, 0, 24, ("blocks", "threads", "registers")),
        (90, 64, 32, 228 * KIB, 0, ("shared memory",)),
    ],
)
def test_the_scarcest_resource_limits(arch, threads, registers, shared, blocks, limits):
    found = occupancy(device.make(arch), threads, registers, shared)
    assert (found.blocks, found.limits) == (blocks, limits)
    warps = -(-threads // 32)
    assert found.warps == blocks * warps
    assert found.max_warps == {75: 32, 86: 48, 120: 48}.get(arch, 64)
    assert found.share == found.warps / found.max_warps
