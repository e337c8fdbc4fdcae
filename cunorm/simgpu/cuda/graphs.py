"""Graphs: what a capture records, how it may fail, and the handlers of the finished graph."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Status, runtime_error
from .machine import Machine, held

Operation = Callable[[], None]


@dataclass(eq=False)
class Graph:
    """Recorded operations, and how the memory that they keep alive is freed.

    `users` counts the handles to it: one of the graph, one of each instance.
    """

    operations: list[Operation] = field(default_factory=list)
    releases: list[Operation] = field(default_factory=list)
    users: int = 0

    def replay(self) -> None:
        """Run the operations in the order in which they were recorded."""
        for operation in self.operations:
            operation()

    def drop_memory(self) -> None:
        """Free what was kept."""
        while self.releases:
            self.releases.pop()()


@dataclass(eq=False)
class Capture:
    """A capture under way.

    `recorded` and `joined` count, for each stream that takes part, the operations it recorded, and
    how many of them some other stream of the capture waits for.
    """

    origin: int
    mode: int
    thread: int
    graph: Graph = field(default_factory=Graph)
    invalid: bool = False
    ended: bool = False
    recorded: dict[int, int] = field(default_factory=dict)
    joined: dict[int, int] = field(default_factory=dict)

    def record(self, stream: int, operation: Operation) -> None:
        """Add an operation of `stream`."""
        if self.invalid:
            raise runtime_error(Status.STREAM_CAPTURE_INVALIDATED)
        self.graph.operations.append(operation)
        self.recorded[stream] = self.recorded.get(stream, 0) + 1

    def join(self, stream: int, position: int) -> None:
        """Note that what `stream` recorded up to `position` is waited for."""
        self.joined[stream] = max(self.joined.get(stream, -1), position)

    def is_joined(self, stream: int) -> bool:
        """Return whether all that `stream` recorded leads back to the origin."""
        return stream == self.origin or self.joined.get(stream, -1) >= self.recorded.get(stream, 0)

    def invalidated(self, status: Status) -> Exception:
        """Give the capture up and return the error that says why."""
        self.invalid = True
        return runtime_error(status)


class GraphHandlers:
    """Graphs and their instances, by handle."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._graphs: dict[int, Graph] = {}
        self._instances: dict[int, Graph] = {}

    def add(self, graph: Graph) -> int:
        """Return a handle to a graph that was captured."""
        return self._hold(self._graphs, graph)

    def instance(self, handle: int) -> Graph:
        """Return the graph behind the handle of an instance."""
        return held(self._instances, handle)

    def _hold(self, handles: dict[int, Graph], graph: Graph) -> int:
        handle = self._machine.new_handle()
        handles[handle] = graph
        graph.users += 1
        return handle

    def _drop(self, handles: dict[int, Graph], handle: int) -> None:
        graph = held(handles, handle)
        del handles[handle]
        graph.users -= 1
        if graph.users == 0:
            graph.drop_memory()

    def graphInstantiate(self, graph: int) -> int:
        return self._hold(self._instances, held(self._graphs, graph))

    def graphDestroy(self, graph: int) -> None:
        self._drop(self._graphs, graph)

    def graphExecDestroy(self, graphExec: int) -> None:
        self._drop(self._instances, graphExec)
