"""Gradients of gated norms: those of the definition, and of PyTorch in float64."""

from functools import partial

import cupy
import numpy as np
import pytest
import torch
from arrays import assert_matches, bits, random, to_torch
from kinds import covering, some_of, these

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import place

NORMS = ["rms_norm", "layer_norm"]
GATED = {
    "norm": NORMS,
    # A sub-warp; a warp; a block; shared memory.
    "cols": [96, 768, 4096, 20_000],
    "dtypes": [
        ("float16", "float16"),
        ("bfloat16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float32", "float16"),
        ("float32", "float32"),
    ],
    "parameter": [None, "float32", "bfloat16"],
    "activation": ["silu", "sigmoid", None],
    "first": [False, True],
    "groups": [None, 1, 4],
    "layout": ["contiguous", "row-strided", "strided heads"],
    "sums": [True, True, False],
}
OFF_16_BYTES = {"cols": [28, 1540, 20_004], "layout": ["contiguous", "base + 1 element"]}


def always():
    """Yield points of which each pair of a few values occurs."""
    few = {
        "cols": [96, 4096],
        "dtypes": [("float16", "float16"), ("bfloat16", "float32")],
        "parameter": [None, "float32"],
        "groups": [None, 4],
        "layout": ["contiguous", "strided heads"],
        "sums": [True],
    }
    yield from covering((GATED | few).values(), "few")


@these(
    ",".join(GATED),
    list(always()),
    [
        *covering(GATED.values(), "whole packets"),
        *covering((GATED | OFF_16_BYTES).values(), "off 16 bytes"),
    ],
    "two or three kernels each; rows that start anywhere compile in up to 7 s",
)
def test_gradients_are_as_defined(
    norm, cols, dtypes, parameter, activation, first, groups, layout, sums
):
    dtype, gate_dtype = dtypes
    x, dy = (random((2, 3, cols), dtype, seed=seed) for seed in range(2))
    gate = random((2, 3, cols), gate_dtype, seed=2)
    gamma, beta = (
        None if parameter is None else random(cols, parameter, seed=seed) for seed in (3, 4)
    )
    options = {
        "activation": activation,
        "gate_first": first,
        "group": None if groups is None else cols // groups,
    }
    parameters = [gamma] if norm == "rms_norm" else [gamma, beta]
    on_device = [None if a is None else cupy.asarray(a) for a in parameters]
    _, *kept = getattr(_reference, f"{norm}_gated_fwd")(x, gate, *parameters, **options)
    given = [place(a, layout)[1] for a in (dy, x, gate)]
    _, *own = getattr(cunorm, f"{norm}_gated_fwd")(*given[1:], *on_device, **options)
    options |= {"sums": sums}
    bias, own_bias = ({}, {}) if norm == "rms_norm" else ({"beta": beta}, {"beta": on_device[1]})
    made = getattr(cunorm, f"{norm}_gated_bwd")(*given, on_device[0], *own, **options, **own_bias)
    expected = getattr(_reference, f"{norm}_gated_bwd")(
        dy, x, gate, gamma, *kept, **options, **bias
    )
    assert len(made) == len(expected)
    for actual, want in zip(made, expected, strict=True):
        if want is None:
            assert actual is None
        else:
            assert_matches(actual, want)


class Gated(torch.autograd.Function):
    """A gated norm on host tensors, differentiated by its backward op."""

    @staticmethod
    def forward(ctx, norm, options, x, gate, gamma, beta):
        given = [
            None if a is None else cupy.asarray(a.detach().numpy()) for a in (x, gate, gamma, beta)
        ]
        parameters = given[2:3] if norm == "rms_norm" else given[2:]
        fwd = getattr(cunorm, f"{norm}_gated_fwd")
        y, *kept = fwd(*given[:2], *parameters, eps=0.1, **options)
        ctx.kept = norm, given, options, kept
        return to_torch(y.get())

    @staticmethod
    def backward(ctx, dy):
        norm, (x, gate, gamma, beta), options, kept = ctx.kept
        bias = {"beta": beta} if norm == "layer_norm" else {}
        dy = cupy.asarray(dy.contiguous().numpy())
        bwd = getattr(cunorm, f"{norm}_gated_bwd")
        made = [to_torch(a.get()) for a in bwd(dy, x, gate, gamma, *kept, **options, **bias)]
        return None, None, *made, *[None] * (4 - len(made))


OPTIONS = [
    {},
    {"activation": "sigmoid", "group": 3, "gamma_offset": 1.0},
    {"activation": None, "gate_first": True},
    {"gate_first": True, "group": 2},
]


@some_of(
    [("layer_norm", 1), ("rms_norm", 3)],
    "two or three kernels each, launched some 60 times",
    norm=NORMS,
    options=range(len(OPTIONS)),
)
def test_gradcheck_accepts_the_gradient_of_every_argument(norm, options):
    options = OPTIONS[options]

    def leaf(shape, seed):
        return to_torch(random(shape, "float64", seed=seed)).requires_grad_()

    x, gate, gamma = leaf((2, 6), 0), leaf((2, 6), 1), leaf((6,), 2)
    beta = leaf((6,), 3) if norm == "layer_norm" else None
    assert torch.autograd.gradcheck(partial(Gated.apply, norm, options), (x, gate, gamma, beta))


@pytest.mark.parametrize("group", [None, 24])
def test_a_repeated_call_has_the_same_bits_and_sees_other_arrays(group):
    def call(seed):
        dy, x, gate = (cupy.asarray(random((5, 96), "float16", seed=seed + i)) for i in range(3))
        gamma = cupy.asarray(random(96, "float16", seed=seed + 3))
        _, rstd = cunorm.rms_norm_gated_fwd(x, gate, gamma, group=group)
        made = cunorm.rms_norm_gated_bwd(dy, x, gate, gamma, rstd, group=group)
        return [bits(a) for a in made]

    expected = call(0), call(10)
    for _ in range(10):
        assert (call(0), call(10)) == expected
    assert expected[0] != expected[1]


def test_far_gates_have_the_slopes_of_their_ends():
    gate = cupy.asarray([[90.0, -90.0, 0.0, 1e30, -1e30]], "float32")
    x = cupy.ones_like(gate)
    _, rstd = cunorm.rms_norm_gated_fwd(x, gate, eps=0)
    _, dgate, _ = cunorm.rms_norm_gated_bwd(x, x, gate, None, rstd)
    np.testing.assert_allclose(dgate.get(), [[1, 0, 0.5, 1, 0]], atol=1e-30)


def test_no_rows_give_zeros():
    x = cupy.empty((0, 8), "float16")
    gamma = cupy.ones(8, "float32")
    for group, shape in ((None, (0,)), (4, (0, 2))):
        rstd = cupy.empty(shape, "float32")
        dx, dgate, dgamma = cunorm.rms_norm_gated_bwd(x, x, x, gamma, rstd, group=group)
        assert dx.shape == dgate.shape == (0, 8)
        assert not dgamma.any()


X, GATE = cupy.ones((4, 64), "float16"), cupy.ones((4, 64), "float32")
RSTD = cupy.ones(4, "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gate": None}, TypeError, "gate must be a cupy.ndarray, but is a NoneType"),
        (
            {"gate": GATE[:2]},
            ValueError,
            r"gate must have the shape of x, \(4, 64\), but has \(2, ",
        ),
        ({"dy": GATE}, TypeError, "dy must have the dtype of x, float16, but has float32"),
        ({"group": 16}, ValueError, r"rstd must have one number a row, \(4, 4\), but has \(4,\)"),
        ({"group": 48}, ValueError, "group must divide the columns of x, 64, but is 48"),
        ({"activation": "gelu"}, ValueError, "activation must be 'silu', 'sigmoid' or None, but"),
        ({"gamma_offset": 1.0}, ValueError, "gamma_offset must be 0 where gamma is None, but is 1"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    given = {"dy": X, "x": X, "gate": GATE, "gamma": None, "rstd": RSTD}
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm_gated_bwd(**given | change)
