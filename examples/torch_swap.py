"""Let the norms of a PyTorch model compute by cunorm, train it, and give them back."""

import torch

import cunorm.torch

torch.manual_seed(0)
device = "cuda" if torch.cuda.is_available() else "cpu"
model = torch.nn.Sequential(
    torch.nn.Linear(16, 64),
    torch.nn.RMSNorm(64),
    torch.nn.GELU(),
    torch.nn.Linear(64, 64),
    torch.nn.LayerNorm(64),
    torch.nn.Linear(64, 1),
).to(device)
x = torch.randn(128, 16, device=device)
target = x.sum(dim=1, keepdim=True)


def loss():
    """Return the mean squared error on the one batch there is."""
    return torch.nn.functional.mse_loss(model(x), target)


before = loss().item()
swapped = cunorm.torch.replace_norms(model)
print("swapped:", [name for name, *_ in swapped.swapped])
print("the same loss:", abs(loss().item() - before) < 1e-5)

optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
for _ in range(20):
    optimizer.zero_grad()
    loss().backward()
    optimizer.step()
print("a tenth of it after 20 steps:", loss().item() < before / 10)

swapped.undo()
print("as it was:", type(model[1]).__name__, type(model[4]).__name__)
