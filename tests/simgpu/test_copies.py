"""A copy by CuPy's kernels copies what is known to be written, as one without a kernel does."""

import cupy
import numpy as np
import pytest

from cunorm import simgpu

pytestmark = pytest.mark.simgpu("about what is known of memory")


def half_written(n=64):
    found = cupy.empty(n, np.float32)
    found[: n // 2] = 1
    return found


@pytest.mark.parametrize("into", ["new", "zeros"])
def test_what_nothing_wrote_is_not_written_in_a_copy_either(into):
    source = half_written()[::-1]
    copy = cupy.empty(64, np.float32) if into == "new" else cupy.zeros(64, np.float32)
    copy[3] = 2  # so that what is known of it is known byte by byte
    copy[...] = source
    assert (copy[32:] + 1).get().tolist() == [2] * 32
    if into == "new":
        with pytest.raises(simgpu.Uninitialised, match=r"cupy_add.*thread \(0, 0, 0\)"):
            copy + 1
    copy[:32] = 5
    assert (copy + 1).get().tolist() == [6] * 32 + [2] * 32


def test_a_conversion_reads():
    with pytest.raises(simgpu.Uninitialised, match="cupy_copy__float32_float64"):
        half_written().astype(np.float64)


def test_elements_asked_for_are_copied_with_what_is_known_of_them_by_indices_that_are_written():
    source, index = half_written(), cupy.array([40, 3, 63, 31])
    taken = source[index]
    with pytest.raises(simgpu.Uninitialised, match=r"cupy_add.*thread \(0, 0, 0\)"):
        taken + 1
    taken[::2] = 5
    assert (taken + 1).get().tolist() == [6, 2, 6, 2]
    index = cupy.empty(4, np.int64)
    index[:3] = 1
    for array in (source, cupy.ones(64)):
        with pytest.raises(simgpu.Uninitialised, match=r"8-byte read .*cupy_take.*thread \(3, 0"):
            array[index]


def test_one_element_is_copied_as_others_are():
    taken = half_written()[cupy.array([40])]
    with pytest.raises(simgpu.Uninitialised, match="cupy_add"):
        taken + 1


def test_a_join_of_an_array_that_is_still_to_be_written():
    joined = cupy.c_[cupy.ones((2, 3)), cupy.empty((2, 5))]
    with pytest.raises(simgpu.Uninitialised):
        joined.sum()
    joined[:, 3:] = 4
    assert joined.sum().item() == 46
