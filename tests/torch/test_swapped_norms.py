"""What a swapped norm computes: what its original does, whatever it is given, in any mode."""

import copy

import pytest
import torch
from arrays import random, to_torch
from norm_modules import Block, outputs, rstd, same_bits
from torch._subclasses.fake_tensor import FakeTensorMode
from torch_bridge import tensors_on
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import cunorm.torch
from cunorm.torch import replace_norms
from cunorm.torch._known import known
from cunorm.torch._swapped import become

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    "norm",
    [
        torch.nn.LayerNorm(24),
        torch.nn.LayerNorm((4, 6), 1e-3, bias=False),
        torch.nn.LayerNorm((4, 6), 1e-3, elementwise_affine=False),
        torch.nn.RMSNorm(24),
        torch.nn.RMSNorm((4, 6), 1e-3),
        torch.nn.RMSNorm((4, 6), elementwise_affine=False),
    ],
    ids=str,
)
def test_swapped_norms_of_torch_are_the_modules_of_cunorm(norm, dtype):
    norm = copy.deepcopy(norm)
    arguments = [norm.normalized_shape, norm.eps, norm.elementwise_affine]
    if isinstance(norm, torch.nn.LayerNorm):
        module = cunorm.torch.LayerNorm(*arguments, bias=norm.bias is not None)
    else:
        module = cunorm.torch.RMSNorm(*arguments, cast="after")
    module.load_state_dict(norm.state_dict())
    replace_norms(norm)
    x = to_torch(random((5, *norm.normalized_shape), "float64", scale=3)).to(dtype)
    assert same_bits(norm(x), module(x))


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize("dtype", FLOATS[:3])
@pytest.mark.parametrize("cls", [Qwen2RMSNorm, GemmaRMSNorm, T5LayerNorm, Olmo2RMSNorm])
def test_given_one_rstd_a_swapped_norm_has_the_bits_of_its_original(monkeypatch, cls, dtype, place):
    with tensors_on(place) as on:
        x = on(to_torch(random((5, 127), "float32", scale=3)).to(dtype))
        theirs = cls(127).to(x.device, dtype)
        theirs.weight.data += on(to_torch(random((127,), "float32", scale=0.3)).to(dtype))
        ours = copy.deepcopy(theirs)
        replace_norms(ours)
        y, given = ours(x), rstd(x, 1e-6)
        monkeypatch.setattr(torch, "rsqrt", lambda _: given)
        assert same_bits(y, theirs(x))


def test_the_argument_may_be_given_by_the_name_that_the_original_has():
    x = to_torch(random((4, 8), "float32"))
    for norm, name in [(torch.nn.LayerNorm(8), "input"), (Qwen2RMSNorm(8), "hidden_states")]:
        replace_norms(norm)
        assert same_bits(norm(**{name: x}), norm(x))
        with pytest.raises(TypeError, match="forward"):
            norm(tokens=x)
        with pytest.raises(TypeError, match="forward"):
            norm(x, x)
        with pytest.raises(TypeError, match="forward"):
            norm()


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage")
def test_tensors_that_the_ops_do_not_know_reach_the_original():
    norm = torch.nn.LayerNorm(8)
    rows = [to_torch(random((count, 8), "float32")) for count in (2, 3)]
    nested = torch.nested.nested_tensor(rows, layout=torch.jagged)
    expected = norm(nested)
    replace_norms(norm)
    assert same_bits(norm(nested).values(), expected.values())


@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, torch.nn.RMSNorm, Qwen2RMSNorm, GemmaRMSNorm])
def test_a_functional_call_takes_the_parameters_that_it_is_given(cls):
    norm, x = cls(8), to_torch(random((4, 8), "float32"))
    own = {name: p.detach().clone() for name, p in norm.named_parameters()}
    weight = to_torch(random((8,), "float32", seed=1)).requires_grad_()
    replace_norms(norm)
    y = torch.func.functional_call(norm, {**own, "weight": weight}, (x,))
    (found,) = torch.autograd.grad(y.sum(), weight)
    norm.weight.data.copy_(weight.detach())
    expected = norm(x)
    expected.sum().backward()
    assert same_bits(y, expected)
    assert same_bits(found, norm.weight.grad)


def test_eps_is_read_when_it_is_needed():
    norm = Qwen2RMSNorm(8)
    replace_norms(norm)
    norm.variance_epsilon = 0.5
    x = to_torch(random((4, 8), "float32"))
    assert same_bits(norm(x), cunorm.torch.rms_norm(x, norm.weight, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swapped_model_has_outputs_and_gradients_within_its_roundings(dtype):
    """Some twenty roundings on the longest path, of each model, that go either way."""
    model = Block().to(dtype)
    stock = outputs(model, dtype)
    with replace_norms(model):
        ours = outputs(model, dtype)
    for actual, expected in zip(ours, stock, strict=True):
        assert expected.abs().max() > 0.1
        assert (actual - expected).norm() <= 2 * 20**0.5 * torch.finfo(dtype).eps * expected.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_swapped_block_compiles_into_one_graph(dtype):
    model = Block().to(dtype)
    replace_norms(model)
    x = to_torch(random((4, 8), "float32")).to(dtype)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert same_bits(compiled(x), model(x))


def test_an_encoder_layer_takes_pytorchs_path_for_inference_as_before():
    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)
    x = to_torch(random((2, 5, 16), "float32"))
    stock = layer(x)
    with torch.no_grad():
        whole = layer.eval()(x)
    assert [swap.path for swap in replace_norms(layer).swapped] == ["norm1", "norm2"]
    with torch.no_grad():
        assert same_bits(layer(x), whole)
    # Two norms and two blocks of matrix products, of sizes about one.
    torch.testing.assert_close(layer.train()(x), stock, rtol=0, atol=64 * 2.0**-24)


@pytest.mark.parametrize("cls", [Qwen2RMSNorm, GemmaRMSNorm])
def test_a_model_that_was_compiled_before_is_compiled_again(cls):
    model = torch.nn.Sequential(cls(8))
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    x = to_torch(random((4, 8), "float64")) * 1e30  # squares overflow in float32, where Llama is
    x = x.float()
    assert not compiled(x).any()
    with replace_norms(model):
        assert compiled(x).abs().max() > 0.5
    assert not compiled(x).any()


@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, torch.nn.RMSNorm, Qwen2RMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("device", ["cpu", "cuda"])
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # of torch.nn.RMSNorm
def test_autocast_gives_the_dtype_that_it_gives_the_original(cls, dtype, device):
    with torch.no_grad(), FakeTensorMode(), torch.device(device):
        norm = cls(8)
        x = torch.empty(4, 8, dtype=dtype)
        # torch.autocast asks for the device itself.
        torch.set_autocast_enabled(device, True)
        try:
            stock = norm(x).dtype
            become(norm, known(norm))  # parameters are fake tensors here, which none is swapped for
            assert norm(x).dtype == stock
        finally:
            torch.set_autocast_enabled(device, False)
