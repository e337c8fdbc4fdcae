"""Calls of a kind seen before: the same results, the same refusals, and nothing kept alive."""

import gc
import weakref
from decimal import Decimal

import cupy
import numpy as np
import pytest
from arrays import bits, random
from kinds import IN_TURNS

import cunorm
from cunorm import _check, _families, _plan
from cunorm._call import remembered
from cunorm._call.remembered import _distances

OPS = {name: op for name, op in _families.OPS.items() if not op.is_backward}
SUMS = [name for name, op in OPS.items() if len(op.writes) > 1]
ops = pytest.mark.parametrize("op", OPS)
COLS = 40


@pytest.fixture(autouse=True)
def nothing_known():
    remembered.clear()
    yield
    remembered.clear()


def arguments(op, rows=6, seed=0):
    """Return x, residual where the op has it, gamma, and beta where the op has it."""
    shapes = [(rows, COLS)] * len(OPS[op].reads) + [(COLS,)] * len(OPS[op].parameters)
    return [cupy.asarray(random(shape, "float32", seed=seed + i)) for i, shape in enumerate(shapes)]


def outputs(op):
    """Return arrays to write to."""
    return {o.argument: cupy.empty((6, COLS), "float32") for o in OPS[op].writes}


def result_name(op):
    """Return what the op's first result is called where it is given."""
    return OPS[op].writes[0].argument


def all_bits(result):
    return [bits(a) for a in (result if isinstance(result, tuple) else (result,))]


def no_more_work(monkeypatch):
    def fail(*_, **__):
        raise AssertionError("worked out again")

    for module, name in ((_check, "data"), (_plan, "forward")):
        monkeypatch.setattr(module, name, fail)


@pytest.mark.parametrize("given", ["nothing", "outputs"])
@ops
def test_a_repeated_call_is_not_worked_out_again(monkeypatch, op, given):
    norm = getattr(cunorm, op)

    def kwargs():
        return outputs(op) if given == "outputs" else {}

    expected = all_bits(norm(*arguments(op, seed=10), **kwargs()))
    norm(*arguments(op), **kwargs())
    no_more_work(monkeypatch)
    assert all_bits(norm(*arguments(op, seed=10), **kwargs())) == expected


@ops
def test_in_place_and_out_of_place_are_one_kind(monkeypatch, op):
    norm = getattr(cunorm, op)
    expected = all_bits(norm(*arguments(op, seed=10), **outputs(op)))
    no_more_work(monkeypatch)
    given = arguments(op, seed=10)
    into = {o.argument: given[OPS[op].reads.index(o.like)] for o in OPS[op].writes}
    result = norm(*given, **into)
    assert all_bits(result) == expected
    assert (result[0] if isinstance(result, tuple) else result) is into[result_name(op)]


CHANGES = {
    "rows": lambda x, p: (x[:5], p),
    "dtype of x": lambda x, p: (x.astype("float16"), p),
    "dtype of a parameter": lambda x, p: (x, p.astype("float16")),
    "strides of x": lambda x, p: (cupy.hstack((x, x, x))[:, COLS : 2 * COLS], p),
    "alignment of x": lambda x, p: (moved(x), p),
    "alignment of a parameter": lambda x, p: (x, moved(p)),
}


def moved(array):
    """Return a copy that starts one element past where it would be aligned."""
    memory = cupy.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    memory[...] = array
    return memory


@IN_TURNS
@pytest.mark.parametrize("change", CHANGES)
@ops
def test_a_call_of_another_kind_is_worked_out_for_itself(op, change):
    norm = getattr(cunorm, op)

    def changed():
        x, *others = arguments(op)
        x, others[-1] = CHANGES[change](x, others[-1])
        if len(OPS[op].reads) > 1:
            others[0] = others[0][: len(x)]
        return norm(x, *others)

    expected = all_bits(changed())
    remembered.clear()
    norm(*arguments(op))
    assert all_bits(changed()) == expected
    assert len(remembered._known) == 2


@pytest.mark.skipif(cupy.cuda.runtime.getDeviceCount() < 2, reason="needs two devices")
@ops
def test_an_array_of_another_device_is_refused_in_a_repeated_call(op):
    norm = getattr(cunorm, op)
    given = arguments(op)
    norm(*given, **outputs(op))
    with cupy.cuda.Device(1):
        there, out = arguments(op), outputs(op)[result_name(op)]
    for index in range(1, len(given)):
        with pytest.raises(ValueError, match=r"must be on the device of x, 0, but is on 1"):
            norm(*given[:index], there[index], *given[index + 1 :], **outputs(op))
    with pytest.raises(ValueError, match=r"out must be on the device of .*, 0, but is on 1"):
        norm(*given, **(outputs(op) | {result_name(op): out}))


@pytest.mark.parametrize("eps", [True, np.True_, 1 + 0j, Decimal(1)])
@ops
def test_an_eps_that_equals_a_known_one_is_still_checked(op, eps):
    getattr(cunorm, op)(*arguments(op), eps=1.0)
    with pytest.raises(TypeError, match="eps must be a real number"):
        getattr(cunorm, op)(*arguments(op), eps=eps)


@pytest.mark.parametrize("overlap", ["one row on", "a part of x", "gamma"])
@ops
def test_an_overlap_is_refused_in_a_repeated_call(op, overlap):
    norm = getattr(cunorm, op)
    buffer = cupy.zeros(20 * COLS, "float32")
    x, *others = arguments(op)
    x = buffer[: 6 * COLS].reshape(6, COLS)
    if overlap == "gamma":
        others[-1] = buffer[8 * COLS : 9 * COLS]
    start = {"one row on": COLS, "a part of x": 4, "gamma": 8 * COLS}[overlap]
    first, second = (buffer[i : i + 6 * COLS].reshape(6, COLS) for i in (10 * COLS, start))
    norm(x, *others, **{result_name(op): first})
    with pytest.raises(ValueError, match="overlap"):
        norm(x, *others, **{result_name(op): second})


@pytest.mark.parametrize("op", SUMS)
def test_outputs_that_overlap_each_other_are_refused_in_a_repeated_call(op):
    x, *others = arguments(op)
    norm, (out, other) = getattr(cunorm, op), outputs(op).values()
    norm(x, *others, out=out, residual_out=other)
    with pytest.raises(ValueError, match="out must not overlap residual_out"):
        norm(x, *others, out=out, residual_out=out)
    with pytest.raises(ValueError, match="out must not overlap residual, "):
        norm(x, *others, out=others[0], residual_out=other)
    with pytest.raises(ValueError, match="residual_out must not overlap x"):
        norm(x, *others, out=out, residual_out=x)


@ops
def test_memory_of_x_in_other_strides_is_refused_in_a_repeated_call(op):
    norm = getattr(cunorm, op)
    x, *others = arguments(op)
    x = cupy.zeros((4, 4, COLS), "float32")
    others = [cupy.zeros((4, 4, COLS), "float32") if a.ndim == 2 else a for a in others]
    norm(x, *others, **{result_name(op): cupy.empty_like(x).transpose(1, 0, 2)})
    with pytest.raises(ValueError, match=r"out must (be x itself or not overlap it|not overlap x)"):
        norm(x, *others, **{result_name(op): x.transpose(1, 0, 2)})


@ops
def test_interleaved_rows_are_right_in_a_repeated_call(op):
    norm = getattr(cunorm, op)
    _, *others = arguments(op)
    for seed in (1, 2):
        buffer = cupy.asarray(random((6, 2 * COLS), "float32", seed=seed))
        x, out = buffer[:, :COLS], buffer[:, COLS:]
        expected = all_bits(norm(x.copy(), *others))
        assert all_bits(norm(x, *others, **{result_name(op): out})) == expected


@ops
def test_rows_that_must_be_copied_are_right_in_a_repeated_call(op):
    norm = getattr(cunorm, op)
    _, *others = arguments(op)
    for seed in (1, 2):
        x = cupy.asarray(random((COLS, 6), "float32", seed=seed)).T
        out = cupy.empty((COLS, 6), "float32").T
        expected = all_bits(norm(cupy.ascontiguousarray(x), *others))
        assert all_bits(norm(x, *others, **{result_name(op): out})) == expected


@ops
def test_arrays_made_by_a_careless_allocator_are_right_in_a_repeated_call(op):
    expected = all_bits(getattr(cunorm, op)(*arguments(op)))
    pool = cupy.cuda.MemoryPool()
    x = arguments(op)
    with cupy.cuda.using_allocator(lambda size: pool.malloc(size + 8) + 8):
        assert cupy.empty(1).data.ptr % 16 == 8
        assert all_bits(getattr(cunorm, op)(*x)) == expected


@ops
def test_no_array_is_kept_alive(op):
    gc.freeze()  # what there was before, which takes a second to look through
    arrays = [*arguments(op), *outputs(op).values()]
    getattr(cunorm, op)(*arrays[: -len(outputs(op))], **outputs(op))
    assert remembered._known
    alive = [weakref.ref(a) for a in arrays]
    del arrays
    gc.collect()
    gc.unfreeze()
    assert [a() for a in alive] == [None] * len(alive)


def test_only_so_many_kinds_are_kept(monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 4)
    for rows in range(1, 12):
        x = cupy.asarray(random((rows, COLS), "float32"))
        assert bits(cunorm.rms_norm(x)) == bits(cunorm.rms_norm(x))
        assert 0 < len(remembered._known) <= 4


def test_nothing_is_kept_of_a_call_that_was_refused_or_had_nothing_to_do():
    with pytest.raises(ValueError, match="eps"):
        cunorm.rms_norm(cupy.ones((2, 3), "float32"), eps=-1.0)
    assert cunorm.rms_norm(cupy.ones((0, 3), "float32")).size == 0
    assert not remembered._known


def test_distances_at_which_bounds_overlap():
    memory = cupy.zeros(64, "int8")
    views = [
        memory[start : start + 12].reshape(3, 4)[rows, columns]
        for start in (0, 5, 9, 12, 20)
        for rows in (slice(None), slice(None, None, -1), slice(1, 3))
        for columns in (slice(None), slice(None, None, -1), slice(0, 2))
    ]
    for a in views:
        for b in views:
            low, high = _distances(a, b)
            overlap = low < a.data.ptr - b.data.ptr < high
            assert overlap == bool(cupy.may_share_memory(a, b))
