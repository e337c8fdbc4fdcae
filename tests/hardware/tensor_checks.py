"""What real CUDA tensors show: streams, graphs, memory, the compiler and autograd of PyTorch's.

The test suite has these with stand-ins for CUDA tensors, or not at all. A dry run has those that
the stand-ins allow; the others are skipped where PyTorch has no CUDA.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch_bridge import tensors_on

from .kernel_checks import best_of
from .session import DRY, start_device

cupy = start_device()

import cunorm  # noqa: E402
import cunorm.torch  # noqa: E402

SLEEP = 200_000_000  # cycles, about a tenth of a second: more than a call takes on the host


def needs_cuda() -> None:
    """Skip where PyTorch has no CUDA."""
    if not torch.cuda.is_available():
        pytest.skip("no CUDA in this PyTorch")


def more_than_two_to_the_32_elements() -> str:
    """8.6 GB of bfloat16: rows by 64-bit offsets, compared with PyTorch on the device."""
    rows, cols, part = (2**20 + 3, 4096, 1 << 17) if not DRY else (67, 64, 32)
    with tensors_on("cuda") as put:
        x = put(torch.empty(1, dtype=torch.bfloat16)).new_empty((rows, cols))
        for start in range(0, rows, part):
            x[start : start + part].normal_()
        y = cunorm.rms_norm(x)
        middle = rows // 2
        for pick in (slice(0, 64), slice(middle - 32, middle + 32), slice(rows - 64, rows)):
            h = x[pick].double()
            wanted = h * (h.square().mean(-1, keepdim=True) + 1e-6).rsqrt()
            off = ((y[pick].double() - wanted).abs() / wanted.abs().clamp(min=1e-3)).max().item()
            if not off < 2**-7:
                raise AssertionError(f"rows {pick}: {off}")
    return f"{rows * cols:,} elements"


def autocast_on_cuda_changes_nothing() -> None:
    """The suite's test switches CUDA's autocast off where PyTorch has none; here it is on."""
    needs_cuda()
    x = torch.randn(3, 8, device="cuda", dtype=torch.bfloat16)
    gamma = torch.ones(8, device="cuda")
    y = cunorm.torch.rms_norm(x, gamma)
    with torch.autocast("cuda", dtype=torch.float16):
        again = cunorm.torch.rms_norm(x, gamma)
    if again.dtype != torch.bfloat16 or not torch.equal(y, again):
        raise AssertionError(str(again.dtype))


def tensors_on_a_side_stream_are_waited_for() -> str:
    """x is written late on PyTorch's side stream; the call is on that stream, and must see it."""
    needs_cuda()
    stream = torch.cuda.Stream()
    x = torch.zeros(64, 4096, device="cuda")
    gamma = torch.ones(4096, device="cuda")

    def call(value: float) -> list[torch.Tensor]:
        x.fill_(value)
        return [cunorm.rms_norm(x, gamma), cunorm.torch.rms_norm(x, gamma)]

    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        for _ in range(2):  # what a first call does takes longer than the sleep
            call(0.0)
        torch.cuda.synchronize()
        torch.cuda._sleep(SLEEP)
        results = call(3.0)
        enqueued = not stream.query()
    stream.synchronize()
    if not all((y - 1).abs().max() < 1e-3 for y in results):
        raise AssertionError("did not wait for the stream")
    if not enqueued:
        raise AssertionError("the host waited: the sleep was over when the calls returned")
    return "and the host did not wait"


def streams_of_both_libraries_wait_for_each_other() -> str:
    """The parameter is written late on the other library's stream than x's."""
    needs_cuda()
    mine, theirs = cupy.cuda.Stream(non_blocking=True), torch.cuda.Stream()
    means = []
    t, t_gamma = (torch.zeros(shape, device="cuda") for shape in ((64, 4096), (4096,)))
    c, c_gamma = (cupy.zeros(shape, "float32") for shape in ((64, 4096), (4096,)))
    slow = cupy.ones(1 << 28, "float32")
    for _ in range(2):  # at the second turn all is compiled
        torch.cuda.synchronize()
        with mine, torch.cuda.stream(theirs):
            for _ in range(20):
                slow += 1
            c_gamma.fill(2)
            t.fill_(1.0)
            y = cunorm.rms_norm(t, c_gamma)
            theirs.synchronize()
            means.append(float(y.mean()))
            torch.cuda._sleep(SLEEP)
            t_gamma.fill_(2.0)
            c.fill(1)
            y = cunorm.rms_norm(c, t_gamma)
            mine.synchronize()
            means.append(float(y.mean()))
        c_gamma.fill(0)
        t_gamma.zero_()
    if any(abs(mean - 2) > 1e-3 for mean in means):
        raise AssertionError(f"means are {means}, not 2")
    return "both ways"


def torch_cuda_graphs_replay_forward_and_backward() -> str:
    """A step under `torch.cuda.graph`, replayed on new data."""
    needs_cuda()
    x = torch.randn(256, 1024, device="cuda", dtype=torch.bfloat16)
    gamma = torch.ones(1024, device="cuda", dtype=torch.bfloat16, requires_grad=True)

    def step(weight: torch.Tensor) -> torch.Tensor:
        weight.grad = None
        y = cunorm.torch.rms_norm(x, weight)
        y.float().square().mean().backward()
        return y

    with torch.cuda.stream(torch.cuda.Stream()):
        for _ in range(3):
            step(gamma)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = step(gamma)
    gradient: Any = gamma.grad
    for seed in range(3):
        torch.manual_seed(seed)
        x.copy_(torch.randn_like(x))
        graph.replay()
        torch.cuda.synchronize()
        kept, kept_gradient = y.clone(), gradient.clone()
        fresh = gamma.detach().clone().requires_grad_()
        if not torch.equal(kept, step(fresh)):
            raise AssertionError("y of a replay differs")
        if not torch.equal(kept_gradient, fresh.grad):  # type: ignore[arg-type]
            raise AssertionError("gamma's gradient of a replay differs")
    return f"the graph's pool took {torch.cuda.memory_allocated() - before} bytes"


class Block(torch.nn.Module):
    """Linear layers around both kinds of calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = cunorm.torch.RMSNorm(256)
        self.first, self.second = torch.nn.Linear(256, 256), torch.nn.Linear(256, 256)
        self.gamma = torch.nn.Parameter(torch.ones(256))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum of two paths."""
        y, h = cunorm.torch.add_rms_norm(self.first(self.norm(x)), x, self.gamma)
        out: torch.Tensor = self.second(torch.nn.functional.silu(y)) + h
        return out


def torch_compile_by_inductor_on_cuda() -> str:
    """Triton's code around the ops, and CUDA graphs around all of it."""
    needs_cuda()
    torch.manual_seed(0)
    model = Block().cuda()
    x = torch.randn(32, 256, device="cuda")
    parameters = list(model.parameters())
    modes = (None, "reduce-overhead")
    for mode in modes:
        torch._dynamo.reset()
        compiled = torch.compile(model, fullgraph=True, mode=mode)
        for _ in range(3):
            found = torch.autograd.grad(compiled(x).square().mean(), parameters)
        wanted = torch.autograd.grad(model(x).square().mean(), parameters)
        torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-4)
        with torch.inference_mode():
            for _ in range(3):
                y = compiled(x)
            torch.testing.assert_close(y, model(x), rtol=1e-3, atol=1e-4)
    return ", ".join(map(str, modes))


def another_thread_runs_the_backward_pass() -> None:
    """Autograd's own, on the stream of the forward pass."""
    needs_cuda()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        x = torch.randn(512, 4096, device="cuda", requires_grad=True)
        gamma = torch.ones(4096, device="cuda", requires_grad=True)
        torch.cuda._sleep(SLEEP)
        y = cunorm.torch.layer_norm(x, gamma)
        ours = torch.autograd.grad(y.square().sum(), (x, gamma))
    side.synchronize()
    y = torch.nn.functional.layer_norm(x, (4096,), gamma)
    theirs = torch.autograd.grad(y.square().sum(), (x, gamma))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=2e-3)


def memory_of_a_call_is_pytorchs_and_is_given_back() -> str:
    """By both libraries' own counts."""
    needs_cuda()
    x = torch.randn(4096, 4096, device="cuda", dtype=torch.bfloat16)
    gamma = torch.ones(4096, device="cuda", dtype=torch.bfloat16)
    cunorm.rms_norm(x, gamma)
    torch.cuda.synchronize()
    pool = cupy.get_default_memory_pool()
    before, of_cupys = torch.cuda.memory_allocated(), pool.used_bytes()
    y = cunorm.rms_norm(x, gamma)
    grown = torch.cuda.memory_allocated() - before
    del y
    left = torch.cuda.memory_allocated() - before
    if (grown, left, pool.used_bytes()) != (x.nbytes, 0, of_cupys):
        raise AssertionError(f"grown by {grown}, of which {left} are left")
    return f"{grown} bytes"


def a_swapped_qwen2_trains() -> str:
    """Losses of ten steps, beside those of the stock model; bfloat16, and PyTorch's own atomics."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    layers, steps, width = (1, 1, 64) if DRY else (4, 10, 512)
    config = Qwen2Config(
        vocab_size=2 * width,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=4,
    )

    def losses(swap: bool, put: Callable[[torch.Tensor], torch.Tensor]) -> Any:
        torch.manual_seed(0)
        device = put(torch.empty(0)).device
        model = Qwen2ForCausalLM(config).to(device).bfloat16()
        if swap:
            done = cunorm.torch.replace_norms(model)
            assert len(done.swapped) == 2 * layers + 1, done
        random = torch.Generator().manual_seed(1)
        tokens = torch.randint(2 * width, (4, 8 if DRY else 128), generator=random).to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        seen = []
        for _ in range(steps):
            optimizer.zero_grad()
            loss = model(input_ids=tokens, labels=tokens).loss
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return np.array(seen)

    with tensors_on("cuda") as put:
        stock, ours = losses(False, put), losses(True, put)
    off = float(np.abs(ours / stock - 1).max())
    if not off < 0.02:
        raise AssertionError(f"{stock} {ours}")
    return f"losses of {steps} steps differ by {off:.1e} at most"


def what_a_host_call_on_tensors_costs() -> str:
    """Microseconds of enqueueing, with an empty queue, beside PyTorch's own."""
    shape = (3, 64) if DRY else (64, 4096)
    with tensors_on("cuda") as put:
        x, y = (put(torch.ones(shape, dtype=torch.float16)) for _ in range(2))
        gamma = put(torch.ones(shape[1], dtype=torch.float16))
        norm = torch.nn.functional.rms_norm
        return best_of(
            {
                "F.rms_norm": lambda: norm(x, shape[1:], gamma, 1e-6),
                "rms_norm(tensor, out=)": lambda: cunorm.rms_norm(x, gamma, out=y),
                "cunorm.torch.rms_norm_": lambda: cunorm.torch.rms_norm_(x, gamma),
                "cunorm.torch.rms_norm": lambda: cunorm.torch.rms_norm(x, gamma),
            }
        )


CHECKS: tuple[Callable[[], str | None], ...] = (
    tensors_on_a_side_stream_are_waited_for,
    streams_of_both_libraries_wait_for_each_other,
    torch_cuda_graphs_replay_forward_and_backward,
    torch_compile_by_inductor_on_cuda,
    autocast_on_cuda_changes_nothing,
    another_thread_runs_the_backward_pass,
    memory_of_a_call_is_pytorchs_and_is_given_back,
    a_swapped_qwen2_trains,
    what_a_host_call_on_tensors_costs,
    more_than_two_to_the_32_elements,
)
