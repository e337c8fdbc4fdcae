"""Cooperative launches: barriers of the whole grid, as cooperative groups have them."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

GROUPS = "#include <cooperative_groups.h>\nnamespace cg = cooperative_groups;\n"
SUM = (
    GROUPS
    + r"""
extern "C" __global__ void total(const float *x, float *part, float *y, int n) {
  auto grid = cg::this_grid();
  float mine = 0;
  for (int i = grid.thread_rank(); i < n; i += grid.size()) mine += x[i];
  __shared__ float held[64];
  held[threadIdx.x] = mine;
  __syncthreads();
  if (threadIdx.x == 0) {
    float sum = 0;
    for (int i = 0; i < 64; ++i) sum += held[i];
    part[blockIdx.x] = sum;
  }
  WAIT;
  float sum = 0;
  for (int i = 0; i < gridDim.x; ++i) sum += part[i];
  y[grid.thread_rank()] = sum;
}"""
)


def total(wait, blocks=300, cooperative=True):
    kernel = cupy.RawKernel(
        SUM.replace("WAIT", wait), "total", enable_cooperative_groups=cooperative
    )
    x = cupy.arange(5000, dtype=np.float32)
    part, y = cupy.zeros(blocks, np.float32), cupy.zeros(64 * blocks, np.float32)
    kernel((blocks,), (64,), (x, part, y, 5000))
    return y.get()


def test_every_block_sees_what_all_wrote_before_the_barrier():
    # More threads than one batch of an ordinary launch holds.
    assert (total("grid.sync()") == 4999 * 5000 / 2).all()
    assert (total("grid.sync(); grid.sync(); grid.sync()") == 4999 * 5000 / 2).all()


@pytest.mark.simgpu("hardware runs a race in silence")
def test_without_the_barrier_it_is_a_race():
    with pytest.raises(simgpu.GlobalRace, match="of the same launch wrote"):
        total("")


@pytest.mark.simgpu("after a trap on hardware a process has no device")
def test_a_barrier_of_the_grid_needs_a_cooperative_launch():
    with pytest.raises(simgpu.Trap):
        total("grid.sync()", cooperative=False)


def test_an_ordinary_launch_knows_that_it_is_none():
    source = GROUPS + 'extern "C" __global__ void k(int *y) { *y = cg::this_grid().is_valid(); }'
    for cooperative in (False, True):
        y = cupy.full(1, -1, np.int32)
        kernel = cupy.RawKernel(source, "k", enable_cooperative_groups=cooperative)
        kernel((1,), (1,), (y,))
        assert y.item() == cooperative


def test_fused_reductions_wait_for_the_grid():
    def softmax(x):
        e = cupy.exp(x)
        return e / cupy.sum(e, axis=0)

    x = np.random.default_rng(0).standard_normal((200, 300), np.float32)
    wanted = np.exp(x.astype(np.float64)) / np.exp(x.astype(np.float64)).sum(axis=0)
    # 200 terms and a quotient, each rounded, and an exponential of 2 units in the last place.
    tolerance = (200 + 4) * np.finfo(np.float32).eps
    np.testing.assert_allclose(cupy.fuse()(softmax)(cupy.asarray(x)).get(), wanted, rtol=tolerance)
