"""Streams, events and graphs.

Work runs before the call that enqueues it returns, so that every order a program asks for holds. A
stream that is being captured is the exception: its work is recorded, and runs when the graph is
launched.
"""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .errors import Status, runtime_error
from .machine import Machine, held

Operation = Callable[[], None]

# The default streams: 0 and 1 are the legacy one, 2 is the calling thread's own.
_LEGACY = (0, 1)
_DEFAULT_STREAMS = (0, 1, 2)
_NON_BLOCKING = 1
_DISABLE_TIMING = 2
_PRIORITIES = (-5, 0)  # greatest and least, as on hardware

_GLOBAL, _THREAD_LOCAL, _RELAXED = range(3)


@dataclass(eq=False)
class Graph:
    """Recorded operations, and the memory that they keep alive.

    `users` counts the handles to it: one of the graph, one of each instance.
    """

    operations: list[Operation] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    users: int = 0

    def replay(self) -> None:
        """Run the operations in the order in which they were recorded."""
        for operation in self.operations:
            operation()


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
    recorded: dict[int, int] = field(default_factory=dict)
    joined: dict[int, int] = field(default_factory=dict)

    def invalidated(self, status: Status) -> Exception:
        """Give the capture up and return the error that says why."""
        self.invalid = True
        return runtime_error(status)


@dataclass(eq=False)
class Stream:
    """A stream that the program created."""

    device: int
    flags: int = 0
    priority: int = 0
    capture: Capture | None = None


@dataclass(eq=False)
class Event:
    """An event: the host's clock when it was recorded, or the point of a capture."""

    device: int
    flags: int
    nanoseconds: int | None = None
    capture: Capture | None = None
    stream: int = 0
    position: int = 0


class StreamHandlers:
    """Streams, stream capture and graphs; `submit` is where all work on a stream passes."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._streams: dict[int, Stream] = {}
        self._events: dict[int, Event] = {}
        self._graphs: dict[int, Graph] = {}
        self._instances: dict[int, Graph] = {}
        self._captures: list[Capture] = []
        # How memory that a graph kept is freed; the handlers of memory set it.
        self.release: Callable[[int], None]

    # --- work -------------------------------------------------------------------------------

    def submit(self, stream: int, operation: Operation) -> None:
        """Run `operation`, or record it where `stream` is being captured."""
        if stream not in _DEFAULT_STREAMS:
            capture = held(self._streams, stream).capture
            if capture is not None:
                self._record(capture, stream, operation)
                return
        elif stream in _LEGACY:
            self._forbid_implicit()
        with self._machine.lock:
            operation()

    def device_of(self, stream: int) -> int:
        """Return the device of `stream`; a default stream is the current device's."""
        if stream in _DEFAULT_STREAMS:
            return self._machine.current
        return held(self._streams, stream).device

    def _record(self, capture: Capture, stream: int, operation: Operation) -> None:
        if capture.invalid:
            raise runtime_error(Status.STREAM_CAPTURE_INVALIDATED)
        capture.graph.operations.append(operation)
        capture.recorded[stream] = capture.recorded.get(stream, 0) + 1

    # --- what a capture forbids -------------------------------------------------------------

    def forbid_while_capturing(self) -> None:
        """Raise what a synchronisation of the device does during a capture."""
        for capture in self._captures:
            raise capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)

    def forbid_unsafe(self) -> None:
        """Raise where a capture's mode forbids calls that may synchronise, such as cudaMalloc."""
        here = threading.get_ident()
        for capture in self._captures:
            mine = capture.thread == here and capture.mode != _RELAXED
            if mine or capture.mode == _GLOBAL:
                raise capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)

    def _forbid_implicit(self) -> None:
        """Raise where the legacy stream would have to wait for a stream that is being captured."""
        for capture in self._captures:
            stream = self._streams[capture.origin]
            if not stream.flags & _NON_BLOCKING and stream.device == self._machine.current:
                raise capture.invalidated(Status.STREAM_CAPTURE_IMPLICIT)

    def keep_for_graph(self, ptr: int) -> bool:
        """Take over memory that this thread frees while it captures; say whether that is so.

        Its address is among the recorded arguments, so that it must live as long as the graph: on
        hardware, CuPy's memory pool sees to that by not giving it back.
        """
        here = threading.get_ident()
        for capture in self._captures:
            if capture.thread == here:
                capture.graph.memory.append(ptr)
                return True
        return False

    # --- streams ----------------------------------------------------------------------------

    def streamCreate(self) -> int:
        return self.streamCreateWithPriority(0, 0)

    def streamCreateWithFlags(self, flags: int) -> int:
        return self.streamCreateWithPriority(flags, 0)

    def streamCreateWithPriority(self, flags: int, priority: int) -> int:
        handle = self._machine.new_handle()
        greatest, least = _PRIORITIES
        clamped = min(max(priority, greatest), least)
        self._streams[handle] = Stream(self._machine.current, flags, clamped)
        return handle

    def streamDestroy(self, stream: int) -> None:
        capture = held(self._streams, stream).capture
        if capture is not None:
            capture.invalid = True
            self._end(capture)
        del self._streams[stream]

    def streamGetFlags(self, stream: int) -> int:
        return 0 if stream in _DEFAULT_STREAMS else held(self._streams, stream).flags

    def streamGetPriority(self, stream: int) -> int:
        return 0 if stream in _DEFAULT_STREAMS else held(self._streams, stream).priority

    def streamSynchronize(self, stream: int) -> None:
        if stream in _LEGACY:
            self._forbid_implicit()
        elif stream not in _DEFAULT_STREAMS:
            capture = held(self._streams, stream).capture
            if capture is not None:
                raise capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)

    def streamQuery(self, stream: int) -> int:
        # CuPy hands the status itself to its caller.
        self.streamSynchronize(stream)
        return 0

    def streamAddCallback(
        self, stream: int, callback: Callable[..., object], arg: int, flags: int = 0
    ) -> None:
        self.streamSynchronize(stream)  # it cannot be captured either
        callback(stream, 0, arg)

    def launchHostFunc(self, stream: int, callback: Callable[..., object], arg: int) -> None:
        self.submit(stream, lambda: _call(callback, arg))

    def _launchHostFuncUnmanaged(
        self, stream: int, func_arg: tuple[Callable[..., object], object]
    ) -> None:
        self.submit(stream, lambda: _call(*func_arg))

    def streamWaitEvent(self, stream: int, event: int, flags: int = 0) -> None:
        mark = held(self._events, event)
        own = None if stream in _DEFAULT_STREAMS else held(self._streams, stream)
        if mark.capture is None:
            # Work outside the capture cannot be waited for in it.
            if own is not None and own.capture is not None and mark.nanoseconds is not None:
                raise own.capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)
        elif own is None:
            raise mark.capture.invalidated(Status.STREAM_CAPTURE_IMPLICIT)
        elif own.capture not in (None, mark.capture):
            raise mark.capture.invalidated(Status.STREAM_CAPTURE_MERGE)
        else:
            own.capture = mark.capture
            if stream != mark.stream:
                joined = mark.capture.joined
                joined[mark.stream] = max(joined.get(mark.stream, -1), mark.position)

    # --- events -----------------------------------------------------------------------------

    def eventCreate(self) -> int:
        return self.eventCreateWithFlags(0)

    def eventCreateWithFlags(self, flags: int) -> int:
        handle = self._machine.new_handle()
        self._events[handle] = Event(self._machine.current, flags)
        return handle

    def eventDestroy(self, event: int) -> None:
        held(self._events, event)
        del self._events[event]

    def eventRecord(self, event: int, stream: int) -> None:
        mark = held(self._events, event)
        if self.device_of(stream) != mark.device:
            raise runtime_error(Status.INVALID_RESOURCE_HANDLE)
        if stream in _LEGACY:
            self._forbid_implicit()
        mark.capture = None
        if stream in self._streams:
            mark.capture = self._streams[stream].capture
        if mark.capture is not None:
            mark.stream, mark.position = stream, mark.capture.recorded.get(stream, 0)
        else:
            mark.nanoseconds = time.perf_counter_ns()

    def eventQuery(self, event: int) -> int:
        self.eventSynchronize(event)
        return 0

    def eventSynchronize(self, event: int) -> None:
        capture = held(self._events, event).capture
        if capture is not None:
            raise capture.invalidated(Status.CAPTURED_EVENT)

    def eventElapsedTime(self, start: int, end: int) -> float:
        """Milliseconds of the host's clock: how long the simulation took, not a GPU."""
        marks = [held(self._events, handle) for handle in (start, end)]
        if any(mark.flags & _DISABLE_TIMING for mark in marks):
            raise runtime_error(Status.INVALID_RESOURCE_HANDLE)
        begin, finish = (mark.nanoseconds for mark in marks)
        if begin is None or finish is None:
            raise runtime_error(Status.INVALID_RESOURCE_HANDLE)
        return (finish - begin) / 1e6

    # --- capture and graphs -----------------------------------------------------------------

    def streamBeginCapture(self, stream: int, mode: int = _RELAXED) -> None:
        if stream in _LEGACY:
            raise runtime_error(Status.STREAM_CAPTURE_UNSUPPORTED)
        if mode not in (_GLOBAL, _THREAD_LOCAL, _RELAXED):
            raise runtime_error(Status.INVALID_VALUE)
        own = held(self._streams, stream)
        if own.capture is not None:
            raise runtime_error(Status.INVALID_VALUE)
        own.capture = Capture(stream, mode, threading.get_ident())
        self._captures.append(own.capture)

    def streamIsCapturing(self, stream: int) -> int:
        if stream in _LEGACY:
            self._forbid_implicit()
        capture = None if stream in _DEFAULT_STREAMS else held(self._streams, stream).capture
        if capture is not None and capture.invalid:
            # CuPy turns the status "invalidated" into this very sentence.
            raise RuntimeError(
                "the stream was capturing, but an error has invalidated the capture sequence"
            )
        return int(capture is not None)

    def streamEndCapture(self, stream: int) -> int:
        capture = None if stream in _DEFAULT_STREAMS else held(self._streams, stream).capture
        if capture is None:
            raise runtime_error(Status.INVALID_VALUE)
        if capture.origin != stream:
            raise capture.invalidated(Status.STREAM_CAPTURE_UNMATCHED)
        if capture.mode != _RELAXED and capture.thread != threading.get_ident():
            raise capture.invalidated(Status.STREAM_CAPTURE_WRONG_THREAD)
        forked = [handle for handle, own in self._streams.items() if own.capture is capture]
        self._end(capture)
        if capture.invalid:
            raise runtime_error(Status.STREAM_CAPTURE_INVALIDATED)
        for other in forked:
            if other != stream and capture.joined.get(other, -1) < capture.recorded.get(other, 0):
                self._drop_memory(capture.graph)
                raise runtime_error(Status.STREAM_CAPTURE_UNJOINED)
        handle = self._machine.new_handle()
        self._graphs[handle] = capture.graph
        capture.graph.users = 1
        return handle

    def _end(self, capture: Capture) -> None:
        self._captures.remove(capture)
        for own in self._streams.values():
            if own.capture is capture:
                own.capture = None
        for mark in self._events.values():
            if mark.capture is capture:
                mark.capture = None
        if capture.invalid:
            self._drop_memory(capture.graph)

    def _drop_memory(self, graph: Graph) -> None:
        while graph.memory:
            self.release(graph.memory.pop())

    def _drop(self, graph: Graph) -> None:
        graph.users -= 1
        if graph.users == 0:
            self._drop_memory(graph)

    def graphInstantiate(self, graph: int) -> int:
        recorded = held(self._graphs, graph)
        recorded.users += 1
        handle = self._machine.new_handle()
        self._instances[handle] = recorded
        return handle

    def graphLaunch(self, graphExec: int, stream: int) -> None:
        self.submit(stream, held(self._instances, graphExec).replay)

    def graphUpload(self, graphExec: int, stream: int) -> None:
        held(self._instances, graphExec)
        self.device_of(stream)

    def graphDestroy(self, graph: int) -> None:
        self._drop(held(self._graphs, graph))
        del self._graphs[graph]

    def graphExecDestroy(self, graphExec: int) -> None:
        self._drop(held(self._instances, graphExec))
        del self._instances[graphExec]


def _call(callback: Callable[..., object], argument: object) -> None:
    callback(argument)
