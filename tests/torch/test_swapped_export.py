"""While a model is exported, a swapped norm is its original: the graph needs no cunorm."""

import io
import subprocess
import sys

import numpy as np
import onnx.reference
import pytest
import torch
from arrays import random, to_torch
from kinds import some_of
from norm_modules import Block, Renamed, same_bits
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm

import cunorm.torch
from cunorm.torch import replace_norms

# What PyTorch's exporters say of themselves.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
CLASSES = [Qwen2RMSNorm, GemmaRMSNorm, torch.nn.LayerNorm, torch.nn.RMSNorm, Renamed]
X = to_torch(random((4, 8), "float32"))


def model(cls):
    layers = torch.nn.Sequential(torch.nn.Linear(8, 8), cls(8))
    for parameter in layers.parameters():
        parameter.data.add_(0.25)
    return layers.eval()


def operators(program):
    """Return what the graph of an exported program calls, by name."""
    return [str(node.target) for node in program.graph.nodes if node.op == "call_function"]


@some_of(
    [(Qwen2RMSNorm, True), (torch.nn.LayerNorm, False)],
    "three exports each, of classes that are swapped alike",
    cls=CLASSES,
    strict=[False, True],
)
def test_torch_export_takes_the_original_with_and_without_decompositions(cls, strict):
    stock = model(cls)
    y = stock(X)
    expected = torch.export.export(stock, (X,), strict=strict)
    replace_norms(stock)
    program = torch.export.export(stock, (X,), strict=strict)
    for ours, theirs in (
        (program, expected),
        (program.run_decompositions(), expected.run_decompositions()),
        (program.run_decompositions({}), expected.run_decompositions({})),
    ):
        assert operators(ours) == operators(theirs)
        assert same_bits(ours.module()(X), theirs.module()(X))
    assert same_bits(program.module()(X), y)


@pytest.mark.parametrize("cls", CLASSES)
def test_a_symbolic_trace_is_of_the_original(cls):
    swapped = model(cls)
    y = swapped(X)
    replace_norms(swapped)
    assert same_bits(torch.fx.symbolic_trace(swapped)(X), y)


def test_after_an_export_a_swapped_norm_is_cunorms_again():
    swapped = model(Qwen2RMSNorm)
    replace_norms(swapped)
    expected = swapped(X)
    torch.export.export(swapped, (X,))
    torch.jit.trace(swapped, (X,))
    assert "rms_norm_fwd" in str(swapped(X).grad_fn.next_functions) + str(swapped(X).grad_fn)
    assert same_bits(swapped(X), expected)


def test_a_compiled_model_calls_the_op_and_not_the_original():
    swapped = model(Qwen2RMSNorm)
    replace_norms(swapped)
    torch.export.export(swapped, (X,), strict=True)
    graphs = []
    torch._dynamo.reset()
    torch.compile(swapped, backend=lambda graph, _: graphs.append(graph) or graph)(X)
    assert "cunorm.rms_norm_fwd" in graphs[0].code


@some_of(
    [(GemmaRMSNorm,), (torch.nn.LayerNorm,)],
    "an export each, of classes that are swapped alike",
    cls=CLASSES,
)
def test_onnx_by_torch_export_computes_what_the_model_does(cls):
    swapped = model(cls)
    expected = swapped(X).detach().numpy()
    replace_norms(swapped)
    rows = ({0: torch.export.Dim("rows")},)
    program = torch.onnx.export(swapped, (X,), dynamo=True, verbose=False, dynamic_shapes=rows)
    (y,) = computed(program.model_proto, X.numpy())
    # A sum of eight products and a norm of eight numbers, in another order.
    np.testing.assert_allclose(y, expected, rtol=32 * 2.0**-24, atol=32 * 2.0**-24)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("cls", [c for c in CLASSES if c is not torch.nn.RMSNorm])
def test_onnx_by_torchscript_computes_what_the_model_does(cls):
    """But for torch.nn.RMSNorm, which that exporter does not know as it is."""
    swapped = model(cls)
    expected = swapped(X).detach().numpy()
    replace_norms(swapped)
    file = io.BytesIO()
    torch.onnx.export(swapped, (X,), file, dynamo=False)
    (y,) = computed(onnx.load_from_string(file.getvalue()), X.numpy())
    np.testing.assert_allclose(y, expected, rtol=32 * 2.0**-24, atol=32 * 2.0**-24)


def computed(proto, x):
    onnx.checker.check_model(proto)
    assert {operator.domain for operator in proto.opset_import} <= {"", "pkg.onnxscript.torch_lib"}
    return onnx.reference.ReferenceEvaluator(proto).run(None, {proto.graph.input[0].name: x})


@pytest.mark.parametrize("save", ["trace", "export"])
def test_what_was_exported_is_loaded_where_there_is_no_cunorm(save, tmp_path):
    swapped = Block()
    replace_norms(swapped)
    file = str(tmp_path / "model")
    if save == "trace":
        torch.jit.save(torch.jit.trace(swapped, (X,)), file)
        load = "torch.jit.load(file)"
    else:
        torch.export.save(torch.export.export(swapped, (X,)).run_decompositions(), file)
        load = "torch.export.load(file).module()"
    torch.save(X, tmp_path / "x")
    code = (
        f"import sys, torch\nfile, x = {file!r}, torch.load({str(tmp_path / 'x')!r})\n"
        f"torch.save({load}(x), {str(tmp_path / 'y')!r})\nassert 'cunorm' not in sys.modules"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    y = swapped(X)
    assert (torch.load(tmp_path / "y") - y).norm() <= 64 * 2.0**-24 * y.norm()


# Of a model that was written with cunorm.torch there is no original.


class Written(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = cunorm.torch.RMSNorm(8), cunorm.torch.LayerNorm(8)

    def forward(self, x):
        y, _ = cunorm.torch.add_rms_norm(self.first(x), x, self.first.weight)
        return self.last(y)


@pytest.mark.filterwarnings("ignore:The given buffer is not writable")  # of PyTorch 2.11's load
def test_exports_keep_the_operators_of_modules_and_functions():
    written = Written()
    program = torch.export.export(written, (X,)).run_decompositions()
    called = [name for name in operators(program) if name.startswith("cunorm.")]
    assert called == [
        f"cunorm.{op}_fwd.default" for op in ("rms_norm", "add_rms_norm", "layer_norm")
    ]
    file = io.BytesIO()
    torch.export.save(program, file)
    file.seek(0)
    assert same_bits(torch.export.load(file).module()(X), written(X))
    file = io.BytesIO()
    torch.jit.save(torch.jit.trace(written, (X,)), file)
    file.seek(0)
    assert same_bits(torch.jit.load(file)(X), written(X))


@pytest.mark.parametrize("dynamo", [False, True])
def test_onnx_refuses_operators_of_cunorms_by_name(dynamo):
    from torch.onnx.errors import OnnxExporterError

    file = io.BytesIO()
    with pytest.raises((OnnxExporterError, RuntimeError), match="cunorm") as error:
        torch.onnx.export(Written().eval(), (X,), file, dynamo=dynamo, verbose=False)
    assert "rms_norm_fwd" in str(error.value)
