"""A forward that was patched, on a class, an instance or in PyTorch, before a swap or after it."""

import pytest
import torch
from arrays import random, to_torch
from norm_modules import Renamed, same_bits
from public_norms import NanoGPTLayerNorm, WhisperLayerNorm
from torch.nn import functional
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm

from cunorm.torch import replace_norms

TORCH = [torch.nn.RMSNorm, torch.nn.LayerNorm]


def batch():
    return to_torch(random((4, 8), "float32"))


def plus_one(original):
    return lambda *args, **kwargs: original(*args, **kwargs) + 1


@pytest.mark.parametrize("cls", [*TORCH, Renamed, GemmaRMSNorm])
def test_what_a_patch_adds_on_the_class_before_the_swap_is_not_lost(monkeypatch, cls):
    norm, x = cls(8), batch()
    original = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: original(self, x) + 1)
    expected = norm(x)
    done = replace_norms(norm)
    assert done.swapped == ()
    assert done.left[0].reason == ("its forward differs at aten.add: it adds 1 to a normalised row")
    assert same_bits(norm(x), expected)


def test_a_patch_that_casts_x_to_the_weights_dtype_first_is_swapped_as_it_is(monkeypatch):
    """As training libraries patch it; bfloat16 rows come out in float32 then."""
    cls = torch.nn.RMSNorm
    original = cls.forward
    monkeypatch.setattr(cls, "forward", lambda self, x: original(self, x.to(self.weight.dtype)))
    norm, x = cls(8), batch().bfloat16()
    expected = norm(x)
    assert len(replace_norms(norm).swapped) == 1
    assert norm(x).dtype == expected.dtype == torch.float32
    torch.testing.assert_close(norm(x), expected, rtol=2.0**-22, atol=0)


@pytest.mark.parametrize("cls", [*TORCH, Renamed, GemmaRMSNorm, WhisperLayerNorm])
def test_a_patch_of_the_class_after_the_swap_is_called(monkeypatch, cls):
    norm, x = cls(8), batch()
    done = replace_norms(norm)
    assert len(done.swapped) == 1
    before = norm(x)
    with monkeypatch.context() as patch:
        patch.setattr(cls, "forward", plus_one(cls.forward))
        torch.testing.assert_close(norm(x), before + 1)
    assert same_bits(norm(x), before)


def test_a_patch_of_a_base_that_a_wrapper_calls_and_of_a_helper_is_called(monkeypatch):
    for cls, owner, name in (
        (WhisperLayerNorm, torch.nn.LayerNorm, "forward"),
        (GemmaRMSNorm, GemmaRMSNorm, "_norm"),
    ):
        norm, x = cls(8), batch()
        replace_norms(norm)
        before = norm(x)
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, plus_one(getattr(owner, name)))
            assert (norm(x) - before).abs().max() > 0.5
        assert same_bits(norm(x), before)


@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, NanoGPTLayerNorm, WhisperLayerNorm])
def test_a_patch_of_pytorchs_function_is_not_lost_before_or_after(monkeypatch, cls):
    norm, other, x = cls(8), cls(8), batch()
    stock = norm(x)
    replace_norms(norm)
    before = norm(x)
    with monkeypatch.context() as patch:
        patch.setattr(functional, "layer_norm", plus_one(functional.layer_norm))
        torch.testing.assert_close(norm(x), stock + 1)
        assert replace_norms(other).swapped == ()
        torch.testing.assert_close(other(x), stock + 1)
    assert same_bits(norm(x), before)


@pytest.mark.parametrize("cls", [*TORCH, Renamed])
def test_a_forward_set_on_the_instance_is_not_lost_before_or_after(cls):
    norm, other, x = cls(8), cls(8), batch()
    stock = norm(x)
    norm.forward = plus_one(norm.forward)
    assert [left.reason for left in replace_norms(norm).left] == [
        "its forward is set on the instance"
    ]
    done = replace_norms(other)
    other.forward = plus_one(other.forward)
    torch.testing.assert_close(other(x), stock + 1)
    # The function kept the bound forward of the swapped class, which must end in the original.
    done.undo()
    assert same_bits(other(x), stock + 1)


def test_a_value_that_the_forward_read_is_looked_at_again():
    class Offset(Renamed):
        plus = 0.0

        def forward(self, tokens):
            kind = tokens.dtype
            tokens = tokens.float()
            tokens = tokens * torch.rsqrt(tokens.pow(2).mean(-1, keepdim=True) + self.eps)
            return ((self.weight + self.plus) * tokens).to(kind)

    norm, x = Offset(8), batch()
    replace_norms(norm)
    before = norm(x)
    norm.plus = 1.0
    torch.testing.assert_close(norm(x), 2 * before)


def test_a_patched_class_is_known_again_when_it_is_as_before(monkeypatch):
    for _ in range(2):
        assert len(replace_norms(Renamed(8)).swapped) == 1
        with monkeypatch.context() as patch:
            patch.setattr(Renamed, "forward", plus_one(Renamed.forward))
            assert replace_norms(Renamed(8)).swapped == ()
