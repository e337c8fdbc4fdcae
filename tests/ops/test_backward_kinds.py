"""What the backward ops promise, asked of every kind of kernel: each kernel is compiled once."""

import cupy
import numpy as np
from arrays import assert_matches, bits, random
from kinds import BACKWARD, of_each_kind

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import place

each_kind = of_each_kind(BACKWARD)
nearly_each_kind = of_each_kind(BACKWARD, long=False)


def given_to(kind):
    """Return the op's arguments by name, on the host."""
    count = 2 if kind.options == "plain" else 3
    names = ("dy", "x", "dresidual")[:count]
    given = {name: random(kind.shape, kind.dtype, seed=i) for i, name in enumerate(names)}
    if kind.options == "bare":
        given["gamma"] = None
    else:
        given["gamma"] = random(kind.cols, kind.parameter, seed=3, scale=0.3, shift=1)
    forward = getattr(_reference, kind.op.replace("bwd", "fwd"))
    kept = [k.value.astype(k.dtype) for k in forward(given["x"])[1:]]
    given |= dict(zip(("mean", "rstd")[-len(kept) :], kept, strict=True))
    if kind.op == "rms_norm_bwd" and kind.options == "all":
        given["gamma_offset"] = 1.0
    return given


def run(kind, given, layout):
    """Return the gradients, and the guarded memory that each argument lies in."""
    memory, arguments = {}, dict(given)
    for name, value in given.items():
        if isinstance(value, np.ndarray):
            memory[name], arguments[name] = place(value, layout)
    return getattr(cunorm, kind.op)(**arguments), memory


def all_bits(gradients):
    return [None if a is None else bits(a) for a in gradients]


@each_kind
def test_every_gradient_is_as_defined_and_nothing_else_is_written(kind):
    given = given_to(kind)
    gradients, memory = run(kind, given, kind.layout)
    expected = getattr(_reference, kind.op)(**given)
    for actual, wanted in zip(gradients, expected, strict=True):
        assert (actual is None) == (wanted is None)
        if wanted is not None:
            assert_matches(actual, wanted)
    for name, whole in memory.items():
        assert bits(whole) == bits(place(given[name], kind.layout)[0]), name


@nearly_each_kind
def test_gradients_have_the_same_bits_on_any_run_wherever_arrays_lie(kind):
    given = given_to(kind)
    expected = all_bits(run(kind, given, kind.layout)[0])
    assert all_bits(run(kind, given, kind.layout)[0]) == expected
    assert all_bits(run(kind, given, "contiguous")[0]) == expected


@nearly_each_kind
def test_dx_of_a_row_has_the_same_bits_alone_and_nan_stays_in_its_row(kind):
    given = given_to(kind)
    clean = run(kind, given, kind.layout)[0][0]
    alone = {
        name: value[0, 0] if name not in ("gamma", "gamma_offset") else value
        for name, value in given.items()
    }
    alone = {
        n: cupy.asarray(v) if isinstance(v, np.generic | np.ndarray) else v
        for n, v in alone.items()
    }
    assert bits(getattr(cunorm, kind.op)(**alone)[0]) == bits(clean[0, 0])
    given["dy"][0, -1, kind.cols // 2] = np.nan
    dirty = run(kind, given, kind.layout)[0][0]
    assert bits(dirty[0, :-1]) == bits(clean[0, :-1])
    assert bits(dirty[1:]) == bits(clean[1:])
    assert np.isnan(dirty[0, -1].get().astype(np.float64)).any()
