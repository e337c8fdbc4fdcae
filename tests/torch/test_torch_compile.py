"""What PyTorch's own checks of custom operators and its compiler say of `cunorm.torch`."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_bridge
from torch_norms import OPS, arguments, beside, call, every, operator

import cunorm.torch
from cunorm import _families

pytestmark = pytest.mark.slow("PyTorch's own checks, of each operator and each way to call it")

ROOT = Path(__file__).parents[2]


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    with torch_bridge.tensors_on(request.param) as put:
        yield put


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


@pytest.mark.parametrize("grad", [False, True])
@pytest.mark.parametrize("op", OPS)
def test_forward_operators_pass_opcheck(put, op, grad):
    tensors = arguments(op, (3, 8), "float32", put=put, grad=grad)
    torch.library.opcheck(getattr(torch.ops.cunorm, f"{op}_fwd"), (*tensors, *beside(f"{op}_fwd")))


@pytest.mark.parametrize("op", OPS)
def test_forward_operators_pass_opcheck_of_mixed_dtypes_strides_and_options(put, op):
    own = {"residual": "float32", "gamma": "float16"}
    tensors = arguments(op, (2, 3, 16), "bfloat16", put=put, grad=False, **own)
    packed = [t.transpose(0, 1) if t.ndim == 3 else t for t in tensors]
    given = [t.requires_grad_() for t in packed]
    options = beside(f"{op}_fwd", eps=1e-3, gamma_offset=1.0, cast="after")
    torch.library.opcheck(getattr(torch.ops.cunorm, f"{op}_fwd"), (*given, *options))


@pytest.mark.parametrize("op", OPS)
def test_forward_operators_pass_opcheck_without_parameters(put, op):
    without = dict.fromkeys(("gamma", "beta"))
    tensors = arguments(op, (3, 8), "float64", put=put, **without)
    torch.library.opcheck(getattr(torch.ops.cunorm, f"{op}_fwd"), (*tensors, *beside(f"{op}_fwd")))


@pytest.mark.parametrize("op", OPS)
def test_operators_in_place_pass_opcheck(put, op):
    tensors = arguments(op, (3, 8), "bfloat16", put=put, grad=False)
    torch.library.opcheck(
        getattr(torch.ops.cunorm, f"{op}_"), (*tensors, *beside(op, in_place=True))
    )


@pytest.mark.parametrize("sums", [False, True])
@pytest.mark.parametrize("left_out", [{}, {"gamma": None}])
@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_backward_operators_pass_opcheck(put, norm, left_out, sums):
    tensors = arguments(norm, (3, 8), "float32", put=put, grad=False, **left_out)
    x, gamma, *_ = tensors
    _, *statistics = operator(f"{norm}_fwd", tensors)
    given = dict(zip(_families.OPS[f"{norm}_fwd"].family.saves, statistics, strict=True))
    given |= {"dy": torch.ones_like(x), "x": x, "gamma": gamma, "sums": sums}
    for dresidual in (None, x):
        torch.library.opcheck(
            getattr(torch.ops.cunorm, f"{norm}_bwd"),
            tuple(every(f"{norm}_bwd", **given, dresidual=dresidual)),
        )


@pytest.mark.parametrize("shape", [(3, 8), (0, 8), (2, 0)])
@pytest.mark.parametrize("op", OPS)
def test_the_compiler_traces_forward_and_backward_in_one_graph(put, op, shape):
    tensors = arguments(op, shape, "float32", put=put)
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    compiled = torch.compile(lambda *t: call(op, t), fullgraph=True, backend=counted)
    outputs, expected = compiled(*tensors), call(op, tensors)
    assert len(graphs) == 1
    assert f"cunorm.{op}_fwd" in graphs[0].code
    assert all(map(torch.equal, outputs, expected))
    found, wanted = (
        torch.autograd.grad(sum(y.square().sum() for y in ys), tensors)
        for ys in (outputs, expected)
    )
    assert all(map(torch.equal, found, wanted))


def test_the_compiler_needs_one_graph_for_any_number_of_rows(put):
    graphs = []

    def counted(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.backends.debugging.aot_eager(graph, inputs)

    gamma = put(torch.ones(8, requires_grad=True))
    compiled = torch.compile(
        lambda x: cunorm.torch.rms_norm(x, gamma), fullgraph=True, dynamic=True, backend=counted
    )
    counts = set()
    for rows in (3, 4, 17):
        x = put(torch.randn(rows, 8))
        assert torch.equal(compiled(x), cunorm.torch.rms_norm(x, gamma))
        counts.add(len(graphs))
    assert len(counts) == 1


@pytest.mark.parametrize("op", OPS)
def test_the_compiler_keeps_what_is_written_in_place(put, op):
    tensors = arguments(op, (3, 8), "float32", put=put, grad=False)
    again = [t.clone() for t in tensors]
    compiled = torch.compile(lambda *t: call(f"{op}_", t), fullgraph=True, backend="aot_eager")
    results, expected = compiled(*tensors), call(f"{op}_", again)
    assert all(map(torch.equal, results, expected))
    assert all(map(torch.equal, tensors, again))


# In a process of its own: inductor looks into every module, and the software GPU's stand-ins for
# libraries of machine code refuse that. On the CPU, since PyTorch may have no CUDA.
MODEL = """
import torch, cunorm.torch

class Block(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.last = cunorm.torch.RMSNorm(16), cunorm.torch.LayerNorm(16)
        self.first, self.second = torch.nn.Linear(16, 16), torch.nn.Linear(16, 16)
        self.gamma, self.beta = (torch.nn.Parameter(torch.randn(16)) for _ in range(2))

    def forward(self, x):
        y, h = cunorm.torch.add_rms_norm(self.first(self.norm(x)), x, self.gamma)
        y = self.second(torch.nn.functional.silu(y))
        y, h = cunorm.torch.add_layer_norm(y, h, self.gamma, self.beta)
        return self.last(h) * y

torch.manual_seed(0)
model, x = Block(), torch.randn(4, 16)
compiled = torch.compile(model, fullgraph=True)
parameters = list(model.parameters())
found, expected = (
    torch.autograd.grad(call(x).square().mean(), parameters) for call in (compiled, model)
)
torch.testing.assert_close(found, expected)
with torch.inference_mode():
    torch.testing.assert_close(compiled(x), model(x))
print("equal")
"""


def test_inductor_compiles_a_block_around_the_ops_and_its_training():
    run = subprocess.run([sys.executable, "-c", MODEL], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "equal\n"
