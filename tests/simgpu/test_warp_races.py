"""Races between the lanes of one warp, where a program asks for them."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu

NEIGHBOURS = r"""
extern "C" __global__ void k(float *x, int *lock) {
  __shared__ float held[64];
  int i = threadIdx.x;
  held[i] = x[i];
  WAIT;
  x[i] = held[i ^ 1];
}"""
MET = {
    "a barrier of the warp": "__syncwarp()",
    "one of each half": "__syncwarp(i % 32 < 16 ? 0xffff : 0xffff0000)",
    "one of each pair": "__syncwarp(3u << (i % 32 & ~1))",
    "a barrier of the block": "__syncthreads()",
}
APART = {
    "nothing": "",
    "a shuffle": "x[i] = __shfl_xor_sync(~0u, x[i], 1)",
    "a vote": "if (__any_sync(~0u, x[i] > 5)) x[i] = 1",
    "a fence": "__threadfence_block()",
    "a barrier of others": "if (i % 2) __syncwarp(0xaaaaaaaa)",
}


def run(source, wait):
    x = cupy.arange(64, dtype=np.float32)
    kernel = cupy.RawKernel(f'#line 1 "warps/k.cu"{source.replace("WAIT", wait)}', "k")
    kernel((1,), (64,), (x, cupy.zeros(1, np.int32)))
    return x.get()


@pytest.mark.parametrize("wait", MET)
def test_lanes_that_met_are_in_order(wait):
    with simgpu.warp_races():
        np.testing.assert_array_equal(run(NEIGHBOURS, MET[wait]), np.arange(64) ^ 1)


@pytest.mark.parametrize("wait", APART)
def test_lanes_that_did_not_meet_race(wait):
    with simgpu.warp_races(), pytest.raises(simgpu.SharedRace) as raised:
        run(NEIGHBOURS, APART[wait])
    assert "of the same warp wrote with no __syncwarp since: PTX line" in str(raised.value)
    assert raised.value.place.source == "warps/k.cu:6"


def test_nobody_looks_unless_asked():
    np.testing.assert_array_equal(run(NEIGHBOURS, ""), np.arange(64) ^ 1)


def test_a_read_must_be_over_before_another_lane_writes():
    source = NEIGHBOURS.replace("x[i] = held[i ^ 1]", "x[i] = held[i ^ 1]; AGAIN; held[i] = 0")
    with simgpu.warp_races():
        run(source.replace("AGAIN", "__syncwarp()"), "__syncwarp()")
        with pytest.raises(simgpu.SharedRace, match="of the same warp read with no __syncwarp"):
            run(source.replace("AGAIN", ""), "__syncwarp()")


def test_lanes_that_write_one_place_together_do_not_race():
    source = NEIGHBOURS.replace("held[i] = x[i]", "held[i / 32] = x[i]").replace("[i ^ 1]", "[0]")
    with simgpu.warp_races():
        assert (run(source, "__syncthreads()") == 31).all()


def test_atomics_and_volatile_accesses_do_not_race_with_each_other():
    with simgpu.warp_races():
        volatile = NEIGHBOURS.replace("__shared__ float", "__shared__ volatile float")
        np.testing.assert_array_equal(run(volatile, ""), np.arange(64) ^ 1)
        counted = NEIGHBOURS.replace("held[i] = x[i]", "if (i < 1) held[0] = 0; __syncwarp(); MORE")
        counted = counted.replace("MORE", "if (i < 32) atomicAdd(&held[0], 1)")
        assert (run(counted.replace("held[i ^ 1]", "held[0]"), "__syncthreads()") == 32).all()


def test_a_lock_orders_its_lanes():
    source = r"""
    extern "C" __global__ void k(float *x, int *lock) {
      __shared__ int count;
      if (threadIdx.x == 0) count = 0;
      __syncthreads();
      for (int turn = 0; turn < 32; ++turn) {
        if (threadIdx.x % 32 != turn) continue;
        while (atomicCAS(lock, 0, 1) != 0);
        FENCE;
        ++count;
        FENCE;
        atomicExch(lock, 0);
      }
      __syncthreads();
      x[threadIdx.x] = count;
    }"""
    with simgpu.warp_races():
        assert (run(source.replace("FENCE", "__threadfence()"), "") == 64).all()
        with pytest.raises(simgpu.SharedRace):
            run(source.replace("FENCE;", ""), "")


def test_cupys_own_kernels_keep_to_it():
    x = np.random.default_rng(0).standard_normal((70, 300))
    with simgpu.warp_races():
        array = cupy.asarray(x)
        np.testing.assert_allclose(array.sum(axis=0).get(), x.sum(axis=0))
        np.testing.assert_allclose(array.sum(axis=1).get(), x.sum(axis=1))
        assert array.argmax().item() == x.argmax()
        np.testing.assert_allclose(array.var().get(), x.var())
        np.testing.assert_allclose(cupy.cumsum(array, axis=1).get(), np.cumsum(x, axis=1))
        np.testing.assert_array_equal(array[array > 0].get(), x[x > 0])
