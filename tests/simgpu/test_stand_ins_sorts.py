"""Thrust's stand-in: sorts and all that sorts, held against NumPy."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about stand-ins")

RANDOM = np.random.default_rng(0)
HOLES = RANDOM.integers(-9, 10, (6, 40)).astype(np.float32)
HOLES[::2, ::7] = np.nan

CALLS = {
    "sort": lambda m, x: m.sort(x),
    "sort of columns": lambda m, x: m.sort(x, axis=0),
    "sort of everything": lambda m, x: m.sort(x, axis=None),
    "argsort": lambda m, x: m.argsort(x, kind="stable"),
    "argsort of columns": lambda m, x: m.argsort(x, axis=0, kind="stable"),
    "argsort of one row": lambda m, x: m.argsort(x[0], kind="stable"),
    "lexsort": lambda m, x: m.lexsort(x),
    "unique": lambda m, x: m.unique(x),
    "unique with its counts": lambda m, x: m.unique(x, return_counts=True)[1],
    "unique with positions": lambda m, x: m.unique(x, return_index=True)[1],
    "unique and the way back": lambda m, x: m.unique(x, return_inverse=True)[1],
    "partition": lambda m, x: m.partition(x, 5)[:, 5],
    "argpartition": lambda m, x: m.take_along_axis(x, m.argpartition(x, 3, axis=1), 1)[:, 3],
    "isin": lambda m, x: m.isin(x, x[0, :5]),
    "union1d": lambda m, x: m.union1d(x[0], x[1]),
    "intersect1d": lambda m, x: m.intersect1d(x[0], x[1]),
    "setdiff1d": lambda m, x: m.setdiff1d(x[0], x[1]),
    "the smaller ones first": lambda m, x: x[0][m.argsort(x[0], kind="stable")[::-1]],
}
REAL = ["?", "b", "B", "h", "H", "i", "I", "q", "Q", "e", "f", "d"]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        (name, dtype)
        for name in CALLS
        # CuPy's own kernel of argpartition has no complex numbers.
        for dtype in [*REAL, *([] if name == "argpartition" else ["F", "D"])]
    ],
)
def test_the_order_is_numpys(name, dtype):
    x = RANDOM.integers(0, 2 if dtype == "?" else 50, (6, 40)).astype(dtype)
    if dtype in "FD":
        x = x + 1j * RANDOM.integers(0, 3, x.shape).astype(dtype)
    expected = np.asarray(CALLS[name](np, x))
    found = CALLS[name](cupy, cupy.asarray(x))
    assert found.shape == expected.shape
    np.testing.assert_array_equal(found.get(), expected)


@pytest.mark.parametrize("dtype", ["f", "d", "F"])
@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.sort(x),
        lambda m, x: m.argsort(x, kind="stable"),
        lambda m, x: m.median(x, axis=1),
        lambda m, x: m.lexsort(x),
    ],
)
def test_nans_come_last(call, dtype):
    x = HOLES.astype(dtype)
    if dtype == "F":
        x = x + 1j * x[::-1]
    with np.errstate(invalid="ignore"):
        expected = call(np, x)
    np.testing.assert_array_equal(call(cupy, cupy.asarray(x)).get(), expected)


@pytest.mark.parametrize(
    "call",
    [
        lambda m, x: m.median(x),
        lambda m, x: m.percentile(x, [10, 50], axis=0),
        lambda m, x: m.quantile(x, 0.3, method="lower"),
        lambda m, x: m.sort_complex(x[0]),
        lambda m, x: m.nanmedian(x),
        lambda m, x: m.histogram(x, bins=m.asarray([0.0, 3, 10, 50]))[0],
        lambda m, x: m.digitize(x, m.asarray([0.0, 3, 10, 50])),
    ],
)
def test_statistics_that_sort(call):
    x = RANDOM.integers(0, 50, (6, 41)).astype(np.float64)
    # Interpolation between two neighbours rounds twice.
    np.testing.assert_allclose(call(cupy, cupy.asarray(x)).get(), call(np, x), rtol=4e-16)


def test_a_sort_is_in_place():
    x = cupy.asarray([3, 1, 2])
    x.sort()
    assert x.tolist() == [1, 2, 3]


def test_what_was_never_written_is_not_sorted():
    x = cupy.empty(7, np.float32)
    x[:6] = 1
    with pytest.raises(
        simgpu.Uninitialised, match=r"thrust::stable_sort reads data\[6\]: 4 bytes .* 24 bytes into"
    ):
        x.sort()
    with simgpu.uninitialised():
        x.sort()
    x[:] = 1
    x.sort()


def test_a_sort_on_a_stream_is_in_its_order_and_can_be_captured():
    stream = cupy.cuda.Stream(non_blocking=True)
    x = cupy.asarray([3.0, 1, 2])
    with stream:
        stream.begin_capture()
        x.sort()
        x *= 2
        graph = stream.end_capture()
    assert x.tolist() == [3, 1, 2]
    graph.launch(stream)
    assert x.tolist() == [2, 4, 6]


def test_the_profiler_counts_a_sort():
    x = cupy.arange(10, dtype=np.float32)
    with simgpu.profile(registers=False) as prof:
        x.sort()
    (call,) = prof.stand_ins
    assert (call.library, call.read_bytes, call.written_bytes) == ("Thrust", 40, 40)
