"""Streams of several libraries in order: what is enqueued on one waits for another's work."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

import cupy


@contextmanager
def in_order(others: Iterable[tuple[int, cupy.cuda.Stream]]) -> Iterator[None]:
    """Bring CuPy's current streams in order with others: each with its device."""
    with ExitStack() as stack:
        for device, other in others:
            with cupy.cuda.Device(device):
                stack.enter_context(ordered(device, cupy.cuda.get_current_stream(), other))
        yield


@contextmanager
def ordered(device: int, stream: cupy.cuda.Stream, other: cupy.cuda.Stream) -> Iterator[None]:
    """Let a stream wait for another of its device, and that for what is enqueued in between."""
    if stream.ptr == other.ptr:
        yield
        return
    _wait(device, stream, other)
    yield
    _wait(device, other, stream)


def _wait(device: int, stream: cupy.cuda.Stream, other: cupy.cuda.Stream) -> None:
    with cupy.cuda.Device(device):  # An event belongs to one device, as its stream does.
        stream.wait_event(other.record(cupy.cuda.Event(disable_timing=True)))


class Handle:
    """The protocol of CUDA streams, for a stream of which the pointer is known."""

    def __init__(self, pointer: int) -> None:
        self._pointer = pointer

    def __cuda_stream__(self) -> tuple[int, int]:
        return 0, self._pointer
