"""What the kernels move, counted by the software GPU: every sector of x and y once."""

import cupy
import ml_dtypes
import numpy as np
import pytest

import cunorm
from cunorm import simgpu

pytestmark = pytest.mark.simgpu

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32]


@pytest.mark.parametrize("cols", [1024, 4096])
@pytest.mark.parametrize("dtype", DTYPES, ids=["float16", "bfloat16", "float32"])
def test_aligned_rows_are_read_once_and_written_once(dtype, cols):
    x = cupy.asarray(np.ones((16, cols), dtype))
    gamma = cupy.asarray(np.ones(cols, dtype))
    y = cupy.empty_like(x)
    with simgpu.profile(registers=False) as profile:
        cunorm.rms_norm(x, gamma, out=y)
    (launch,) = profile.launches
    arrays = {array.address: array for array in launch.arrays}
    read, written = arrays[x.data.ptr].loads, arrays[y.data.ptr].stores
    for traffic in (read, written):
        assert traffic.bytes == x.nbytes
        assert traffic.requested_per_distinct == 1
        # A warp's 32 lanes of 16 bytes.
        assert traffic.sectors_per_request == 16
    assert arrays[gamma.data.ptr].loads.distinct == gamma.nbytes // 32
    assert launch.dram_floor_bytes == 2 * x.nbytes + gamma.nbytes
