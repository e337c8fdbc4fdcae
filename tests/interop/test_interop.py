"""Arrays of other libraries given to the CuPy ops: no copy, their stream, their type back."""

import contextlib
import inspect
from concurrent.futures import ThreadPoolExecutor

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import EVERY, random, to_numpy, to_torch
from cupy.cuda import runtime
from kinds import IN_TURNS

import cunorm
from cunorm import _families
from cunorm._call import remembered
from cunorm._interop import libraries

OPS = list(_families.OPS)
FORWARD = [op.name for op in _families.PLAIN]


@pytest.fixture
def put():
    """What brings a CPU tensor to the device."""
    with torch_bridge.tensors_on("cuda") as put:
        yield put


@pytest.fixture
def bridge():
    """What brings CPU tensors to the device, and sets PyTorch's current stream."""
    with torch_bridge.pytorchs_stream() as bridge:
        yield bridge


def arguments(op, shape=(6, 37), dtype="float32"):
    """Return NumPy arrays for the array arguments of an op, without those it writes."""
    names = inspect.signature(getattr(cunorm, op)).parameters
    of_columns = ("gamma", "gamma2", "beta", "scale", "shift")
    extents = dict.fromkeys(of_columns, shape[-1:]) | dict.fromkeys(("mean", "rstd"), shape[:-1])
    wide = "float64" if dtype == "float64" else "float32"
    return {
        name: abs(random(extents[name], wide, seed=i))
        if name in ("mean", "rstd")
        else random(extents.get(name, shape), dtype, seed=i)
        for i, name in enumerate(names)
        if name in (*extents, "x", "h", "dy", "residual", "gate", "dresidual")
    }


def results_of(op, given, made):
    """Return arrays for all results of an op, by argument: `made` of the inputs they are like."""
    return {o.argument: made(given[o.like]) for o in _families.OPS[op].writes}


def as_tuple(result):
    return result if isinstance(result, tuple) else (result,)


def call(op, arrays):
    return as_tuple(getattr(cunorm, op)(**arrays))


def host(array):
    """Return an array of any kind as NumPy's."""
    return to_numpy(array.cpu()) if isinstance(array, torch.Tensor) else array.get()


def assert_same_bits(results, expected):
    assert len(results) == len(expected)
    for one, other in zip(results, expected, strict=True):
        one, other = host(one), host(other)
        assert (one.shape, one.dtype) == (other.shape, other.dtype)
        assert one.tobytes() == other.tobytes()


@IN_TURNS
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("op", OPS)
def test_tensors_go_in_and_tensors_with_the_same_bits_come_out(put, op, dtype):
    given = arguments(op, dtype=dtype)
    expected = call(op, {name: cupy.asarray(a) for name, a in given.items()})
    results = call(op, {name: put(to_torch(a)) for name, a in given.items()})
    assert {type(result) for result in results} == {torch.Tensor}
    assert_same_bits(results, expected)


@pytest.mark.parametrize("op", FORWARD)
def test_what_is_given_to_be_written_comes_back_itself(put, op):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    expected = call(op, given)
    outputs = results_of(op, given, torch.empty_like)
    results = call(op, {**given, **outputs})
    assert all(map(lambda a, b: a is b, results, outputs.values()))
    assert_same_bits(results, expected)


@pytest.mark.parametrize("op", FORWARD)
def test_in_place_a_tensor_is_written_and_comes_back_itself(put, op):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    expected = call(op, given)
    outputs = results_of(op, given, lambda tensor: tensor)
    results = call(op, {**given, **outputs})
    assert all(map(lambda a, b: a is b, results, outputs.values()))
    assert_same_bits(results, expected)


@pytest.mark.parametrize("op", FORWARD)
@pytest.mark.parametrize("lead", [torch.Tensor, cupy.ndarray])
def test_autograd_knows_what_was_written(put, op, lead):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    outputs = results_of(op, given, torch.empty_like)
    if lead is cupy.ndarray:
        given["x"] = cupy.asarray(host(given["x"]))
    weight = torch.ones_like(given["gamma"], requires_grad=True)
    products = [(output * weight).sum() for output in outputs.values()]
    call(op, {**given, **outputs})
    for product in products:
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            product.backward()
    with torch.inference_mode():  # where nothing counts versions
        call(op, {**given, **{n: torch.empty_like(t) for n, t in outputs.items()}})


# What PyTorch's users hold: heads of a packed projection, rows of a batch, a view one element in,
# a transposed and a broadcast one, one row, and none.
LAYOUTS = {
    "heads": lambda t: t.view(6, 8, 3, 16)[:, :, 1],
    "rows": lambda t: t.view(48, 48)[::3],
    "offset": lambda t: t.view(-1)[1:2161].view(45, 48),
    "transposed": lambda t: t.view(48, 48).t(),
    "broadcast": lambda t: t.view(48, 48)[:1].expand(5, 48),
    "vector": lambda t: t.view(-1)[3:40],
    "no rows": lambda t: t.view(48, 48)[:0],
    "no columns": lambda t: t.view(48, 48)[:, :0],
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_every_layout_of_a_tensor_crosses(put, layout, dtype):
    packed = put(to_torch(random((2304,), dtype)))
    x = LAYOUTS[layout](packed)
    gamma = put(to_torch(random(x.shape[-1:], dtype, seed=1)))
    y = cunorm.rms_norm(x, gamma)
    expected = cunorm.rms_norm(*(cupy.asarray(host(t.contiguous())) for t in (x, gamma)))
    assert y.is_contiguous()
    assert_same_bits([y], [expected])


@pytest.mark.parametrize("op", OPS)
def test_all_memory_of_a_call_on_tensors_is_pytorchs(put, op):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    with cupy.cuda.using_allocator(lambda nbytes: pytest.fail(f"{nbytes} bytes of CuPy's")):
        results = call(op, given)
    assert not any(result._is_view() for result in results)
    sizes = [result.untyped_storage().nbytes() for result in results]
    assert sizes == [result.numel() * result.element_size() for result in results]


@pytest.mark.simgpu("watches how the stand-ins' memory is lent; a real tensor has none to lend")
def test_a_tensor_is_read_where_it_lies(bridge):
    x = to_torch(random((4, 8), "float32"))
    lent = []
    original = runtime.hostRegister
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "hostRegister", lambda *a: (lent.append(a[0]), original(*a)))
        y = cunorm.rms_norm(x)
    assert sorted(lent) == sorted([x.data_ptr(), y.data_ptr()])


@pytest.mark.parametrize("op", OPS)
def test_a_repeated_call_is_remembered(put, op):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    call(op, given)
    known = len(remembered._known)
    expected = call(op, given)
    assert len(remembered._known) == known
    assert_same_bits(call(op, given), expected)


@pytest.mark.parametrize("op", OPS)
def test_a_call_on_cupy_arrays_never_comes_near_the_crossing(monkeypatch, op):
    monkeypatch.setattr(libraries, "cross", lambda *_: pytest.fail("crossed"))
    call(op, {name: cupy.asarray(a) for name, a in arguments(op).items()})


def test_a_cpu_tensor_is_refused_and_told_where_to_go():
    x = torch.ones(2, 8)
    message = (
        r"^x must be on a CUDA device, but is a torch.Tensor on cpu: "
        r"cunorm.torch computes on CPU tensors too$"
    )
    with pytest.raises(TypeError, match=message):
        cunorm.rms_norm(x)
    with pytest.raises(TypeError, match=r"^out must be on a CUDA device"):
        cunorm.rms_norm(cupy.ones((2, 8), "float32"), out=x)


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_to_be_lost_is_refused_by_the_arguments_name(put, op):
    given = {name: put(to_torch(a)) for name, a in arguments(op).items()}
    norm = _families.OPS[op].norm
    for name in given:
        wrong = {**given, name: given[name].detach().requires_grad_()}
        with pytest.raises(ValueError, match=f"^{name} must not require .* cunorm.torch.{norm} is"):
            call(op, wrong)


def test_a_noted_negation_is_refused(put):
    x = put(torch.ones(2, 8, dtype=torch.complex64)).conj().imag
    assert x.is_neg()
    with pytest.raises(ValueError, match=r"^x must hold its numbers .* pass x.resolve_neg\(\)$"):
        cunorm.rms_norm(x)
    assert (cunorm.rms_norm(x.resolve_neg()).cpu() == 0).all()


def test_a_sparse_tensor_is_refused(put):
    x = put(torch.eye(4).to_sparse())
    with pytest.raises(
        TypeError, match=r"^x must be a strided tensor, but has layout torch.sparse"
    ):
        cunorm.rms_norm(x)


@pytest.mark.parametrize(
    ("wrong", "error", "message"),
    [
        ({"x": torch.ones(2, 8, dtype=torch.int32)}, TypeError, "x must be float16, .* is int32"),
        ({"x": torch.ones(2, 8).to(torch.float8_e4m3fn)}, TypeError, "x must .* is float8_e4m3fn"),
        (
            {"gamma": torch.ones(8, dtype=torch.int8)},
            TypeError,
            "gamma must be float16, .* is int8",
        ),
        ({"gamma": torch.ones(7)}, ValueError, r"gamma must have .* but has \(7,\)"),
        ({"gamma": np.ones(8, "f4")}, TypeError, "gamma must be a cupy.ndarray.* but is a numpy"),
        ({"out": torch.ones(2, 8).int()}, TypeError, "out must be float16, .* but is int32"),
        ({"eps": -1}, ValueError, "eps must be finite and not negative"),
        ({"eps": [1]}, TypeError, "eps must be a real number"),
    ],
)
def test_bad_arguments_beside_tensors_meet_the_checks_of_the_op(put, wrong, error, message):
    x = put(torch.ones(2, 8))
    wrong = {n: put(a) if isinstance(a, torch.Tensor) else a for n, a in wrong.items()}
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm(**{"x": x, **wrong})
    assert (x.cpu() == 1).all()


def test_overlap_is_seen_through_the_crossing(put):
    memory = put(torch.ones(40))
    with pytest.raises(ValueError, match=r"^out must be x itself or not overlap it"):
        cunorm.rms_norm(memory[:32].view(4, 8), out=memory[4:36].view(4, 8))


@pytest.mark.parametrize("op", OPS)
def test_arrays_of_both_libraries_mix_and_results_are_what_x_is(put, op):
    given, leader = arguments(op), _families.OPS[op].leader
    for lead in (torch.Tensor, cupy.ndarray):
        ours = lead is cupy.ndarray
        mixed = {
            name: cupy.asarray(a) if (name == leader) == ours else put(to_torch(a))
            for name, a in given.items()
        }
        results = call(op, mixed)
        assert {type(result) for result in results} == {lead}
        assert_same_bits(results, call(op, {name: cupy.asarray(a) for name, a in given.items()}))


@contextlib.contextmanager
def captured(stream):
    """Capture a CuPy stream: what is enqueued on it is recorded and not run, and waiting raises."""
    cupy.cuda.Device().synchronize()  # the graph will not wait for what other streams still write
    with stream:
        stream.begin_capture()
    graph = []
    yield graph
    with stream:
        graph.append(stream.end_capture())


def replay(graph, results):
    """Overwrite what a capture left in its results, run the graph, and return them as NumPy's."""
    for result in results:
        result[...] = -1
    cupy.cuda.Device().synchronize()
    graph[0].launch(cupy.cuda.Stream(non_blocking=True))
    cupy.cuda.Device().synchronize()
    return [host(result) for result in results]


@pytest.mark.parametrize("op", OPS)
def test_work_is_enqueued_on_pytorchs_stream_and_nothing_waits(bridge, op):
    given = {name: bridge.put(to_torch(a)) for name, a in arguments(op).items()}
    expected = [host(result) for result in call(op, given)]
    stream = cupy.cuda.Stream(non_blocking=True)
    bridge.stream, bridge.keeps = torch_bridge.Stream(stream), True
    with captured(stream) as graph:
        results = call(op, given)
    for one, other in zip(replay(graph, results), expected, strict=True):
        assert one.tobytes() == other.tobytes()


@pytest.mark.parametrize("lead", ["x", "gamma"])
def test_streams_of_both_libraries_wait_for_each_other(bridge, lead):
    # A stream that waits for an event of one that is captured takes part in the capture, and the
    # capture cannot end before the first stream waits for the second in turn.
    x, gamma = random((6, 37), "float32"), random((37,), "float32", seed=1)
    expected = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma)).get()
    arrays = {"x": cupy.asarray(x), "gamma": cupy.asarray(gamma)}
    arrays[lead] = bridge.put(to_torch({"x": x, "gamma": gamma}[lead]))
    out = np.zeros_like(x)
    arrays["out"] = bridge.put(to_torch(out)) if lead == "x" else cupy.asarray(out)
    cunorm.rms_norm(**arrays)
    mine, pytorchs = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
    bridge.stream, bridge.keeps = torch_bridge.Stream(pytorchs), True
    first, second = (mine, pytorchs) if lead == "x" else (pytorchs, mine)
    with captured(first) as graph, mine:
        y = cunorm.rms_norm(**arrays)
        assert second.is_capturing()
    (result,) = replay(graph, [y])
    assert result.tobytes() == expected.tobytes()


def test_one_stream_waits_for_no_event(bridge, monkeypatch):
    stream = cupy.cuda.Stream(non_blocking=True)
    bridge.stream = torch_bridge.Stream(stream)
    monkeypatch.setattr(cupy.cuda, "Event", lambda **_: pytest.fail("an event"))
    x, gamma = bridge.put(torch.ones(2, 8)), cupy.ones(8, "float32")
    with stream:
        cunorm.rms_norm(x, gamma)
        cunorm.rms_norm(cupy.ones((2, 8), "float32"), x[0])
    cunorm.rms_norm(x, x[0])


def test_pytorchs_stream_outlives_the_call(bridge):
    stream = cupy.cuda.Stream(non_blocking=True)
    bridge.stream = torch_bridge.Stream(stream)
    cunorm.rms_norm(bridge.put(torch.ones(2, 8)))
    stream.synchronize()
    assert stream.done


@pytest.mark.simgpu("a PyTorch that has CUDA has streams of its own kind alone")
def test_a_stream_without_the_protocol_is_taken_by_its_handle(bridge):
    class Handle:
        cuda_stream = cupy.cuda.Stream.null.ptr

    bridge.stream = Handle()
    assert (cunorm.rms_norm(torch.ones(2, 8), eps=0.0) == 1).all()


@pytest.mark.simgpu("counts bytes that PyTorch takes from elsewhere; its tensor is on device 1")
def test_the_callers_device_stream_and_allocator_are_current_again():
    asked = []

    def allocate(nbytes):
        asked.append(nbytes)
        return cupy.cuda.MemoryPointer(cupy.cuda.Memory(nbytes), 0)

    stream = cupy.cuda.Stream(non_blocking=True)
    with torch_bridge.bridge(device=1), stream, cupy.cuda.using_allocator(allocate):
        x = torch.ones(2, 8)
        assert (cunorm.rms_norm(x, eps=0.0) == 1).all()
        with pytest.raises(ValueError, match=r"^eps"):
            cunorm.rms_norm(x, eps=-1)
        assert runtime.getDevice() == 0
        assert cupy.cuda.get_current_stream() is stream
        assert asked == []
        cupy.empty(3, "float32")
        assert asked == [12]


def test_tensors_cross_in_several_threads_at_once(put):
    # Autograd calls backward ops from a thread of its own for each device.
    given = [{n: put(to_torch(a)) for n, a in arguments(op).items()} for op in OPS]
    expected = [call(op, tensors) for op, tensors in zip(OPS, given, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for results, other in zip(pool.map(call, OPS * 4, given * 4), expected * 4, strict=True):
            assert_same_bits(results, other)


class Foreign:
    """An array of a third library, whose memory is CuPy's."""

    def __init__(self, array, read_only=False, device=2):
        self.array = array
        self.read_only = read_only
        self.device = device
        self.streams = []

    def __dlpack_device__(self):
        return self.device, self.array.device.id

    def __dlpack__(self, *, stream=None, max_version=None, copy=None):
        self.streams.append(stream)
        capsule = self.array.__dlpack__(stream=stream, max_version=max_version)
        if self.read_only:
            head = libraries._Head.from_address(
                libraries._pointer_of(capsule, b"dltensor_versioned")
            )
            head.flags |= libraries.READ_ONLY
        return capsule


class Namespaced(Foreign):
    def __array_namespace__(self):
        return type("namespace", (), {"from_dlpack": staticmethod(Namespaced)})


def test_arrays_of_a_third_library_come_back_through_its_namespace():
    x, gamma = (cupy.asarray(random(s, "float32")) for s in ((3, 8), (8,)))
    expected = cunorm.rms_norm(x, gamma)
    y = cunorm.rms_norm(Namespaced(x), Namespaced(gamma))
    assert isinstance(y, Namespaced)
    assert_same_bits([y.array], [expected])
    y = cunorm.rms_norm(Foreign(x), gamma)
    assert isinstance(y, cupy.ndarray)
    assert_same_bits([y], [expected])


def test_managed_memory_crosses():
    x = random((3, 8), "float32")
    with cupy.cuda.using_allocator(cupy.cuda.malloc_managed):
        managed = cupy.asarray(x)
    assert managed.__dlpack_device__()[0] == 13  # kDLCUDAManaged
    assert_same_bits([cunorm.rms_norm(Foreign(managed, device=13))], [cunorm.rms_norm(managed)])


def test_a_third_library_is_told_the_stream_that_is_used():
    x = Foreign(cupy.ones((3, 8), "float32"))
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        cunorm.rms_norm(x)
    assert x.streams == [stream.ptr]


def test_a_read_only_array_is_read_but_not_written():
    x = cupy.asarray(random((3, 8), "float32"))
    out = cupy.zeros_like(x)
    cunorm.rms_norm(Foreign(x, read_only=True), out=Foreign(out))
    assert_same_bits([out], [cunorm.rms_norm(x)])
    with pytest.raises(ValueError, match=r"^out must be writable, but is read-only$"):
        cunorm.rms_norm(x, out=Foreign(out, read_only=True))


def test_an_array_that_is_not_on_a_cuda_device_meets_the_checks():
    x = Foreign(cupy.ones((3, 8), "float32"), device=1)
    with pytest.raises(TypeError, match=r"^x must be a cupy.ndarray, but is a .*Foreign"):
        cunorm.rms_norm(x)
