"""Events: the host's clock when they were recorded, or a point in a capture."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import time
from dataclasses import dataclass

from .errors import Status, runtime_error
from .graphs import Capture
from .machine import Machine, held
from .streams import StreamHandlers

_DISABLE_TIMING = 2


@dataclass(eq=False)
class Event:
    """An event; `stream` and `position` say where in `capture` it was recorded."""

    device: int
    flags: int
    nanoseconds: int | None = None
    capture: Capture | None = None
    stream: int = 0
    position: int = 0


class EventHandlers:
    """Events, by handle. Work has run before it returns, so that no event is ever pending."""

    def __init__(self, machine: Machine, streams: StreamHandlers) -> None:
        self._machine = machine
        self._streams = streams
        self._events: dict[int, Event] = {}

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
        if self._streams.device_of(stream) != mark.device:
            raise runtime_error(Status.INVALID_RESOURCE_HANDLE)
        mark.capture = self._streams.capture_of(stream)
        if mark.capture is not None:
            mark.stream, mark.position = stream, mark.capture.recorded.get(stream, 0)
        else:
            mark.nanoseconds = time.perf_counter_ns()

    def eventQuery(self, event: int) -> int:
        # CuPy hands the status itself to its caller.
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

    def streamWaitEvent(self, stream: int, event: int, flags: int = 0) -> None:
        mark = held(self._events, event)
        waiting = self._streams.capture_of(stream)
        if mark.capture is None:
            # Work from before a capture cannot be waited for in it.
            if waiting is not None and mark.nanoseconds is not None:
                raise waiting.invalidated(Status.STREAM_CAPTURE_ISOLATION)
        elif mark.capture.ended:
            raise runtime_error(Status.STREAM_CAPTURE_ISOLATION)
        elif waiting not in (None, mark.capture):
            raise mark.capture.invalidated(Status.STREAM_CAPTURE_MERGE)
        else:
            self._streams.enter_capture(stream, mark.capture)
            if stream != mark.stream:
                mark.capture.join(mark.stream, mark.position)
