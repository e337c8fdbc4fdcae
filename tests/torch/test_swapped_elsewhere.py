"""A swap beside other parts of PyTorch: of other versions, in quantisation."""

import copy

import pytest
import torch
from arrays import random, to_torch
from norm_modules import same_bits
from torch.torch_version import TorchVersion
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from cunorm.torch import replace_norms


@pytest.fixture
def resets(monkeypatch):
    """Count how often compiled code is thrown away."""
    counted = []
    monkeypatch.setattr(torch.compiler, "reset", lambda: counted.append(None))
    return counted


@pytest.mark.parametrize("version", ["2.11.0+cpu", "2.9.1"])
def test_compiled_code_is_thrown_away_where_pytorch_keeps_the_old_norms(
    monkeypatch, resets, version
):
    import torch._dynamo  # as after any torch.compile

    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    done = replace_norms(torch.nn.Sequential(Qwen2RMSNorm(8)))
    assert len(resets) == 1
    done.undo()
    assert len(resets) == 2
    done.undo()
    replace_norms(torch.nn.Linear(8, 8))
    assert len(resets) == 2  # nothing was changed
    monkeypatch.delitem(torch.sys.modules, "torch._dynamo")
    replace_norms(torch.nn.LayerNorm(8))
    assert len(resets) == 2  # nothing was compiled


@pytest.mark.parametrize("version", ["2.12.0", "2.13.0+cpu"])
def test_compiled_code_is_kept_where_pytorch_looks_at_the_class(monkeypatch, resets, version):
    import torch._dynamo

    monkeypatch.setattr(torch, "__version__", TorchVersion(version))
    replace_norms(torch.nn.LayerNorm(8)).undo()
    assert not resets


class Stubbed(torch.nn.Module):
    """A norm between the stubs of eager static quantisation."""

    def __init__(self):
        super().__init__()
        self.quantize, self.back = (
            torch.ao.quantization.QuantStub(),
            torch.ao.quantization.DeQuantStub(),
        )
        self.norm = torch.nn.LayerNorm(8)

    def forward(self, x):
        return self.back(self.norm(self.quantize(x)))


# torch.ao.quantization is deprecated as a whole, and its observers say what they would do better.
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_static_quantisation_goes_by_the_type_and_comes_before_the_swap():
    x = to_torch(random((16, 8), "float32"))
    model = Stubbed().eval()
    model.qconfig = torch.ao.quantization.get_default_qconfig("fbgemm")

    def quantized(model):
        prepared = torch.ao.quantization.prepare(model)
        prepared(x)
        return torch.ao.quantization.convert(prepared)

    stock = quantized(copy.deepcopy(model))
    expected = stock(x)
    # After it, the quantised norm is another class, which is listed and goes on as before.
    (left,) = replace_norms(stock).left
    assert (left.path, left.cls) == ("norm", torch.ao.nn.quantized.LayerNorm)
    assert same_bits(stock(x), expected)
    # Before it, the swapped norm is of a type that is not known there, and stays as it is.
    done = replace_norms(model)
    mixed = quantized(copy.deepcopy(model))
    assert type(mixed.norm) is done.swapped[0].new
    with pytest.raises(NotImplementedError, match="QuantizedCPU"):
        mixed(x)
    done.undo()
    assert same_bits(quantized(model)(x), expected)
