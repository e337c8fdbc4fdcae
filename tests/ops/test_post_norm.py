"""Norms that are added to a residual: the bits of the norm and of operators, and one pass."""

import cupy
import numpy as np
import pytest
import torch
from arrays import EVERY, NARROW, assert_matches, bits, random
from kinds import IN_TURNS, covering, these
from test_modulated import BROADCASTS, operate, strided

import cunorm
from cunorm import _reference
from cunorm._families import OPS
from cunorm._selfcheck.layouts import GUARD, around, place

LAYOUTS = ["contiguous", "base + 1 element", "row-strided", "strided heads"]
POST = {
    "norm": ["rms_norm", "layer_norm"],
    # A sub-warp; a warp; a block; shared memory.
    "cols": [96, 768, 4096, 20_000],
    "dtype": NARROW,
    "residual_dtype": NARROW,
    "gate_dtype": [None, *NARROW],
    "gate_as": ["columns", "a sample's columns", "every element", "a number a row"],
    "layout": LAYOUTS,
    "in_place": [False, True],
}
LONG = {"cols": [7, 769, 20_001, 70_000, 1_300_005], "gate_as": list(BROADCASTS)}


def always():
    short = POST | {"cols": [96, 768, 4096], "layout": LAYOUTS[:1] + LAYOUTS[2:]}
    yield from covering(short.values(), "short rows")


@these(
    ",".join(POST),
    list(always()),
    list(covering((POST | LONG).values(), "off 16 bytes")),
    "rows that start anywhere compile in up to 7 s",
)
def test_post_norm_has_the_bits_of_its_parts(
    norm, cols, dtype, residual_dtype, gate_dtype, gate_as, layout, in_place
):
    rows = (1, 2) if cols > 100_000 else (2, 3)
    x = random((*rows, cols), dtype, scale=2)
    residual = random(x.shape, residual_dtype, seed=1)
    gamma = cupy.asarray(random(cols, dtype, seed=3, scale=0.3, shift=1))
    n, *statistics = getattr(cunorm, f"{norm}_fwd")(cupy.asarray(x), gamma)
    expected, given = n.get(), {}
    if gate_dtype is not None:
        shape = BROADCASTS[gate_as](cols)
        ends = (*rows, cols)[3 - len(shape) :]
        gate = random([min(*of) for of in zip(shape, ends, strict=True)], gate_dtype, seed=2)
        expected = operate(np.multiply, gate, expected)
        given["gate"] = strided(gate, "packed")
    expected = operate(np.add, residual, expected).astype(residual.dtype)
    whole, stream = place(residual, layout)
    if in_place:
        given["residual_out"] = stream
    h, *own = getattr(cunorm, f"{norm}_add_fwd")(place(x, layout)[1], stream, gamma, **given)
    assert bits(h) == bits(expected)
    assert [bits(a) for a in own] == [bits(a) for a in statistics]
    if in_place:
        assert h is stream
        assert (around(whole, residual.shape, layout).astype(np.float64) == GUARD).all()


TWICE = {
    "cols": [96, 768, 4096, 20_000],
    "dtypes": [(a, a) for a in EVERY] + [("bfloat16", "float32"), ("float32", "float16")],
    "layout": LAYOUTS,
    "parameters": [(0, 0), (1, 1), (0, 1), (1, 0)],
    "cast": ["before", "after"],
    "in_place": [False, True],
}
TWICE_LONG = {"cols": [7, 769, 20_001, 70_000, 1_300_005, 1_300_008]}


def always_twice():
    odd = ((1, 1), "before", True)
    yield 771, ("float16", "float16"), "contiguous", *odd
    yield 70_000, ("bfloat16", "bfloat16"), "contiguous", *odd
    whole = TWICE | {"layout": ["contiguous", "row-strided"]}
    yield from covering(whole.values(), "whole packets")


@these(
    ",".join(TWICE),
    list(always_twice()),
    list(covering((TWICE | TWICE_LONG).values(), "off 16 bytes")),
    "rows that start anywhere compile in up to 7 s",
)
def test_two_norms_have_the_bits_of_their_parts(cols, dtypes, layout, parameters, cast, in_place):
    rows = (1, 2) if cols > 100_000 else (2, 3)
    x, residual = (random((*rows, cols), dtype, seed=i) for i, dtype in enumerate(dtypes))
    gammas = [
        cupy.asarray(random(cols, dtypes[0], seed=i, scale=0.3, shift=1)) if given else None
        for i, given in enumerate(parameters, 3)
    ]
    options = {"cast": cast, "gamma_offset": 1.0 if parameters == (1, 1) else 0.0}
    n, rstd = cunorm.rms_norm_fwd(cupy.asarray(x), gammas[0], 1e-6, **options)
    h = operate(np.add, residual, n.get()).astype(residual.dtype)
    y, rstd2 = cunorm.rms_norm_fwd(cupy.asarray(h), gammas[1], 1e-5, **options, dtype=dtypes[0])

    (whole, at), (stream, beside) = place(x, layout), place(residual, layout)
    into = {"out": at, "residual_out": beside} if in_place else {}
    made = cunorm.rms_norm_add_rms_norm_fwd(at, beside, *gammas, eps2=1e-5, **options, **into)
    assert [bits(a) for a in made] == [bits(a) for a in (y, h, rstd, rstd2)]
    if in_place:
        assert made[0] is at
        assert made[1] is beside
    for array, shape in ((whole, x.shape), (stream, residual.shape)):
        assert (around(array, shape, layout).astype(np.float64) == GUARD).all()


@IN_TURNS
@pytest.mark.parametrize(
    ("dtype", "of_residual"),
    [
        ("bfloat16", "bfloat16"),
        ("float32", "float32"),
        ("float16", "float32"),
        ("float32", "float16"),
    ],
)
@pytest.mark.parametrize("cast", ["before", "after"])
def test_results_are_as_defined(dtype, of_residual, cast):
    x, residual, gamma, gamma2, beta, gate = (
        random(s, of_residual if i == 1 else dtype, seed=i)
        for i, s in enumerate([(3, 768)] * 2 + [768] * 4)
    )
    on_device = [cupy.asarray(a) for a in (x, residual, gamma, gamma2, beta, gate)]
    calls = {
        "rms_norm_add_fwd": ((0, 1, 2), {"gate": 5}),
        "layer_norm_add_fwd": ((0, 1, 2, 4), {"gate": 5}),
        "layer_norm_add": ((0, 1), {}),
        "rms_norm_add_rms_norm_fwd": ((0, 1, 2, 3), {}),
    }
    arrays = (x, residual, gamma, gamma2, beta, gate)
    for op, (places, named) in calls.items():
        options = {"cast": cast} if "cast" in OPS[op].names else {}
        made = getattr(cunorm, op)(
            *(on_device[i] for i in places),
            **{n: on_device[i] for n, i in named.items()},
            **options,
        )
        expected = getattr(_reference, op)(
            *(arrays[i] for i in places), **{n: arrays[i] for n, i in named.items()}, **options
        )
        pairs = (
            [(made, expected)] if not isinstance(made, tuple) else zip(made, expected, strict=True)
        )
        for actual, want in pairs:
            assert_matches(actual, want)


def test_the_boundary_of_gemmas_layers_has_the_bits_of_its_modules():
    """Gemma 2 and 3: x * rstd * (1 + w) in float32 and back, added, and so again."""
    x, residual, w, w2 = (
        random(shape, "bfloat16", seed=i) for i, shape in enumerate([(4, 768)] * 2 + [768] * 2)
    )

    def tensor(a):
        return torch.from_numpy(a.view(np.int16)).view(torch.bfloat16)

    def norm(x, w, rstd):
        made = x.float() * torch.from_numpy(rstd.get())[:, None]
        return (made * (1.0 + w.float())).type_as(x)

    y, h, rstd, rstd2 = cunorm.rms_norm_add_rms_norm_fwd(
        *(cupy.asarray(a) for a in (x, residual, w, w2)), gamma_offset=1.0, cast="after"
    )
    stream = tensor(residual) + norm(tensor(x), tensor(w), rstd)
    normed = norm(stream, tensor(w2), rstd2)
    assert bits(h) == stream.view(torch.int16).numpy().tobytes()
    assert bits(y) == normed.view(torch.int16).numpy().tobytes()


@pytest.mark.parametrize("number", [2, 0.1])
@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_gate_may_be_a_number_as_to_cupys_operators(number, cast):
    x, residual = (cupy.asarray(random((4, 128), "float16", seed=i)) for i in range(2))
    n = cunorm.rms_norm(x, cast=cast)
    h = cunorm.rms_norm_add(x, residual, gate=number, cast=cast)
    assert bits(h) == bits(residual + float(number) * n)


def test_a_repeated_call_sees_other_arrays():
    for dtype in ("float16", "float32"):  # of the second both norms are a kernel each
        for seed in range(3):
            x = cupy.asarray(random((4, 256), "float16", seed=seed))
            residual = cupy.asarray(random((4, 256), dtype, seed=seed + 10))
            y, h = cunorm.rms_norm_add_rms_norm(x, residual)
            assert bits(h) == bits((residual + cunorm.rms_norm(x)).astype(dtype))
            assert bits(y) == bits(cunorm.rms_norm(h, dtype="float16"))


def test_a_row_has_the_same_bits_alone_as_in_a_batch():
    x, residual = (cupy.asarray(random((5, 9, 770), "float32", seed=i)) for i in range(2))
    whole = cunorm.rms_norm_add_rms_norm(x, residual)
    alone = cunorm.rms_norm_add_rms_norm(x[3, 7], residual[3, 7])
    assert [bits(a[3, 7]) for a in whole] == [bits(a) for a in alone]


def test_rows_whose_squares_leave_the_range_are_rescued_in_both_norms():
    x = cupy.full((2, 512), 1e-30, "float32")
    y, h = cunorm.rms_norm_add_rms_norm(x, cupy.full_like(x, 1e30), eps=0)
    assert bits(h) == bits(cupy.full_like(x, 1e30) + cunorm.rms_norm(x, eps=0))
    assert bits(y) == bits(cunorm.rms_norm(h, eps=0))
    assert float(y[0, 0]) == pytest.approx(1, rel=1e-6)


def test_rows_without_columns_or_without_rows():
    for shape in ((0, 8), (3, 0)):
        x = cupy.empty(shape, "float16")
        y, h, rstd, rstd2 = cunorm.rms_norm_add_rms_norm_fwd(x, x)
        assert y.shape == h.shape == shape
        assert rstd.shape == rstd2.shape == shape[:1]
        assert cunorm.layer_norm_add(x, x).shape == shape


X, RESIDUAL, GAMMA = (
    cupy.ones((4, 64), "float16"),
    cupy.ones((4, 64), "float32"),
    cupy.ones(64, "float16"),
)


@pytest.mark.parametrize(
    ("op", "change", "error", "message"),
    [
        ("rms_norm_add", {"residual": None}, TypeError, "residual must be a cupy.ndarray, but is"),
        ("rms_norm_add", {"residual": X[:2]}, ValueError, "residual must have the shape of x"),
        ("layer_norm_add", {"residual": X.astype("f8")}, TypeError, "residual must be float16, b"),
        ("rms_norm_add", {"residual_out": X}, TypeError, "residual_out must have the dtype of res"),
        ("rms_norm_add", {"residual_out": X.copy()}, TypeError, "residual_out must have the dt"),
        (
            "rms_norm_add",
            {"residual": X.copy(), "residual_out": X},
            ValueError,
            "residual_out must",
        ),
        ("layer_norm_add", {"gate": cupy.ones(63, "f2")}, ValueError, "gate must broadcast to the"),
        ("rms_norm_add", {"gate": True}, TypeError, "gate must be a real number, but is a bool"),
        ("rms_norm_add_rms_norm", {"eps2": -1}, ValueError, "eps2 must be finite and not negative"),
        ("rms_norm_add_rms_norm", {"eps2": "1"}, TypeError, "eps2 must be a real number, but is a"),
        ("rms_norm_add_rms_norm", {"gamma2": GAMMA[:3]}, ValueError, "gamma2 must have the shape"),
        (
            "rms_norm_add_rms_norm",
            {"gamma_offset": 1.0},
            ValueError,
            "gamma_offset must be 0 where gamma2 is None, but is 1.0",
        ),
        ("rms_norm_add_rms_norm", {"out": RESIDUAL}, TypeError, "out must have the dtype of x"),
        ("rms_norm_add_rms_norm", {"out": X[::-1]}, ValueError, "out must be x itself or not over"),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_nothing_is_written(op, change, error, message):
    before = [bits(a) for a in (X, RESIDUAL)]
    with pytest.raises(error, match=f"^{message}"):
        getattr(cunorm, op)(**{"x": X, "residual": RESIDUAL, "gamma": GAMMA} | change)
    assert [bits(a) for a in (X, RESIDUAL)] == before


def test_ten_runs_have_the_same_bits():
    x, residual = (cupy.asarray(random((3, 4096), "float16", seed=i)) for i in range(2))
    results = {tuple(bits(a) for a in cunorm.rms_norm_add_rms_norm(x, residual)) for _ in range(10)}
    assert len(results) == 1
