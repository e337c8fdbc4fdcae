"""`replace_norms`: what is swapped and to which bits, what is left alone, what stays as it was."""

import copy
import functools
import importlib
import inspect
import io
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from arrays import random, to_numpy, to_torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.utils import parametrize, prune
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import cunorm.torch
from cunorm import _reference
from cunorm.torch import replace_norms
from cunorm.torch._definitions import find
from cunorm.torch._swapped import swapped_class

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def norm_classes():
    """Return each class of the installed transformers that is called a norm of our kinds."""
    root = Path(transformers.__file__).parent
    found = []
    for path in sorted(root.glob("models/**/modeling_*.py")):
        names = re.findall(
            r"^class (\w*(?:RMS|Layer|L2)Norm\w*)\(", path.read_text("utf-8"), re.MULTILINE
        )
        if names:
            dotted = ".".join(("transformers", *path.relative_to(root).with_suffix("").parts))
            module = importlib.import_module(dotted)
            found += [getattr(module, name) for name in names]
    return found


def built(cls, columns):
    """Return a norm with numbers in its weight that no initialisation gives."""
    sized = {"hidden_size", "dim", "normalized_shape"} & set(inspect.signature(cls).parameters)
    module = cls(columns) if sized else cls()
    for parameter in module.parameters():
        parameter.data.copy_(to_torch(random((columns,), "float32", seed=7, scale=0.3)) + 0.1)
    return module


def same_bits(actual, expected):
    return actual.dtype == expected.dtype and torch.equal(
        actual.detach().contiguous().view(torch.uint8),
        expected.detach().contiguous().view(torch.uint8),
    )


def rstd(x, eps):
    return torch.ops.cunorm.rms_norm_fwd(x, None, eps, 0.0, "before")[1].unsqueeze(-1)


class Block(torch.nn.Module):
    """A norm of each known kind in each kind of container, one of them tied."""

    def __init__(self):
        super().__init__()
        self.input_norm = Qwen2RMSNorm(8)
        self.layers = torch.nn.ModuleList(
            [torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.LayerNorm(8)) for _ in range(2)]
        )
        self.named = torch.nn.ModuleDict({"q": GemmaRMSNorm(8), "k": torch.nn.RMSNorm(8)})
        self.tied = self.input_norm
        self.others = torch.nn.ModuleList(
            [torch.nn.GroupNorm(2, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout()]
        )
        for parameter in self.parameters():
            parameter.data.add_(0.25)

    def forward(self, x):
        x = self.input_norm(x)
        for layer in self.layers:
            x = x + layer(x)
        return self.tied(self.named["q"](x) + self.named["k"](x))


def outputs(model, dtype=torch.float32):
    """Return y and the gradient of every parameter, for one batch."""
    x = to_torch(random((4, 8), "float32")).to(dtype)
    model.zero_grad()
    y = model(x)
    y.backward(to_torch(random((4, 8), "float32", seed=1)).to(dtype))
    return [y.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


# Which classes: by what they compute


def test_every_known_class_of_transformers_has_the_bits_of_its_original(monkeypatch):
    """Given the op's rstd, in every pair of dtypes of x and weight, output dtype included."""
    power = torch.pow
    count = dict.fromkeys(("llama", "gemma", "t5", "olmo2", "gemma4"), 0)
    for cls in norm_classes():
        definition = find(cls)
        if definition is None or definition.name == "cohere":
            continue
        count[definition.name] = count.get(definition.name, 0) + 1
        for weight_dtype in FLOATS[:3]:
            theirs = built(cls, 24).to(weight_dtype)
            ours = copy.deepcopy(theirs)
            done = replace_norms(ours)
            assert [swap.old for swap in done.swapped] == [cls], str(done)
            eps = getattr(ours, "eps", None) or ours.variance_epsilon
            for x_dtype in FLOATS:
                x = to_torch(random((5, 24), "float32", scale=3)).to(x_dtype)
                given = rstd(x, eps)
                with monkeypatch.context() as patch:
                    # Where the original does the work itself, it has the same statistics too.
                    patch.setattr(torch, "rsqrt", lambda _, given=given: given)
                    patch.setattr(
                        torch, "pow", lambda a, b, given=given: given if b == -0.5 else power(a, b)
                    )
                    assert same_bits(ours(x), theirs(x)), (cls, x_dtype, weight_dtype)
    assert count["llama"] > 100  # Llama's definition is that of most models
    assert sum(count.values()) > 180
    assert all(count.values())


def test_cohere_layer_norm_is_as_near_to_the_definition_as_its_original():
    from transformers.models.cohere.modeling_cohere import CohereLayerNorm

    x = random((5, 24), "bfloat16", scale=3, shift=1)
    theirs = built(CohereLayerNorm, 24).bfloat16()
    ours = copy.deepcopy(theirs)
    assert len(replace_norms(ours).swapped) == 1
    expected = _reference.layer_norm(x, to_numpy(theirs.weight.detach()), None, 1e-5)
    for module in (ours, theirs):
        assert expected.accepts(to_numpy(module(to_torch(x)).detach())).all()


def test_classes_that_are_called_norms_and_round_elsewhere_are_not_known():
    unknown = {cls.__name__ for cls in norm_classes() if swapped_class(cls) is None}
    assert unknown >= {
        "ConvNextLayerNorm",  # moves channels first
        "DebertaLayerNorm",  # rounds before the weight, and LayerNorm has no such cast
        "MambaRMSNormGated",  # multiplies by a gate first
        "MuseSparkTextCenteredRMSNorm",  # adds one to the weight in the weight's dtype
        "NemotronLayerNorm1P",  # adds one to the weight, too
        "DeepseekV4UnweightedRMSNorm",  # rounds rstd
        "VitDetLayerNorm",  # normalises another axis
    }


class Renamed(torch.nn.Module):
    """Someone's own copy of Llama's definition, with a docstring and names of its own."""

    def __init__(self, columns, eps=1e-6):
        super().__init__()
        self.eps = eps
        self.weight = torch.nn.Parameter(torch.ones(columns))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Normalise."""
        kind = tokens.dtype
        tokens = tokens.to(torch.float32)
        square = tokens.pow(2).mean(-1, keepdim=True)
        tokens = tokens * torch.rsqrt(square + self.eps)
        return self.weight * tokens.to(kind)


class Inherits(Renamed):
    def extra_repr(self):
        return "of no weight for forward"


class RootRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype) * 1.0


class HalfRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float16)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype)


class OtherAxisRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-2, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype)


class OtherKeywordRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, correction=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype)


class OtherConstantRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2.0).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype)


class OtherConditionLayerNorm(T5LayerNorm):
    def forward(self, x):
        variance = x.to(torch.float32).pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.variance_epsilon)
        if self.weight.dtype not in [torch.float16, torch.bfloat16]:
            x = x.to(self.weight.dtype)
        return self.weight * x


class DecoratedRMSNorm(Renamed):
    forward = torch.no_grad()(Renamed.forward)


class OtherArgumentRMSNorm(Renamed):
    def forward(self, x, scale=2):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype)


class OtherHelperRMSNorm(GemmaRMSNorm):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 2 * self.eps)


class OwnLayerNorm(torch.nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 1


class PlainLayerNorm(torch.nn.LayerNorm):
    """Keeps the forward."""


@pytest.mark.parametrize("cls", [Renamed, Inherits, PlainLayerNorm])
def test_a_class_is_known_by_its_forward_whatever_its_name(cls):
    model = torch.nn.Sequential(cls(8))
    (swap,) = replace_norms(model).swapped
    assert (swap.path, swap.old, swap.new) == ("0", cls, type(model[0]))
    assert isinstance(model[0], cls)


@pytest.mark.parametrize(
    "cls",
    [
        RootRMSNorm,
        HalfRMSNorm,
        OtherAxisRMSNorm,
        OtherKeywordRMSNorm,
        OtherConstantRMSNorm,
        OtherConditionLayerNorm,
        DecoratedRMSNorm,
        OtherArgumentRMSNorm,
        OtherHelperRMSNorm,
        OwnLayerNorm,
    ],
)
def test_a_class_whose_forward_differs_in_anything_is_left_alone_and_listed(cls):
    model = torch.nn.Sequential(cls(8))
    done = replace_norms(model)
    assert done.swapped == ()
    assert done.left == (("0", cls, "its forward is none of the definitions known"),)
    assert type(model[0]) is cls


def test_a_class_of_a_notebook_is_known_too():
    """A cell is compiled apart from the one that imported torch, to other instructions."""
    scope = {"torch": torch, "nn": torch.nn}
    for cls in (Renamed, T5LayerNorm, GemmaRMSNorm):
        exec(inspect.getsource(cls), scope)
        assert find(scope[cls.__name__]) == find(cls) is not None


def test_a_forward_that_means_another_torch_is_not_known():
    scope = {"torch": functools, "Renamed": Renamed}
    forward = type(Renamed.forward)(Renamed.forward.__code__, scope)
    cls = type("CopiedRMSNorm", (Renamed,), {"forward": forward})
    assert swapped_class(cls) is None


def obstacle_parametrized(norm):
    parametrize.register_parametrization(norm, "weight", torch.nn.Softplus())


def obstacle_pruned(norm):
    prune.random_unstructured(norm, "weight", 0.5)


def obstacle_forward(norm):
    norm.forward = functools.partial(type(norm).forward, norm)


def obstacle_eps(norm):
    name = "eps" if hasattr(norm, "eps") else "variance_epsilon"
    setattr(norm, name, torch.tensor(1e-6))


def obstacle_float8(norm):
    norm.weight = torch.nn.Parameter(norm.weight.data.to(torch.float8_e4m3fn), requires_grad=False)


def obstacle_subclass(norm):
    class Quantized(torch.nn.Parameter):
        pass

    norm.weight = Quantized(norm.weight.data)


@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, torch.nn.RMSNorm, Qwen2RMSNorm, GemmaRMSNorm])
@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (obstacle_parametrized, "its parameters are parametrized"),
        (obstacle_pruned, "its weight is no parameter of its own"),
        (obstacle_forward, "its forward is set on the instance"),
        (obstacle_eps, "its eps is a Tensor"),
        (obstacle_float8, "its weight is torch.float8_e4m3fn"),
        (obstacle_subclass, "Quantized"),
    ],
)
def test_a_known_norm_with_something_of_its_own_is_left_alone_and_listed(cls, spoil, reason):
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), cls(8))
    spoil(model[1])
    before = type(model[1])
    done = replace_norms(model)
    assert done.swapped == ()
    ((path, listed, why),) = done.left
    assert (path, listed, type(model[1])) == ("1", before, before)
    assert reason in why


def test_a_weight_of_two_axes_or_a_call_of_its_own_is_left_alone_and_listed():
    class Calls(Renamed):
        def __call__(self, x):
            return super().__call__(x) * 2

    done = replace_norms(torch.nn.Sequential(Renamed((2, 8)), Calls(8)))
    assert done.swapped == ()
    assert [left.reason for left in done.left] == [
        "its weight has 2 axes, its rows have one",
        "its class has a __call__ of its own",
    ]


# What is reported


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
        "left alone: 1",
        "  others.3: RootRMSNorm, its forward is none of the definitions known",
    ]
    assert repr(done) == "<Replaced: 6 swapped, 1 left alone>"
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


# What is computed


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


def test_a_model_that_was_compiled_before_is_compiled_again():
    model = torch.nn.Sequential(Qwen2RMSNorm(8))
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
            norm.__class__ = swapped_class(cls)
            assert norm(x).dtype == stock
        finally:
            torch.set_autocast_enabled(device, False)


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
