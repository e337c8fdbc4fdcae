"""The backward ops as gradients of the forward ones: PyTorch in float64, gradcheck, differences.

Here mean and rstd are the forward kernel's own, as in a training step, and the tolerance has room
for what they may be off; test_backward.py holds the backward kernels alone to their definitions.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import product

import cupy
import numpy as np
import pytest
import torch
from arrays import NARROW, assert_matches, random, to_torch
from kinds import in_pairs, some_of

import cunorm
from cunorm import _reference
from cunorm._selfcheck.layouts import place

OPS = ["rms_norm", "layer_norm"]
ops = pytest.mark.parametrize("op", OPS)

# Every M and every N that other systems' tests have found worth it: heads, odd rows, models, each
# side of where a kernel changes. Many rows have few columns, so that the oracle takes no longer.
SHAPES = [
    *((1, 1), (65537, 8), (4096, 64), (989, 111), (37, 128), (199, 129), (37, 769), (37, 1024)),
    *((7, 1025), (7, 3000), (37, 4096), (1, 5120), (7, 5125), (7, 5137), (1, 8192), (7, 16384)),
    *((1, 32768), (1, 65536), (1, 131072), (0, 1024), (7, 1)),
]
WEIGHTS = ["as x", "float32", None]
LAYOUTS = ["contiguous", "row-strided", "base + 1 element"]
EPS = [1e-6, 0.5, 10.0]
# Scale and mean of x. float16 ends at 65,504.
DATA = {
    "normal": (1, 0),
    "1000 + noise": (1, 1000),
    "100 + 0.01 noise": (0.01, 100),
    "1e30": (1e30, 0),
}


def cases():
    """Yield every dtype and shape; the rest takes turns, so that all pairs of them occur."""
    for (d, dtype), (s, shape) in product(enumerate(NARROW), enumerate(SHAPES)):
        op, values = OPS[(s + d) % 2], list(DATA)[(s // 2 + d) % len(DATA)]
        which = (WEIGHTS[(s + d) % 3], LAYOUTS[(s // 3 + 2 * d) % 3], EPS[(s // 4 + d) % 3])
        name = f"{op}-{dtype}-{shape[0]}x{shape[1]}-{values}-gamma {which[0]}-{which[1]}"
        yield pytest.param(op, dtype, shape, values, *which, s // 2 % 2 == 0, id=name)


def autograd(op, dy, x, gamma, eps, dresidual):
    """Return PyTorch's gradients of x, gamma and beta, in float64."""

    def leaf(a):
        return torch.from_numpy(a.astype(np.float64)).requires_grad_()

    cols = x.shape[-1:]
    leaves = [leaf(x), leaf(np.ones(cols) if gamma is None else gamma)]
    if op == "rms_norm":
        y = torch.nn.functional.rms_norm(leaves[0], cols, leaves[1], eps=eps)
    else:
        leaves.append(leaf(np.zeros(cols)))
        y = torch.nn.functional.layer_norm(leaves[0], cols, *leaves[1:], eps=eps)
    total = (y * torch.from_numpy(dy.astype(np.float64))).sum()
    if dresidual is not None:
        total = total + (leaves[0] * torch.from_numpy(dresidual.astype(np.float64))).sum()
    total.backward()
    return [a.grad.numpy() for a in leaves]


@pytest.mark.slow("two kernels for each of 57 shapes and dtypes; KINDS has them in pairs")
@pytest.mark.parametrize(
    ("op", "dtype", "shape", "values", "weight", "layout", "eps", "adds"), [*cases()]
)
def test_gradients_are_those_of_pytorch_in_float64(
    op, dtype, shape, values, weight, layout, eps, adds
):
    scale, shift = DATA[values]
    x = random(shape, dtype, scale=min(scale, 1e4) if dtype == "float16" else scale, shift=shift)
    dy, dresidual = (random(shape, dtype, seed=seed) for seed in (1, 2))
    gamma = None
    if weight is not None:
        gamma = random(shape[1], dtype if weight == "as x" else weight, seed=3, scale=0.1, shift=1)

    placed = [None if a is None else place(a, layout)[1] for a in (dy, x, gamma, dresidual)]
    _, *kept = getattr(cunorm, f"{op}_fwd")(placed[1], placed[2], eps=eps)
    beside = placed[3] if adds else None
    actual = getattr(cunorm, f"{op}_bwd")(*placed[:3], *kept, dresidual=beside)

    statistics = getattr(_reference, f"{op}_fwd")(x, gamma, eps=eps)[1:]
    added = dresidual if adds else None
    bounds = getattr(_reference, f"{op}_bwd")(dy, x, gamma, *statistics, dresidual=added)
    gradients = autograd(op, dy, x, gamma, eps, added)
    for a, bound, gradient in zip(actual, bounds, gradients, strict=True):
        if gamma is None and a is not actual[0]:
            assert a is None
        else:
            assert_matches(a, replace(bound, value=gradient))


@some_of(
    [("rms_norm", 1), ("layer_norm", 7), ("rms_norm", 64), ("layer_norm", 257)],
    "two kernels each of the other op",
    op=OPS,
    cols=[1, 7, 64, 257, 1025],
)
def test_float64_gradients_are_those_of_autograd(op, cols):
    x, dy, dresidual = (random((5, cols), "float64", seed=seed) for seed in range(3))
    gamma = random(cols, "float64", seed=3)
    _, *kept = getattr(cunorm, f"{op}_fwd")(cupy.asarray(x), cupy.asarray(gamma), eps=1e-6)
    given = map(cupy.asarray, (dy, x, gamma))
    actual = getattr(cunorm, f"{op}_bwd")(*given, *kept, dresidual=cupy.asarray(dresidual))
    for a, gradient in zip(actual, autograd(op, dy, x, gamma, 1e-6, dresidual), strict=True):
        # One column has no gradient but eps's: what is left is all cancellation.
        np.testing.assert_allclose(a.get(), gradient, rtol=1e-11, atol=1e-12)


class Norm(torch.autograd.Function):
    """An op on host tensors, differentiated by its backward op: y, and h where one is added."""

    @staticmethod
    def forward(ctx, op, options, x, residual, gamma, beta):
        x, residual, gamma, beta = (
            None if a is None else cupy.asarray(a.detach().numpy())
            for a in (x, residual, gamma, beta)
        )
        parameters = (gamma,) if op == "rms_norm" else (gamma, beta)
        if residual is None:
            y, *kept = getattr(cunorm, f"{op}_fwd")(x, *parameters, **options)
            results = (to_torch(y.get()),)
        else:
            y, x, *kept = getattr(cunorm, f"add_{op}_fwd")(x, residual, *parameters, **options)
            results = (to_torch(y.get()), to_torch(x.get()))
        ctx.kept = op, options, x, gamma, kept, residual is not None
        return results

    @staticmethod
    def backward(ctx, *gradients):
        op, options, x, gamma, kept, added = ctx.kept
        dy, *dh = (cupy.asarray(g.contiguous().numpy()) for g in gradients)
        options = {name: value for name, value in options.items() if name != "eps"}
        dx, *totals = getattr(cunorm, f"{op}_bwd")(
            *(dy, x, gamma, *kept), dresidual=dh[0] if dh else None, **options
        )
        dx = to_torch(dx.get())
        of_parameters = [None if t is None else to_torch(t.get()) for t in (*totals, None)][:2]
        return None, None, dx, dx if added else None, *of_parameters


@in_pairs(
    op=OPS,
    shape=[(2, 5), (2, 1, 7), (1, 1)],
    parameters=["parameters", "no parameters"],
    adds=[False, True],
)
def test_gradcheck_accepts_the_ops(op, shape, parameters, adds):
    def leaf(shape, seed, shift=0.0):
        return to_torch(random(shape, "float64", seed=seed, shift=shift)).requires_grad_()

    x, residual = leaf(shape, 0), leaf(shape, 1) if adds else None
    gamma = leaf(shape[-1:], 2, 1) if parameters == "parameters" else None
    beta = leaf(shape[-1:], 3) if gamma is not None and op == "layer_norm" else None
    # A larger eps than usual: differences of 1e-6 then meet no curvature where there is one column.
    options = {"eps": 0.1}
    if op == "rms_norm" and gamma is not None:
        options["gamma_offset"] = 1.0
    norm = partial(Norm.apply, op, options)
    assert torch.autograd.gradcheck(norm, (x, residual, gamma, beta))


@pytest.mark.parametrize("gamma_offset", [0.0, 1.0])
@ops
def test_float64_gradients_are_finite_differences_of_the_forward_op(op, gamma_offset):
    x, dy, gamma = (random(shape, "float64", seed=3) for shape in ((2, 5), (2, 5), (5,)))
    options = {"gamma_offset": gamma_offset} if op == "rms_norm" else {}
    forward = partial(getattr(cunorm, op), **options)
    _, *kept = getattr(cunorm, f"{op}_fwd")(cupy.asarray(x), cupy.asarray(gamma))
    given = map(cupy.asarray, (dy, x, gamma))
    gradients = getattr(cunorm, f"{op}_bwd")(*given, *kept, **options)
    step = 1e-5  # balances a third derivative against roundings, each near 1e-10
    for position, gradient in enumerate(gradients[:2]):
        for index in np.ndindex(gradient.shape):
            values = []
            for sign in (1, -1):
                arguments = [x.copy(), gamma.copy()]
                arguments[position][index] += sign * step
                y = forward(*map(cupy.asarray, arguments)).get()
                values.append(float((y * dy).sum()))
            difference = (values[0] - values[1]) / (2 * step)
            assert gradient.get()[index] == pytest.approx(difference, rel=1e-7, abs=1e-8)


@some_of(
    [("rms_norm", "float16"), ("layer_norm", "bfloat16"), ("rms_norm", "float32")],
    "the other op in each dtype",
    op=OPS,
    dtype=NARROW,
)
def test_gradients_of_an_addition_and_a_norm(op, dtype):
    """What a training step does with an add_ op: dresidual is h's other gradient."""
    x, residual, dy, dh = (random((6, 768), dtype, seed=seed) for seed in range(4))
    gamma = random(768, dtype, seed=5)
    _, h, *kept = getattr(cunorm, f"add_{op}_fwd")(
        *map(cupy.asarray, (x, residual, gamma)), eps=1e-6
    )
    given = map(cupy.asarray, (dy, h, gamma))
    actual = getattr(cunorm, f"{op}_bwd")(*given, *kept, dresidual=cupy.asarray(dh))
    h = h.get()
    statistics = getattr(_reference, f"{op}_fwd")(h, gamma, eps=1e-6)[1:]
    bounds = getattr(_reference, f"{op}_bwd")(dy, h, gamma, *statistics, dresidual=dh)
    for a, bound, gradient in zip(
        actual, bounds, autograd(op, dy, h, gamma, 1e-6, dh), strict=True
    ):
        assert_matches(a, replace(bound, value=gradient))
