"""`replace_norms`: what it reports, what stays as it was, and the way back."""

import copy
import io
import pickle
import subprocess
import sys

import pytest
import torch
from norm_modules import Block, RootRMSNorm, outputs, same_bits
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

import cunorm.torch
from cunorm.torch import replace_norms
from cunorm.torch._swapped import swapped_class


def test_the_report_names_path_old_and_new_class_and_what_was_left_alone():
    model = Block()
    model.others.append(RootRMSNorm(8))
    done = replace_norms(model)
    new = "CunormQwen2RMSNorm"
    assert str(done).splitlines() == [
        "swapped: 6",
        f"  input_norm: Qwen2RMSNorm -> {new}",
        "  layers.0.1: LayerNorm -> CunormLayerNorm",
        "  layers.1.1: LayerNorm -> CunormLayerNorm",
        "  named.q: GemmaRMSNorm -> CunormGemmaRMSNorm",
        "  named.k: RMSNorm -> CunormRMSNorm",
        f"  tied: Qwen2RMSNorm -> {new}",
        "left alone: 3",
        "  others.0: GroupNorm, it is none of the norms that the ops compute",
        "  others.1: BatchNorm1d, it is none of the norms that the ops compute",
        "  others.3: RootRMSNorm, its forward differs at aten.mul: "
        "it multiplies a normalised row by 1.0",
    ]
    assert repr(done) == "<Replaced: 6 swapped, 3 left alone>"
    assert new in repr(model)
    assert model.tied is model.input_norm


def test_a_model_that_is_a_norm_is_swapped_itself():
    model = torch.nn.LayerNorm(8)
    done = replace_norms(model)
    assert str(done).splitlines()[1] == "  the model itself: LayerNorm -> CunormLayerNorm"
    assert [swap.path for swap in done.swapped] == [""]
    done.undo()
    assert type(model) is torch.nn.LayerNorm


def test_norms_that_are_cunorms_already_are_not_reported():
    model = torch.nn.Sequential(
        cunorm.torch.RMSNorm(8), cunorm.torch.LayerNorm(8), torch.nn.LayerNorm(8)
    )
    first = replace_norms(model)
    second = replace_norms(model)
    assert [swap.path for swap in first.swapped] == ["2"]
    assert (second.swapped, second.left) == ((), ())
    second.undo()
    assert type(model[2]) is first.swapped[0].new
    first.undo()
    assert type(model[2]) is torch.nn.LayerNorm


def test_what_is_no_module_is_refused():
    with pytest.raises(TypeError, match=r"model must be a torch.nn.Module, but is a dict"):
        replace_norms({})


# What is not changed


def test_parameters_buffers_and_modes_are_the_same_objects():
    model = Block().eval()
    model.named["q"].register_buffer("seen", torch.ones(3))
    model.named["k"].weight.requires_grad_(False)
    model.layers[0].train()

    def state():
        return (
            [(name, id(m), m.training) for name, m in model.named_modules()],
            [(name, id(p), p.requires_grad, p.dtype) for name, p in model.named_parameters()],
            [(name, id(b)) for name, b in model.named_buffers()],
            list(model.state_dict()),
        )

    before = state()
    done = replace_norms(model)
    assert state() == before
    assert isinstance(model.layers[0][1], torch.nn.LayerNorm)
    done.undo()
    assert state() == before


def test_an_optimizer_made_before_goes_on():
    model = Block()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    outputs(model)
    optimizer.step()
    with replace_norms(model):
        before = outputs(model)[0]
        optimizer.step()
        assert (outputs(model)[0] - before).abs().max() > 1e-3


@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, Qwen2RMSNorm])
def test_hooks_run_as_before_and_their_handles_remove_them(cls):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), cls(8))
    norm, seen = model[1], []

    def note(name):
        return lambda *_: seen.append(name)

    handles = [
        norm.register_forward_pre_hook(note("pre")),
        norm.register_forward_hook(note("forward")),
        norm.register_full_backward_pre_hook(note("backward pre")),
        norm.register_full_backward_hook(note("backward")),
        norm.register_state_dict_pre_hook(note("state pre")),
        norm.register_state_dict_post_hook(note("state")),
        norm.register_load_state_dict_pre_hook(note("load pre")),
        norm.register_load_state_dict_post_hook(note("load")),
    ]

    def used():
        seen.clear()
        model(torch.ones(2, 8)).sum().backward()
        model.load_state_dict(model.state_dict())
        return list(seen)

    before = used()
    assert len(set(before)) == len(handles)
    done = replace_norms(model)
    assert used() == before
    later = norm.register_forward_hook(note("later"))
    for handle in handles:
        handle.remove()
    assert used() == ["later"]
    done.undo()
    assert used() == ["later"]
    later.remove()
    assert used() == []


def test_copies_and_pickles_of_a_swapped_model_are_swapped_too():
    model = Block()
    done = replace_norms(model)
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    others = [
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(buffer, weights_only=False),
    ]
    expected = outputs(model)
    done.undo()
    for other in others:
        assert type(other.input_norm) is swapped_class(Qwen2RMSNorm)
        assert other.tied is other.input_norm
        assert all(same_bits(a, b) for a, b in zip(outputs(other), expected, strict=True))
    assert type(model.input_norm) is Qwen2RMSNorm


@pytest.fixture
def process_group(tmp_path):
    """A process group of this process alone."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()


def gradients(model):
    """Return the whole gradient of every parameter, of a model of any distribution."""
    outputs(model)
    found = [parameter.grad for parameter in model.parameters()]
    return [grad.full_tensor() if isinstance(grad, DTensor) else grad for grad in found]


def test_a_swapped_model_is_distributed_as_any_other(process_group):
    model = Block()
    replace_norms(model)
    expected = gradients(model)
    assert len(expected) == len(list(model.parameters()))
    parallel = torch.nn.parallel.DistributedDataParallel(
        copy.deepcopy(model), find_unused_parameters=True
    )
    sharded = copy.deepcopy(model)
    mesh = init_device_mesh("cpu", (1,))
    fully_shard(sharded.input_norm, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    for other in (parallel, sharded):
        pairs = zip(gradients(other), expected, strict=True)
        assert all(same_bits(ours, alone) for ours, alone in pairs if alone is not None)


def test_norms_that_are_sharded_already_are_left_alone_and_listed(process_group):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), Qwen2RMSNorm(8))
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    done = replace_norms(model)
    assert done.swapped == ()
    assert [left.reason for left in done.left] == ["its weight is a DTensor"]


# And back


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_undo_brings_back_classes_and_bits(dtype):
    model = Block().to(dtype)
    classes = [type(module) for module in model.modules()]
    before = outputs(model, dtype)
    done = replace_norms(model)
    assert [type(module) for module in model.modules()] != classes
    done.undo()
    done.undo()
    assert [type(module) for module in model.modules()] == classes
    assert all(same_bits(a, b) for a, b in zip(outputs(model, dtype), before, strict=True))


def test_a_with_block_undoes_at_its_end_also_after_an_error():
    model = Block()
    with replace_norms(model) as done:
        assert len(done.swapped) == 6
        assert type(model.input_norm) is not Qwen2RMSNorm
    assert type(model.input_norm) is Qwen2RMSNorm
    with pytest.raises(RuntimeError, match="size of tensor"), replace_norms(model):
        model(torch.zeros(4, 9))
    assert type(model.input_norm) is Qwen2RMSNorm


def test_undo_refuses_a_module_of_another_class_and_changes_nothing():
    model = Block()
    done = replace_norms(model)
    norm = model.named["k"]
    parametrize.register_parametrization(norm, "weight", torch.nn.Softplus())
    with pytest.raises(RuntimeError, match="1 of 5 are not: ParametrizedCunormRMSNorm"):
        done.undo()
    assert type(model.input_norm) is swapped_class(Qwen2RMSNorm)
    parametrize.remove_parametrizations(norm, "weight")
    done.undo()
    assert type(norm) is torch.nn.RMSNorm


def test_transformers_is_not_imported_for_it():
    code = (
        "import sys, torch, cunorm.torch\n"
        "print(cunorm.torch.replace_norms(torch.nn.LayerNorm(8)))\n"
        "assert 'transformers' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "LayerNorm -> CunormLayerNorm" in run.stdout
