"""What a call of a shape seen before costs on the host, beside CuPy's own addition of one array.

    pytest tests/benchmarks/test_host_time.py --benchmark-columns=min,median,rounds

Each case times the op and, in turn with it, `cupy.add(x, x, out=y)`; the table of pytest-benchmark
has both, and `extra_info` their ratio. On the software GPU kernels are enqueued and not executed;
on hardware the queue is drained between rounds.

Times are told and not judged: a core whose caches another process uses has taken 1.6 times as long
over one call and not over the other. What is judged is the number of functions that Python calls.
"""

import contextlib
import sys
import timeit
from types import SimpleNamespace

import cupy
import pytest

import cunorm
from cunorm import simgpu
from cunorm._call import remembered
from cunorm._launch import kernels

ROUNDS, CALLS = 200, 20

# How an op is called, and the most functions that Python may call for it, its own and compiled
# ones: a tenth above what CPython 3.11 takes, for the ways of others. cupy.add takes 23; the ops
# look at three to seven arrays where it looks at three. A backward op makes three or four arrays
# and launches two kernels.
CASES = {
    "rms_norm": (lambda a: cunorm.rms_norm(a.x, a.gamma, out=a.y), 43),
    "rms_norm in place": (lambda a: cunorm.rms_norm(a.x, a.gamma, out=a.x), 43),
    "rms_norm of heads": (lambda a: cunorm.rms_norm(a.x, a.gamma, out=a.y), 43),
    "layer_norm": (lambda a: cunorm.layer_norm(a.x, a.gamma, a.beta, out=a.y), 44),
    "add_rms_norm": (
        lambda a: cunorm.add_rms_norm(a.x, a.r, a.gamma, out=a.y, residual_out=a.h),
        45,
    ),
    "add_layer_norm": (
        lambda a: cunorm.add_layer_norm(a.x, a.r, a.gamma, a.beta, out=a.y, residual_out=a.h),
        46,
    ),
    "rms_norm_bwd": (lambda a: cunorm.rms_norm_bwd(a.r, a.x, a.gamma, a.rstd), 91),
    "layer_norm_bwd": (lambda a: cunorm.layer_norm_bwd(a.r, a.x, a.gamma, a.mean, a.rstd), 103),
}


@contextlib.contextmanager
def enqueue_only():
    """On the software GPU execute nothing, and allocate as on hardware: from CuPy's pool."""
    if not simgpu.installed():
        yield
        return
    with simgpu.enqueue_only(), cupy.cuda.using_allocator(cupy.cuda.MemoryPool().malloc):
        yield


def calls_of(case):
    """Return functions that call the op and that add, and what the op writes."""
    if case.endswith("heads"):
        x, r, y, h = (cupy.zeros((8, 96, 128), "float16")[:, 32:64] for _ in range(4))
    else:
        x, r, y, h = (cupy.zeros((64, 4096), "float16") for _ in range(4))
    gamma, beta = (cupy.ones(x.shape[-1], "float16") for _ in range(2))
    mean, rstd = (cupy.ones(x.shape[:-1], "float32") for _ in range(2))
    given = SimpleNamespace(x=x, r=r, y=y, h=h, gamma=gamma, beta=beta, mean=mean, rstd=rstd)
    a, out = (cupy.zeros((64, 4096), "float16") for _ in range(2))
    call, _ = CASES[case]
    return (lambda: call(given)), (lambda: cupy.add(a, a, out=out)), y


def best_times(*calls):
    """Return the best time of each, taken in turns: other work on the machine only ever adds."""
    times = [float("inf")] * len(calls)
    for _ in range(ROUNDS):
        for i, call in enumerate(calls):
            times[i] = min(times[i], timeit.timeit(call, number=CALLS) / CALLS)
            cupy.cuda.get_current_stream().synchronize()
    return times


def functions_called(call):
    """Return how many functions a repeated call makes Python call, its own and compiled ones."""
    count = 0

    def note(frame, event, argument):
        nonlocal count
        count += event in ("call", "c_call")

    call()
    sys.setprofile(note)
    try:
        call()
    finally:
        sys.setprofile(None)
    return count


@pytest.mark.parametrize("what", ["call", "cupy.add"])
@pytest.mark.parametrize("case", CASES)
def test_host_time(benchmark, case, what):
    call, add, _ = calls_of(case)
    with enqueue_only():
        op, addition = best_times(call, add)
        benchmark.pedantic(
            call if what == "call" else add,
            setup=cupy.cuda.get_current_stream().synchronize,
            rounds=ROUNDS,
            iterations=1,
            warmup_rounds=5,
        )
    benchmark.extra_info["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    benchmark.extra_info["call / cupy.add"] = op / addition


@pytest.mark.parametrize("case", CASES)
def test_host_calls(case):
    call, _, _ = calls_of(case)
    with enqueue_only():
        assert 0 < functions_called(call) < CASES[case][1]


@pytest.mark.parametrize("case", CASES)
def test_a_call_is_one_launch_and_a_backward_call_two(monkeypatch, case):
    class Recorded:
        def __init__(self, kernel):
            self.kernel = self
            self.function = kernel.kernel

        def __call__(self, *arguments):
            launches.append(self)
            self.function(*arguments)

    launches = []
    load = kernels.load
    call, _, _ = calls_of(case)
    remembered.clear()
    with monkeypatch.context() as patch:
        patch.setattr(kernels, "load", lambda *which: Recorded(load(*which)))
        for count in (1, 2):  # the first of its kind, and a repeated one
            call()
            assert len(launches) == count * (2 if "bwd" in case else 1)
    remembered.clear()


@pytest.mark.simgpu
def test_enqueue_only_launches_nothing():
    call, _, y = calls_of("rms_norm")
    y.fill(3)
    with enqueue_only():
        call()
    assert (y.get() == 3).all()
    call()
    assert (y.get() == 0).all()
