"""Modules for the tests: models with norms in them, and how their outputs are compared."""

import torch
from arrays import random, to_torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm


def same_bits(actual, expected):
    return actual.dtype == expected.dtype and torch.equal(
        actual.detach().contiguous().view(torch.uint8),
        expected.detach().contiguous().view(torch.uint8),
    )


def rstd(x, eps):
    given = (x, None, eps, 0.0, "before", None, None, 1.0, None)
    return torch.ops.cunorm.rms_norm_fwd(*given)[1].unsqueeze(-1)


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


class RootRMSNorm(Renamed):
    def forward(self, x):
        dtype = x.dtype
        x = x.to(torch.float32)
        variance = x.pow(2).mean(-1, keepdim=True)
        x = x * torch.rsqrt(variance + self.eps)
        return self.weight * x.to(dtype) * 1.0


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
