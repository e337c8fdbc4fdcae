"""What the trace of a forward finds, what it must not do, and what it costs."""

import random as python_random

import pytest
import torch
from arrays import random, to_torch
from norm_modules import Renamed, same_bits

from cunorm.torch import _known, _trace, replace_norms

WRITTEN = []


def normalised(self, x):
    wide = x.float()
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
    return self.weight * wide.to(x.dtype)


def of(forward):
    return type("WrittenRMSNorm", (Renamed,), {"forward": forward})


def sets_an_attribute(self, x):
    self.calls = 1
    return normalised(self, x)


def appends_to_a_list(self, x):
    self.seen.append(x.shape)
    return normalised(self, x)


def keeps_what_it_does_not_return(self, x):
    WRITTEN.append(x.float().mean(-1))
    return normalised(self, x)


def writes_over_x(self, x):
    x *= torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps)
    return self.weight * x


def looks_at_numbers(self, x):
    return normalised(self, x) if x.abs().max() > 1 else x


def looks_at_the_number_of_rows(self, x):
    return normalised(self, x) if x.shape[0] < 1000 else x


def looks_at_strides(self, x):
    return normalised(self, x) if x.is_contiguous() else x


def looks_at_the_mode(self, x):
    return normalised(self, x) if self.training else x


def looks_for_a_gradient(self, x):
    return normalised(self, x.detach() if x.requires_grad else x)


def drops(self, x):
    return torch.dropout(normalised(self, x), 0.5, True)


class Scaled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)

    @staticmethod
    def backward(ctx, dy):
        return 2 * dy


def has_a_backward_of_its_own(self, x):
    return self.weight * Scaled.apply(x)


def detaches_the_statistic(self, x):
    mean_square = x.pow(2).mean(-1, keepdim=True).detach()
    return self.weight * (x * torch.rsqrt(mean_square + self.eps))


def makes_a_tensor(self, x):
    return normalised(self, x) + torch.zeros(8)


def fails(self, x):
    return normalised(self, x).missing


def returns_two(self, x):
    return normalised(self, x), x


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (sets_an_attribute, "its forward sets its calls"),
        (appends_to_a_list, "its forward changes a list"),
        (keeps_what_it_does_not_return, "aten.mean: it does not return what it computes there"),
        (writes_over_x, "aten.mul_: it writes to a tensor in place"),
        (looks_at_numbers, "aten.abs: no norm known has it"),
        (looks_at_the_number_of_rows, "its forward does not normalise, for x of (65537, 8)"),
        (looks_at_strides, "its forward does not normalise, for strided x"),
        (looks_at_the_mode, "its forward does not normalise, in eval mode without gradients"),
        (looks_for_a_gradient, "without gradients"),
        (drops, "its forward differs at aten."),
        (has_a_backward_of_its_own, "aten.pow: it turns gradients on or off"),
        (detaches_the_statistic, "it adds 1e-06 to the mean square without gradients"),
        (makes_a_tensor, "aten.zeros: no norm known has it"),
        (fails, "its forward raises AttributeError: 'Traced' object has no attribute 'missing'"),
        (returns_two, "its forward returns a tuple"),
    ],
)
def test_a_norm_that_does_more_is_left_alone_with_the_reason(forward, reason):
    norm = of(forward)(8)
    norm.seen = []
    (left,) = replace_norms(norm).left
    assert reason in left.reason
    assert norm.seen == []
    assert "calls" not in vars(norm)


def test_a_norm_without_a_shape_yet_or_with_modules_in_it_is_not_run():
    norm = of(normalised)(8)
    norm.weight = torch.nn.parameter.UninitializedParameter()
    (left,) = replace_norms(norm).left
    assert left.reason == "its parameters have no shape yet"
    norm = torch.nn.LayerNorm(8)
    norm.inner = torch.nn.Dropout()
    norm.inner.register_forward_hook(lambda *_: WRITTEN.append("called"))
    (left,) = replace_norms(norm).left
    assert left.reason == "it has other modules in it"
    assert "called" not in WRITTEN


def test_what_is_written_in_place_over_a_result_alone_is_followed():
    def in_place(self, x):
        mean_square = x.float().pow(2).mean(-1, keepdim=True)
        mean_square += self.eps
        y = x.float() * mean_square.rsqrt_()
        y *= self.weight.float()
        return y.to(x.dtype)

    assert len(replace_norms(of(in_place)(8)).swapped) == 1


def test_a_branch_for_other_numbers_of_axes_reaches_the_original():
    def forward(self, x):
        return x + 1 if x.ndim == 4 else normalised(self, x)

    norm = of(forward)(8)
    assert len(replace_norms(norm).swapped) == 1
    x = to_torch(random((2, 3, 2, 8), "float32"))
    assert same_bits(norm(x), x + 1)
    torch.testing.assert_close(norm(x[0]), normalised(norm, x[0]))


def test_a_trace_draws_no_number_and_makes_no_array_and_leaves_the_state_as_it_was():
    states = torch.get_rng_state(), python_random.getstate()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        replace_norms(of(drops)(8))
        # 4 TB of weight, if there were any of it.
        norm = torch.nn.RMSNorm(2**40, device="meta")
        assert len(replace_norms(norm).swapped) == 1
        assert not torch.is_grad_enabled()
        assert torch.is_autocast_enabled("cpu")
        assert torch.get_autocast_dtype("cpu") == torch.bfloat16
    assert torch.equal(torch.get_rng_state(), states[0])
    assert python_random.getstate() == states[1]
    assert not torch.cuda.is_initialized() or torch.cuda.is_available()


def test_300_layers_cost_the_runs_of_one_whatever_their_eps_and_number(monkeypatch):
    counted = []

    def run(*args):
        counted.append(args)
        return _trace.run(*args)

    class LayerRMSNorm(Renamed):
        def __init__(self, layer):
            super().__init__(64, eps=1e-6 * (1 + layer % 3))
            self.layer = layer  # which the forward does not read

    monkeypatch.setattr(_known, "run", run)
    model = torch.nn.Sequential(*map(LayerRMSNorm, range(300)))
    assert len(replace_norms(model).swapped) == 300
    assert len(counted) < 100
    counted.clear()
    assert len(replace_norms(LayerRMSNorm(1)).swapped) == 1
    assert counted == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_forward_that_follows_autocast_does_so_after_the_swap(dtype):
    def forward(self, x):
        if torch.is_autocast_enabled("cpu"):
            x = x.to(torch.get_autocast_dtype("cpu"))
        return normalised(self, x)

    norm = of(forward)(8)
    x = to_torch(random((4, 8), "float32")).half()
    with torch.autocast("cpu", dtype):
        expected = norm(x)
        assert len(replace_norms(norm).swapped) == 1
        assert norm(x).dtype == expected.dtype
        torch.testing.assert_close(norm(x), expected)
