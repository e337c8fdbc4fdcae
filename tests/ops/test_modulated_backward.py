"""Gradients of what follows a norm: those of the definition, and of PyTorch in float64."""

from functools import partial

import cupy
import numpy as np
import pytest
import torch
from arrays import EVERY, NARROW, assert_matches, bits, random, to_torch
from kinds import covering, some_of, these
from test_modulated import BROADCASTS, strided

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import place

NORMS = ["rms_norm", "layer_norm"]
SHAPE = (2, 3)
BACKWARD = {
    "norm": NORMS,
    # A sub-warp; a warp; a block; shared memory.
    "cols": [96, 768, 4096, 20_000],
    "dtype": NARROW,
    "gamma_dtype": [None, *NARROW],
    "scale_dtype": [None, *NARROW],
    "scale_as": list(BROADCASTS)[:6],
    "shift_as": [None, *list(BROADCASTS)[:6]],
    "offset": [1.0, 0.0],
    "layout": ["contiguous", "row-strided", "strided heads"],
    "adds": [False, True],
    "sums": [True, False],
}
OFF_16_BYTES = {
    "cols": [7, 769, 3072, 20_001],
    "layout": ["contiguous", "base + 1 element"],
    "scale_as": list(BROADCASTS),
}


def always():
    """Yield points of which each pair of a few values occurs: each is three kernels."""
    few = {
        "cols": [96, 4096],
        "dtype": ["float16", "float32"],
        "gamma_dtype": [None, "float32"],
        "scale_dtype": [None, "bfloat16"],
        "scale_as": ["a sample's columns", "every element", "a number a row"],
        "shift_as": [None, "a sample's columns", "a token's columns"],
        "layout": ["contiguous", "strided heads"],
    }
    yield from covering((BACKWARD | few).values(), "few")


@these(
    ",".join(BACKWARD),
    list(always()),
    [
        *covering(BACKWARD.values(), "whole packets"),
        *covering((BACKWARD | OFF_16_BYTES).values(), "off 16 bytes"),
    ],
    "three kernels each; rows that start anywhere compile in up to 7 s",
)
def test_gradients_are_as_defined(
    norm, cols, dtype, gamma_dtype, scale_dtype, scale_as, shift_as, offset, layout, adds, sums
):
    x, dy, dresidual = (random((*SHAPE, cols), dtype, seed=seed) for seed in range(3))
    parameters = {"gamma": None, "beta": None}
    if gamma_dtype is not None:
        parameters["gamma"] = random(cols, gamma_dtype, seed=3, scale=0.3, shift=1)
        parameters["beta"] = random(cols, gamma_dtype, seed=4)
    operands = {
        name: random(BROADCASTS[kind](cols), of, seed=seed)
        for seed, (name, kind, of) in enumerate(
            [("scale", scale_as, scale_dtype), ("shift", shift_as, dtype)], 5
        )
        if kind is not None and of is not None
    }
    if norm == "rms_norm":
        del parameters["beta"]
    forward = getattr(_reference, f"{norm}_fwd")
    _, *kept = forward(x, *parameters.values(), eps=1e-6)
    fwd = getattr(cunorm, f"{norm}_fwd")
    gammas = {n: None if a is None else cupy.asarray(a) for n, a in parameters.items()}
    _, *own = fwd(cupy.asarray(x), *gammas.values(), eps=1e-6)
    named = {"scale_offset": offset, "sums": sums}

    given = [place(a, layout)[1] for a in (dy, x, dresidual)]
    made = getattr(cunorm, f"{norm}_bwd")(
        *given[:2],
        gammas["gamma"],
        *own,
        **({"beta": gammas["beta"]} if norm == "layer_norm" else {}),
        **{name: strided(a, "sliced") for name, a in operands.items()},
        **named,
        dresidual=given[2] if adds else None,
    )
    expected = getattr(_reference, f"{norm}_bwd")(
        dy,
        x,
        parameters["gamma"],
        *kept,
        **({"beta": parameters["beta"]} if norm == "layer_norm" else {}),
        **operands,
        **named,
        dresidual=dresidual if adds else None,
    )
    assert len(made) == len(expected) == len(NORMS) + NORMS.index(norm) + len(operands)
    for actual, want in zip(made, expected, strict=True):
        if want is None:
            assert actual is None
        else:
            assert_matches(actual, want)


class Modulated(torch.autograd.Function):
    """A modulated norm on host tensors, differentiated by its backward op."""

    @staticmethod
    def forward(ctx, norm, offset, x, gamma, beta, scale, shift):
        given = [None if a is None else cupy.asarray(a.detach().numpy()) for a in (x, gamma, beta)]
        operands = {
            name: cupy.asarray(a.detach().numpy())
            for name, a in (("scale", scale), ("shift", shift))
            if a is not None
        }
        parameters = given[1:2] if norm == "rms_norm" else given[1:]
        options = {"scale_offset": offset, **operands}
        y, *kept = getattr(cunorm, f"{norm}_fwd")(given[0], *parameters, eps=0.1, **options)
        ctx.kept = norm, given, operands, offset, kept
        return to_torch(y.get())

    @staticmethod
    def backward(ctx, dy):
        norm, (x, gamma, beta), operands, offset, kept = ctx.kept
        options = {"scale_offset": offset, **operands}
        if norm == "layer_norm":
            options["beta"] = beta
        dy = cupy.asarray(dy.contiguous().numpy())
        dx, *made = getattr(cunorm, f"{norm}_bwd")(dy, x, gamma, *kept, **options)
        made = [None if a is None else to_torch(a.get()) for a in made]
        totals = [*made[: 2 if norm == "layer_norm" else 1], None][:2]
        of = dict(zip(operands, made[-len(operands) :], strict=True))
        return None, None, to_torch(dx.get()), *totals, of.get("scale"), of.get("shift")


@some_of(
    [
        ("layer_norm", ("a sample's columns", "a sample's columns")),
        ("rms_norm", ("a token's columns", "a number a sample")),
    ],
    "three kernels each, launched some 60 times",
    norm=NORMS,
    of=[
        ("a sample's columns", "a sample's columns"),
        ("columns", "a token's columns"),
        ("every element", None),
        (None, "a number a row"),
        ("a number a sample", "one number"),
        ("a token's columns", "a number a sample"),
    ],
)
def test_gradcheck_accepts_the_gradient_of_every_argument(norm, of):
    scale_as, shift_as = of

    def leaf(shape, seed, shift=0.0):
        values = np.asarray(random(shape, "float64", seed=seed, shift=shift))
        return to_torch(values).requires_grad_()

    x, gamma = leaf((2, 3, 3), 0), leaf((3,), 1, 1)
    beta = leaf((3,), 2) if norm == "layer_norm" else None
    scale, shift = (
        None if kind is None else leaf(BROADCASTS[kind](3), seed)
        for seed, kind in enumerate((scale_as, shift_as), 3)
    )
    function = partial(Modulated.apply, norm, 0.3)
    assert torch.autograd.gradcheck(function, (x, gamma, beta, scale, shift))


@pytest.mark.parametrize("dtype", EVERY[::2])
def test_two_normalised_axes_and_a_scale_of_the_last(dtype):
    x, dy = (random((4, 3, 8), dtype, seed=seed) for seed in range(2))
    gamma, scale = random((3, 8), dtype, seed=2), random((4, 1, 8), dtype, seed=3)
    _, *kept = cunorm.layer_norm_fwd(cupy.asarray(x), cupy.asarray(gamma))
    made = cunorm.layer_norm_bwd(
        *map(cupy.asarray, (dy, x, gamma)), *kept, scale=cupy.asarray(scale)
    )
    host = [a.get() for a in kept]
    expected = _reference.layer_norm_bwd(dy, x, gamma, *host, scale=scale)
    for actual, want in zip(made, expected, strict=True):
        assert_matches(actual, want)


def test_post_norms_gate_is_a_scale_without_an_offset():
    x, residual, dh = (random((5, 96), "float64", seed=seed) for seed in range(3))
    gamma, gate = random(96, "float64", seed=3), random((5, 1), "float64", seed=4)
    leaves = [to_torch(a).requires_grad_() for a in (x, gamma, gate)]
    n = torch.nn.functional.rms_norm(leaves[0], (96,), leaves[1], eps=1e-6)
    (torch.from_numpy(dh) * (torch.from_numpy(residual) + leaves[2] * n)).sum().backward()
    _, rstd = cunorm.rms_norm_add_fwd(
        *map(cupy.asarray, (x, residual, gamma)), gate=cupy.asarray(gate)
    )
    made = cunorm.rms_norm_bwd(
        *map(cupy.asarray, (dh, x, gamma)), rstd, scale=cupy.asarray(gate), scale_offset=0.0
    )
    for actual, leaf in zip(made, leaves, strict=True):
        np.testing.assert_allclose(actual.get(), leaf.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("scale_as", ["a sample's columns", "a token's columns", "a number a row"])
def test_a_repeated_call_has_the_same_bits_and_sees_other_arrays(scale_as):
    def call(seed):
        dy, x = (cupy.asarray(random((2, 3, 64), "float16", seed=seed + i)) for i in range(2))
        gamma = cupy.asarray(random(64, "float16", seed=seed + 2))
        scale = cupy.asarray(random(BROADCASTS[scale_as](64), "float16", seed=seed + 3))
        _, rstd = cunorm.rms_norm_fwd(x, gamma)
        return [bits(a) for a in cunorm.rms_norm_bwd(dy, x, gamma, rstd, scale=scale, shift=scale)]

    expected = call(0), call(10)
    for _ in range(10):
        assert (call(0), call(10)) == expected
    assert expected[0] != expected[1]


def test_many_rows_of_each_sample_are_shared_by_blocks():
    x, dy = (random((3, 700, 96), "float32", seed=seed) for seed in range(2))
    gamma, scale = random(96, "float32", seed=2), random((3, 1, 96), "float32", seed=3)
    given = [cupy.asarray(a) for a in (dy, x, gamma)]
    _, *kept = cunorm.layer_norm_fwd(*given[1:])
    made = cunorm.layer_norm_bwd(*given, *kept, scale=cupy.asarray(scale), shift=given[2])
    host = [a.get() for a in kept]
    expected = _reference.layer_norm_bwd(dy, x, gamma, *host, scale=scale, shift=gamma)
    for actual, want in zip(made, expected, strict=True):
        assert_matches(actual, want)


def test_a_number_has_a_gradient_too():
    x, dy = (cupy.asarray(random((4, 64), "float32", seed=seed)) for seed in range(2))
    _, rstd = cunorm.rms_norm_fwd(x)
    dx, dgamma, dscale = cunorm.rms_norm_bwd(dy, x, None, rstd, scale=0.5)
    assert dgamma is None
    assert dscale.shape == ()
    np.testing.assert_allclose(dscale.get(), (dy * cunorm.rms_norm(x)).sum().get(), rtol=1e-4)
    np.testing.assert_allclose(
        dx.get(), 1.5 * cunorm.rms_norm_bwd(dy, x, None, rstd)[0].get(), rtol=1e-5, atol=1e-6
    )


def test_no_rows_give_zeros():
    x, scale = cupy.empty((0, 3, 8), "float16"), cupy.ones((1, 1, 8), "float32")
    made = cunorm.rms_norm_bwd(x, x, scale[0, 0], cupy.empty((0, 3), "float32"), scale=scale)
    assert [a.shape for a in made] == [(0, 3, 8), (8,), (1, 1, 8)]
    assert not made[1].any()
    assert not made[2].any()


X = cupy.ones((4, 3, 64), "float16")
RSTD = cupy.ones((4, 3), "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"scale": X[..., :63]}, ValueError, "scale must broadcast to the shape of x"),
        ({"shift": X.astype("f8")}, TypeError, "shift must be float16, bfloat16 or float32 where"),
        ({"scale": "1"}, TypeError, "scale must be a cupy.ndarray, a number or None, but is a st"),
        ({"shift": True}, TypeError, "shift must be a real number, but is a bool"),
        ({"scale_offset": np.inf}, ValueError, "scale_offset must be finite in float32, but is in"),
        ({"beta": X[0, 0, :63]}, ValueError, "beta must have the shape of gamma"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    given = {"dy": X, "x": X, "gamma": X[0, 0], "mean": RSTD, "rstd": RSTD}
    with pytest.raises(error, match=f"^{message}"):
        cunorm.layer_norm_bwd(**given | change)
