"""Gradients of what a gate scales before a norm: those of the definition, and of PyTorch."""

import cupy
import numpy as np
import pytest
import torch
from arrays import NARROW, assert_matches, bits, random, to_torch
from kinds import IN_TURNS, covering, these
from test_modulated import BROADCASTS, strided

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import place

NORMS = ["rms_norm", "layer_norm"]
SHAPE = (2, 3)
POINTS = {
    "norm": NORMS,
    # A sub-warp; a warp; a block; shared memory.
    "cols": [96, 768, 4096, 20_000],
    "x_dtype": NARROW,
    "dtype": NARROW,
    "gate_dtype": NARROW,
    "gate_as": list(BROADCASTS),
    "scale_as": [None, "a sample's columns", "a token's columns"],
    "layout": ["contiguous", "row-strided", "strided heads"],
    "is_bare": [False, True],
    "adds": [False, True],
    "sums": [True, False],
}
OFF_16_BYTES = {"cols": [7, 769, 3072, 20_001], "layout": ["contiguous", "base + 1 element"]}
FEW = {"cols": [96, 769], "x_dtype": ["float16", "float32"], "dtype": ["bfloat16", "float32"]}


def arrays(norm, cols, x_dtype, dtype, gate_dtype, gate_as, is_bare=False):
    """Return host arrays: dy, x, dresidual, h, gate, and gamma and beta."""
    dy, dresidual, h = (random((*SHAPE, cols), dtype, seed=seed) for seed in range(3))
    x = random((*SHAPE, cols), x_dtype, seed=3)
    gate = random(BROADCASTS[gate_as](cols), gate_dtype, seed=4)
    parameters = [random(cols, dtype, seed=5, scale=0.3, shift=1), random(cols, dtype, seed=6)]
    parameters = [None if is_bare else a for a in parameters[: 1 + NORMS.index(norm)]]
    return dy, x, dresidual, h, gate, parameters


def device(a):
    return None if a is None else cupy.asarray(a)


@these(
    ",".join(POINTS),
    list(covering((POINTS | FEW).values(), "few")),
    [
        *covering(POINTS.values(), "whole packets"),
        *covering((POINTS | OFF_16_BYTES).values(), "off 16 bytes"),
    ],
    "three kernels each; rows that start anywhere compile in up to 7 s",
)
def test_gradients_are_as_defined(
    norm, cols, x_dtype, dtype, gate_dtype, gate_as, scale_as, layout, is_bare, adds, sums
):
    dy, x, dresidual, h, gate, parameters = arrays(
        norm, cols, x_dtype, dtype, gate_dtype, gate_as, is_bare
    )
    _, *kept = getattr(_reference, f"{norm}_fwd")(h, *parameters)
    _, *own = getattr(cunorm, f"{norm}_fwd")(device(h), *map(device, parameters))
    named = {} if scale_as is None else {"scale": random(BROADCASTS[scale_as](cols), dtype, seed=7)}
    named |= dict(zip(["beta"], parameters[1:], strict=False))
    dys, xs, residuals, hs = (place(a, layout)[1] for a in (dy, x, dresidual, h))
    made = getattr(cunorm, f"add_{norm}_bwd")(
        dys,
        hs,
        device(parameters[0]),
        *own,
        xs,
        strided(gate, "sliced"),
        **{name: device(a) for name, a in named.items()},
        dresidual=residuals if adds else None,
        sums=sums,
    )
    expected = getattr(_reference, f"add_{norm}_bwd")(
        dy,
        h,
        parameters[0],
        *kept,
        x,
        gate,
        **named,
        dresidual=dresidual if adds else None,
        sums=sums,
    )
    assert len(made) == len(expected) == 4 + NORMS.index(norm) + (scale_as is not None)
    for actual, want in zip(made, expected, strict=True):
        if want is None:
            assert actual is None
        else:
            assert_matches(actual, want)


@IN_TURNS
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate_as", ["columns", "a sample's columns", "one number"])
@pytest.mark.parametrize(
    ("cols", "x_dtype", "dtype"),
    [(96, "float16", "float16"), (769, "bfloat16", "float32"), (768, "float64", "float64")],
)
def test_gradients_have_the_bits_of_their_parts(norm, gate_as, cols, x_dtype, dtype):
    dy, x, dresidual, h, gate, parameters = arrays(norm, cols, x_dtype, dtype, x_dtype, gate_as)
    dy, x, dresidual, h, gate, gamma = map(device, (dy, x, dresidual, h, gate, parameters[0]))
    _, *kept = getattr(cunorm, f"{norm}_fwd")(h)
    dx, dh, *totals, _ = getattr(cunorm, f"add_{norm}_bwd")(
        dy, h, gamma, *kept, x, gate, dresidual=dresidual
    )
    alone, *of_norm = getattr(cunorm, f"{norm}_bwd")(dy, h, gamma, *kept, dresidual=dresidual)
    assert bits(dh) == bits(alone)
    assert bits(dx) == bits((gate * dh).astype(x.dtype))
    if gate_as != "a sample's columns":  # whose rows are added up by sample
        assert list(map(bits, totals)) == list(map(bits, of_norm))


@IN_TURNS
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("gate_as", BROADCASTS)
def test_gradients_are_those_of_pytorch(norm, gate_as):
    x, residual, dy, dh = (random((*SHAPE, 8), "float64", seed=seed) for seed in range(4))
    gamma, beta = (random(8, "float64", seed=seed) for seed in (4, 5))
    gate = random(BROADCASTS[gate_as](8), "float64", seed=6)
    x_, residual_, gate_, gamma_ = leaves = [
        to_torch(np.asarray(a)).requires_grad_() for a in (x, residual, gate, gamma)
    ]
    h = residual_ + gate_ * x_
    n = (
        torch.nn.functional.rms_norm(h, (8,), gamma_, eps=0.1)
        if norm == "rms_norm"
        else torch.nn.functional.layer_norm(h, (8,), gamma_, torch.from_numpy(beta), eps=0.1)
    )
    (n * torch.from_numpy(dy) + h * torch.from_numpy(dh)).sum().backward()
    parameters = [gamma, beta][: 1 + NORMS.index(norm)]
    given = map(device, (x, residual, *parameters))
    _, h, *kept = getattr(cunorm, f"add_{norm}_fwd")(*given, eps=0.1, gate=device(gate))
    dx, dresidual, dgamma, *_, dgate = getattr(cunorm, f"add_{norm}_bwd")(
        device(dy), h, device(gamma), *kept, device(x), device(gate), dresidual=device(dh)
    )
    for actual, leaf in zip((dx, dresidual, dgate, dgamma), leaves, strict=True):
        np.testing.assert_allclose(actual.get(), leaf.grad.numpy(), rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("gate_as", ["columns", "a sample's columns", "a number a sample"])
def test_a_repeated_call_has_the_same_bits_and_sees_other_arrays(gate_as):
    def call(seed):
        dy, h, x = (cupy.asarray(random((2, 300, 64), "float16", seed=seed + i)) for i in range(3))
        gamma = cupy.asarray(random(64, "float16", seed=seed + 3))
        gate = cupy.asarray(random(BROADCASTS[gate_as](64), "float16", seed=seed + 4))
        _, rstd = cunorm.rms_norm_fwd(h)
        return [bits(a) for a in cunorm.add_rms_norm_bwd(dy, h, gamma, rstd, x, gate)]

    expected = call(0), call(10)
    for _ in range(9):
        assert (call(0), call(10)) == expected
    assert expected[0] != expected[1]


def test_a_gate_by_head():
    x, h, dy = (random((2, 5, 4, 16), "bfloat16", seed=seed) for seed in range(3))
    gate = random((4, 16), "float32", seed=3)
    _, rstd = cunorm.rms_norm_fwd(cupy.asarray(h))
    made = cunorm.add_rms_norm_bwd(*map(device, (dy, h, None)), rstd, *map(device, (x, gate)))
    expected = _reference.add_rms_norm_bwd(dy, h, None, rstd.get(), x, gate)
    assert made[-1].shape == (4, 16)
    for actual, want in zip(made[:2] + made[3:], expected[:2] + expected[3:], strict=True):
        assert_matches(actual, want)


def test_a_number_has_a_gradient_too():
    x, h, dy = (cupy.asarray(random((4, 64), "float32", seed=seed)) for seed in range(3))
    _, rstd = cunorm.rms_norm_fwd(h)
    dx, dh, dgamma, dgate = cunorm.add_rms_norm_bwd(dy, h, None, rstd, x, 0.5)
    assert dgamma is None
    assert dgate.shape == ()
    np.testing.assert_allclose(dgate.get(), (dh * x).sum().get(), rtol=1e-4)
    assert bits(dx) == bits(dh * 0.5)


def test_no_rows_give_zeros():
    x, gate = cupy.empty((0, 3, 8), "float16"), cupy.ones((1, 1, 8), "float32")
    rstd = cupy.empty((0, 3), "float32")
    made = cunorm.add_rms_norm_bwd(x, x, gate[0, 0], rstd, x, gate)
    assert [a.shape for a in made] == [(0, 3, 8), (0, 3, 8), (8,), (1, 1, 8)]
    assert not made[2].any()
    assert not made[3].any()


H = cupy.ones((4, 3, 64), "float32")
ROWS = cupy.ones((4, 3), "float32")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"gate": None}, TypeError, "gate must be a cupy.ndarray or a number, but is a No"),
        ({"gate": H[..., :63]}, ValueError, "gate must broadcast to the shape of x"),
        ({"gate": H.astype("f8")}, TypeError, "gate must be float16, bfloat16 or float32 where x"),
        ({"gate": True}, TypeError, "gate must be a real number, but is a bool"),
        ({"x": H[:3]}, ValueError, r"x must have the shape of h, \(4, 3, 64\), but has"),
        ({"x": H.astype("f8")}, TypeError, "x must be float16, bfloat16 or float32 where h is"),
        ({"x": None}, TypeError, "x must be a cupy.ndarray, but is a NoneType"),
        ({"h": H.get()}, TypeError, "h must be a cupy.ndarray, but is a numpy.ndarray"),
        ({"dy": H.astype("e")}, TypeError, "dy must have the dtype of h, float32, but has float16"),
        ({"dresidual": H[0]}, ValueError, "dresidual must have the shape of h"),
        ({"rstd": ROWS[:3]}, ValueError, "rstd must have one number a row"),
    ],
)
def test_wrong_arguments_are_refused_by_name(change, error, message):
    given = {"dy": H, "h": H, "gamma": H[0, 0], "mean": ROWS, "rstd": ROWS, "x": H, "gate": 1.0}
    with pytest.raises(error, match=f"^{message}"):
        cunorm.add_layer_norm_bwd(**given | change)
