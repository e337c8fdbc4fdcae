"""Norms under the hooks of accelerate, as ``from_pretrained(..., device_map=)`` leaves them."""

import copy

import pytest
import torch
from accelerate import cpu_offload, dispatch_model
from accelerate.hooks import ModelHook, add_hook_to_module, remove_hook_from_submodules
from arrays import random, to_torch
from norm_modules import Block, same_bits
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from cunorm.torch import replace_norms


class Counting(ModelHook):
    """Counts calls, and doubles what comes out."""

    calls = 0

    def post_forward(self, module, output):
        self.calls += 1
        return 2 * output


def hooked(model):
    return dispatch_model(model, {"": "cpu"}, force_hooks=True)


def batch():
    return to_torch(random((4, 8), "float32"))


def test_every_norm_of_a_model_with_a_device_map_is_swapped(tmp_path):
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    Qwen2ForCausalLM(config).save_pretrained(tmp_path)
    map_ = {"model.embed_tokens": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    map_ |= {"model.norm": "disk", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    model = Qwen2ForCausalLM.from_pretrained(
        tmp_path, device_map=map_, offload_folder=tmp_path / "offload"
    )
    assert "_old_forward" in vars(model.model.norm)
    tokens = torch.randint(96, (2, 17), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        stock = model(tokens).logits
        done = replace_norms(model)
        assert (len(done.swapped), len(done.left)) == (5, 0)
        assert (model(tokens).logits - stock).abs().max() < 1e-5
        assert not same_bits(model(tokens).logits, stock)
        done.undo()
        assert same_bits(model(tokens).logits, stock)


def test_a_hook_runs_as_before_and_ends_in_the_op():
    norm, hook, x = Qwen2RMSNorm(8), Counting(), batch()
    x[0] = 1e30  # squares overflow float32, and a zero row comes out of the original
    add_hook_to_module(norm, hook)
    assert not norm(x)[0].any()
    done = replace_norms(norm)
    torch.testing.assert_close(norm(x)[0].abs(), torch.full((8,), 2.0))
    assert hook.calls == 2
    done.undo()
    assert not norm(x)[0].any()
    assert hook.calls == 3


@pytest.mark.parametrize("when", ["before", "after"])
def test_removed_hooks_leave_a_swapped_module_and_undo_the_original(when):
    model = Block()
    x, stock = batch(), model(batch())
    swapped = copy.deepcopy(model)
    replace_norms(swapped)
    expected = swapped(x)
    if when == "before":
        hooked(model)
        done = replace_norms(model)
    else:
        done = replace_norms(model)
        hooked(model)
    assert same_bits(model(x), expected)
    remove_hook_from_submodules(model)
    assert same_bits(model(x), expected)
    done.undo()
    assert same_bits(model(x), stock)
    assert type(model.input_norm) is Qwen2RMSNorm
    # accelerate leaves the bound forward on the instance, which must be no obstacle.
    assert "forward" in vars(model.input_norm)
    assert len(replace_norms(model).swapped) == 6
    assert same_bits(model(x), expected)


def test_undo_under_hooks_that_came_after_the_swap_leaves_them_in_place():
    model = Block()
    x, stock = batch(), model(batch())
    done = replace_norms(model)
    hooked(model)
    done.undo()
    assert "_hf_hook" in vars(model.input_norm)
    assert same_bits(model(x), stock)


def test_offloaded_parameters_are_there_when_the_op_needs_them():
    model = Block()
    stock = model(batch())
    cpu_offload(model, torch.device("cpu"))
    assert model.input_norm.weight.device.type == "meta"
    assert len(replace_norms(model).swapped) == 6
    torch.testing.assert_close(model(batch()), stock, rtol=1e-5, atol=1e-5)


def test_a_forward_that_was_set_on_the_instance_under_the_hooks_is_left_alone():
    norm = Qwen2RMSNorm(8)
    original = norm.forward
    norm.forward = lambda x: original(x) + 1
    add_hook_to_module(norm, ModelHook())
    (left,) = replace_norms(norm).left
    assert left.reason == "its forward is set on the instance"
