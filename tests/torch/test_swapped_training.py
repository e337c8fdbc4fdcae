"""Training that the stock modules survive, after a swap: x written in place, inference tensors."""

import copy
import pickle

import pytest
import torch
import torch_bridge
from arrays import random, to_torch
from norm_modules import Block, same_bits
from torch_norms import OPS, arguments, call
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from cunorm.torch import LayerNorm, RMSNorm, replace_norms

# Each keeps a float32 copy of a 16-bit x, or what it computes of it, and not x itself.
COPYING = [Qwen2RMSNorm, GemmaRMSNorm, Olmo2RMSNorm, CohereLayerNorm, torch.nn.RMSNorm]
WRITTEN = "modified by an inplace operation"


def residual(norm, dtype):
    """Return the gradients of ``x += norm(x)``, of x and of the weight."""
    leaf = to_torch(random((4, 8), "float32")).to(dtype).requires_grad_()
    add_norm(norm, leaf).square().sum().backward()
    return [leaf.grad, norm.weight.grad]


def add_norm(norm, leaf):
    x = leaf.clone()
    x += norm(x)
    return x


def frozen_x(norm, dtype):
    """Return the gradient of the weight where x needs none, and is written to afterwards."""
    x = to_torch(random((4, 8), "float32")).to(dtype)
    y = norm(x)
    x.zero_()
    y.square().sum().backward()
    return [norm.weight.grad]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("train", [residual, frozen_x])
@pytest.mark.parametrize("cls", COPYING)
def test_x_may_be_written_to_before_the_backward_pass_where_inputs_are_copied(cls, train, dtype):
    norm = cls(8).to(dtype)
    expected = train(copy.deepcopy(norm), dtype)
    plain = copy.deepcopy(norm)
    replace_norms(plain)
    with pytest.raises(RuntimeError, match=WRITTEN):
        train(plain, dtype)
    replace_norms(norm, copy_inputs=True)
    # y differs by a rounding that flips, and a gradient is a sum of 8 or 4 products with it.
    step = torch.finfo(dtype).eps
    for ours, stock in zip(train(norm, dtype), expected, strict=True):
        assert stock.norm() > 0.1
        assert (ours - stock).norm() <= 8 * step * stock.norm()


@pytest.mark.parametrize("cls", [T5LayerNorm, Qwen2RMSNorm, torch.nn.LayerNorm])
def test_copied_inputs_change_no_bit_and_nothing_is_copied_without_a_gradient(cls, monkeypatch):
    x = to_torch(random((4, 8), "bfloat16"))
    norm = cls(8).bfloat16()
    done = replace_norms(norm)
    expected = norm(x)
    done.undo()
    replace_norms(norm, copy_inputs=True)
    copies, clone = [], torch.Tensor.clone
    monkeypatch.setattr(torch.Tensor, "clone", lambda t: copies.append(t) or clone(t))
    with torch.no_grad():
        assert same_bits(norm(x), expected)
    assert not copies
    assert same_bits(norm(x), expected)
    assert len(copies) == 1
    norm.requires_grad_(False)
    norm(x)
    assert len(copies) == 1


@pytest.mark.parametrize(
    "build",
    [
        lambda copies: RMSNorm(8, copy_inputs=copies),
        lambda copies: RMSNorm((2, 4), elementwise_affine=False, copy_inputs=copies),
        lambda copies: LayerNorm(8, copy_inputs=copies),
        lambda copies: LayerNorm((2, 4), elementwise_affine=False, copy_inputs=copies),
    ],
)
def test_modules_copy_their_inputs_where_they_are_told_to(build):
    shape = (4, *build(False).normalized_shape)

    def gradient(norm, write):
        leaf = to_torch(random(shape, "float32")).requires_grad_()
        x = leaf.clone()
        y = norm(x)
        if write:
            x += y
        y.square().mul(leaf.detach()).sum().backward()
        return leaf.grad

    with pytest.raises(RuntimeError, match=WRITTEN):
        gradient(build(False), True)
    assert same_bits(gradient(build(True), True), gradient(build(False), False))


@pytest.mark.parametrize("module", [RMSNorm(8, copy_inputs=True), LayerNorm(8, copy_inputs=True)])
def test_modules_say_that_they_copy_and_take_it_along(module):
    assert repr(module).endswith(", copy_inputs=True)")
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert other.copy_inputs


def test_copies_of_a_model_go_on_copying_and_undo_leaves_nothing_behind():
    model = Block()
    before = [set(vars(module)) for module in model.modules()]
    done = replace_norms(model, copy_inputs=True)
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        residual(other.input_norm, torch.float32)
    done.undo()
    assert [set(vars(module)) for module in model.modules()] == before
    with replace_norms(model), pytest.raises(RuntimeError, match=WRITTEN):
        residual(model.input_norm, torch.float32)


@pytest.mark.parametrize("cls", COPYING)
def test_a_compiled_block_may_write_to_x_where_inputs_are_copied(cls):
    norm = cls(8).bfloat16()
    replace_norms(norm, copy_inputs=True)
    leaf = to_torch(random((4, 8), "bfloat16")).requires_grad_()
    compiled = torch.compile(add_norm, fullgraph=True, backend="aot_eager")
    found, expected = (
        torch.autograd.grad(function(norm, leaf).square().sum(), [leaf, norm.weight])
        for function in (compiled, add_norm)
    )
    assert all(map(same_bits, found, expected))


# Tensors made under torch.inference_mode(), which autograd refuses to keep.


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    with torch_bridge.tensors_on(request.param) as put:
        yield put


@pytest.mark.parametrize("op", OPS)
def test_ops_take_inference_tensors(put, op):
    """All but one are: the gradient of that one is what it is without."""
    tensors = arguments(op, (3, 8), "float32", put=put, grad=False)
    with torch.inference_mode():
        others = [tensor.clone() for tensor in tensors]
    for index in range(len(tensors)):
        found = []
        for rest in (tensors, others):
            given = list(rest)
            given[index] = tensors[index].detach().requires_grad_()
            y = call(op, given)[0]
            found += torch.autograd.grad(y.square().sum(), given[index])
        assert others[index].is_inference()
        assert same_bits(*found)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("cls", [*COPYING, T5LayerNorm])
def test_an_input_made_in_inference_mode_trains_a_swapped_norm(cls, dtype):
    with torch.inference_mode():
        x = to_torch(random((4, 8), "float32")).to(dtype)
    stock, norm = cls(8).to(dtype), cls(8).to(dtype)
    replace_norms(norm)
    for module in (stock, norm):
        module(x).square().sum().backward()
    assert (norm.weight.grad - stock.weight.grad).norm() <= (
        8 * torch.finfo(dtype).eps * stock.weight.grad.norm()
    )
