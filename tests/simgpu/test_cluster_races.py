"""Races in global memory between the blocks of one cluster."""

import cupy
import numpy as np
import pytest
from user_kernels import ARCH

from cunorm import simgpu

pytestmark = [
    pytest.mark.simgpu,
    pytest.mark.skipif(ARCH < 90, reason="clusters begin with sm_90"),
]

EXCHANGE = r"""
#include <cooperative_groups.h>
namespace cg = cooperative_groups;
extern "C" __global__ void __cluster_dims__(2, 1, 1) k(float *x, float *y, int *flags) {
  auto cluster = cg::this_cluster();
  int i = blockIdx.x * 64 + threadIdx.x;
  x[i] = i;
  ORDER;
  y[i] = x[i ^ 64];
}"""
FLAGS = """__syncthreads();
  if (threadIdx.x == 0) {
    FENCE;
    atomicExch(&flags[blockIdx.x], 1);
    while (atomicAdd(&flags[blockIdx.x ^ 1], 0) == 0);
    FENCE;
  }
  __syncthreads()"""
ORDERED = {
    "a barrier of the cluster": "cluster.sync()",
    "its two halves": "auto token = cluster.barrier_arrive(); cluster.barrier_wait()",
    "flags and fences": FLAGS.replace("FENCE", "__threadfence()"),
}
RACING = {
    "nothing": "",
    "a barrier of the block": "__syncthreads()",
    "a fence alone": "__threadfence()",
    "a relaxed arrival": """asm volatile(
        "barrier.cluster.arrive.relaxed.aligned; barrier.cluster.wait.aligned;" ::: "memory")""",
    "flags without fences": FLAGS.replace("FENCE", ""),
}


def exchange(order, blocks, source=EXCHANGE):
    x, y = (cupy.zeros(64 * blocks, np.float32) for _ in range(2))
    kernel = cupy.RawKernel(source.replace("ORDER", order), "k")
    with simgpu.uninitialised():
        kernel((blocks,), (64,), (x, y, cupy.zeros(blocks, np.int32)))
    return y.get()


@pytest.mark.parametrize("blocks", [2, 8])
@pytest.mark.parametrize("order", ORDERED)
def test_what_orders_two_blocks_is_known(order, blocks):
    wanted = np.arange(64 * blocks) ^ 64
    np.testing.assert_array_equal(exchange(ORDERED[order], blocks), wanted)


@pytest.mark.parametrize("blocks", [2, 8])
@pytest.mark.parametrize("order", RACING)
def test_two_blocks_of_a_cluster_race_without_an_order(order, blocks):
    with pytest.raises(simgpu.GlobalRace, match="of the same launch wrote, in no order") as raised:
        exchange(RACING[order], blocks)
    # The line of the read, which follows those that are meant to order it.
    line = 9 + RACING[order].count("\n")
    assert raised.value.place.source.endswith(f":{line}")


def test_two_blocks_that_write_one_place_race_unless_they_write_the_same():
    source = EXCHANGE.replace("x[i] = i", "x[threadIdx.x] = WRITTEN").replace("x[i ^ 64]", "0")
    with pytest.raises(simgpu.GlobalRace):
        exchange("cluster.sync()", 2, source.replace("WRITTEN", "blockIdx.x"))
    exchange("cluster.sync()", 2, source.replace("WRITTEN", "7"))
