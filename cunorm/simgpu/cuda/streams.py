"""Streams, and what happens to work on them.

Work runs before the call that enqueues it returns, so that every order a program asks for holds. A
stream that is being captured is the exception: its work is recorded, and runs when the graph is
launched.
"""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from .errors import Status, runtime_error
from .graphs import Capture, GraphHandlers, Operation
from .machine import Machine, held

# The default streams: 0 and 1 are the legacy one, 2 is the calling thread's own.
_LEGACY = (0, 1)
_DEFAULT_STREAMS = (0, 1, 2)
_NON_BLOCKING = 1
_PRIORITIES = (-5, 0)  # greatest and least, as on hardware

_GLOBAL, _THREAD_LOCAL, _RELAXED = range(3)


@dataclass(eq=False)
class Stream:
    """A stream that the program created."""

    device: int
    flags: int = 0
    priority: int = 0
    capture: Capture | None = None


class StreamHandlers:
    """Streams and their capture; `submit` is where all work on a stream passes."""

    def __init__(self, machine: Machine, graphs: GraphHandlers) -> None:
        self._machine = machine
        self._graphs = graphs
        self._streams: dict[int, Stream] = {}
        self._captures: list[Capture] = []

    # --- work -------------------------------------------------------------------------------

    def submit(self, stream: int, operation: Operation) -> None:
        """Run `operation`, or record it where `stream` is being captured."""
        capture = self.capture_of(stream)
        if capture is not None:
            capture.record(stream, operation)
            return
        with self._machine.lock:
            operation()

    def device_of(self, stream: int) -> int:
        """Return the device of `stream`; a default stream is the current device's."""
        if stream in _DEFAULT_STREAMS:
            return self._machine.current
        return held(self._streams, stream).device

    def capture_of(self, stream: int) -> Capture | None:
        """Return the capture that `stream` takes part in, for a use of the stream.

        The legacy stream takes part in none; where it would have to wait for a stream that is being
        captured, its use is an error.
        """
        if stream not in _DEFAULT_STREAMS:
            return held(self._streams, stream).capture
        if stream in _LEGACY:
            for capture in self._captures:
                origin = self._streams[capture.origin]
                if not origin.flags & _NON_BLOCKING and origin.device == self._machine.current:
                    raise capture.invalidated(Status.STREAM_CAPTURE_IMPLICIT)
        return None

    def enter_capture(self, stream: int, capture: Capture) -> None:
        """Let `stream` take part in `capture`, because it waits for an event in it."""
        if stream in _DEFAULT_STREAMS:
            raise capture.invalidated(Status.STREAM_CAPTURE_IMPLICIT)
        held(self._streams, stream).capture = capture

    # --- what a capture forbids -------------------------------------------------------------

    def forbid_while_capturing(self) -> None:
        """Raise what a synchronisation of the device does during a capture."""
        for capture in self._captures:
            raise capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)

    def forbid_unsafe(self) -> None:
        """Raise where a capture's mode forbids calls that may synchronise, such as cudaMalloc."""
        for capture in self._captures:
            mine = capture.thread == threading.get_ident() and capture.mode != _RELAXED
            if mine or capture.mode == _GLOBAL:
                raise capture.invalidated(Status.STREAM_CAPTURE_UNSUPPORTED)

    def keep_for_graph(self, release: Operation) -> bool:
        """Take over memory that this thread frees while it captures; say whether that is so.

        Its address is among the recorded arguments, so that it must live as long as the graph: on
        hardware, CuPy's memory pool sees to that by not giving it back.
        """
        for capture in self._captures:
            if capture.thread == threading.get_ident():
                capture.graph.releases.append(release)
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
        capture = self.capture_of(stream)
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
        self._launchHostFuncUnmanaged(stream, (callback, arg))

    def _launchHostFuncUnmanaged(
        self, stream: int, func_arg: tuple[Callable[..., object], object]
    ) -> None:
        callback, argument = func_arg

        def call() -> None:
            callback(argument)

        self.submit(stream, call)

    # --- capture and graphs -----------------------------------------------------------------

    def streamBeginCapture(self, stream: int, mode: int = _RELAXED) -> None:
        if stream in _LEGACY:
            raise runtime_error(Status.STREAM_CAPTURE_UNSUPPORTED)
        own = held(self._streams, stream)
        if own.capture is not None or mode not in (_GLOBAL, _THREAD_LOCAL, _RELAXED):
            raise runtime_error(Status.INVALID_VALUE)
        own.capture = Capture(stream, mode, threading.get_ident())
        self._captures.append(own.capture)

    def streamIsCapturing(self, stream: int) -> int:
        capture = self.capture_of(stream)
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
        members = self._end(capture)
        if capture.invalid:
            raise runtime_error(Status.STREAM_CAPTURE_INVALIDATED)
        if not all(map(capture.is_joined, members)):
            capture.graph.drop_memory()
            raise runtime_error(Status.STREAM_CAPTURE_UNJOINED)
        return self._graphs.add(capture.graph)

    def _end(self, capture: Capture) -> list[int]:
        """End a capture, and return the streams that took part."""
        self._captures.remove(capture)
        capture.ended = True
        members = [handle for handle, own in list(self._streams.items()) if own.capture is capture]
        for handle in members:
            self._streams[handle].capture = None
        if capture.invalid:
            capture.graph.drop_memory()
        return members

    def graphLaunch(self, graphExec: int, stream: int) -> None:
        self.submit(stream, self._graphs.instance(graphExec).replay)

    def graphUpload(self, graphExec: int, stream: int) -> None:
        self._graphs.instance(graphExec)
        self.device_of(stream)
