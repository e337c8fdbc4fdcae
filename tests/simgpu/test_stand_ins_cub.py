"""CUB's stand-in: what CuPy asks its precompiled CUB for, held against NumPy."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

RANDOM = np.random.default_rng(0)
REDUCTIONS = {"sum": 2e-6, "prod": 2e-6, "min": 0, "max": 0, "argmin": 0, "argmax": 0}


@pytest.fixture(autouse=True)
def cub():
    cupy._core.set_routine_accelerators(["cub"])
    yield
    cupy._core.set_routine_accelerators([])


def asked(prof):
    return [call.function for call in prof.stand_ins if call.library == "CUB"]


@pytest.mark.parametrize("dtype", ["b", "H", "i", "q", "e", "f", "d", "F", "D"])
@pytest.mark.parametrize(
    ("name", "axis"),
    [
        (name, axis)
        for name in REDUCTIONS
        # NumPy finds positions along one axis.
        for axis in [None, -1, *([] if name.startswith("arg") else [(1, 2)])]
    ],
)
def test_reductions_are_numpys(name, dtype, axis):
    x = RANDOM.integers(1, 3, (3, 4, 5)).astype(dtype)
    if name == "prod":
        x[:, 1:] = 1
    expected = getattr(np, name)(x, axis=axis)
    with simgpu.profile(registers=False) as prof:
        found = getattr(cupy, name)(cupy.asarray(x), axis=axis)
    np.testing.assert_allclose(found.get(), expected, rtol=REDUCTIONS[name])
    promoted = name in ("sum", "prod") and dtype in "bHi"
    rows_of_positions = name.startswith("arg") and axis is not None
    assert bool(asked(prof)) == (not promoted and not rows_of_positions)


def test_leading_axes_in_the_order_of_columns():
    x = RANDOM.random((3, 4, 5))
    with simgpu.profile(registers=False) as prof:
        found = cupy.asarray(x, order="F").sum(axis=(0, 1), keepdims=True)
    assert asked(prof) == ["cub::DeviceSegmentedReduce::Sum"]
    np.testing.assert_allclose(found.get(), x.sum(axis=(0, 1), keepdims=True), rtol=1e-14)


def test_a_given_output_is_written():
    x, out = RANDOM.random((3, 4)), cupy.empty(3)
    assert cupy.asarray(x).max(axis=1, out=out) is out
    np.testing.assert_array_equal(out.get(), x.max(axis=1))


def test_nothing_has_a_sum_and_no_smallest():
    empty = cupy.empty((3, 0), np.float32)
    assert empty.sum(axis=1).tolist() == [0, 0, 0]
    assert empty.prod() == 1
    with pytest.raises(ValueError, match="no identity"):
        empty.min()


@pytest.mark.parametrize("dtype", ["i", "q", "f", "D"])
@pytest.mark.parametrize("name", ["cumsum", "cumprod"])
def test_scans_are_numpys(name, dtype):
    x = RANDOM.integers(1, 3, 20).astype(dtype)
    with simgpu.profile(registers=False) as prof:
        found = getattr(cupy, name)(cupy.asarray(x))
    np.testing.assert_array_equal(found.get(), getattr(np, name)(x))
    assert asked(prof) == [f"cub::DeviceScan::Inclusive{'Sum' if name == 'cumsum' else 'Scan'}"]


def test_histograms_are_numpys():
    x = RANDOM.random(1000)
    x[:3] = 0, 1, 0.5
    edges = np.array([0, 0.2, 0.25, 0.9])
    for bins, ours in ((10, 10), (edges, cupy.asarray(edges))):
        found, edges = cupy.histogram(cupy.asarray(x), ours)
        expected, expected_edges = np.histogram(x, bins)
        np.testing.assert_array_equal(found.get(), expected)
        np.testing.assert_array_equal(edges.get(), expected_edges)
    with simgpu.profile(registers=False) as prof:
        counts = cupy.bincount(cupy.asarray([3, 0, 3, 5]))
    assert counts.tolist() == [1, 0, 0, 2, 0, 1]
    assert asked(prof) == ["cub::DeviceReduce::Max", "cub::DeviceHistogram::HistogramEven"]


def test_a_read_of_what_nothing_has_written_is_a_fault():
    with pytest.raises(simgpu.Uninitialised, match=r"cub::DeviceReduce::Sum reads d_in\[0\]"):
        cupy.empty(4).sum()
