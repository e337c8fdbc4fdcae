"""How long launches take on the current device: in CUDA graphs, replayed between events, in turns.

A launch is captured into a graph, so that no host is in the number. Its sets of arrays take turns,
as many as `sets` says: what a launch reads is then no longer in the cache. The graph lasts about
0.4 ms, far more than what an event resolves, and is replayed between events, once ahead of the
first of them so that the device is never idle when the clock starts. What is compared takes turns,
seven rounds of eight replays: clocks wander, and so the median of 56 samples counts.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TypeVar

import cupy

GRAPH_US = 400  # that a graph lasts
MOST_LAUNCHES = 512  # in a graph, unless there are more sets: captured in some 10 ms
ROUNDS, REPLAYS = 7, 8
CACHES = 4  # sets of arrays hold so many times the L2 cache
MOST_SETS = 512  # a call of a few KB finds its data in the cache in any program

Launch = Callable[[], object]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Sample:
    """What a launch takes, in microseconds.

    Attributes
    ----------
    median, p10, p90, least : float
        The quantiles of all samples, and the shortest.
    count : int
        How many samples.
    launches : int
        In a graph: a sample is their mean.
    """

    median: float
    p10: float
    p90: float
    least: float
    count: int
    launches: int

    @staticmethod
    def of(values: Sequence[float], launches: int) -> Sample:
        """Return what samples of a graph of so many launches say."""
        ordered = sorted(values)
        last = len(ordered) - 1
        median, p10, p90 = (ordered[round(q * last)] for q in (0.5, 0.1, 0.9))
        return Sample(median, p10, p90, ordered[0], len(ordered), launches)

    @property
    def spread(self) -> float:
        """How far samples lie apart: p90 - p10, over the median."""
        return (self.p90 - self.p10) / self.median


def compare(
    launches: Mapping[Name, Sequence[Launch]],
    failures: dict[Name, Exception] | None = None,
    rounds: int | None = None,
) -> dict[Name, Sample]:
    """Return what each of several launches takes on the current device, timed in turns.

    Parameters
    ----------
    launches : mapping of name to sequence of functions
        What is compared: a function for each set of arrays, which enqueues the same work on CuPy's
        current stream. What it returns stays alive as long as it is timed, so that each set has
        memory of its own for its results too; with a single set all results lie in one place.
    failures : dict, optional
        Gets the exception of each name that cannot be run or captured, which is then left out.
        Without it, the exception is raised.
    rounds : int, optional
        In each of which every name has a turn of eight replays; without it, seven.

    Returns
    -------
    dict of name to Sample
        In the order of `launches`.
    """
    cupy.cuda.Device().synchronize()  # what fills the arrays may have another stream
    graphs: dict[Name, _Graph] = {}
    with cupy.cuda.Stream(non_blocking=True) as stream:
        for name, calls in launches.items():
            found = _captured(calls, stream)
            if isinstance(found, _Graph):
                graphs[name] = found
            elif failures is None:
                raise found
            else:
                failures[name] = found.with_traceback(None)  # whose frames would keep arrays
        samples: dict[Name, list[float]] = {name: [] for name in graphs}
        for _ in range(ROUNDS if rounds is None else rounds):
            for name, graph in graphs.items():
                samples[name] += graph.samples(REPLAYS)
    return {name: Sample.of(samples[name], graph.launches) for name, graph in graphs.items()}


def sets(set_bytes: int) -> int:
    """Return how many sets of so many bytes are four times the L2 cache, but 2 to 512."""
    device = cupy.cuda.Device().id
    l2_bytes = int(cupy.cuda.runtime.getDeviceProperties(device)["l2CacheSize"])
    return min(max(2, -(-CACHES * l2_bytes // set_bytes)), MOST_SETS)


def microseconds(start: cupy.cuda.Event, end: cupy.cuda.Event) -> float:
    """Return the time between two events."""
    return 1e3 * float(cupy.cuda.get_elapsed_time(start, end))


def _captured(calls: Sequence[Launch], stream: cupy.cuda.Stream) -> _Graph | Exception:
    """Return the graph of launches, or what one of them raised."""
    try:
        return _Graph(calls, stream)
    except Exception as error:
        return error


class _Graph:
    """Launches captured on a stream.

    Attributes
    ----------
    launches : int
        In it.
    """

    def __init__(self, calls: Sequence[Launch], stream: cupy.cuda.Stream) -> None:
        self._stream = stream
        # What is allocated while it is captured is this graph's alone: another pool that runs full
        # gives back only what is its own.
        self._pool = cupy.cuda.MemoryPool()
        with cupy.cuda.using_allocator(self._pool.malloc):
            for call in calls:  # kernels are compiled, and other libraries' pools have memory
                call()
            stream.synchronize()
            self._capture(calls, 1)
            once = self.samples(1)[0] * len(calls)
            turns = min(int(GRAPH_US // once), MOST_LAUNCHES // len(calls))
            if turns > 1:
                self._capture(calls, turns)

    def _capture(self, calls: Sequence[Launch], turns: int) -> None:
        self._kept: list[object] = []
        self.launches = len(calls) * turns
        self._stream.begin_capture()
        try:
            for call in list(calls) * turns:
                made = call()
                if len(calls) > 1:
                    self._kept.append(made)
                del made
        except BaseException:
            # A stream that is left capturing would fail all that follows; that the capture is of no
            # use any more is no news.
            with contextlib.suppress(Exception):
                self._stream.end_capture()
            raise
        self._graph = self._stream.end_capture()

    def samples(self, replays: int) -> list[float]:
        """Return microseconds of a launch, one for each replay."""
        events = [cupy.cuda.Event() for _ in range(replays + 1)]
        self._graph.launch(self._stream)  # at work until all of what is timed is enqueued
        events[0].record(self._stream)
        for event in events[1:]:
            self._graph.launch(self._stream)
            event.record(self._stream)
        events[-1].synchronize()
        return [microseconds(start, end) / self.launches for start, end in pairwise(events)]
