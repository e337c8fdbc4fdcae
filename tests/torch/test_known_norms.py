"""Which norms `replace_norms` knows: by what they compute, to the bits of the originals."""

import copy
import functools
import importlib
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest
import torch
import transformers
from arrays import random, to_numpy, to_torch
from norm_modules import Renamed, RootRMSNorm, rstd, same_bits
from torch.nn.utils import parametrize, prune
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama4.modeling_llama4 import Llama4TextL2Norm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

from cunorm import _reference
from cunorm.torch import replace_norms
from cunorm.torch._known import Known, known

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def norm_names():
    """Return the classes of the installed transformers that are called norms, by module."""
    root = Path(transformers.__file__).parent
    found = {}
    for path in sorted(root.glob("models/**/modeling_*.py")):
        names = re.findall(
            r"^class (\w*(?:RMS|Layer|L2)Norm\w*)\(", path.read_text("utf-8"), re.MULTILINE
        )
        if names:
            dotted = ".".join(("transformers", *path.relative_to(root).with_suffix("").parts))
            found[dotted] = names
    return found


NAMES = norm_names()


def norm_classes(module):
    """Return the classes of a module of transformers that are called norms of our kinds."""
    return [getattr(importlib.import_module(module), name) for name in NAMES[module]]


def built(cls, columns):
    """Return a norm with numbers in its weight that no initialisation gives."""
    parameters = inspect.signature(cls).parameters
    needs_group = "group_size" in parameters and parameters["group_size"].default is inspect._empty
    group = {"group_size": columns // 2} if needs_group else {}
    sized = {"hidden_size", "dim", "normalized_shape"} & set(parameters)
    module = cls(columns, **group) if sized else cls()
    for parameter in module.parameters():
        parameter.data.copy_(to_torch(random((columns,), "float32", seed=7, scale=0.3)) + 0.1)
    return module


@pytest.mark.slow("240 modules of models, of which most spell one definition")
@pytest.mark.parametrize("module", NAMES)
def test_every_known_class_of_transformers_has_the_bits_of_its_original(module, monkeypatch):
    """Given the op's rstd, in every pair of dtypes of x and weight, output dtype included."""
    power = torch.pow
    for cls in norm_classes(module):
        if how_known(cls) in (None, "gated"):  # of which test_gated_norms.py is
            continue
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


@pytest.mark.slow("240 modules of models are imported")
@pytest.mark.parametrize("least", [{"before": 101, "after": 6, "no weight": 6, "gated": 13}])
def test_so_many_classes_of_transformers_are_known(least):
    count = Counter(how_known(cls) for module in NAMES for cls in norm_classes(module))
    del count[None]
    assert all(count[how] >= least[how] for how in least)  # Llama's is that of most models
    assert sum(count.values()) >= 197


def how_known(cls):
    """Return how a class rounds that is known as an RMSNorm of ours; None for another."""
    module = alone(cls)
    found = None if module is None else known(module)
    if not isinstance(found, Known):
        return None
    plan = found.plans.get(("cpu", None, torch.bfloat16, *[torch.bfloat16] * len(found.names)))
    if plan is None or plan.centred:
        return None
    if plan.gating is not None:
        return "gated"
    return plan.cast if plan.gamma else "no weight"


def alone(cls):
    """Return a norm of a class that can be built from a width, without other modules in it."""
    try:
        module = built(cls, 24)
    except (TypeError, RuntimeError):
        return None
    return module if not list(module.children()) else None


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
    for name, words in {
        "ImageGPTLayerNorm": "aten.div: it divides by the root",
        "DeepseekV4UnweightedRMSNorm": "aten._to_copy: it casts rstd to bfloat16",
        "VitDetLayerNorm": "aten.mean: it is over axes [1] of 3, not the last",
        "SqueezeBertLayerNorm": "aten.permute",
        "PocketTTSFlowLayerNorm": "aten.mean: it rounds a statistic to bfloat16, in bfloat16",
        "HYV4UnweightedRMSNorm": "does not normalise",
    }.items():
        (module,) = (module for module in NAMES if name in NAMES[module])
        (cls,) = (cls for cls in norm_classes(module) if cls.__name__ == name)
        (left,) = replace_norms(alone(cls).bfloat16()).left
        assert words in left.reason


class Inherits(Renamed):
    def extra_repr(self):
        return "of no weight for forward"


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


class OtherCountL2Norm(Llama4TextL2Norm):
    def forward(self, x, *gates):
        return self._norm(x.float()).type_as(x)


class OtherHelperRMSNorm(GemmaRMSNorm):
    def _norm(self, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 2 * self.eps)


class OwnLayerNorm(torch.nn.LayerNorm):
    def forward(self, x):
        return super().forward(x) + 1


class Centred(torch.nn.LayerNorm):
    """Called by another name, and no leaf."""

    def __init__(self, columns):
        super().__init__(columns)
        self.inner = torch.nn.LayerNorm(columns, elementwise_affine=False)

    def forward(self, x):
        return super().forward(self.inner(x))


class PreLayerNormBlock(torch.nn.Sequential):
    """Called after the norm that it holds, and none itself."""


class PlainLayerNorm(torch.nn.LayerNorm):
    """Keeps the forward."""


@pytest.mark.parametrize(
    "cls",
    [
        Renamed,
        Inherits,
        PlainLayerNorm,
        OtherConstantRMSNorm,
        OtherConditionLayerNorm,
        OtherHelperRMSNorm,
    ],
)
def test_a_class_is_known_by_its_forward_whatever_its_name(cls):
    model = torch.nn.Sequential(cls(8))
    (swap,) = replace_norms(model).swapped
    assert (swap.path, swap.old, swap.new) == ("0", cls, type(model[0]))
    assert isinstance(model[0], cls)


@pytest.mark.parametrize(
    ("cls", "reason"),
    [
        (RootRMSNorm, "its forward differs at aten.mul: it multiplies a normalised row by 1.0"),
        (HalfRMSNorm, "its forward differs at aten._to_copy: it casts x to float16"),
        (OtherAxisRMSNorm, "its forward differs at aten.mean: it is over axes [-2] of 3"),
        (OtherKeywordRMSNorm, "its forward raises TypeError: mean() "),
        (DecoratedRMSNorm, "its forward differs at aten.pow: it turns gradients on or off"),
        (OtherArgumentRMSNorm, "its forward takes other arguments than x and a gate"),
        (OtherCountL2Norm, "its forward takes other arguments than x and a gate"),
        (OwnLayerNorm, "its forward differs at aten.add: it adds 1 to a normalised row"),
    ],
)
def test_a_class_whose_forward_differs_in_anything_is_left_alone_and_listed(cls, reason):
    model = torch.nn.Sequential(cls(8))
    done = replace_norms(model)
    assert done.swapped == ()
    ((path, listed, said),) = done.left
    assert (path, listed, type(model[0])) == ("0", cls, cls)
    assert said.startswith(reason)


def test_what_is_listed_is_a_norm_by_class_or_by_name_and_not_what_holds_one():
    model = torch.nn.Sequential(PreLayerNormBlock(torch.nn.LayerNorm(8)), Centred(8))
    done = replace_norms(model)
    assert [swap.path for swap in done.swapped] == ["0.0", "1.inner"]
    assert [(left.path, left.cls) for left in done.left] == [("1", Centred)]


def test_a_class_of_a_notebook_is_known_too():
    scope = {"torch": torch, "nn": torch.nn}
    for cls in (Renamed, T5LayerNorm, GemmaRMSNorm):
        exec(inspect.getsource(cls), scope)
        assert len(replace_norms(scope[cls.__name__](8)).swapped) == 1


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
        (obstacle_eps, "is a Tensor"),
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


def test_a_weight_of_another_axis_or_a_call_of_its_own_is_left_alone_and_listed():
    class Calls(Renamed):
        def __call__(self, x):
            return super().__call__(x) * 2

    class Rows(Renamed):
        def forward(self, x):
            square = x.float().pow(2).mean((-2, -1), keepdim=True)
            normal = x.float() * torch.rsqrt(square + self.eps)
            return self.weight[..., :1] * normal

    done = replace_norms(torch.nn.Sequential(Rows((2, 8)), Calls(8)))
    assert done.swapped == ()
    assert [left.reason for left in done.left] == [
        "its forward differs at aten.slice: no norm known has it",
        "its class has a __call__ of its own",
    ]
