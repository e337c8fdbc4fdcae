"""Arrays that have ``__cuda_array_interface__`` and no DLPack, as Numba's device arrays do."""

import contextlib

import cupy
import pytest
import torch
import torch_bridge
from arrays import bits, random, to_torch
from cupy.cuda import runtime

import cunorm
from cunorm._interop import streams

NARROW = ["float16", "float32", "float64"]


class Producer:
    """An array of a library that knows this one protocol."""

    def __init__(self, values, stream=None, read_only=False, **entries):
        self.memory = values if isinstance(values, cupy.ndarray) else cupy.asarray(values)
        self.entries = {
            "shape": self.memory.shape,
            "typestr": self.memory.dtype.str,
            "data": (self.memory.data.ptr, read_only),
            "strides": None if self.memory.flags.c_contiguous else self.memory.strides,
            "version": 3,
            **({} if stream is None else {"stream": stream}),
            **entries,
        }

    @property
    def __cuda_array_interface__(self):
        return self.entries


@pytest.fixture
def given():
    return {"x": random((6, 37), "float32"), "gamma": random((37,), "float32", seed=1)}


@pytest.mark.parametrize("dtype", NARROW)
def test_arrays_go_in_and_cupy_arrays_with_the_same_bits_come_out(dtype):
    x, residual = (random((6, 37), dtype, seed=seed) for seed in range(2))
    gamma = random((37,), dtype, seed=2)
    expected = cunorm.add_rms_norm_fwd(*map(cupy.asarray, (x, residual, gamma)))
    results = cunorm.add_rms_norm_fwd(*map(Producer, (x, residual, gamma)))
    assert {type(result) for result in results} == {cupy.ndarray}
    assert [bits(result) for result in results] == [bits(result) for result in expected]


def test_a_backward_op_takes_them(given):
    x, gamma = given.values()
    rstd = random((6,), "float32")
    arrays = (x, x, gamma, rstd)
    results = cunorm.rms_norm_bwd(*map(Producer, arrays))
    expected = cunorm.rms_norm_bwd(*map(cupy.asarray, arrays))
    assert [bits(result) for result in results] == [bits(result) for result in expected]


def test_what_is_given_to_be_written_comes_back_itself(given):
    x, residual, out, h = (Producer(given["x"]) for _ in range(4))
    expected = cunorm.add_rms_norm(cupy.asarray(given["x"]), cupy.asarray(given["x"]))
    y, sum_ = cunorm.add_rms_norm(x, residual, out=out, residual_out=h)
    assert y is out
    assert sum_ is h
    assert [bits(out.memory), bits(h.memory)] == [bits(result) for result in expected]
    y, sum_ = cunorm.add_rms_norm(x, residual, out=x, residual_out=residual)  # in place
    assert y is x
    assert sum_ is residual
    assert [bits(x.memory), bits(residual.memory)] == [bits(result) for result in expected]


@pytest.mark.parametrize(
    "view",
    [lambda a: a[::2], lambda a: a[:, 1:20], lambda a: a.T, lambda a: a[:0], lambda a: a[::-1]],
    ids=["rows", "columns", "transposed", "no rows", "reversed"],
)
def test_every_layout_crosses(given, view):
    x = view(cupy.asarray(given["x"]))
    assert bits(cunorm.rms_norm(Producer(x))) == bits(cunorm.rms_norm(x))


def test_an_empty_array_may_have_no_address():
    x = Producer(cupy.empty((0, 8), "float32"), data=(0, False), stream=1)
    assert cunorm.rms_norm(x).shape == (0, 8)


def test_beside_arrays_of_other_libraries_results_are_what_x_is(given):
    x, gamma = given.values()
    expected = bits(cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma)))
    y = cunorm.rms_norm(cupy.asarray(x), Producer(gamma, stream=1))
    assert isinstance(y, cupy.ndarray)
    assert bits(y) == expected
    with torch_bridge.tensors_on("cuda") as put:
        y = cunorm.rms_norm(put(to_torch(x)), Producer(gamma, stream=1))
        assert isinstance(y, torch.Tensor)
        assert bits(y.cpu().numpy()) == expected
        y = cunorm.rms_norm(Producer(x), put(to_torch(gamma)))
        assert isinstance(y, cupy.ndarray)
        assert bits(y) == expected


@contextlib.contextmanager
def captured(stream):
    """Capture a stream: what is enqueued on it is recorded and not run, and waiting raises."""
    with stream:
        stream.begin_capture()
    graph = []
    yield graph
    with stream:
        graph.append(stream.end_capture())


@pytest.mark.parametrize("place", ["x", "gamma", "out"])
def test_work_is_enqueued_after_the_producers_and_before_what_it_does_next(given, place):
    # A stream that waits for an event of one that is captured takes part in the capture, and the
    # capture cannot end before the first stream waits for the second in turn.
    expected = bits(cunorm.rms_norm(*map(cupy.asarray, given.values())))
    out = cupy.zeros((6, 37), "float32")
    arrays = {name: cupy.asarray(a) for name, a in given.items()} | {"out": out}
    cunorm.rms_norm(**arrays)
    out.fill(-1)
    mine, producers = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    arrays[place] = Producer(arrays[place], stream=producers.ptr)
    with captured(producers) as graph, mine:
        assert cunorm.rms_norm(**arrays) is arrays["out"]
        assert mine.is_capturing()
    assert (out.get() == -1).all()  # nothing ran, and nothing waited
    graph[0].launch(cupy.cuda.Stream(non_blocking=True))
    cupy.cuda.Device().synchronize()
    assert bits(out) == expected


@pytest.mark.parametrize("current", ["null", "own"])
@pytest.mark.parametrize(
    ("stream", "waits_for"),
    [(None, None), (1, cupy.cuda.Stream.null.ptr), (2, cupy.cuda.Stream.ptds.ptr)],
)
def test_the_default_streams_are_known_by_their_numbers(monkeypatch, stream, waits_for, current):
    own = cupy.cuda.Stream(non_blocking=True) if current == "own" else cupy.cuda.Stream.null
    recorded = []

    wait = streams._wait

    def waiting(device, first, second):
        recorded.append((first.ptr, second.ptr))
        wait(device, first, second)

    monkeypatch.setattr(streams, "_wait", waiting)
    with own:
        y = cunorm.rms_norm(Producer(cupy.ones((2, 8), "float32"), stream=stream), eps=0.0)
    assert (y.get() == 1).all()
    if waits_for is None or waits_for == own.ptr:
        assert recorded == []
    else:
        assert recorded == [(own.ptr, waits_for), (waits_for, own.ptr)]


@pytest.mark.skipif(runtime.getDeviceCount() < 2, reason="needs two devices (--simgpu-devices 2)")
def test_an_array_and_its_stream_may_be_on_another_device_than_the_current_one(given):
    expected = bits(cunorm.rms_norm(cupy.asarray(given["x"])))
    with cupy.cuda.Device(1):
        stream = cupy.cuda.Stream(non_blocking=True)
        x = Producer(given["x"], stream=stream.ptr)
    y = cunorm.rms_norm(x)
    assert y.device.id == 1
    assert bits(y) == expected
    assert runtime.getDevice() == 0
    with pytest.raises(ValueError, match=r"^gamma must be on the device of x, 1, but is on 0"):
        cunorm.rms_norm(x, Producer(given["gamma"]))


@pytest.mark.parametrize(
    ("entries", "error", "message"),
    [
        ({"mask": object()}, ValueError, "must have no mask, but its"),
        ({"stream": 0}, ValueError, "must say 1 or 2 for a default stream .*, but says 0"),
        # bfloat16, as PyTorch's tensors say it there
        ({"typestr": "<V2", "shape": (2, 16)}, TypeError, "must be .* '<V2'; bfloat16 crosses by"),
        (
            {"typestr": ">f4"},
            TypeError,
            "must be float16, .* of this machine's byte order .* '>f4'",
        ),
        ({"typestr": "<i4"}, TypeError, "must be float16, .* but is int32"),
    ],
)
def test_what_cannot_cross_is_refused_by_name(entries, error, message):
    x = cupy.zeros((2, 8), "float32")
    with pytest.raises(error, match=f"^x {message}"):
        cunorm.rms_norm(Producer(x, **entries))
    with pytest.raises(error, match=r"^residual "):
        cunorm.add_rms_norm(x, Producer(x, **entries))


def test_a_read_only_array_is_read_but_not_written():
    x, out = (cupy.ones((3, 8), "float32") for _ in range(2))
    y = cunorm.rms_norm(Producer(x, read_only=True), eps=0.0)
    assert (y.get() == 1).all()
    out.fill(5)
    with pytest.raises(ValueError, match=r"^out must be writable, but is read-only$"):
        cunorm.rms_norm(x, out=Producer(out, read_only=True))
    with pytest.raises(ValueError, match=r"^residual_out must be writable, but is read-only$"):
        cunorm.add_rms_norm(x, x, residual_out=Producer(out, read_only=True))
    assert (out.get() == 5).all()


def test_overlap_is_seen_through_the_interface():
    memory = cupy.ones(40, "float32")
    x, out = (Producer(memory[i : i + 32].reshape(4, 8)) for i in (0, 4))
    with pytest.raises(ValueError, match=r"^out must be x itself or not overlap it"):
        cunorm.rms_norm(x, out=out)
