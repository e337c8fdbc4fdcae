"""Launches whose blocks would take more registers than a multiprocessor has."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu
from cunorm.simgpu.device import assembler
from cunorm.simgpu.device.occupancy import occupancy
from cunorm.simgpu.device.tables import make as make_device

pytestmark = pytest.mark.simgpu

HUNGRY = r"""
extern "C" __global__ void BOUNDS hungry(float* x) {
  float kept[96];
  #pragma unroll
  for (int i = 0; i < 96; ++i) kept[i] = x[i * 1024 + threadIdx.x];
  __syncthreads();
  #pragma unroll
  for (int i = 0; i < 96; ++i) x[(95 - i) * 1024 + threadIdx.x] = kept[i];
}
"""


def test_a_block_with_more_registers_than_there_are_is_refused():
    x = cupy.zeros(96 * 1024, np.float32)
    hungry = cupy.RawKernel(HUNGRY.replace("BOUNDS", ""), "hungry")
    with pytest.raises(simgpu.LaunchError, match=r"1024 threads a block of \d+ registers each"):
        hungry((1,), (1024,), (x,))
    hungry((1,), (512,), (x,))
    bounded = cupy.RawKernel(HUNGRY.replace("BOUNDS", "__launch_bounds__(1024)"), "hungry")
    bounded((1,), (1024,), (x,))


# A thread of it takes all registers that there are for one, 255.
STARVED = HUNGRY.replace("96", "240").replace("95", "239").replace("1024", "blockDim.x")


def test_255_registers_fit_256_threads_and_no_more():
    x = cupy.zeros(240 * 257, np.float32)
    starved = cupy.RawKernel(STARVED.replace("BOUNDS", ""), "hungry")
    assert starved.num_regs == 255
    starved((1,), (256,), (x,))
    with pytest.raises(simgpu.LaunchError, match="257 threads a block of 255 registers each"):
        starved((1,), (257,), (x,))


@pytest.mark.parametrize("most", [257, 320, 513, 800, 1024])
def test_launch_bounds_alone_say_that_a_block_fits(most, monkeypatch):
    bounds = f"__launch_bounds__({most})"
    starved = cupy.RawKernel(STARVED.replace("BOUNDS", bounds), "hungry")
    assert starved.num_regs < 255
    # The rule that saves an assembly, held against the assembler.
    device = make_device(int(cupy.cuda.Device().compute_capability))
    assert occupancy(device, most, starved.num_regs, 0).blocks > 0
    monkeypatch.setattr(assembler, "resources", lambda *_: pytest.fail("assembled"))
    starved((1,), (most,), (cupy.zeros(240 * most, np.float32),))


def test_what_the_assembler_said_is_kept_on_disk(monkeypatch):
    starved = cupy.RawKernel(STARVED.replace("BOUNDS", ""), "hungry")
    known = starved.num_regs
    assembler.assemble.cache_clear()
    monkeypatch.setattr(assembler, "_compile", lambda *_: pytest.fail("compiled again"))
    assert starved.num_regs == known
