"""Streams, graphs, devices and threads: the work goes where it belongs, with the same bits."""

import cupy
import pytest
from arrays import bits, random
from threads import THREADS, at_once

import cunorm
from cunorm._call import remembered
from cunorm._families import OPS as EVERY_OP

pytestmark = pytest.mark.slow("each op at each way of keeping a row")

# How an op is called: with x, a residual and parameters, and where it writes.
OPS = {
    "rms_norm": lambda x, r, g, b, y, h: cunorm.rms_norm(x, g, out=y),
    "layer_norm": lambda x, r, g, b, y, h: cunorm.layer_norm(x, g, b, out=y),
    "add_rms_norm": lambda x, r, g, b, y, h: cunorm.add_rms_norm(x, r, g, out=y, residual_out=h),
    "add_layer_norm": lambda x, r, g, b, y, h: cunorm.add_layer_norm(
        x, r, g, b, out=y, residual_out=h
    ),
}
ops = pytest.mark.parametrize("op", OPS)
two_devices = pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
# A row within a warp, one of several warps and odd, one that does not fit the registers.
SIZES = [64, 769, 20000]
cols = pytest.mark.parametrize("cols", SIZES)


def inputs(cols, seed=0, dtype="float16"):
    """Return x, a residual, gamma, beta on the current device."""
    shapes = [(4, cols), (4, cols), (cols,), (cols,)]
    return [cupy.asarray(random(shape, dtype, seed=seed + i)) for i, shape in enumerate(shapes)]


def outputs(cols, dtype="float16"):
    return [cupy.zeros((4, cols), dtype) for _ in range(2)]


def plainly(op, cols, seed=0):
    """Return the bits of y and h, from new arrays on the current stream."""
    y, h = outputs(cols)
    OPS[op](*inputs(cols, seed), y, h)
    return bits(y), bits(h)


# --- streams --------------------------------------------------------------------------------


@cols
@ops
def test_the_work_is_ordered_on_the_current_stream(op, cols):
    expected = plainly(op, cols)
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        arrays, (y, h) = inputs(cols), outputs(cols)
        OPS[op](*arrays, y, h)
        doubled = y + y
    stream.synchronize()
    assert (bits(y), bits(h)) == expected
    assert bits(doubled) == bits(y + y)


@ops
def test_two_streams_at_once_give_the_bits_of_one(op):
    expected = [plainly(op, 769, seed) for seed in (0, 10)]
    streams = [cupy.cuda.Stream(non_blocking=True) for _ in expected]
    arrays = [(*inputs(769, seed), *outputs(769)) for seed in (0, 10)]
    cupy.cuda.get_current_stream().synchronize()
    for _ in range(3):
        for stream, given in zip(streams, arrays, strict=True):
            with stream:
                OPS[op](*given)
    for stream in streams:
        stream.synchronize()
    assert [(bits(y), bits(h)) for *_, y, h in arrays] == expected


# --- graphs ---------------------------------------------------------------------------------


def capture(call):
    """Return the graph of a call, and the stream that it was captured on."""
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()  # the graph will not wait for what other streams still write
    with stream:
        stream.begin_capture()
        call()
        return stream.end_capture(), stream


@cols
@ops
def test_a_graph_is_replayed_on_new_data_with_the_bits_of_a_call(op, cols):
    """AiDotNet.Tensors#611, sglang#18596: an allocation or a wait in a call broke the capture."""
    expected = [plainly(op, cols, seed) for seed in (0, 10, 20)]
    given, (y, h) = inputs(cols), outputs(cols)
    graph, stream = capture(lambda: OPS[op](*given, y, h))
    assert not y.get().any()
    for seed, wanted in zip((0, 10, 20), expected, strict=True):
        for array, new in zip(given, inputs(cols, seed), strict=True):
            array[...] = new
        cupy.cuda.get_current_stream().synchronize()
        graph.launch(stream)
        stream.synchronize()
        assert (bits(y), bits(h)) == wanted


def test_a_graph_of_layers_keeps_its_residual_stream_in_place():
    def layers(x, residual, gamma):
        for _ in range(3):
            cunorm.add_rms_norm(x, residual, gamma, out=x, residual_out=residual)

    x, residual, gamma, _ = inputs(128)
    layers(x, residual, gamma)
    expected = bits(x), bits(residual)
    x, residual, gamma, _ = inputs(128)
    graph, stream = capture(lambda: layers(x, residual, gamma))
    graph.launch(stream)
    stream.synchronize()
    assert (bits(x), bits(residual)) == expected


def test_arrays_that_a_captured_call_made_hold_its_results_as_long_as_they_live():
    x, _, gamma, _ = inputs(128)
    expected = bits(cunorm.rms_norm(x, gamma))
    made = []
    graph, stream = capture(lambda: made.append(cunorm.rms_norm(x, gamma)))
    graph.launch(stream)
    stream.synchronize()
    assert bits(made[0]) == expected


@ops
def test_a_refused_call_does_not_spoil_a_capture(op):
    expected = plainly(op, 64)
    given, (y, h) = inputs(64), outputs(64)

    def call():
        with pytest.raises(ValueError, match="overlap"):
            OPS[op](*given, given[0][::-1], h)
        OPS[op](*given, y, h)

    graph, stream = capture(call)
    graph.launch(stream)
    stream.synchronize()
    assert (bits(y), bits(h)) == expected


@pytest.mark.parametrize("known", [False, True])
@ops
def test_with_out_given_nothing_is_allocated(op, known):
    given, (y, h) = inputs(64), outputs(64)
    OPS[op](*given, y, h)  # compiles
    if not known:
        remembered._known.clear()
    allocations = []
    pool = cupy.cuda.MemoryPool()

    def counting(size):
        allocations.append(size)
        return pool.malloc(size)

    with cupy.cuda.using_allocator(counting):
        OPS[op](*given, y, h)
        assert allocations == []
        cupy.empty(4)
        assert len(allocations) == 1


# --- devices --------------------------------------------------------------------------------


@two_devices
@cols
@ops
def test_the_work_is_on_the_device_of_x_and_the_current_device_stays(op, cols):
    """apex#770, apex#1022: launched on the current device, data on another gave zeros or faults."""
    expected = plainly(op, cols)
    with cupy.cuda.Device(1):
        given, (y, h) = inputs(cols), outputs(cols)
    for _ in range(2):  # the first of its kind, and one that is known
        y.fill(0)
        OPS[op](*given, y, h)
        assert cupy.cuda.Device().id == 0
        assert (bits(y), bits(h)) == expected


@two_devices
@ops
def test_results_are_made_on_the_device_of_x(op):
    with cupy.cuda.Device(1):
        x, residual, gamma, _ = inputs(64)
    for _ in range(2):
        if "residual" in EVERY_OP[op].reads:
            made = getattr(cunorm, op)(x, residual, gamma)
        else:
            made = getattr(cunorm, f"{op}_fwd")(x, gamma)
        assert cupy.cuda.Device().id == 0
        assert {array.device.id for array in made} == {1}


@two_devices
@ops
def test_a_refused_call_leaves_the_current_device(op):
    with cupy.cuda.Device(1):
        given, (_, h) = inputs(64), outputs(64)
        y = given[0][::-1]
    for _ in range(2):
        with pytest.raises(ValueError, match="overlap"):
            OPS[op](*given, y, h)
        assert cupy.cuda.Device().id == 0


@two_devices
@ops
def test_devices_in_turn_do_not_take_each_others_kernels(op):
    remembered.clear()
    expected = plainly(op, 769)
    for device in (1, 0, 1, 0):
        with cupy.cuda.Device(device):
            assert plainly(op, 769) == expected


# --- threads --------------------------------------------------------------------------------


@pytest.mark.parametrize("known", [False, True])
@ops
def test_eight_threads_at_once_give_the_bits_of_one(op, known):
    expected = [plainly(op, 769, 10 * index) for index in range(THREADS)]
    if not known:
        remembered.clear()  # all threads compile, and remember

    def work(index):
        with cupy.cuda.Stream(non_blocking=True):
            return [plainly(op, 769, 10 * index) for _ in range(3)]

    assert at_once(work) == [[wanted] * 3 for wanted in expected]


def test_threads_with_ops_and_sizes_of_their_own_do_not_mix_them_up(monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 3)  # so that they also forget under each other's hands
    kinds = [(op, size) for op in OPS for size in (64, 769)]
    expected = [plainly(op, size) for op, size in kinds]
    remembered.clear()
    assert at_once(lambda index: [plainly(*kinds[index]) for _ in range(5)]) == [
        [wanted] * 5 for wanted in expected
    ]


@two_devices
def test_threads_on_two_devices_keep_to_their_own():
    expected = plainly("add_layer_norm", 769)

    def work(index):
        cupy.cuda.Device(index % 2).use()
        result = plainly("add_layer_norm", 769)
        return cupy.cuda.Device().id, result

    assert at_once(work) == [(index % 2, expected) for index in range(THREADS)]
