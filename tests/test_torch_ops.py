"""`cunorm.torch`: its results, its gradients and what the compiler sees of it."""

import pytest
import torch
from arrays import EVERY, NARROW, random, to_numpy, to_torch

import cunorm.torch
from cunorm import _reference

OPS = ["rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"]
# One row and many, one column, odd N, a row of several packets with a tail, no rows at all.
SHAPES = [(1, 1), (3, 8), (2, 5, 37), (7, 129), (4, 1024), (0, 16)]


def arguments(op, shape, dtype, *, gamma="same", beta="same", grad=True, seed=0):
    """Return tensors for an op: x, residual where it adds one, gamma, beta where it has one."""
    names = ["x", "residual", "gamma", "beta"]
    if not op.startswith("add"):
        names.remove("residual")
    if "rms" in op:
        names.remove("beta")
    tensors = []
    for i, name in enumerate(names):
        wanted = {"gamma": gamma, "beta": beta}.get(name, "same")
        if wanted is None:
            tensors.append(None)
            continue
        extent = shape[-1:] if name in ("gamma", "beta") else shape
        array = random(extent, dtype if wanted == "same" else wanted, seed=seed + i)
        tensors.append(to_torch(array).requires_grad_(grad))
    return tensors


def call(op, tensors, **options):
    """Return the outputs of an op as a tuple."""
    outputs = getattr(cunorm.torch, op)(*tensors, **options)
    return outputs if isinstance(outputs, tuple) else (outputs,)


def definition(op, tensors, **options):
    """Return the outputs of an op as defined, by PyTorch's own operators."""
    tensors = list(tensors)
    x = tensors.pop(0)
    h = x + tensors.pop(0) if op.startswith("add") else x
    gamma = tensors[0]
    axes = (-1,) if gamma is None else tuple(range(-gamma.ndim, 0))
    if "rms" in op:
        eps, offset = options.get("eps", 1e-6), options.get("gamma_offset", 0.0)
        y = h * (h.square().mean(axes, keepdim=True) + eps).rsqrt()
        y = y if gamma is None else y * (gamma + offset)
    else:
        shape = [h.shape[axis] for axis in axes]
        y = torch.nn.functional.layer_norm(h, shape, gamma, tensors[1], options.get("eps", 1e-5))
    return (y, h) if op.startswith("add") else (y,)


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 5), (1, 1)])
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_those_of_finite_differences(op, shape):
    tensors = arguments(op, shape, "float64")
    assert torch.autograd.gradcheck(lambda *t: call(op, t), tensors)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("op", OPS)
def test_float64_gradients_are_those_of_autograd_through_the_definition(op, shape):
    tensors = arguments(op, shape, "float64")
    outputs, expected = call(op, tensors), definition(op, tensors)
    upstream = [to_torch(random(shape, "float64", seed=9 + i)) for i in range(len(outputs))]
    found = torch.autograd.grad(outputs, tensors, upstream)
    wanted = torch.autograd.grad(expected, tensors, upstream)
    for one, other in zip((*outputs, *found), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_results_are_within_tolerance_of_the_definition(op, dtype):
    tensors = arguments(op, (5, 129), dtype, grad=False)
    (y,) = call(op, tensors)
    expected = getattr(_reference, op)(*map(to_numpy, tensors))
    assert expected.accepts(to_numpy(y)).all()


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
def test_gradients_are_within_tolerance_of_the_definition_of_the_statistics_kept(op, dtype):
    tensors = arguments(op, (7, 129), dtype, gamma="float32", beta="float32")
    _, *statistics = getattr(torch.ops.cunorm, f"{op}_fwd")(*tensors, *extra(op))
    (y,) = call(op, tensors)
    dy = to_torch(random(y.shape, dtype, seed=9))
    found = torch.autograd.grad(y, tensors, dy)
    x, gamma, *_ = (to_numpy(t.detach()) for t in tensors)
    kept = [to_numpy(t.detach()) for t in statistics]
    expected = getattr(_reference, f"{op}_bwd")(to_numpy(dy), x, gamma, *kept)
    for one, other in zip(found, expected, strict=True):
        assert other.accepts(to_numpy(one)).all()


def extra(op):
    """Return the numbers that an operator takes after its tensors."""
    return (1e-6, 0.0, "before") if "rms" in op else (1e-5,)


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_is_not_differentiated_again(op):
    tensors = arguments(op, (3, 8), "float64")
    y, *_ = call(op, tensors)
    (dx,) = torch.autograd.grad(y.sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once and not again"):
        dx.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_the_compiler_traces_forward_and_backward_without_a_break(op):
    tensors = arguments(op, (3, 8), "float32")
    compiled = torch.compile(lambda *t: call(op, t), fullgraph=True, backend="aot_eager")
    outputs, expected = compiled(*tensors), call(op, tensors)
    total, wanted = (sum(o.square().sum() for o in outs) for outs in (outputs, expected))
    assert all(map(torch.equal, outputs, expected))
    found = torch.autograd.grad(total, tensors)
    assert all(map(torch.equal, found, torch.autograd.grad(wanted, tensors)))


@pytest.mark.parametrize("op", OPS)
def test_in_place_writes_what_the_op_returns(op):
    tensors = arguments(op, (3, 8), "bfloat16", grad=False)
    expected = call(op, tensors)
    results = call(f"{op}_", tensors)
    assert all(map(torch.equal, results, expected))
    assert all(one is other for one, other in zip(results, tensors, strict=False))
