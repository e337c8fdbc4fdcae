"""The clock of races: what puts two parties in order, and what does not."""

import numpy as np
import pytest

from cunorm.simgpu.sanitizer.clock import Clock, GridClock

WARPS = [np.arange(32) + 32 * warp for warp in range(8)]  # of two teams, of four each


@pytest.fixture
def clock():
    return Clock(lanes=256, together=32, team=4)


def knows(clock, now, before, time, *, atomic=False):
    """Return whether a warp is in order with what another did at a time."""
    pair = (np.array([32 * warp]) for warp in (before, now))
    (ordered,) = clock.ordered(*pair, np.array([time]), atomic)
    return bool(ordered)


def test_parties_that_met_are_in_order_and_others_are_not(clock):
    time = clock.tick()
    clock.meet(np.concatenate([WARPS[0], WARPS[1][:3]]))
    assert knows(clock, 0, 1, time)
    assert knows(clock, 1, 0, time)
    assert not knows(clock, 2, 0, time)
    assert not knows(clock, 0, 2, time)
    assert not knows(clock, 0, 1, clock.tick())


def test_who_met_one_that_met_another_knows_of_both(clock):
    time = clock.tick()
    clock.meet(np.concatenate(WARPS[:2]))
    clock.meet(np.concatenate(WARPS[1:3]))
    assert knows(clock, 2, 0, time)
    assert not knows(clock, 0, 2, time)


def test_what_is_published_is_known_to_those_who_look_afterwards(clock):
    time = clock.tick()
    clock.publish(WARPS[0])
    assert not knows(clock, 1, 0, time)
    clock.acquire(WARPS[1])
    assert knows(clock, 1, 0, time)
    assert not knows(clock, 2, 0, time)


def test_an_own_atomic_stands_behind_all_atomics_before_it(clock):
    time = clock.tick()
    clock.acquire(WARPS[1])
    assert knows(clock, 1, 0, time, atomic=True)
    assert not knows(clock, 1, 0, time)


def test_another_team_is_for_another_clock(clock):
    assert knows(clock, 4, 0, clock.tick())


@pytest.mark.parametrize("count", [1, 2, 4])
def test_neighbours_that_met_all_at_once_know_what_they_would_one_after_another(clock, count):
    other = Clock(lanes=256, together=32, team=4)
    for each in (clock, other):
        each.tick()
        each.meet(np.concatenate(WARPS[1:3]))
        each.tick()
    clock.meet_each(count)
    for first in range(0, 8, count):
        other.meet(np.concatenate(WARPS[first : first + count]))
    np.testing.assert_array_equal(clock.known, other.known)
    # Only where whole teams met is there nothing left to look up.
    assert clock.settled == (clock.time if count == 4 else 0)


def test_who_caught_up_knows_all_of_its_team(clock):
    time = clock.tick()
    clock.catch_up(WARPS[2])
    assert all(knows(clock, 2, before, time) for before in range(4))
    assert not knows(clock, 0, 2, time)


def test_a_fence_and_a_look_after_it_order_two_blocks():
    clock = GridClock(3, 1000)
    block = np.arange(3)
    before, now, other = (block[at : at + 1] for at in range(3))
    time = np.array([clock.tick()])
    assert not clock.ordered(before, now, time, False)
    clock.publish(before)
    assert not clock.ordered(before, now, time, False)
    clock.acquire(now)
    assert clock.ordered(before, now, time, False)
    assert not clock.ordered(before, other, time, False)
    assert not clock.ordered(other, now, time, False)
    assert clock.ordered(other, now, time, True)


def test_blocks_are_in_no_order_where_nothing_could_order_them():
    clock = GridClock(0, 1000)
    clock.publish(np.arange(2))
    clock.acquire(np.arange(2))
    assert not clock.ordered(np.array([0]), np.array([1]), np.array([1]), True).any()
