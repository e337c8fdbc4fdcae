"""`replace_norms` of norms with a gate beside x, and with a weight for each head."""

import copy
import importlib
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import torch_bridge
import transformers
from arrays import random, to_torch
from norm_modules import same_bits
from transformers.models.chameleon.modeling_chameleon import ChameleonLayerNorm
from transformers.models.cohere.modeling_cohere import CohereLayerNorm
from transformers.models.falcon_h1.modeling_falcon_h1 import FalconH1RMSNormGated
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.nemotron.modeling_nemotron import NemotronLayerNorm1P
from transformers.models.qwen3_next.modeling_qwen3_next import Qwen3NextRMSNormGated

import cunorm.torch
from cunorm.torch import _statistics, replace_norms

NARROW = [torch.float16, torch.bfloat16, torch.float32]
COLS = 24


def gated_classes():
    """Return the gated norms of the installed transformers."""
    root = Path(transformers.__file__).parent
    found = []
    for path in sorted(root.glob("models/**/modeling_*.py")):
        for name in re.findall(
            r"^class (\w*RMSNormGated)\(", path.read_text("utf-8"), re.MULTILINE
        ):
            dotted = ".".join(("transformers", *path.relative_to(root).with_suffix("").parts))
            found.append(getattr(importlib.import_module(dotted), name))
    return found


def variants(cls):
    """Return a class's modules: those with groups, too, and those whose gate comes first."""
    if cls is FalconH1RMSNormGated:
        ways = [{"n_groups": n, "norm_before_gate": b} for n in (1, 3) for b in (True, False)]
        return [cls(COLS, **way) for way in ways]
    if "group_size" in cls.__init__.__code__.co_varnames:
        return [cls(COLS, group_size=size) for size in (COLS, 8)]
    return [cls(COLS)]


def filled(module):
    for i, parameter in enumerate(module.parameters()):
        parameter.data.copy_(to_torch(random(parameter.shape, "float32", seed=7 + i)))
    return module


def rows(dtype, shape=(2, 5, COLS)):
    """Return x and a gate."""
    return tuple(to_torch(random(shape, "float32", seed=i, scale=2)).to(dtype) for i in (1, 2))


def both(ours, theirs, *given):
    """Return what both make of the same statistics, and whether an op made those of ours."""
    own = []
    of = _statistics.MeanSquare.of

    def noted(*given):
        made = of(*given)
        own.extend(made.saved)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_statistics.MeanSquare, "of", noted)
        y = ours(*given)
        if own:
            patch.setattr(torch, "rsqrt", lambda value: own[0].reshape(value.shape))
        return y, theirs(*given), bool(own)


@pytest.mark.parametrize("cls", gated_classes(), ids=lambda cls: cls.__name__)
def test_every_gated_norm_of_transformers_has_the_bits_of_its_original(cls):
    """Given the op's rstd, in every pair of dtypes of x and weight, output dtype included."""
    for module in variants(cls):
        for weight in NARROW:
            theirs = filled(copy.deepcopy(module)).to(weight)
            ours = copy.deepcopy(theirs)
            done = replace_norms(ours)
            assert [swap.old for swap in done.swapped] == [cls], str(done)
            for dtype in NARROW:
                y, expected, fused = both(ours, theirs, *rows(dtype))
                assert same_bits(y, expected), (dtype, weight)
                assert fused or dtype != weight


def test_so_many_gated_norms_are_known():
    assert len(gated_classes()) >= 15


MODULES = [
    (Qwen3NextRMSNormGated(COLS), {}),
    (MambaRMSNormGated(COLS, group_size=8), {"group": 8, "gate_first": True}),
    (FalconH1RMSNormGated(COLS, n_groups=3), {"group": 8, "cast": "after"}),
]


@pytest.mark.parametrize(("theirs", "options"), MODULES, ids=lambda m: type(m).__name__)
def test_the_module_for_a_model_of_ones_own_has_the_same_bits_and_state_dict(theirs, options):
    theirs = filled(copy.deepcopy(theirs)).bfloat16()
    ours = cunorm.torch.RMSNormGated(COLS, dtype=torch.bfloat16, **options)
    assert str(ours.load_state_dict(theirs.state_dict())) == "<All keys matched successfully>"
    y, expected, fused = both(ours, theirs, *rows(torch.bfloat16))
    assert fused
    assert same_bits(y, expected)
    for name, value in options.items():
        assert f"{name}={value!r}" in repr(ours)


def test_the_module_refuses_what_the_op_would():
    with pytest.raises(ValueError, match=r"^group must divide normalized_shape, 24, but is 5$"):
        cunorm.torch.RMSNormGated(COLS, group=5)
    with pytest.raises(ValueError, match=r"^activation must be 'silu', 'sigmoid' or None, but is "):
        cunorm.torch.RMSNormGated(COLS, activation="relu")
    with pytest.raises(ValueError, match=r"^cast must be "):
        cunorm.torch.RMSNormGated(COLS, cast="during")


@pytest.mark.parametrize("place", ["cpu", "cuda"])
@pytest.mark.parametrize(("theirs", "options"), MODULES, ids=lambda m: type(m).__name__)
def test_gradients_are_as_near_to_float64_as_the_originals(place, theirs, options):
    with torch_bridge.tensors_on(place) as put:
        theirs = filled(copy.deepcopy(theirs))
        ours = copy.deepcopy(theirs)
        wide = copy.deepcopy(theirs).double()
        replace_norms(ours)

        def gradients(module, dtype):
            given = [put(t.requires_grad_()) for t in rows(dtype)]
            y = module(*given)
            dy = to_torch(random(tuple(y.shape), "float32", seed=9)).to(y.dtype)
            return torch.autograd.grad(y, [*given, *module.parameters()], put(dy))

        expected = gradients(wide, torch.float64)
        found = gradients(ours, torch.float32)
        for one, other in zip(found, expected, strict=True):
            # A hundred roundings of float32 to numbers of size 100 at most.
            torch.testing.assert_close(one.double(), other, rtol=1e-5, atol=1e-4)


def test_without_a_gate_or_with_another_the_original_is_called():
    theirs = filled(MambaRMSNormGated(COLS, group_size=8))
    ours = copy.deepcopy(theirs)
    replace_norms(ours)
    x, gate = rows(torch.float32)
    assert same_bits(ours(x), theirs(x))
    assert same_bits(ours(x, None), theirs(x, None))
    assert same_bits(ours(x, gate.bfloat16()), theirs(x, gate.bfloat16()))
    assert same_bits(ours(x, gate[:1]), theirs(x, gate[:1]))
    torch.testing.assert_close(ours(x, gate=gate), theirs(x, gate=gate))
    torch.testing.assert_close(ours(hidden_states=x, gate=gate), theirs(x, gate))


def test_a_gated_norm_is_undone_and_compiled_like_any_other():
    theirs = filled(Qwen3NextRMSNormGated(COLS))
    ours = copy.deepcopy(theirs)
    done = replace_norms(ours)
    given = rows(torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(ours, fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(*given), ours(*given))
    done.undo()
    assert type(ours) is Qwen3NextRMSNormGated
    assert same_bits(ours(*given), theirs(*given))


def test_copy_inputs_copies_the_gate_too():
    ours = filled(Qwen3NextRMSNormGated(COLS))
    replace_norms(ours, copy_inputs=True)
    x, gate = rows(torch.float32)
    y = ours(x, gate)
    x += 1
    gate += 1
    y.sum().backward()
    assert ours.weight.grad is not None


class ShortGateNorm(Qwen3NextRMSNormGated):
    def forward(self, x, gate):
        return super().forward(x, gate[..., :1])


class RoundedGateNorm(Qwen3NextRMSNormGated):
    def forward(self, x, gate):
        return super().forward(x, torch.nn.functional.silu(gate))


class IgnoredGateNorm(Qwen3NextRMSNormGated):
    def forward(self, x, gate):
        x = x.to(torch.float32)
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (ShortGateNorm, "its forward differs at aten.slice: "),
        (RoundedGateNorm, "its forward differs at aten.silu: it has it of its second argument"),
        (IgnoredGateNorm, "its forward takes other arguments than x and a gate"),
    ],
)
def test_a_norm_that_uses_its_gate_otherwise_is_left_alone_and_listed(cls, reason):
    done = replace_norms(torch.nn.Sequential(cls(COLS)))
    assert done.swapped == ()
    assert done.left[0].reason.startswith(reason)


@pytest.mark.parametrize("weight", NARROW)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("cls", [CohereLayerNorm, ChameleonLayerNorm])
def test_a_weight_for_each_head_is_known_and_part_of_the_op(cls, dtype, weight):
    theirs = filled(cls((3, 8))).to(weight)
    ours = copy.deepcopy(theirs)
    assert [swap.old for swap in replace_norms(ours).swapped] == [cls]
    x, _ = rows(dtype, (2, 5, 3, 8))
    y, expected = ours(x), theirs(x)
    assert y.dtype == expected.dtype
    # A LayerNorm's own statistics may differ in their last bits.
    torch.testing.assert_close(y.float(), expected.float(), rtol=2**-7, atol=2**-7)
    assert (y == expected).float().mean() > (0.99 if y.dtype != torch.float32 else 0.2)
    plan = vars(ours)["_cunorm_known"].find(ours, x)
    assert plan.scale.name == "weight"
    assert plan.steps == ()
    # Other shapes are the original's to refuse.
    with pytest.raises(RuntimeError):
        ours(x[:, :, :2])


class GroupedRMSNorm(torch.nn.Module):
    """Of groups of columns, with a weight of all."""

    def __init__(self, columns, group, weight):
        super().__init__()
        self.size, self.group = columns, group
        self.weight = torch.nn.Parameter(torch.ones(columns)) if weight else None

    def forward(self, x):
        rows = x.float().reshape(*x.shape[:-1], self.size // self.group, self.group)
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)
        y = rows.flatten(-2)
        return (y if self.weight is None else y * self.weight.float()).type_as(x)


@pytest.mark.parametrize("weight", [False, True])
@pytest.mark.parametrize("dtype", NARROW)
def test_groups_without_a_gate_are_rows_of_the_op(dtype, weight):
    theirs = filled(GroupedRMSNorm(COLS, 8, weight)).to(dtype)
    ours = copy.deepcopy(theirs)
    done = replace_norms(torch.nn.Sequential(ours))
    assert len(done.swapped) == 1, str(done)
    y, expected, fused = both(ours, theirs, rows(dtype)[0])
    assert fused
    assert same_bits(y, expected)


class HalvesRMSNorm(torch.nn.Module):
    """Of rows of any length, in two groups."""

    def forward(self, x):
        rows = x.float().reshape(*x.shape[:-1], 1, -1).reshape(*x.shape[:-1], -1, 1)
        rows = rows * torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + 1e-6)
        return rows.reshape(x.shape).type_as(x)


def test_groups_of_rows_of_any_length_are_left_alone():
    (left,) = replace_norms(torch.nn.Sequential(HalvesRMSNorm())).left
    assert left.reason == "it normalises groups of rows of any length"


@pytest.mark.parametrize("weight", [torch.float32, torch.bfloat16])
def test_layer_norm_1p_adds_one_in_the_op_where_that_is_the_same(weight):
    ours = filled(NemotronLayerNorm1P(COLS)).to(weight)
    theirs = copy.deepcopy(ours)
    replace_norms(ours)
    x, _ = rows(weight)
    plan = vars(ours)["_cunorm_known"].find(ours, x)
    assert plan.offset == (1.0 if weight == torch.float32 else 0.0)
    torch.testing.assert_close(ours(x), theirs(x), rtol=2**-7, atol=2**-7)


def test_a_float32_weight_beside_bfloat16_rows_is_part_of_the_op():
    from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

    theirs = filled(Qwen2RMSNorm(COLS))
    ours = copy.deepcopy(theirs)
    replace_norms(ours)
    x, _ = rows(torch.bfloat16)
    plan = vars(ours)["_cunorm_known"].find(ours, x)
    assert (plan.scale.name, plan.dtype, plan.steps) == ("weight", torch.float32, ())
    y, expected, _ = both(ours, theirs, x)
    assert same_bits(y, expected)


def losses(model, steps=20):
    """Return the losses of a few steps of AdamW on one batch."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    tokens = torch.arange(34).reshape(2, 17) * 7 % 64
    found = []
    for _ in range(steps):
        loss = model(input_ids=tokens, labels=tokens).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.filterwarnings("ignore")  # transformers' own, of kernels that are not installed
def test_a_small_mamba2_learns_as_the_stock_one_does():
    from transformers import Mamba2Config, Mamba2ForCausalLM

    size = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
    config = Mamba2Config(**size, num_heads=4, head_dim=16, n_groups=2, chunk_size=8)
    torch.manual_seed(0)
    stock = Mamba2ForCausalLM(config)
    swapped = copy.deepcopy(stock)
    done = replace_norms(swapped)
    assert Counter(swap.old.__name__ for swap in done.swapped)["MambaRMSNormGated"] == 2
    found, expected = losses(swapped), losses(stock)
    assert expected[-1] < expected[0] - 0.1
    # Both round in float32, at other places: 2^-24 of each of some 10^4 numbers in a step.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=0)
