"""Profiles: what is entered in them, and when."""

import json

import cupy
import numpy as np
import pytest

from cunorm import simgpu
from cunorm.simgpu.profiler.counters import Traffic

pytestmark = pytest.mark.simgpu

SOURCE = r"""
struct Pair { int first; float *second; };
__device__ float scratch[256];
extern "C" __global__ void copy(float *y, const float *x) { y[threadIdx.x] = x[threadIdx.x]; }
extern "C" __global__ void paired(Pair to, const float *x) {
    to.second[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void kept(const float *x) { scratch[threadIdx.x] = x[threadIdx.x]; }
"""


@pytest.fixture(scope="module")
def module():
    return cupy.RawModule(code=SOURCE)


@pytest.fixture
def array():
    return cupy.ones(1024, np.float32)


def test_a_launch_says_what_it_was(module, array):
    kernel = module.get_function("copy")
    with simgpu.profile() as profile:
        kernel((2, 3), (8, 4, 1), (cupy.empty_like(array), array), shared_mem=100)
    (launch,) = profile.launches
    assert (launch.kernel, launch.grid, launch.block) == ("copy", (2, 3, 1), (8, 4, 1))
    assert (launch.shared_static, launch.shared_dynamic) == (0, 100)
    assert (launch.blocks, launch.warps) == (6, 6)
    assert launch.arch == int(cupy.cuda.Device().compute_capability)


def test_arrays_are_named_by_the_arguments_that_point_at_them(module, array):
    with simgpu.profile(registers=False) as profile:
        module.get_function("copy")((1,), (32,), (array[64:], array))
        module.get_function("kept")((1,), (32,), (array,))
    same, kept = profile.launches
    assert [(each.name, each.arguments) for each in same.arrays] == [("args 0, 1", (0, 1))]
    assert (same.arrays[0].loads, same.arrays[0].stores) == (Traffic(1, 128, 4, 4),) * 2
    assert [each.name for each in kept.arrays] == ["arg 0", "scratch"]


def test_a_pointer_inside_a_structure_is_an_argument(module, array):
    other = cupy.empty_like(array)
    pair = np.zeros((), np.dtype([("first", "i4"), ("second", "u8")], align=True))
    pair["second"] = other.data.ptr
    with simgpu.profile(registers=False) as profile:
        module.get_function("paired")((1,), (32,), (pair[()], array))
    first, second = profile.launches[0].arrays
    assert (first.name, first.address, first.stores.bytes) == ("arg 0", other.data.ptr, 128)
    assert (second.name, second.loads.bytes) == ("arg 1", 128)


def test_only_launches_inside_count(module, array):
    kernel, out = module.get_function("copy"), cupy.empty_like(array)
    kernel((1,), (32,), (out, array))
    with simgpu.profile(registers=False) as outer:
        kernel((1,), (32,), (out, array))
        with simgpu.profile(registers=False) as inner:
            kernel((2,), (32,), (out, array))
    kernel((1,), (32,), (out, array))
    assert [launch.grid[0] for launch in outer.launches] == [1, 2]
    assert [launch.grid[0] for launch in inner.launches] == [2]


def test_outside_a_profile_nothing_is_counted(module, array, monkeypatch):
    def refuse(*_):
        raise AssertionError("counted")

    monkeypatch.setattr("cunorm.simgpu.profiler.counting.Tally.__init__", refuse)
    module.get_function("copy")((1,), (32,), (cupy.empty_like(array), array))


def test_a_profile_ends_with_an_exception(module, array):
    kernel = module.get_function("copy")
    profile = simgpu.profile(registers=False)
    with pytest.raises(simgpu.OutOfBounds), profile:
        kernel((1,), (32,), (cupy.empty(16, np.float32), array))
    kernel((1,), (32,), (cupy.empty_like(array), array))
    assert profile.launches == []


def test_a_graph_counts_when_it_is_launched(module, array):
    kernel, out = module.get_function("copy"), cupy.empty_like(array)
    with cupy.cuda.Stream(non_blocking=True) as stream, simgpu.profile(registers=False) as profile:
        stream.begin_capture()
        kernel((1,), (32,), (out, array))
        graph = stream.end_capture()
        assert not profile.launches
        graph.launch()
        graph.launch()
    assert len(profile.launches) == 2
    assert profile.launches[0] == profile.launches[1]


def test_launches_that_are_only_enqueued_do_not_count(module, array):
    with simgpu.profile(registers=False) as profile, simgpu.enqueue_only():
        module.get_function("copy")((1,), (32,), (cupy.empty_like(array), array))
    assert profile.launches == []


def test_counting_changes_no_result():
    host = np.random.default_rng(0).standard_normal((37, 53)).astype(np.float32)
    plain = cupy.asarray(host).var(axis=0).get()
    with simgpu.profile(registers=False) as profile:
        counted = cupy.asarray(host).var(axis=0).get()
    assert profile.launches
    np.testing.assert_array_equal(counted, plain)


def test_a_file_is_written_by_its_ending(module, array, tmp_path):
    with simgpu.profile(registers=False) as profile:
        module.get_function("copy")((1,), (32,), (cupy.empty_like(array), array))
    profile.save(str(tmp_path / "a.json"))
    assert json.loads((tmp_path / "a.json").read_text())[0]["loads"]["sectors"] == 4
    profile.save(tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text().count("\n") == 2
    with pytest.raises(ValueError, match=r"\.csv or \.json"):
        profile.save(tmp_path / "a.txt")


def test_a_profile_shows_itself_in_a_notebook(module, array):
    with simgpu.profile(registers=False) as profile:
        assert repr(profile) == "<Profile of 0 launches>"
        array += 1
    assert repr(profile) == "<Profile of 1 launch>"
    assert profile._repr_html_().startswith("<table><caption>launches</caption>")
