"""How long the software GPU takes over a whole launch: the time of tests, never that of a GPU."""

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
