"""A small block of a diffusion transformer learns with its modulation fused as with it written out.

On "cuda" the norms are the kernels: of tensors on a GPU, or on the software one through the bridge.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn.functional import gelu, layer_norm, scaled_dot_product_attention
from torch_bridge import tensors_on

import cunorm.torch

SAMPLES, TOKENS, N, HEADS, STEPS = 2, 6, 32, 4, 20


class Block(nn.Module):
    """One of DiT's: scales, shifts and gates of each sample around attention and an MLP."""

    fused = False

    def __init__(self):
        super().__init__()
        self.modulation = nn.Linear(N, 6 * N)
        self.qkv, self.projection = nn.Linear(N, 3 * N), nn.Linear(N, N)
        self.up, self.down = nn.Linear(N, 4 * N), nn.Linear(4 * N, N)

    def forward(self, x, condition):
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, -1)
        if self.fused:
            y = self.attend(cunorm.torch.layer_norm(x, scale=scale, shift=shift))
            y, x = cunorm.torch.add_layer_norm(y, x, gate=gate, scale=scale2, shift=shift2)
        else:
            y = self.attend(layer_norm(x, (N,)) * (1 + scale) + shift)
            x = x + gate * y
            y = layer_norm(x, (N,)) * (1 + scale2) + shift2
        return x + gate2 * self.down(gelu(self.up(y)))

    def attend(self, x):
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, N // HEADS)).permute(2, 0, 3, 1, 4)
        return self.projection(scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2))


def losses(block, put):
    """Return the losses of a few steps of AdamW on one batch."""
    draw = torch.Generator().manual_seed(1)
    x, target = (put(torch.randn(SAMPLES, TOKENS, N, generator=draw)) for _ in range(2))
    condition = put(torch.randn(SAMPLES, N, generator=draw))
    optimizer = torch.optim.AdamW(block.parameters(), lr=1e-2)
    found = []
    for _ in range(STEPS):
        loss = (block(x, condition) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(loss.item())
    return torch.tensor(found)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_block_with_fused_modulation_has_the_losses_of_the_one_written_out(device):
    torch.manual_seed(0)
    stock = Block()
    with tensors_on(device) as put:
        stock.to(put(torch.ones(1)).device if torch.cuda.is_available() else "cpu")
        fused = copy.deepcopy(stock)
        fused.fused = True
        expected = losses(stock, put)
        torch.testing.assert_close(losses(fused, put), expected, rtol=1e-4, atol=0)
    assert expected[-1] < expected[0] / 2
