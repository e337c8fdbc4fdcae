"""How long the software GPU takes to be ready, and over a launch: never the time of a GPU."""

import subprocess
import sys

import cupy
import pytest
from arrays import random

import cunorm

pytestmark = pytest.mark.simgpu


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_128_rows_of_4096_float16_take_less_than_a_second(benchmark, op):
    x = cupy.asarray(random((128, 4096), "float16"))
    norm = getattr(cunorm, op)
    out = norm(x)
    benchmark.pedantic(lambda: norm(x, out=out), rounds=5, warmup_rounds=1)
    assert benchmark.disabled or benchmark.stats.stats.min < 1


def seconds(code):
    """Processor time of a new process of Python's, the least of three."""
    timed = f"import time\n{code}\nprint(time.process_time())"
    times = [subprocess.check_output([sys.executable, "-c", timed], text=True) for _ in range(3)]
    return min(map(float, times))


def test_it_is_ready_within_four_imports_of_cupy(benchmark):
    ready = "from cunorm import simgpu; simgpu.install(); import cupy; cupy.zeros(3)"
    taken = benchmark.pedantic(seconds, (ready,), rounds=1)
    assert benchmark.disabled or taken < 4 * seconds("import cupy")
