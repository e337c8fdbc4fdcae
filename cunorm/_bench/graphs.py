"""How a launch is timed: captured into CUDA graphs, which are replayed in turns between events.

A graph lasts some 0.4 ms, far more than an event resolves, and its launches go round over sets of
arrays, which together are larger than the L2 cache where a call should find nothing there. One
replay is ahead of the first event, so that the device is at work until all is enqueued and the host
is no part of what is timed. What is compared takes turns, for clocks wander.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import cupy

GRAPH_US = 400.0
MOST_LAUNCHES = 512  # in a graph
TURNS, REPLAYS = 7, 8  # 56 samples of each

Launch = Callable[[], Any]
Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Sample:
    """What one launch took, in microseconds.

    Attributes
    ----------
    median : float
        The median of all samples.
    spread : float
        From the tenth of them that is lowest to the tenth that is highest.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, us: Sequence[float]) -> Sample:
        """Return that of several samples."""
        ordered = sorted(us)
        tenth = len(ordered) // 10
        return cls(ordered[len(ordered) // 2], ordered[-1 - tenth] - ordered[tenth])


def compare(launches: Mapping[Name, Sequence[Launch]]) -> dict[Name, Sample]:
    """Time launches on the current device.

    Parameters
    ----------
    launches : mapping of name to sequence of callable
        What is compared: for each, callables that enqueue the same work on the current stream, each
        on a set of arrays of its own.

    Returns
    -------
    dict of name to Sample
        What one of them took.
    """
    us: dict[Name, list[float]] = {name: [] for name in launches}
    with cupy.cuda.Stream(non_blocking=True) as stream:
        graphs = {name: _Graph(several, stream) for name, several in launches.items()}
        for _ in range(TURNS):
            for name, graph in graphs.items():
                us[name] += graph.samples(REPLAYS)
    return {name: Sample.of(samples) for name, samples in us.items()}


class _Graph:
    """Launches, again and again until they last `GRAPH_US`."""

    def __init__(self, launches: Sequence[Launch], stream: cupy.cuda.Stream) -> None:
        self._stream = stream
        for launch in launches:  # kernels are compiled, and the pool has what they allocate
            launch()
        stream.synchronize()
        self._capture(launches)
        lasts = min(self.samples(3)) * len(launches)
        turns = min(-(-GRAPH_US // lasts), MOST_LAUNCHES // len(launches))
        if turns > 1:
            self._capture([*launches] * int(turns))

    def _capture(self, launches: Sequence[Launch]) -> None:
        self._count = len(launches)
        self._stream.begin_capture()
        # What a call returns is kept, so that each writes to memory of its own.
        self._kept = [launch() for launch in launches]
        self._graph = self._stream.end_capture()

    def samples(self, count: int) -> list[float]:
        """Return microseconds of a launch, of so many replays."""
        events = [cupy.cuda.Event() for _ in range(count + 1)]
        self._graph.launch(self._stream)
        events[0].record(self._stream)
        for event in events[1:]:
            self._graph.launch(self._stream)
            event.record(self._stream)
        events[-1].synchronize()
        spans = (cupy.cuda.get_elapsed_time(*both) for both in pairwise(events))
        return [1e3 * milliseconds / self._count for milliseconds in spans]
