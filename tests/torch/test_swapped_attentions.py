"""`replace_norms(rope=True)`: attentions whose norms and rotation are one call."""

import copy
import pickle

import pytest
import torch
import torch_bridge
from accelerate import cpu_offload
from accelerate.hooks import attach_execution_device_hook
from arrays import random, to_torch
from norm_modules import same_bits
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    Exaone4Config,
    Exaone4ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    Glm4MoeConfig,
    Glm4MoeForCausalLM,
    HunYuanDenseV1Config,
    HunYuanDenseV1ForCausalLM,
    Olmo2Config,
    Olmo2ForCausalLM,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.models.qwen3 import modeling_qwen3

import cunorm.torch
from cunorm.torch import _statistics, replace_norms

SIZE = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "eos_token_id": None,
    "bos_token_id": 1,
    "pad_token_id": 0,
}
SLIDING = {"sliding_window": 4, "layer_types": ["sliding_attention", "full_attention"]}


def qwen3():
    return Qwen3ForCausalLM(Qwen3Config(**SIZE, head_dim=16))


def gemma3():
    return Gemma3ForCausalLM(Gemma3TextConfig(**SIZE, **SLIDING, head_dim=16))


def olmo2():
    return Olmo2ForCausalLM(Olmo2Config(**SIZE))


def hunyuan():
    return HunYuanDenseV1ForCausalLM(HunYuanDenseV1Config(**SIZE, head_dim=16))


def glm4_moe():
    experts = {"n_routed_experts": 4, "num_experts_per_tok": 2, "first_k_dense_replace": 2}
    return Glm4MoeForCausalLM(Glm4MoeConfig(**SIZE, **experts, head_dim=16, use_qk_norm=True))


def olmoe():
    return OlmoeForCausalLM(OlmoeConfig(**SIZE, num_experts=4, num_experts_per_tok=2))


EACH = [qwen3, gemma3, olmo2, hunyuan, glm4_moe, olmoe]
each = pytest.mark.parametrize("make", EACH, ids=lambda make: make.__name__)
WHOLE = [(make, dtype) for make in EACH for dtype in (torch.float32, torch.bfloat16)]
each_whole = pytest.mark.parametrize(
    ("make", "dtype"), WHOLE, ids=[f"{make.__name__}-{dtype}" for make, dtype in WHOLE]
)


def model_of(make, dtype=torch.float32):
    """Return a small model whose norms have weights of their own."""
    torch.manual_seed(0)
    model = make().to(dtype).eval()
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.data.add_(torch.randn(parameter.shape).to(dtype), alpha=0.25)
    return model


def tokens():
    torch.manual_seed(1)
    return torch.randint(2, 96, (2, 9))


def inputs(model, dtype):
    """Return what the first attention of a model is called with."""
    hidden = to_torch(random((2, 9, 64), "float32")).to(dtype)
    rotary = model.model.rotary_emb
    kind = ("full_attention",) if isinstance(model, Gemma3ForCausalLM) else ()
    tables = rotary(hidden, torch.arange(9)[None], *kind)
    return {"hidden_states": hidden, "position_embeddings": tables, "attention_mask": None}


def attentions(done):
    return [swap.path for swap in done.swapped if swap.path.endswith("self_attn")]


class Calls(TorchDispatchMode):
    """Counts calls of `qk_norm_rope`."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += "qk_norm_rope" in str(func)
        return func(*args, **(kwargs or {}))


def calls(function):
    with Calls() as seen, torch.no_grad():
        function()
    return seen.count


@each_whole
def test_an_attention_has_the_bits_of_its_original_given_one_rstd(monkeypatch, make, dtype):
    model = model_of(make, dtype)
    given = inputs(model, dtype)
    module = model.model.layers[0].self_attn
    done = replace_norms(model, rope=True)
    assert len(attentions(done)) == 2
    own, of = [], _statistics.MeanSquare.of
    monkeypatch.setattr(_statistics.MeanSquare, "of", lambda *a: own.append(of(*a)) or own[-1])
    assert calls(lambda: module(**given)) == 1
    own.clear()
    found, _ = module(**given)
    done.undo()
    kept = [statistic.saved[0] for statistic in own]
    assert len(kept) == 2
    if make in (gemma3, hunyuan):  # whose norms take heads before tokens
        kept = [rstd.transpose(1, 2) for rstd in kept]
    given_rstd = iter(kept)
    monkeypatch.setattr(torch, "rsqrt", lambda _: next(given_rstd))
    expected, _ = module(**given)
    assert same_bits(found, expected)


@each_whole
def test_gradients_are_those_of_the_original_and_undo_brings_its_bits_back(make, dtype):
    model = model_of(make, dtype)

    def used():
        model.zero_grad()
        out = model(input_ids=tokens(), labels=tokens())
        out.loss.backward()
        return [out.logits, *(p.grad.clone() for p in model.parameters())]

    before = used()
    types = [type(module) for module in model.modules()]
    keys = list(model.state_dict())
    state = [set(vars(module)) for module in model.modules()]
    with replace_norms(model, rope=True):
        assert list(model.state_dict()) == keys
        between = used()
    tolerance = 1e-4 if dtype == torch.float32 else 6e-2
    for one, other in zip(between, before, strict=True):
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)
    assert [type(module) for module in model.modules()] == types
    assert [set(vars(module)) for module in model.modules()] == state
    assert all(same_bits(a, b) for a, b in zip(used(), before, strict=True))


@each
def test_generation_with_a_cache_gives_the_same_tokens(make):
    model = model_of(make)

    def generated():
        return model.generate(
            input_ids=tokens(), max_new_tokens=6, do_sample=False, eos_token_id=None
        )

    expected = generated()
    replace_norms(model, rope=True)
    assert calls(generated) == 2 * 6
    assert torch.equal(generated(), expected)


@each
def test_on_the_kernels_results_are_those_of_the_cpu(make):
    model = model_of(make)
    given = inputs(model, torch.float32)
    replace_norms(model, rope=True)
    module = model.model.layers[0].self_attn
    expected, _ = module(**given)
    heads = expected.new_tensor(0.0)
    with torch_bridge.tensors_on("cuda") as put:
        heads = {n: put(t) if isinstance(t, torch.Tensor) else t for n, t in given.items()}
        heads["position_embeddings"] = tuple(map(put, given["position_embeddings"]))
        if torch.cuda.is_available():
            module.cuda()
        assert calls(lambda: module(**heads)) == 1
        found, _ = module(**heads)
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-5, atol=1e-5)


@each
def test_the_compiler_takes_an_attention_in_one_graph_and_notices_undo(make):
    torch._dynamo.reset()
    model = model_of(make)
    given = inputs(model, torch.float32)
    done = replace_norms(model, rope=True)
    module = model.model.layers[0].self_attn
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    assert same_bits(compiled(**given)[0], module(**given)[0])
    assert calls(lambda: module(**given)) == 1
    done.undo()
    assert same_bits(compiled(**given)[0], module(**given)[0])


@pytest.mark.parametrize("when", ["before", "after"])
def test_hooks_of_accelerate_that_move_nothing_are_no_obstacle(when):
    model = model_of(qwen3)
    stock = model(tokens()).logits
    expected = copy.deepcopy(model)
    replace_norms(expected, rope=True)
    if when == "before":
        attach_execution_device_hook(model, "cpu")
    done = replace_norms(model, rope=True)
    if when == "after":
        attach_execution_device_hook(model, "cpu")
    assert "_old_forward" in vars(model.model.layers[0].self_attn.q_norm)
    assert len(attentions(done)) == 2
    assert calls(lambda: model(tokens())) == 2
    assert same_bits(model(tokens()).logits, expected(tokens()).logits)
    done.undo()
    assert same_bits(model(tokens()).logits, stock)


def test_attentions_whose_weights_accelerate_fetches_go_step_by_step():
    model = cpu_offload(model_of(qwen3))
    expected = model(tokens()).logits
    done = replace_norms(model, rope=True)
    why = "its q_norm has hooks or a forward of its own"
    assert [left.reason for left in done.left] == [why] * 2
    torch.testing.assert_close(model(tokens()).logits, expected)


def test_a_hook_on_a_norm_runs_and_the_attention_goes_step_by_step():
    model = model_of(qwen3)
    given, seen = inputs(model, torch.float32), []
    norm = model.model.layers[0].self_attn.q_norm
    early = norm.register_forward_hook(lambda *_: seen.append("early"))
    done = replace_norms(model, rope=True)
    assert attentions(done) == ["model.layers.1.self_attn"]
    assert [left.reason for left in done.left] == ["its q_norm has hooks or a forward of its own"]
    done.undo()
    early.remove()
    replace_norms(model, rope=True)
    module = model.model.layers[0].self_attn
    expected = module(**given)[0]
    seen.clear()
    later = norm.register_forward_hook(lambda _, args, y: seen.append(tuple(args[0].shape)))
    assert calls(lambda: module(**given)) == 0
    assert seen == [(2, 9, 4, 16)]
    torch.testing.assert_close(module(**given)[0], expected)
    later.remove()
    assert calls(lambda: module(**given)) == 1
    rows = torch.ones(3, 16)
    assert not torch.equal(norm(rows), rows)  # called elsewhere, it normalises


def test_copies_and_pickles_call_their_own_norms():
    model = model_of(qwen3)
    done = replace_norms(model, rope=True)
    expected = model(input_ids=tokens()).logits
    others = [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    done.undo()
    for other in others:
        assert calls(lambda other=other: other(input_ids=tokens())) == 2
        assert same_bits(other(input_ids=tokens()).logits, expected)
        other.model.layers[0].self_attn.q_norm.weight.data.mul_(4)
        assert not torch.equal(other(input_ids=tokens()).logits, expected)
    assert calls(lambda: model(input_ids=tokens())) == 0


def test_a_second_swap_adds_attentions_and_each_undo_takes_its_own_back():
    model = model_of(qwen3)
    first = replace_norms(model)
    assert attentions(first) == []
    second = replace_norms(model, rope=True)
    assert [swap.path for swap in second.swapped] == attentions(second)
    assert len(second.swapped) == 2
    third = replace_norms(model, rope=True)
    assert (third.swapped, third.left) == ((), ())
    second.undo()
    assert calls(lambda: model(input_ids=tokens())) == 0
    first.undo()
    assert type(model.model.layers[0].self_attn.q_norm) is modeling_qwen3.Qwen3RMSNorm


def test_a_rotation_or_forward_that_is_patched_later_is_called(monkeypatch):
    model = model_of(qwen3)
    given = inputs(model, torch.float32)
    replace_norms(model, rope=True)
    module = model.model.layers[0].self_attn
    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen3, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q, k))
        assert calls(lambda: module(**given)) == 0
    with monkeypatch.context() as patch:
        patch.setattr(modeling_qwen3.Qwen3Attention, "forward", lambda self, **_: "patched")
        assert module(**given) == "patched"
    assert calls(lambda: module(**given)) == 1
    plain = modeling_qwen3.eager_attention_forward
    backends = []

    def watched(*args, **kwargs):
        backends.append(args[0])
        return plain(*args, **kwargs)

    model.config._attn_implementation = "eager"
    monkeypatch.setattr(modeling_qwen3, "eager_attention_forward", watched)
    module(**given)
    assert backends == [module]


def test_what_rotates_otherwise_or_gives_other_tables_is_listed(monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(
            modeling_qwen3, "apply_rotary_pos_emb", lambda q, k, cos, sin: (q * cos[:, None], k)
        )
        done = replace_norms(model_of(qwen3), rope=True)
        assert {left.reason for left in done.left} == {
            "apply_rotary_pos_emb is not the rotation of the op"
        }
    model = model_of(qwen3)
    forward = modeling_qwen3.Qwen3RotaryEmbedding.forward
    monkeypatch.setattr(
        modeling_qwen3.Qwen3RotaryEmbedding,
        "forward",
        lambda *a: tuple(t.cumsum(-1) for t in forward(*a)),
    )
    done = replace_norms(model, rope=True)
    assert {left.reason for left in done.left} == {
        "the tables of Qwen3RotaryEmbedding are not one half twice"
    }
    done = replace_norms(model.model.layers, rope=True)
    assert {left.reason for left in done.left} == {
        "no module of the model is known to make its cosines and sines"
    }


class Scaled(modeling_qwen3.Qwen3Attention):
    """Uses the normalised queries beside their rotation."""

    def forward(self, hidden_states, position_embeddings, attention_mask):
        shape = (*hidden_states.shape[:-1], -1, self.head_dim)
        q = self.q_norm(self.q_proj(hidden_states).view(shape)).transpose(1, 2)
        k = self.k_norm(self.k_proj(hidden_states).view(shape)).transpose(1, 2)
        turned, k = modeling_qwen3_rotated(q, k, *position_embeddings)
        return turned + q, k


modeling_qwen3_rotated = modeling_qwen3.apply_rotary_pos_emb


class Conditional(modeling_qwen3.Qwen3Attention):
    """Normalises under conditions on its attributes."""

    flag = True
    level = 3

    def heads(self, hidden):
        shape = (*hidden.shape[:-1], -1, self.head_dim)
        return self.q_proj(hidden).view(shape), self.k_proj(hidden).view(shape)

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        q, k = self.heads(hidden_states)
        if self.flag and self.level == 3 and self.config.sliding_window is None:
            q, k = self.q_norm(q), self.k_norm(k)
        return modeling_qwen3_rotated(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)


class OfArguments(Conditional):
    """Depends on how many tokens there are."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        q, k = self.heads(hidden_states)
        if hidden_states.shape[1] > 1:
            q, k = self.q_norm(q), self.k_norm(k)
        return modeling_qwen3_rotated(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)


class Stored(Conditional):
    """Changes what it depends on."""

    def forward(self, hidden_states, position_embeddings, attention_mask=None):
        self.flag = hidden_states.shape[1] > 1
        q, k = self.heads(hidden_states)
        if self.flag:
            q, k = self.q_norm(q), self.k_norm(k)
        return modeling_qwen3_rotated(q.transpose(1, 2), k.transpose(1, 2), *position_embeddings)


def model_with(cls):
    """Return a model with attentions of a class."""
    model = model_of(qwen3)
    for layer in model.model.layers:
        layer.self_attn.__class__ = cls
    return model


def test_attributes_on_which_a_forward_depends_are_asked_again_at_each_call():
    model = model_with(Conditional)
    given = inputs(model, torch.float32)
    original = copy.deepcopy(model.model.layers[0].self_attn)
    replace_norms(model, rope=True)
    module = model.model.layers[0].self_attn

    def count():
        expected = original(**given)
        return calls(lambda: [torch.testing.assert_close(module(**given), expected)])

    assert count() == 1
    for name, value in (("flag", False), ("level", 4), ("flag", 1)):
        kept = getattr(module, name)
        setattr(module, name, value)
        setattr(original, name, value)
        assert count() == 0
        setattr(module, name, kept)
        setattr(original, name, kept)
        assert count() == 1
    module.config.sliding_window = original.config.sliding_window = 4
    assert count() == 0
    module.config = None
    with pytest.raises(AttributeError):
        module(**given)


def test_an_attention_that_clips_is_swapped_where_it_does_not():
    model = model_of(olmoe)
    given = inputs(model, torch.float32)
    module = model.model.layers[0].self_attn
    model.config.clip_qkv = 0.25
    clipped, _ = module(**given)
    done = replace_norms(model, rope=True)
    assert attentions(done) == []
    done.undo()
    model.config.clip_qkv = None
    replace_norms(model, rope=True)
    assert calls(lambda: module(**given)) == 1
    model.config.clip_qkv = 0.25
    assert calls(lambda: torch.testing.assert_close(module(**given)[0], clipped)) == 0


def test_of_attentions_of_one_class_those_are_swapped_that_rotate():
    model = model_of(lambda: Exaone4ForCausalLM(Exaone4Config(**SIZE, **SLIDING, head_dim=16)))
    done = replace_norms(model, rope=True)
    assert attentions(done) == ["model.layers.0.self_attn"]
    (left,) = done.left
    assert left.path == "model.layers.1.self_attn"
    assert left.reason.startswith("it is not known to rotate")


@pytest.mark.parametrize("cls", [OfArguments, Stored])
def test_conditions_on_more_than_attributes_are_reasons(cls):
    done = replace_norms(model_with(cls), rope=True)
    assert attentions(done) == []
    reason = "its norms or its rotation come after a condition"
    assert {left.reason for left in done.left} == {reason}


def test_a_condition_on_an_attribute_that_is_no_plain_value_is_a_reason():
    model = model_with(Conditional)
    for layer in model.model.layers:
        layer.self_attn.level = torch.tensor(3)
    (reason,) = {left.reason for left in replace_norms(model, rope=True).left}
    assert reason == "its norms or its rotation come after a condition on level"


def test_a_second_use_is_a_reason():
    used = Scaled(Qwen3Config(**SIZE, head_dim=16), 0)
    (left,) = replace_norms(used, rope=True).left
    assert left.reason == "its queries or keys are used at aten.add.Tensor beside"


def test_without_the_option_no_attention_is_mentioned():
    done = cunorm.torch.replace_norms(model_of(qwen3))
    assert attentions(done) == []
    assert done.left == ()
