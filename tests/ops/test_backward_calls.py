"""Repeated calls of the backward ops: the same bits as at first, and the same refusals."""

from __future__ import annotations

import gc
import weakref

import cupy
import pytest
from arrays import bits, random
from kinds import some_of

import cunorm
from cunorm import _check, _plan
from cunorm._call import remembered

OPS = ["rms_norm", "layer_norm"]
ops = pytest.mark.parametrize("op", OPS)
COLS = 40


@pytest.fixture(autouse=True)
def nothing_known():
    remembered.clear()
    yield
    remembered.clear()


def arguments(op, rows=6, seed=0):
    """Return the op's arguments by name."""
    names = ("dy", "x", "dresidual")
    given = {
        name: cupy.asarray(random((rows, COLS), "float32", seed=seed + i))
        for i, name in enumerate(names)
    }
    given["gamma"] = cupy.asarray(random(COLS, "float32", seed=seed + 3))
    kept = getattr(cunorm, f"{op}_fwd")(given["x"])[1:]
    return given | dict(zip(("mean", "rstd")[-len(kept) :], kept, strict=True))


def gradients(op, given):
    """Return the bits of every gradient; None for one that there is not."""
    made = getattr(cunorm, f"{op}_bwd")(**given)
    return [None if a is None else bits(a) for a in made]


def worked_out_again(*_, **__):
    raise AssertionError("worked out again")


@pytest.mark.parametrize("without", [None, "gamma", "dresidual"])
@ops
def test_a_repeated_call_is_not_worked_out_again(monkeypatch, op, without):
    first, second = arguments(op), arguments(op, seed=10)
    if without is not None:
        first[without] = second[without] = None
    expected = gradients(op, second)
    remembered.clear()
    gradients(op, first)
    monkeypatch.setattr(_check, "data", worked_out_again)
    monkeypatch.setattr(_plan, "backward", worked_out_again)
    assert gradients(op, second) == expected


CHANGES = {
    "rows": lambda given: {
        name: a[:5] if a.shape[0] == 6 else a for name, a in given.items()
    },  # all arrays of rows and their statistics
    "strides of dy": lambda given: {"dy": cupy.hstack([given["dy"]] * 3)[:, COLS : 2 * COLS]},
    "a copy of dy": lambda given: {"dy": transposed(given["dy"])},
    "alignment of x": lambda given: {"x": moved(given["x"])},
    "alignment of gamma": lambda given: {"gamma": moved(given["gamma"])},
    "dtype of gamma": lambda given: {"gamma": given["gamma"].astype("float16")},
    "no gamma": lambda given: {"gamma": None},
    "no dresidual": lambda given: {"dresidual": None},
    "strides of rstd": lambda given: {"rstd": cupy.repeat(given["rstd"], 2)[::2]},
}


def transposed(array):
    """Return the array in Fortran's order, whose rows a kernel cannot read."""
    return array.T.copy().T


def moved(array):
    """Return a copy that starts one element past where it would be aligned."""
    memory = cupy.empty(array.size + 1, array.dtype)[1:].reshape(array.shape)
    memory[...] = array
    return memory


@pytest.mark.parametrize("change", CHANGES)
@ops
def test_a_call_of_another_kind_is_worked_out_for_itself(op, change):
    given = arguments(op)
    changed = given | CHANGES[change](given)
    expected = gradients(op, changed)
    remembered.clear()
    gradients(op, given)
    for _ in range(2):
        assert gradients(op, changed) == expected


def test_an_offset_makes_another_kind(monkeypatch):
    given = arguments("rms_norm")
    one = gradients("rms_norm", given | {"gamma_offset": 1.0})
    gradients("rms_norm", given)
    assert gradients("rms_norm", given | {"gamma_offset": 1.0}) == one
    with pytest.raises(TypeError, match="gamma_offset must be a real number, but is a bool"):
        gradients("rms_norm", given | {"gamma_offset": True})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("dy", r"dy must have the shape of x, \(6, 40\), but has \(5, 40\)"),
        ("rstd", r"rstd must have one number a row, \(6,\), but has \(5,\)"),
    ],
)
@ops
def test_a_wrong_argument_is_refused_in_a_repeated_call(op, name, message):
    given = arguments(op)
    gradients(op, given)
    with pytest.raises(ValueError, match=message):
        gradients(op, given | {name: given[name][:5]})


@ops
def test_arrays_of_another_device_are_refused_and_served_in_a_repeated_call(op):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("needs two devices")
    given = arguments(op)
    expected = gradients(op, given)
    with cupy.cuda.Device(1):
        there = arguments(op)
    for name in ("dy", "gamma", "rstd", "dresidual"):
        with pytest.raises(ValueError, match=f"{name} must be on the device of x, 0, but is on 1"):
            gradients(op, given | {name: there[name]})
    assert gradients(op, there) == expected  # from device 0, each time
    assert gradients(op, there) == expected


@some_of(
    [("rms_norm", COLS), ("layer_norm", 300), ("rms_norm", 20_000)],
    "the other op at each way of keeping a row",
    op=OPS,
    cols=[COLS, 300, 20_000],
)
def test_arrays_made_by_a_careless_allocator_are_right(op, cols):
    """dx and the blocks' sums then start on 8 bytes: of a block's rows, of one row, of memory."""
    x, dy = (cupy.asarray(random((3, cols), "float32", seed=seed)) for seed in range(2))
    gamma = cupy.asarray(random(cols, "float32", seed=3))
    kept = getattr(cunorm, f"{op}_fwd")(x, gamma)[1:]
    given = {"dy": dy, "x": x, "gamma": gamma}
    given |= dict(zip(("mean", "rstd")[-len(kept) :], kept, strict=True))
    expected = gradients(op, given)
    pool = cupy.cuda.MemoryPool()
    for known in (True, False):
        if not known:
            remembered.clear()
        with cupy.cuda.using_allocator(lambda size: pool.malloc(size + 8) + 8):
            assert cupy.empty(1).data.ptr % 16 == 8
            assert gradients(op, given) == expected
    assert gradients(op, given) == expected


@ops
def test_no_array_is_kept_alive(op):
    gc.freeze()  # what there was before, which takes a second to look through
    given = arguments(op)
    made = getattr(cunorm, f"{op}_bwd")(**given)
    assert remembered._known
    alive = [weakref.ref(a) for a in (*given.values(), *made)]
    del given, made
    gc.collect()
    gc.unfreeze()
    assert [a() for a in alive] == [None] * len(alive)


@ops
def test_nothing_is_kept_of_a_call_without_rows_or_that_copied(op):
    given = arguments(op, rows=0)
    gradients(op, given)
    given = arguments(op)
    remembered.clear()
    gradients(op, given | {"dy": transposed(given["dy"])})
    assert not remembered._known
