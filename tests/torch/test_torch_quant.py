"""`cunorm.torch` with codes for results: PyTorch's own narrow dtypes, with the kernels' bits."""

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import random, to_numpy, to_torch

import cunorm.torch
from cunorm import Quant, _quant_reference
from cunorm._families import QUANTISED, Input
from cunorm.torch._operators import FIELDS

pytestmark = pytest.mark.slow("each op that quantises in each format, on each device")

QUANTS = {
    "fp8 static": Quant.fp8_static(0.02),
    "fp8 row": Quant.fp8_row(),
    "e5m2": Quant("e5m2", group=64),
    "int8 static": Quant.int8_static(0.02),
    "int8 row": Quant.int8_row(),
    "deepseek": Quant.deepseek(),
    "deepseek e8m0": Quant.deepseek(e8m0=True),
    "mxfp8": Quant.mxfp8(),
    "mxfp4": Quant.mxfp4(),
    "nvfp4": Quant.nvfp4(2.0),
}
each_quant = pytest.mark.parametrize("quant", QUANTS.values(), ids=QUANTS)
each_op = pytest.mark.parametrize("op", QUANTISED.values(), ids=QUANTISED)


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    with torch_bridge.tensors_on(request.param) as put:
        yield put


def arguments(op, *, put=lambda t: t, dtype="bfloat16", shape=(5, 256)):
    """Return an op's tensors by name, with a gate that differs by row where it takes one."""
    extents = dict.fromkeys(op.reads, shape) | dict.fromkeys(op.parameters, shape[-1:])
    extents |= dict.fromkeys(op.operands, (*shape[:-1], 1))
    return {
        name: put(to_torch(random(extent, dtype, seed=i)))
        for i, (name, extent) in enumerate(extents.items())
    }


def call(op, given, **options):
    return getattr(cunorm.torch, op.name)(**given, **options)


def raw(tensor):
    """Return the bytes of a tensor of any dtype and strides."""
    integers = {1: torch.uint8, 2: torch.int16, 4: torch.int32}[tensor.element_size()]
    return tensor.view(integers).contiguous().numpy().tobytes()


@each_quant
@each_op
def test_results_on_cuda_are_those_of_the_cupy_ops_in_pytorchs_dtypes(op, quant):
    with torch_bridge.tensors_on("cuda") as put:
        given = arguments(op, put=put)
        found = call(op, given, quant=quant)
    arrays = {name: cupy.asarray(to_numpy(tensor)) for name, tensor in given.items()}
    expected = getattr(cunorm, op.name)(**arrays, quant=quant)
    for one, other in zip(found, expected, strict=True):
        assert raw(one) == other.get().tobytes()
        steps = tuple(step // other.itemsize for step in other.strides)
        assert tuple(one.shape) == other.shape
        assert one.stride() == steps or one.numel() <= max(one.shape, default=1)
    names = {"e4m3": "float8_e4m3fn", "e5m2": "float8_e5m2", "e2m1": "float4_e2m1fn_x2"}
    assert str(found[0].dtype) == f"torch.{names.get(quant.format, quant.format)}"
    scales = {"float32": "float32", "e8m0": "float8_e8m0fnu", "e4m3": "float8_e4m3fn"}
    wanted = "int32" if quant.layout == "packed" else scales[quant.scale]
    assert str(found[1].dtype) == f"torch.{wanted}"


@each_quant
@each_op
def test_codes_on_the_cpu_are_the_definitions_of_the_norms_own_result(op, quant):
    given = arguments(op)
    q, scale, *rest = call(op, given, quant=quant)
    # Of the op of the same name that does not quantise.
    norms = {
        "rms_norm_quant": cunorm.torch.rms_norm,
        "layer_norm_quant": cunorm.torch.layer_norm,
        "add_rms_norm_quant": cunorm.torch.add_rms_norm,
        "add_layer_norm_quant": cunorm.torch.add_layer_norm,
    }
    made = norms[op.name](**given)
    y, *h = made if isinstance(made, tuple) else (made,)
    codes, scales = _quant_reference.quantize(to_numpy(y), quant)
    assert raw(q) == codes.tobytes()
    assert raw(scale) == np.ascontiguousarray(scales).tobytes()
    assert all(map(torch.equal, rest, h))
    for one, other in zip(cunorm.torch.quantize(y, quant), (q, scale), strict=True):
        assert raw(one) == raw(other)


@each_quant
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_numbers_of_codes_are_those_of_the_definition(put, quant, dtype):
    y = put(to_torch(random((5, 256), "float32")))
    q, scale = cunorm.torch.quantize(y, quant)
    back = cunorm.torch.dequantize(q, scale, quant, dtype)
    codes, scales = _quant_reference.quantize(to_numpy(y), quant)
    expected = _quant_reference.dequantize(codes, scales, quant, np.float32)
    assert back.dtype == dtype
    assert torch.equal(back, torch.from_numpy(expected).to(dtype))


@pytest.mark.parametrize("shape", [(0, 256), (3, 0), (2, 3, 128)])
@each_quant
def test_rows_of_any_shape_come_back(put, quant, shape):
    y = put(to_torch(random(shape, "float16")))
    q, scale = cunorm.torch.quantize(y, quant)
    back = cunorm.torch.dequantize(q, scale, quant, torch.float16)
    assert back.shape == y.shape


@each_quant
@each_op
def test_operators_pass_opcheck(put, op, quant):
    given = arguments(op, put=put, dtype="float32")
    y_out = given["x"].clone()
    fields = [getattr(quant, name) for name in FIELDS]
    values = []
    for argument in op.arguments:
        if isinstance(argument, Input):
            values.append(given[argument.name])
        else:
            values += fields if argument.name == "quant" else [argument.default]
    torch.library.opcheck(getattr(torch.ops.cunorm, op.name), tuple(values))
    torch.library.opcheck(getattr(torch.ops.cunorm, f"{op.name}_y_out"), (*values, y_out))


@pytest.mark.parametrize("place", ["apart", "strided", "x itself"])
@each_op
def test_y_is_written_where_it_is_asked_for_and_nowhere_else(put, op, place):
    quant = Quant.fp8_row()
    given = arguments(op, put=put)
    expected = call(op, given, quant=quant)
    y = getattr(cunorm.torch, op.name.removesuffix("_quant"))(**given)
    y = y[0] if isinstance(y, tuple) else y
    whole = put(torch.full((5, 2, 256), 7.0, dtype=torch.bfloat16))
    y_out = {"apart": torch.empty_like(y), "strided": whole[:, 1], "x itself": given["x"]}[place]
    version = y_out._version
    found = call(op, given, quant=quant, y_out=y_out)
    assert torch.equal(y_out, y)
    assert y_out._version > version
    assert (whole[:, 0] == 7).all()
    for one, other in zip(found, expected, strict=True):
        assert raw(one) == raw(other)


@pytest.mark.parametrize("place", ["apart", "x itself"])
@each_op
def test_the_compiler_keeps_y_that_is_written(put, op, place):
    torch._dynamo.reset()
    given, own = arguments(op, put=put), arguments(op, put=put)
    quant = Quant.int8_row()

    def function(given, y_out):
        q, scale, *rest = call(op, given, quant=quant, y_out=y_out)
        return q, scale, y_out + 1, *rest

    outs = [g["x"] if place == "x itself" else torch.zeros_like(g["x"]) for g in (given, own)]
    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(given, outs[0]), function(own, outs[1]), strict=True):
        assert raw(one) == raw(other)
    assert torch.equal(*outs)


@each_quant
def test_the_compiler_takes_codes_and_numbers_in_one_graph(put, quant):
    torch._dynamo.reset()
    x = put(to_torch(random((5, 256), "bfloat16")))

    def function(x):
        q, scale = cunorm.torch.rms_norm_quant(x, quant=quant)
        return q, scale, cunorm.torch.dequantize(q, scale, quant, torch.float32)

    compiled = torch.compile(function, fullgraph=True, backend="aot_eager")
    for one, other in zip(compiled(x), function(x), strict=True):
        assert (one.dtype, one.shape, one.stride()) == (other.dtype, other.shape, other.stride())
        assert raw(one) == raw(other)


@each_op
def test_a_gradient_is_refused_by_name(put, op):
    for name in arguments(op):
        given = arguments(op, put=put)
        given[name].requires_grad_()
        with pytest.raises(
            RuntimeError, match=f"^{name} must not require a gradient, which {op.name} has none of"
        ):
            call(op, given, quant=Quant.fp8_row())
        with torch.no_grad():
            call(op, given, quant=Quant.fp8_row())


WRONG = [
    {"quant": "fp8"},
    {"quant": Quant.mxfp8(), "x": torch.ones(2, 40)},
    {"quant": Quant.mxfp4(), "x": torch.ones(2, 12)},
    {"quant": Quant.fp8_row(), "x": torch.ones(2, 8, dtype=torch.float64)},
    {"quant": Quant.fp8_row(), "gamma": torch.ones(2, 8), "x": torch.ones(3, 2, 8)},
    {"quant": Quant.fp8_row(), "eps": -1.0},
]


@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(wrong))
def test_errors_are_those_of_the_cupy_ops(wrong):
    given = {"x": torch.ones(2, 8)} | wrong

    def raised(function, arguments):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**arguments)
        return error.type, str(error.value)

    arrays = {
        name: cupy.asarray(to_numpy(a)) if isinstance(a, torch.Tensor) else a
        for name, a in given.items()
    }
    expected = raised(cunorm.rms_norm_quant, arrays)
    assert raised(cunorm.torch.rms_norm_quant, given) == expected


WRONG_Y_OUTS = {
    "y_out must be a torch.Tensor, but is a int": lambda x, packed: 3,
    "y_out must have the dtype of x, float32, but has float16": lambda x, packed: x.half(),
    r"y_out must have the shape of x, \(2, 8\), but has \(1, 8\)": lambda x, packed: x[:1],
    "y_out must not overlap itself": lambda x, packed: packed[:1].expand(2, 8),
    "y_out must be x itself or not overlap it": lambda x, packed: packed[1:3],
    "y_out must not overlap gamma": lambda x, packed: packed[2:4],
}


@pytest.mark.parametrize("message", WRONG_Y_OUTS)
def test_memory_that_y_cannot_be_written_to_is_refused(put, message):
    packed = put(torch.arange(32.0).reshape(4, 8))
    x, gamma = packed[:2], packed[3]
    y_out = WRONG_Y_OUTS[message](x, packed)
    with pytest.raises((TypeError, ValueError), match=f"^{message}"):
        cunorm.torch.rms_norm_quant(x, gamma, quant=Quant.fp8_row(), y_out=y_out)
    assert torch.equal(packed, torch.arange(32.0).reshape(4, 8))


def test_a_sparse_tensor_is_refused_for_y():
    x = torch.ones(2, 8)
    with pytest.raises(TypeError, match=r"^y_out must be a strided tensor, but has layout "):
        cunorm.torch.rms_norm_quant(x, quant=Quant.fp8_row(), y_out=x.to_sparse())


@pytest.mark.parametrize("wrong", [torch.ones(2, 8, dtype=torch.float16), torch.ones(3, 8)])
def test_the_compiler_refuses_y_out_as_the_op_does(wrong):
    torch._dynamo.reset()
    given = {"x": torch.ones(2, 8), "quant": Quant.fp8_row(), "y_out": wrong}
    with pytest.raises((TypeError, ValueError)) as eager:
        cunorm.torch.rms_norm_quant(**given)
    compiled = torch.compile(cunorm.torch.rms_norm_quant, fullgraph=True, backend="aot_eager")
    with pytest.raises(Exception, match="y_out must have the ") as compiling:
        compiled(**given)
    assert str(eager.value) in str(compiling.value)


def test_a_gradient_of_y_out_is_refused_by_name():
    x, y_out = torch.ones(2, 8), torch.ones(2, 8, requires_grad=True)
    with pytest.raises(RuntimeError, match=r"^y_out must not require a gradient"):
        cunorm.torch.rms_norm_quant(x, quant=Quant.fp8_row(), y_out=y_out)


def test_codes_of_another_scheme_are_refused():
    quant = Quant.fp8_row()
    q, scale = cunorm.torch.quantize(torch.ones(2, 32), quant)
    for wrong, message in {
        "q": "q must be torch.float8_e4m3fn with this quant, but is torch.uint8",
        "scale": "scale must be torch.float32 with this quant, but is torch.int32",
    }.items():
        given = {"q": q, "scale": scale}
        given[wrong] = given[wrong].view(torch.uint8 if wrong == "q" else torch.int32)
        with pytest.raises(TypeError, match=f"^{message}$"):
            cunorm.torch.dequantize(**given, quant=quant, dtype=torch.float32)
    with pytest.raises(ValueError, match=r"^scale must have shape "):
        cunorm.torch.dequantize(q, scale[:1], quant, torch.float32)
    with pytest.raises(TypeError, match=r"^dtype must be "):
        cunorm.torch.dequantize(q, scale, quant, torch.int8)


def test_codes_and_scales_are_what_pytorchs_product_takes():
    # On the CPU PyTorch multiplies float8 with one scale each; scales a row need a GPU.
    quant = Quant.fp8_static(0.05)
    x, w = (to_torch(random((16, 32), "float32", seed=i)) for i in (1, 2))
    (q, s), (p, t) = cunorm.torch.rms_norm_quant(x, quant=quant), cunorm.torch.quantize(w, quant)
    y = torch._scaled_mm(q, p.t(), scale_a=s, scale_b=t, out_dtype=torch.float32)
    expected = (q.float() * s) @ (p.float() * t).t()
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-5)
