"""How a launch is timed: captured into a CUDA graph, replayed between events."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from itertools import pairwise
from typing import Any

import torch

from .session import DRY, quantiles, start_device

cupy = start_device()

GRAPH_US = 400  # of a graph; far more than what an event resolves
MOST_LAUNCHES = 160  # in a graph: captured in a fraction of a second
REPLAYS = 8  # of a turn: 9 graphs of 400 us, one of them ahead of the first event


class Handle:
    """A stream of PyTorch's as CuPy takes it; not every PyTorch has the protocol itself."""

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, stream().cuda_stream


@cache
def stream() -> torch.cuda.Stream:
    """Return the stream on which all is captured and timed."""
    return torch.cuda.Stream()


@cache
def l2_bytes() -> int:
    """Return the size of the L2 cache."""
    return int(cupy.cuda.runtime.getDeviceProperties(0)["l2CacheSize"])


class Graph:
    """A call captured over its sets of arrays, which take turns.

    What a call returns is kept, so that each writes to memory of its own, as cunorm does to what it
    is given; of one set it is not, so that all write to one place.

    Attributes
    ----------
    per : int
        Launches in it.
    """

    def __init__(self, function: Callable[[Any], Any], sets: Sequence[Any], us: float) -> None:
        turns = -(-int(GRAPH_US / us) // len(sets))
        turns = max(1, min(turns, MOST_LAUNCHES // len(sets)))
        self.per = turns * len(sets)
        self.kept: list[Any] = []
        if DRY:
            self.kept = [function(given) for given in sets]
            return
        mine = cupy.cuda.Stream.from_external(Handle())
        with torch.cuda.stream(stream()), mine:
            for given in sets:
                function(given)
        stream().synchronize()
        self.graph = torch.cuda.CUDAGraph()
        # CuPy's pool may grow while its own calls are captured, which other modes forbid.
        whole = torch.cuda.graph(self.graph, stream=stream(), capture_error_mode="relaxed")
        with mine, whole, mine:
            for given in list(sets) * turns:
                made = function(given)
                if len(sets) > 1:
                    self.kept.append(made)
                del made

    def samples(self) -> list[float]:
        """Return microseconds of a launch, one for each replay; in a dry run, made-up ones."""
        if DRY:
            return [1.0 + 0.01 * i for i in range(REPLAYS)]
        events = [torch.cuda.Event(enable_timing=True) for _ in range(REPLAYS + 1)]
        with torch.cuda.stream(stream()):
            self.graph.replay()  # the device is at work until all of what is timed is enqueued
            events[0].record()
            for event in events[1:]:
                self.graph.replay()
                event.record()
        events[-1].synchronize()
        spans = pairwise(events)
        return [start.elapsed_time(end) * 1e3 / self.per for start, end in spans]

    def close(self) -> None:
        """Give back what it holds."""
        self.kept.clear()
        if not DRY:
            self.graph.reset()


def in_turns(graphs: dict[Any, Graph], rounds: int) -> dict[Any, dict[str, float]]:
    """Return the quantiles of each graph's samples; they take turns, for clocks wander."""
    samples: dict[Any, list[float]] = {name: [] for name in graphs}
    for _ in range(1 if DRY else rounds):
        for name, graph in graphs.items():
            samples[name] += graph.samples()
    return {name: quantiles(found) for name, found in samples.items()}


def sets_of(case: Any) -> int:
    """Return how many sets of arrays are four times as large as the L2 cache together."""
    if case.warm or DRY:
        return 1
    return max(2, min(48, int(-(-4 * l2_bytes() // case.floor_bytes))))


def estimated_us(case: Any) -> float:
    """Return about how long a launch takes, at 2.4 TB/s."""
    return max(2.5, float(case.floor_bytes / 2.4e6))


def warm_up() -> None:
    """Bring the clocks up: a second and a half of work."""
    if DRY:
        return
    a = torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16)
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        a @ a
        torch.cuda.synchronize()


def free(graphs: Iterable[Graph]) -> None:
    """Give back the memory of graphs, of both libraries."""
    for graph in graphs:
        graph.close()
    if not DRY:
        torch.cuda.empty_cache()
    cupy.get_default_memory_pool().free_all_blocks()
