"""Global memory and segments: where accesses lie, and what is refused."""

import numpy as np
import pytest

from cunorm.simgpu import faults
from cunorm.simgpu.memory.access import BadAccess
from cunorm.simgpu.memory.allocation import ALIGNMENT, RED_ZONE
from cunorm.simgpu.memory.segment import Segment
from cunorm.simgpu.memory.space import GlobalMemory


def addresses(*values):
    return np.array(values, np.uint64)


@pytest.fixture
def memory():
    return GlobalMemory(1 << 20)


def test_allocations_are_aligned_apart_and_zero(memory):
    first, second = memory.allocate(100), memory.allocate(100)
    assert first.address % ALIGNMENT == second.address % ALIGNMENT == 0
    assert abs(first.address - second.address) >= 100 + RED_ZONE
    assert not first.data.any()


def test_capacity_counts_device_memory_alone(memory):
    memory.allocate(1 << 20)
    memory.allocate(1 << 21, kind="pinned")
    with pytest.raises(MemoryError):
        memory.allocate(1)
    memory.allocate(1, device=1)


def test_free_returns_the_capacity_and_holds_the_address_back(memory):
    allocation = memory.allocate(1 << 20)
    memory.free(allocation.address)
    assert memory.used(0) == 0
    assert memory.find(allocation.address) is allocation
    with pytest.raises(KeyError):
        memory.free(allocation.address)


def test_one_allocation_is_one_part(memory):
    allocation = memory.allocate(64)
    parts = memory.parts(addresses(allocation.address, allocation.address + 60), 4)
    assert len(parts) == 1
    view, index, which = parts[0]
    assert (view.dtype, index.tolist(), which) == (np.uint32, [0, 15], None)


@pytest.mark.parametrize("width", [1, 2, 4, 8, 16])
def test_the_last_element_is_inside_and_the_next_is_not(memory, width):
    allocation = memory.allocate(48)
    memory.parts(addresses(allocation.end - width), width)
    with pytest.raises(BadAccess) as caught:
        memory.parts(addresses(allocation.address, allocation.end), width)
    assert (caught.value.fault, caught.value.position) == (faults.OutOfBounds, 1)


def test_an_access_across_the_end_is_refused(memory):
    allocation = memory.allocate(6)
    with pytest.raises(BadAccess) as caught:
        memory.parts(addresses(allocation.address + 4), 4)
    assert caught.value.fault is faults.OutOfBounds
    assert "2 bytes past the end" in caught.value.what


def test_the_first_wrong_lane_is_blamed(memory):
    allocation = memory.allocate(64)
    start = allocation.address
    with pytest.raises(BadAccess) as caught:
        memory.parts(addresses(start, start + 2, start + 64), 4)
    assert (caught.value.fault, caught.value.position) == (faults.Misaligned, 1)
    with pytest.raises(BadAccess) as caught:
        memory.parts(addresses(start, start + 64, start + 2), 4)
    assert (caught.value.fault, caught.value.position) == (faults.OutOfBounds, 1)


def test_freed_memory_is_refused_as_such(memory):
    live, freed = memory.allocate(64), memory.allocate(64)
    memory.free(freed.address)
    with pytest.raises(BadAccess) as caught:
        memory.parts(addresses(live.address, freed.address + 8), 4)
    assert (caught.value.fault, caught.value.position) == (faults.UseAfterFree, 1)
    assert "8 bytes into freed" in caught.value.what


def test_scattered_accesses_come_in_parts(memory):
    first, second = memory.allocate(16), memory.allocate(16, kind="pinned")
    wanted = [first.address, second.address + 4, first.address + 8]
    found = {}
    for view, index, which in memory.parts(addresses(*wanted), 4):
        for at, place in zip(which.tolist(), index.tolist(), strict=True):
            found[at] = (view[place:].ctypes.data, at)
    assert [found[at][0] for at in range(3)] == wanted


def test_segments_are_private_and_bounded():
    segment = Segment("shared", 3, 20, faults.SharedOutOfBounds)
    view, index, _ = segment.parts(addresses(4, 4, 16), 4, np.array([0, 2, 1]))[0]
    view[index] = [1, 2, 3]
    words = segment.data.view(np.uint32).reshape(3, -1)
    assert (words[0, 1], words[2, 1], words[1, 4]) == (1, 2, 3)
    for bad in (20, 18, (1 << 64) - 4):
        with pytest.raises(BadAccess) as caught:
            segment.parts(addresses(0, bad), 4, np.zeros(1, int))
        assert (caught.value.fault, caught.value.position) == (faults.SharedOutOfBounds, 1)
    with pytest.raises(BadAccess) as caught:
        segment.parts(addresses(0, 2), 4, np.zeros(1, int))
    assert caught.value.fault is faults.Misaligned


def test_no_memory_at_all_refuses_the_first_lane():
    with pytest.raises(BadAccess) as caught:
        Segment("shared", 1, 0, faults.SharedOutOfBounds).parts(
            addresses(0, 4), 4, np.zeros(1, int)
        )
    assert caught.value.position == 0
