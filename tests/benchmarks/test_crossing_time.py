"""What tensors cost on the host: a call on PyTorch's beside the same call on CuPy's arrays.

    pytest tests/benchmarks/test_crossing_time.py --benchmark-columns=min,median,rounds

As in test_host_time.py, kernels are enqueued and not executed on the software GPU, and both calls
take turns. The bridge that passes CPU tensors off as CUDA ones adds 0.5 us for each array: two
numbers written into its capsule.

Times are told and not judged: PyTorch's part of them doubles where something else uses the caches.
What is judged is the number of functions that Python calls, which is the same on any machine.
"""

import contextlib

import cupy
import pytest
import torch
import torch_bridge
from test_host_time import ROUNDS, best_times, enqueue_only, functions_called

import cunorm.torch
from cunorm import simgpu

# The call on tensors, the same on CuPy's arrays, and the most function calls that lie between them:
# a sixth above what CPython 3.11 and PyTorch 2.13 take, for the ways of others.
CASES = {
    "rms_norm(x, gamma, out=y)": (
        lambda x, r, y, gamma: cunorm.rms_norm(x, gamma, out=y),
        lambda x, r, y, gamma: cunorm.rms_norm(x, gamma, out=y),
        135,
    ),
    "rms_norm(x, gamma)": (
        lambda x, r, y, gamma: cunorm.rms_norm(x, gamma),
        lambda x, r, y, gamma: cunorm.rms_norm(x, gamma),
        130,
    ),
    "add_rms_norm(x, r, gamma, out=x, residual_out=r)": (
        lambda x, r, y, gamma: cunorm.add_rms_norm(x, r, gamma, out=x, residual_out=r),
        lambda x, r, y, gamma: cunorm.add_rms_norm(x, r, gamma, out=x, residual_out=r),
        170,
    ),
    "torch.rms_norm_(x, gamma)": (
        lambda x, r, y, gamma: cunorm.torch.rms_norm_(x, gamma),
        lambda x, r, y, gamma: cunorm.rms_norm(x, gamma, out=x),
        225,
    ),
    "torch.rms_norm(x, gamma)": (
        lambda x, r, y, gamma: cunorm.torch.rms_norm(x, gamma),
        lambda x, r, y, gamma: cunorm.rms_norm_fwd(x, gamma),
        200,
    ),
    "torch.rms_norm(x, gamma), recorded": (
        lambda x, r, y, gamma: cunorm.torch.rms_norm(x, gamma.requires_grad_()),
        lambda x, r, y, gamma: cunorm.rms_norm_fwd(x, gamma),
        250,
    ),
}


@contextlib.contextmanager
def tensors():
    """Yield CUDA tensors of the shapes of a layer, and CuPy's arrays of the same."""
    shapes = ((64, 4096), (64, 4096), (64, 4096), (4096,))
    arrays = [cupy.zeros(shape, "float16") for shape in shapes]
    if torch.cuda.is_available():
        yield [torch.zeros(shape, dtype=torch.float16, device="cuda") for shape in shapes], arrays
    elif not simgpu.installed():
        pytest.skip("this PyTorch has no CUDA, and the tests run on hardware")
    else:
        with torch_bridge.bridge() as bridge:
            bridge.registers = False
            yield [torch.zeros(shape, dtype=torch.float16) for shape in shapes], arrays


@pytest.mark.parametrize("case", CASES)
def test_crossing_calls(case):
    on_tensors, on_arrays, most = CASES[case]
    with enqueue_only(), tensors() as (given, arrays):
        crossed = functions_called(lambda: on_tensors(*given))
        plain = functions_called(lambda: on_arrays(*arrays))
    assert 0 < crossed - plain < most


@pytest.mark.parametrize("what", ["tensors", "arrays"])
@pytest.mark.parametrize("case", CASES)
def test_crossing_time(benchmark, case, what):
    on_tensors, on_arrays, _ = CASES[case]
    with enqueue_only(), tensors() as (given, arrays):
        calls = {"tensors": lambda: on_tensors(*given), "arrays": lambda: on_arrays(*arrays)}
        crossed, plain = best_times(*calls.values())
        benchmark.pedantic(
            calls[what],
            setup=cupy.cuda.get_current_stream().synchronize,
            rounds=ROUNDS,
            iterations=1,
            warmup_rounds=5,
        )
    benchmark.extra_info["device"] = cupy.cuda.runtime.getDeviceProperties(0)["name"].decode()
    benchmark.extra_info["microseconds of the crossing"] = 1e6 * (crossed - plain)
