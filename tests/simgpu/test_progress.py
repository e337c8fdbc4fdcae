"""A launch that takes long says so, and one that takes too long is ended."""

import itertools
import time

import cupy
import numpy as np
import pytest

from cunorm import simgpu
from cunorm.simgpu.execution import progress

pytestmark = pytest.mark.simgpu

SPIN = """extern "C" __global__ void spin(volatile int* flag) {
  if (blockIdx.x >= 40)
    while (flag[0] == 0);  // HERE
}"""
EMPTY = """extern "C" __global__ void spin(int* flag) {
  if (flag[0] == 0)
    for (;;);  // HERE
  flag[0] = 1;
}"""


@pytest.fixture
def budget(monkeypatch):
    monkeypatch.setattr(simgpu._machine, "budget", 100_000)


@pytest.mark.usefixtures("budget")
@pytest.mark.parametrize(("source", "blocks"), [(SPIN, 41), (EMPTY, 1)])
def test_a_launch_past_its_budget_names_kernel_line_and_budget(source, blocks):
    kernel = cupy.RawKernel(source, "spin")
    with pytest.raises(simgpu.EndlessLoop) as raised:
        kernel((blocks,), (32,), (cupy.zeros(1, np.int32),))
    error = raised.value
    line = 1 + next(at for at, text in enumerate(source.split("\n")) if "// HERE" in text)
    assert (error.place.kernel, error.place.source) == ("spin", f"<source>:{line}")
    assert error.place.source_text.endswith("// HERE")
    assert "its budget of 100,000 instructions for each batch of blocks (--budget" in error.what
    kernel((blocks,), (32,), (cupy.ones(1, np.int32),))


@pytest.mark.usefixtures("budget")
def test_a_launch_that_takes_long_says_so_less_and_less_often(monkeypatch, capfd):
    clock = iter(range(0, 10_000, 3))  # 3 s from one look to the next
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    monkeypatch.setattr(progress, "PACE", 1000)
    monkeypatch.setattr(simgpu.execution.launch, "LANES", 32)
    monkeypatch.setattr("cunorm.simgpu.execution.warps.PACE", 1000)
    with pytest.raises(simgpu.EndlessLoop):
        cupy.RawKernel(SPIN, "spin")((41,), (32,), (cupy.zeros(1, np.int32),))
    lines = capfd.readouterr().err.splitlines()
    assert all(line.startswith("cunorm.simgpu: kernel spin has run for ") for line in lines)
    seconds = [int(line.split(" s: ")[0].rpartition(" ")[2]) for line in lines]
    assert seconds[0] in range(10, 14)
    assert all(2 * a <= b < 2 * a + 4 for a, b in itertools.pairwise(seconds))
    assert len(lines) == 6
    assert " of 41 blocks done, " in lines[0]
    assert ": 40 of 41 blocks done, " in lines[-1]
    assert lines[-1].endswith(" instructions, now at <source>:3")


def test_a_launch_that_takes_no_time_says_nothing(capfd):
    cupy.arange(1000).sum()
    assert capfd.readouterr().err == ""
