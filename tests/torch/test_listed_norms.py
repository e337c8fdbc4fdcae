"""What `replace_norms` lists as left alone: everything that is called a norm, and blocks around one
that is listed are not; and norms whose eps the ops refuse."""

import math

import pytest
import torch
from norm_modules import Renamed, RootRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

from cunorm.torch import replace_norms


class Norm(torch.nn.Module):
    """One of its own, with nothing in it."""


class QKNorm(torch.nn.Module):
    """Two norms."""

    def __init__(self):
        super().__init__()
        self.query, self.key = torch.nn.RMSNorm(8), torch.nn.RMSNorm(8)


class AdaLayerNormZero(torch.nn.Module):
    """A norm of its own, and a layer that modulates it."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(8, 16)


class PreNormBlock(torch.nn.Module):
    """Named after what it holds."""

    def __init__(self):
        super().__init__()
        self.norm, self.mlp = torch.nn.LayerNorm(8), torch.nn.Linear(8, 8)


class Scale(torch.nn.Module):
    """Called a norm by who holds it alone."""


class SurfaceNormalHead(torch.nn.Module):
    """Another sense of the word."""


def listed(model):
    return [left.path for left in replace_norms(model).left]


@pytest.mark.parametrize(
    "module",
    [
        torch.nn.GroupNorm(2, 8),
        torch.nn.BatchNorm1d(8),
        torch.nn.SyncBatchNorm(8),
        torch.nn.InstanceNorm2d(8),
        torch.nn.LocalResponseNorm(2),
        Norm(),
        QKNorm(),
        AdaLayerNormZero(),
        RootRMSNorm(8),
    ],
    ids=lambda module: type(module).__name__,
)
def test_what_has_the_word_in_its_class_is_listed_with_a_reason(module):
    (left,) = replace_norms(torch.nn.ModuleDict({"first": module})).left
    assert (left.path, left.cls) == ("first", type(module))
    assert left.reason


@pytest.mark.parametrize("name", ["norm", "norm1", "input_layernorm", "q_norm", "Normalization"])
def test_what_has_the_word_in_its_attribute_is_listed(name):
    assert listed(torch.nn.ModuleDict({"block": torch.nn.ModuleDict({name: Scale()})})) == [
        f"block.{name}"
    ]


def test_a_norm_is_listed_at_each_of_its_paths_if_one_says_so():
    scale = Scale()
    model = torch.nn.ModuleDict({"first": scale, "norm": scale, "last": scale})
    assert listed(model) == ["norm", "last"]


def test_a_list_that_is_called_after_norms_stands_for_those_that_are_not():
    assert listed(torch.nn.ModuleDict({"norms": torch.nn.ModuleList([Scale(), Scale()])})) == [
        "norms"
    ]


def test_blocks_and_lists_are_not_listed_beside_the_norms_that_they_hold():
    model = torch.nn.ModuleDict(
        {
            "block": PreNormBlock(),
            "norms": torch.nn.ModuleList([torch.nn.LayerNorm(8), RootRMSNorm(8)]),
            "norm_and_scale": torch.nn.Sequential(Qwen2RMSNorm(8), Scale()),
        }
    )
    done = replace_norms(model)
    assert [swap.path for swap in done.swapped] == ["block.norm", "norms.0", "norm_and_scale.0"]
    assert [left.path for left in done.left] == ["norms.1"]


def test_other_words_are_not_listed():
    model = torch.nn.ModuleDict(
        {"head": SurfaceNormalHead(), "normal": Scale(), "linear": torch.nn.Linear(8, 8)}
    )
    assert str(replace_norms(model)) == "swapped: 0\nleft alone: 0"


@pytest.mark.parametrize(
    ("eps", "reason"),
    [
        (-1e-9, "its eps must be finite and not negative in float32, but is -1e-09"),
        (math.inf, "its eps must be finite and not negative in float32, but is inf"),
        (math.nan, "its eps must be finite and not negative in float32, but is nan"),
        (1e300, "its eps must be finite and not negative in float32, but is 1e+300"),
    ],
)
@pytest.mark.parametrize("cls", [torch.nn.LayerNorm, torch.nn.RMSNorm, Renamed])
def test_a_norm_whose_eps_the_ops_refuse_is_left_alone_and_listed(cls, eps, reason):
    norm = cls(4, eps=eps)
    done = replace_norms(norm)
    assert (done.swapped, done.left) == ((), (("", cls, reason),))
    norm(torch.ones(2, 4))  # works as before


@pytest.mark.parametrize("eps", [0, 0.0, 1, 1e-38])
def test_any_other_eps_is_no_obstacle(eps):
    norm = torch.nn.LayerNorm(4, eps=eps)
    assert len(replace_norms(norm).swapped) == 1
    norm(torch.ones(2, 4))
