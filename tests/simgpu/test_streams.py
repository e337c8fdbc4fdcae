"""Streams, events and graphs. Fills and copies stand for all work: kernels pass the same way.

What is not marked holds on hardware too.
"""

import threading

import cupy
import numpy as np
import pytest
from cupy_backends.cuda.api import runtime

from cunorm import simgpu

INVALID_HANDLE, UNSUPPORTED, INVALIDATED = 400, 900, 901
UNJOINED, ISOLATION, IMPLICIT, CAPTURED_EVENT = 904, 905, 906, 907


def status_of(call):
    with pytest.raises(runtime.CUDARuntimeError) as raised:
        call()
    return raised.value.status


def fill(array, value, stream):
    array.data.memset_async(value, array.nbytes, stream)


@pytest.fixture
def array():
    zeros = cupy.zeros(8, np.uint8)
    cupy.cuda.Device().synchronize()  # streams that do not block would not wait for them
    return zeros


@pytest.fixture
def stream():
    return cupy.cuda.Stream(non_blocking=True)


@pytest.mark.parametrize("stream", [cupy.cuda.Stream.null, cupy.cuda.Stream.ptds])
def test_the_default_streams_do_work(stream, array):
    fill(array, 3, stream)
    stream.synchronize()
    assert stream.done
    assert array.get(stream=stream).tolist() == [3] * 8


def test_streams_keep_their_flags_and_clamp_their_priority():
    stream = cupy.cuda.Stream(non_blocking=True, priority=-100)
    assert (stream.is_non_blocking, stream.priority) == (True, -5)
    assert not cupy.cuda.Stream().is_non_blocking


@pytest.mark.simgpu("CUDA leaves open what comes of a stream that was destroyed")
def test_a_destroyed_stream_is_an_invalid_handle(array):
    handle = runtime.streamCreate()
    runtime.streamDestroy(handle)
    assert status_of(lambda: runtime.streamSynchronize(handle)) == INVALID_HANDLE
    assert status_of(lambda: runtime.memsetAsync(array.data.ptr, 0, 8, handle)) == INVALID_HANDLE


def test_callbacks_run_with_their_argument(stream):
    seen = []
    stream.add_callback(lambda stream, status, argument: seen.append((status, argument)), "a")
    stream.launch_host_func(seen.append, "b")
    stream.synchronize()
    assert seen == [(0, "a"), "b"]


def test_events_are_ordered_in_time(stream):
    start, end = cupy.cuda.Event(), cupy.cuda.Event()
    start.record(stream)
    end.record(stream)
    end.synchronize()
    assert start.done
    assert cupy.cuda.get_elapsed_time(start, end) >= 0
    assert cupy.cuda.get_elapsed_time(end, start) <= 0


def test_events_without_time_have_no_elapsed_time():
    never, untimed = cupy.cuda.Event(), cupy.cuda.Event(disable_timing=True)
    untimed.record()
    recorded = cupy.cuda.get_current_stream().record()
    recorded.synchronize()
    for event in (never, untimed):
        assert status_of(lambda e=event: cupy.cuda.get_elapsed_time(e, recorded)) == INVALID_HANDLE


def test_captured_work_runs_when_the_graph_is_launched_and_each_time(array, stream):
    stream.begin_capture()
    assert stream.is_capturing()
    fill(array, 5, stream)
    graph = stream.end_capture()
    assert not stream.is_capturing()
    assert array.get().tolist() == [0] * 8
    for _ in range(2):
        array.data.memset(0, 8)
        cupy.cuda.Stream.null.synchronize()
        graph.launch(stream)
        assert array.get(stream=stream).tolist() == [5] * 8


def test_a_graph_replays_in_the_order_of_capture(array, stream):
    with stream:
        stream.begin_capture()
        fill(array, 1, stream)
        fill(array[:4], 2, stream)
        seen = []
        stream.launch_host_func(seen.append, "host")
        graph = stream.end_capture()
    assert seen == []
    graph.upload(stream)
    graph.launch(stream)
    assert array.get(stream=stream).tolist() == [2] * 4 + [1] * 4
    assert seen == ["host"]


@pytest.mark.simgpu(
    "CuPy's pool keeps on hardware what is freed, so that its bytes cannot be counted"
)
def test_a_graph_keeps_the_memory_that_was_freed_during_its_capture(array, stream):
    with stream:
        stream.begin_capture()
        temporary = cupy.empty(8, np.uint8)
        fill(temporary, 9, stream)
        array.data.copy_from_device_async(temporary.data, 8, stream)
        del temporary
        graph = stream.end_capture()
    free = runtime.memGetInfo()[0]
    graph.launch(stream)
    assert array.get(stream=stream).tolist() == [9] * 8
    del graph
    assert runtime.memGetInfo()[0] == free + 8


@pytest.mark.simgpu("hardware writes to freed memory in silence")
def test_a_graph_that_uses_memory_freed_after_its_capture_faults(stream):
    stream.begin_capture()
    temporary = cupy.empty(8, np.uint8)
    fill(temporary, 9, stream)
    graph = stream.end_capture()
    del temporary
    with pytest.raises(simgpu.UseAfterFree):
        graph.launch(stream)


def test_a_capture_spreads_to_streams_that_wait_for_it(array, stream):
    other = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    other.wait_event(stream.record())
    assert other.is_capturing()
    fill(array, 7, other)
    stream.wait_event(other.record())
    graph = stream.end_capture()
    assert not other.is_capturing()
    assert array.get().tolist() == [0] * 8
    graph.launch()
    assert array.get().tolist() == [7] * 8


def test_a_stream_that_was_not_joined_again_spoils_the_capture(array, stream):
    other = cupy.cuda.Stream(non_blocking=True)
    stream.begin_capture()
    other.wait_event(stream.record())
    fill(array, 7, other)
    assert status_of(stream.end_capture) == UNJOINED
    assert not stream.is_capturing()


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda stream: stream.synchronize(),
        lambda stream: stream.done,
        lambda stream: cupy.cuda.Device().synchronize(),
        lambda stream: stream.add_callback(lambda *_: None, None),
    ],
    ids=["synchronize", "query", "device", "callback"],
)
def test_waiting_for_a_capturing_stream_is_refused_and_invalidates(forbidden, stream, array):
    stream.begin_capture()
    assert status_of(lambda: forbidden(stream)) == UNSUPPORTED
    with pytest.raises(RuntimeError, match="invalidated the capture sequence"):
        stream.is_capturing()
    assert status_of(lambda: fill(array, 1, stream)) == INVALIDATED
    assert status_of(stream.end_capture) == INVALIDATED
    fill(array, 1, stream)
    assert array.get(stream=stream).tolist() == [1] * 8


@pytest.mark.parametrize(
    ("mode", "refused"),
    [
        (runtime.streamCaptureModeGlobal, True),
        (runtime.streamCaptureModeThreadLocal, True),
        (runtime.streamCaptureModeRelaxed, False),
    ],
)
def test_only_a_relaxed_capture_lets_memory_be_allocated(mode, refused, stream):
    stream.begin_capture(mode)
    if refused:  # asked of CUDA: CuPy's pool may have what it needs
        assert status_of(lambda: runtime.malloc(8)) == UNSUPPORTED
        assert status_of(stream.end_capture) == INVALIDATED
    else:
        memory = runtime.malloc(8)
        stream.end_capture()
        runtime.free(memory)


def test_the_legacy_stream_cannot_work_while_a_blocking_stream_captures(array):
    blocking = cupy.cuda.Stream()
    blocking.begin_capture()
    assert status_of(lambda: fill(array, 1, cupy.cuda.Stream.null)) == IMPLICIT
    assert status_of(blocking.end_capture) == INVALIDATED


def test_the_legacy_stream_works_while_a_non_blocking_stream_captures(array, stream):
    stream.begin_capture()
    fill(array, 1, cupy.cuda.Stream.null)
    stream.end_capture()
    assert array.get().tolist() == [1] * 8


def test_a_captured_event_cannot_be_waited_for_on_the_host(stream):
    stream.begin_capture()
    event = stream.record()
    assert status_of(event.synchronize) == CAPTURED_EVENT
    assert status_of(stream.end_capture) == INVALIDATED


def test_an_event_cannot_carry_a_dependency_into_or_out_of_a_capture(stream):
    before = cupy.cuda.get_current_stream().record()
    stream.begin_capture()
    assert status_of(lambda: stream.wait_event(before)) == ISOLATION
    assert status_of(stream.end_capture) == INVALIDATED
    stream.begin_capture()
    inside = stream.record()
    stream.end_capture()
    assert status_of(lambda: cupy.cuda.Stream().wait_event(inside)) == ISOLATION
    inside.record(stream)
    cupy.cuda.Stream().wait_event(inside)
    stream.synchronize()
    assert inside.done


@pytest.mark.parametrize(
    ("mode", "refused"),
    [(runtime.streamCaptureModeGlobal, True), (runtime.streamCaptureModeThreadLocal, False)],
)
def test_a_global_capture_stops_allocation_in_every_thread(mode, refused, stream):
    outcome = []

    def allocate():
        try:
            runtime.free(runtime.malloc(8))
            outcome.append(None)
        except runtime.CUDARuntimeError as error:
            outcome.append(error.status)

    stream.begin_capture(mode)
    thread = threading.Thread(target=allocate)
    thread.start()
    thread.join()
    if refused:
        assert outcome == [UNSUPPORTED]
        assert status_of(stream.end_capture) == INVALIDATED
    else:
        assert outcome == [None]
        stream.end_capture()
