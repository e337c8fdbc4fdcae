"""How `cunorm._bench.timing` takes times. The software GPU has none; what is launched is seen."""

from functools import partial

import cupy
import pytest

from cunorm._bench import timing
from cunorm._bench.timing import Sample, compare

LOG = cupy.RawKernel(
    'extern "C" __global__ void note(int* log, int what) { log[++log[0]] = what; }', "note"
)


@pytest.fixture
def clock(monkeypatch):
    """Give a clock of a graph: each replay takes the next of its microseconds, then the last."""
    ticks = [100.0]
    monkeypatch.setattr(
        timing, "microseconds", lambda start, end: ticks.pop(0) if len(ticks) > 1 else ticks[0]
    )
    monkeypatch.setattr(timing, "ROUNDS", 2)
    monkeypatch.setattr(timing, "REPLAYS", 3)
    return ticks


def noting(log, *what):
    return [partial(LOG, (1,), (1,), (log, cupy.int32(each))) for each in what]


def noted(log):
    host = log.get()
    return host[1 : 1 + host[0]].tolist()


def test_sets_take_turns_in_a_graph_of_400_us_and_one_replay_is_queued_ahead(clock):
    log = cupy.zeros(1000, "int32")
    found = compare({"it": noting(log, 1, 2)})
    # Once before the capture; a graph of one turn, replayed twice, takes 100 us; so four turns.
    # Then two rounds of three replays and the one ahead of them.
    assert noted(log) == [1, 2] * (1 + 2 + 2 * (1 + 3) * 4)
    assert found == {"it": Sample(100 / 8, 100 / 8, 100 / 8, 100 / 8, 6, 8)}


def test_what_is_compared_takes_turns(clock):
    clock[:] = [500.0]  # no graph holds more than one turn
    log = cupy.zeros(1000, "int32")
    compare({"a": noting(log, 1), "b": noting(log, 2)}, rounds=3)
    captured, turns = noted(log)[:6], noted(log)[6:]
    assert captured == [1] * 3 + [2] * 3
    assert turns == ([1] * 4 + [2] * 4) * 3


def test_short_launches_fill_no_endless_graph_and_many_sets_take_one_turn(clock, monkeypatch):
    clock[:] = [0.5]
    monkeypatch.setattr(timing, "MOST_LAUNCHES", 6)
    log = cupy.zeros(1000, "int32")
    found = compare({"two": noting(log, 1, 2), "seven": noting(log, *range(7))})
    assert {name: sample.launches for name, sample in found.items()} == {"two": 6, "seven": 7}


def test_a_sample_has_median_and_spread():
    sample = Sample.of([5.0, 1.0, *range(10, 19)], 4)
    assert (sample.median, sample.p10, sample.p90, sample.least) == (13, 5, 17, 1)
    assert (sample.count, sample.launches) == (11, 4)
    assert sample.spread == 12 / 13


def fails_at_once():
    raise RuntimeError("no such luck")


def fails_in_a_capture():
    cupy.cuda.get_current_stream().synchronize()


def fails_while_captured():
    if cupy.cuda.get_current_stream().is_capturing():
        raise ValueError("not here")


@pytest.mark.parametrize("bad", [fails_at_once, fails_in_a_capture, fails_while_captured])
def test_what_fails_is_told_and_keeps_nothing_else_from_being_timed(clock, bad):
    log = cupy.zeros(1000, "int32")
    failures = {}
    found = compare({"a": noting(log, 1), "bad": [bad], "b": noting(log, 2)}, failures)
    assert list(found) == ["a", "b"]
    assert list(failures) == ["bad"]
    assert failures["bad"].__traceback__ is None
    assert noted(log)[-1] == 2
    with pytest.raises(type(failures["bad"])):
        compare({"bad": [bad]})


def test_an_interrupt_while_capturing_is_passed_on_and_leaves_no_capture(clock):
    def interrupted():
        if cupy.cuda.get_current_stream().is_capturing():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare({"it": [interrupted]}, {})
    assert float(cupy.ones(3).sum()) == 3  # no capture forbids a transfer


@pytest.mark.parametrize("sets", [1, 2])
def test_each_of_several_sets_has_its_own_results_and_one_set_writes_to_one_place(clock, sets):
    places = []

    def makes():
        made = cupy.empty(1 << 20, "uint8")
        if cupy.cuda.get_current_stream().is_capturing():
            places.append(made.data.ptr)
        return made

    compare({"it": [makes] * sets})
    last = places[-max(2, 4 * sets) :]  # of the graph that is timed
    assert len(set(last)) == (1 if sets == 1 else len(last))


def test_memory_of_what_was_timed_is_given_back(clock):
    pool = cupy.get_default_memory_pool()
    before = pool.total_bytes()
    compare({"it": [partial(cupy.empty, 1 << 20, "uint8")] * 2})
    assert pool.total_bytes() == before


@pytest.mark.parametrize(("size", "count"), [(1 << 10, 512), (1 << 30, 2)])
def test_there_are_2_to_512_sets(size, count):
    assert timing.sets(size) == count


def test_sets_are_four_times_the_cache_together():
    cache = cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"]
    size = cache // 10
    assert 4 * cache <= timing.sets(size) * size < 4 * cache + size


def test_the_time_between_events_is_in_microseconds(monkeypatch):
    monkeypatch.setattr(timing.cupy.cuda, "get_elapsed_time", lambda start, end: 0.25)
    assert timing.microseconds(None, None) == 250.0
