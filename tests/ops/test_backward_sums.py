"""Backward passes of frozen parameters: the same dx, and nothing done for sums not wanted."""

import cupy
import pytest
import torch
import torch_bridge
from arrays import bits, random, to_torch
from kinds import some_of

import cunorm.torch
from cunorm._call import remembered
from cunorm._launch.launches import Launch

ops = pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])


@pytest.fixture
def launches(monkeypatch):
    """The arrays of each launch, by their names in the kernel."""
    enqueue = Launch.enqueue
    launched = []

    def recorded(launch, arrays):
        arrays = tuple(arrays)
        launched.append({n: a for n, a in zip(launch.arrays, arrays, strict=True) if a is not None})
        enqueue(launch, arrays)

    monkeypatch.setattr(Launch, "enqueue", recorded)
    return launched


def arguments(op, cols, dtype):
    dy, x = (cupy.asarray(random((5, cols), dtype, seed=i)) for i in range(2))
    gamma = cupy.asarray(random((cols,), dtype, seed=2))
    return dy, x, gamma, *getattr(cunorm, f"{op}_fwd")(x)[1:]


# A sub-warp's row, a block's, one with columns in shared memory, and one that is read again.
@some_of(
    [
        *(("rms_norm", "bfloat16", 7), ("layer_norm", "float32", 1024)),
        *(("layer_norm", "bfloat16", 20000), ("rms_norm", "float32", 50000)),
    ],
    "two kernels each of the other op and dtype",
    op=["rms_norm", "layer_norm"],
    dtype=["bfloat16", "float32"],
    cols=[7, 1024, 20000, 50000],
)
def test_dx_has_the_same_bits_without_sums(op, dtype, cols):
    given = arguments(op, cols, dtype)
    function = getattr(cunorm, f"{op}_bwd")
    expected, *_ = function(*given)
    for _ in range(2):  # the first of its kind, and a repeated one
        dx, *totals = function(*given, sums=False)
        assert totals == [None] * len(totals)
        assert bits(dx) == bits(expected)


@pytest.mark.parametrize("rows", [5, 0])
@ops
def test_without_sums_there_is_one_launch_and_no_array_for_them(op, launches, rows):
    dy, x, gamma, *kept = arguments(op, 64, "float32")
    remembered.clear()
    given = (dy[:rows], x[:rows], gamma, *(k[:rows] for k in kept))
    launches.clear()
    for _ in range(2):
        getattr(cunorm, f"{op}_bwd")(*given, sums=False)
    assert len(launches) == (2 if rows else 0)
    assert all("partial" not in arrays for arrays in launches)


@ops
def test_autograd_asks_for_sums_where_a_parameter_has_a_gradient(op, launches):
    with torch_bridge.tensors_on("cuda") as put:
        x = put(to_torch(random((5, 64), "float32")).requires_grad_())
        parameters = [put(torch.ones(64)) for _ in range(1 if op == "rms_norm" else 2)]
        for learns, expected in ((False, ["dx"]), (True, ["dx", "dgamma"])):
            parameters[0].requires_grad_(learns)
            y = getattr(cunorm.torch, op)(x, *parameters)
            launches.clear()
            y.sum().backward()
            assert [next(iter(arrays)) for arrays in launches] == expected
            assert ("partial" in launches[0]) == learns
