"""What a call costs on the host: the checks, the plan and the launch, beside a bare launch.

    pytest tests/benchmarks --benchmark-group-by=param:case

Each case times the op and, beside it, `cupy.RawKernel` launching the same kernel with the same
arguments: the difference is what cunorm adds. On the software GPU kernels are enqueued and not
executed, and a launch costs what simgpu's own host side does; on hardware the queue is drained
between rounds.
"""

import contextlib
import functools
import timeit

import cupy
import pytest

import cunorm
from cunorm import _kernels, _launch, simgpu

CASES = {
    "rms_norm (1, 4096)": ("rms_norm", (1, 4096)),
    "rms_norm (8, 32, 128) strided": ("rms_norm", (8, 32, 128)),
    "layer_norm (1, 4096)": ("layer_norm", (1, 4096)),
    "layer_norm (8, 32, 128) strided": ("layer_norm", (8, 32, 128)),
}
ROUNDS, CALLS = 50, 20


def enqueue_only():
    return simgpu.enqueue_only() if simgpu.installed() else contextlib.nullcontext()


def call_of(case):
    """Return a function that makes the call, and the array that it writes."""
    op, shape = CASES[case]
    if "strided" in case:
        x = cupy.zeros((shape[0], 3 * shape[1], shape[2]), "float16")[:, : shape[1]]
    else:
        x = cupy.zeros(shape, "float16")
    parameters = [cupy.ones(shape[-1], "float16") for _ in range(1 + (op == "layer_norm"))]
    out = cupy.empty(shape, "float16")
    norm = getattr(cunorm, op)
    return (lambda: norm(x, *parameters, out=out)), out


def launches_of(call, monkeypatch):
    """Make the call and return its launches: kernel and arguments."""
    launches = []
    load = _kernels.load

    def recording_load(*which):
        kernel = load(*which)

        def launch(*arguments, **options):
            launches.append((functools.partial(kernel, **options), arguments))
            return kernel(*arguments, **options)

        return launch

    with monkeypatch.context() as patch:
        patch.setattr(_launch._kernels, "load", recording_load)
        call()
    return launches


@pytest.mark.parametrize("what", ["call", "bare launch"])
@pytest.mark.parametrize("case", CASES)
def test_host_time(benchmark, monkeypatch, case, what):
    call, _ = call_of(case)
    with enqueue_only():
        ((kernel, arguments),) = launches_of(call, monkeypatch)
        target = call if what == "call" else lambda: kernel(*arguments)
        benchmark.pedantic(
            target,
            setup=cupy.cuda.get_current_stream().synchronize,
            rounds=ROUNDS,
            iterations=1,
            warmup_rounds=5,
        )
    benchmark.extra_info["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    assert benchmark.stats.stats.min > 0


@pytest.mark.parametrize("case", CASES)
def test_a_call_is_one_launch_and_adds_less_than_a_fifth_of_a_millisecond(monkeypatch, case):
    call, _ = call_of(case)
    with enqueue_only():
        launches = launches_of(call, monkeypatch)
        assert len(launches) == 1
        kernel, arguments = launches[0]
        # The best of many rounds: other work on the machine only ever adds.
        times = [
            min(timeit.repeat(run, number=CALLS, repeat=ROUNDS)) / CALLS
            for run in (call, lambda: kernel(*arguments))
        ]
    assert times[0] - times[1] < 200e-6, times


@pytest.mark.simgpu
def test_enqueue_only_launches_nothing():
    call, out = call_of("rms_norm (1, 4096)")
    out.fill(3)
    with enqueue_only():
        call()
    assert (out.get() == 3).all()
    call()
    assert (out.get() == 0).all()
