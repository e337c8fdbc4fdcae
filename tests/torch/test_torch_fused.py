"""`cunorm.torch` with what is fused around a norm: operands, gates, the residual's other side."""

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import EVERY, bits, random, to_numpy, to_torch
from torch_norms import as_tuple, every

import cunorm.torch
from cunorm import _reference
from cunorm._families import CAST, DTYPE, OPS, PLAIN, Operand
from cunorm.torch import _statistics

pytestmark = pytest.mark.slow(
    "each op with each operand and each option, on each device", shares=30
)

# Of each op the arguments beside tensors of rows and of one row, as (name, shape of an operand)
# pairs: by column, by sample, by token, one number a row, all of x's.
SHAPE = (2, 3, 8)
OPERANDS = {
    "by column": {"scale": (8,), "shift": (8,), "gate": (8,)},
    "by sample": {"scale": (2, 1, 8), "shift": (2, 1, 8), "gate": (2, 1, 1)},
    "by token": {"scale": (3, 8), "shift": (2, 3, 1), "gate": SHAPE},
    "one": {"scale": (), "shift": (1,), "gate": ()},
}
# Each activation both ways, in groups and not.
GATED = [
    {"activation": "silu", "gate_first": False, "group": None},
    {"activation": "silu", "gate_first": True, "group": 4},
    {"activation": "sigmoid", "gate_first": False, "group": 4},
    {"activation": "sigmoid", "gate_first": True, "group": None},
    {"activation": None, "gate_first": False, "group": 4},
    {"activation": None, "gate_first": True, "group": None},
]


def operands_of(op):
    return [a.name for a in op.of_tensors if isinstance(a, Operand)]


def cases():
    """Yield each op with its operands and options, and how a test calls that."""
    for op in PLAIN:
        if operands_of(op):
            for words, shapes in OPERANDS.items():
                yield pytest.param(op, shapes, {}, id=f"{op.name} {words}")
        elif "gate" in op.reads:
            for options in GATED:
                words = " ".join(f"{k}={v}" for k, v in options.items())
                yield pytest.param(op, {}, options, id=f"{op.name} {words}")
        else:
            yield pytest.param(op, {}, {}, id=op.name)


each_case = pytest.mark.parametrize(("op", "shapes", "options"), list(cases()))


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    with torch_bridge.tensors_on(request.param) as put:
        yield put


@pytest.fixture(params=["cpu", "cuda"])
def gradcheck(request):
    """PyTorch's check of gradients: of every number on the CPU, of a few sums by the kernels."""
    with torch_bridge.tensors_on(request.param) as put:

        def check(function, tensors):
            there = tuple(put(tensor) for tensor in tensors)
            return torch.autograd.gradcheck(function, there, fast_mode=request.param == "cuda")

        yield check


def arguments(op, shapes, dtype, *, put=lambda t: t, grad=True, shape=SHAPE, **dtypes):
    """Return an op's tensors by name: rows, parameters, and operands of the shapes given."""
    extents = dict.fromkeys(op.reads, shape) | dict.fromkeys(op.parameters, shape[-1:])
    extents |= {name: shapes[name] for name in operands_of(op) if name in shapes}
    made = {}
    for i, (name, extent) in enumerate(extents.items()):
        array = np.asarray(random(extent, dtypes.get(name, dtype), seed=i))
        made[name] = put(to_torch(array).requires_grad_(grad))
    return made


def call(op, given, **options):
    return as_tuple(getattr(cunorm.torch, op.name)(**given, **options))


@each_case
def test_gradients_are_those_of_finite_differences(gradcheck, op, shapes, options):
    given = arguments(op, shapes, "float64")

    def function(*tensors):
        return call(op, dict(zip(given, tensors, strict=True)), **options)

    assert gradcheck(function, tuple(given.values()))


@pytest.mark.parametrize(
    "op", [op for op in PLAIN if "beta" in op.parameters], ids=lambda o: o.name
)
@pytest.mark.parametrize("left_out", [("gamma",), ("beta",), ("gamma", "beta")])
def test_gradients_without_parameters_are_those_of_finite_differences(gradcheck, op, left_out):
    given = arguments(op, OPERANDS["by sample"], "float64")
    given = {name: tensor for name, tensor in given.items() if name not in left_out}

    def function(*tensors):
        return call(op, dict(zip(given, tensors, strict=True)))

    assert gradcheck(function, tuple(given.values()))


@pytest.mark.parametrize("op", ["layer_norm", "add_layer_norm", "layer_norm_add"])
def test_beta_without_gamma_says_which_axes_a_scaled_norm_has(gradcheck, op):
    given = {"x": (2, 3, 4), "residual": (2, 3, 4), "beta": (3, 4), "scale": (2, 1, 4)}
    given |= {"gate": (3, 1)}
    names = {a.name for a in OPS[op].of_tensors}
    tensors = {
        name: to_torch(random(shape, "float64", seed=i)).requires_grad_()
        for i, (name, shape) in enumerate(given.items())
        if name in names
    }

    def function(*values):
        return call(OPS[op], dict(zip(tensors, values, strict=True)))

    assert gradcheck(function, tuple(tensors.values()))


def on_device(tensor):
    return cupy.asarray(to_numpy(tensor.detach())) if isinstance(tensor, torch.Tensor) else tensor


MIXES = [
    ("bfloat16", {}),
    ("bfloat16", {"gamma": "float32", "beta": "float32", "scale": "float32", "gate": "float32"}),
    ("float16", {"residual": "float32", "shift": "bfloat16", "gamma2": "float32"}),
    ("float32", {"residual": "bfloat16", "scale": "float16", "gate": "bfloat16"}),
]


@pytest.mark.parametrize(("dtype", "dtypes"), MIXES)
@each_case
def test_results_and_gradients_on_cuda_are_those_of_the_cupy_ops(
    op, shapes, options, dtype, dtypes
):
    with torch_bridge.tensors_on("cuda") as put:
        given = arguments(op, shapes, dtype, put=put, grad=False, **dtypes)
        found = call(op, given, **options)
    expected = getattr(cunorm, op.name)(
        **{name: on_device(tensor) for name, tensor in given.items()}, **options
    )
    for one, other in zip(found, as_tuple(expected), strict=True):
        assert str(one.dtype).endswith(other.dtype.name)
        assert bits(to_numpy(one)) == bits(other)


def kernels(monkeypatch, op, given, options):
    """Return what the CuPy op returns, and let the CPU have its statistics from now on."""
    fwd = OPS[f"{op.name}_fwd"]
    arrays = {name: on_device(tensor) for name, tensor in given.items()}
    results = dict(zip(fwd.returns, getattr(cunorm, fwd.name)(**arrays, **options), strict=True))
    kept = [torch.from_numpy(results[name].get()).unsqueeze(-1) for name in op.family.saves]
    if "mean" in op.family.saves:
        mean, rstd = kept
        own = _statistics.Moments(mean, rstd, torch.zeros_like(mean))
        monkeypatch.setattr(_statistics.Moments, "of", lambda *_: own)
    else:
        monkeypatch.setattr(
            _statistics.MeanSquare, "of", lambda *_: _statistics.MeanSquare(kept.pop(0))
        )
    return [results[name].get() for name in op.returns]


COLS = 1024


def exact_cases():
    """Yield the cases without an activation, which the kernels and PyTorch have to 2 ulp each."""
    for case in cases():
        op, shapes, options = case.values
        if options.get("activation") is None:
            casts = ("before", "after") if CAST in op.options else (None,)
            for cast in casts:
                own = options if cast is None else options | {"cast": cast}
                yield pytest.param(op, shapes, own, id=f"{case.id} {cast or ''}".strip())


@pytest.mark.parametrize(("dtype", "dtypes"), MIXES)
@pytest.mark.parametrize(("op", "shapes", "options"), list(exact_cases()))
def test_results_on_the_cpu_have_the_kernels_bits_given_their_statistics(
    monkeypatch, op, shapes, options, dtype, dtypes
):
    if options.get("group") is not None:
        options = options | {"group": COLS // 2}
    wide = {name: (*shape[:-1], COLS) for name, shape in shapes.items() if shape[-1:] == (8,)}
    given = arguments(op, shapes | wide, dtype, grad=False, shape=(2, 3, COLS), **dtypes)
    # Sums of whole numbers are exact in any order, and so are means of 1024 of them.
    for name in {*op.reads, "gate"} & given.keys():
        given[name] = (given[name] * 2).round()
    expected = kernels(monkeypatch, op, given, options)
    found = call(op, given, **options)
    for one, other in zip(found, expected, strict=True):
        assert bits(to_numpy(one)) == bits(other)


def accepted(op, given, options, found):
    """Return whether results are within tolerance of the definition."""
    arrays = {name: to_numpy(tensor.detach()) for name, tensor in given.items()}
    expected = as_tuple(getattr(_reference, op.name)(**arrays, **options))
    return all(
        other.accepts(to_numpy(one.detach())).all()
        for one, other in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("dtype", EVERY)
@each_case
def test_results_are_within_tolerance_of_the_definition(put, op, shapes, options, dtype):
    given = arguments(op, shapes, dtype, put=put, grad=False)
    assert accepted(op, given, options, call(op, given, **options))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize(
    "op", [op for op in PLAIN if DTYPE in op.arguments], ids=lambda op: op.name
)
def test_y_has_the_dtype_that_is_asked_for(put, op, dtype):
    given = arguments(op, OPERANDS["by sample"], "bfloat16", put=put)
    found = call(op, given, dtype=dtype)
    assert found[0].dtype == dtype
    plain = call(op, given)
    if dtype != torch.float16:
        assert (found[0].to(torch.bfloat16) == plain[0]).all()
    gradients = torch.autograd.grad(found[0].sum(), list(given.values()))
    assert [g.dtype for g in gradients] == [torch.bfloat16] * len(given)


NUMBERS = {"gate": 0.3, "scale": 0.7, "shift": -0.1, "scale_offset": 0.4}


@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_number_is_an_operand_as_it_is_to_the_cupy_ops(cast):
    op = OPS["add_rms_norm"]
    with torch_bridge.tensors_on("cuda") as put:
        given = arguments(op, {}, "bfloat16", put=put, grad=False)
        found = call(op, given, **NUMBERS, cast=cast)
    arrays = {name: on_device(tensor) for name, tensor in given.items()}
    expected = cunorm.add_rms_norm(**arrays, **NUMBERS, cast=cast)
    for one, other in zip(found, expected, strict=True):
        assert bits(to_numpy(one)) == bits(other)


@pytest.mark.parametrize("cast", ["before", "after"])
def test_a_number_is_an_operand_on_the_cpu(cast):
    op, numbers = OPS["add_rms_norm"], NUMBERS | {"cast": cast}
    given = arguments(op, {}, "bfloat16", grad=False)
    found = call(op, given, **numbers)
    assert accepted(op, *_as_arrays(given, numbers), found)


def _as_arrays(given, numbers):
    """Return numbers as the tensors that they stand for, as the CuPy ops have it."""
    wide = torch.float32 if numbers["cast"] == "after" else torch.bfloat16
    made = {
        "gate": torch.tensor(numbers["gate"], dtype=torch.bfloat16),
        "scale": torch.tensor(numbers["scale"] + numbers["scale_offset"], dtype=wide),
        "shift": torch.tensor(numbers["shift"], dtype=wide),
    }
    return given | made, {"scale_offset": 0.0, "cast": numbers["cast"]}


@pytest.mark.parametrize("wanted", ["x", "residual", "gamma", "gate", "scale", "shift"])
def test_a_gradient_is_made_where_it_is_wanted_alone(put, wanted):
    given = arguments(OPS["add_rms_norm"], OPERANDS["by sample"], "float32", put=put)
    whole = call(OPS["add_rms_norm"], given)
    expected = torch.autograd.grad(sum(y.square().sum() for y in whole), given[wanted])
    frozen = {name: t.detach() for name, t in given.items()}
    frozen[wanted] = given[wanted]
    alone = call(OPS["add_rms_norm"], frozen)
    found = torch.autograd.grad(sum(y.square().sum() for y in alone), given[wanted])
    assert torch.equal(found[0], expected[0])


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_ten_runs_have_the_same_bits(op):
    with torch_bridge.tensors_on("cuda") as put:
        shapes = OPERANDS["by sample"]
        given = arguments(op, shapes, "bfloat16", put=put, shape=(5, 3, 8) if not shapes else SHAPE)
        runs = []
        for _ in range(10):
            results = call(op, given)
            grads = torch.autograd.grad(sum(y.float().sum() for y in results), given.values())
            runs.append([bits(to_numpy(t.detach())) for t in (*results, *grads)])
    assert all(run == runs[0] for run in runs)


@each_case
def test_in_place_writes_what_the_op_returns(put, op, shapes, options):
    given = arguments(op, shapes, "bfloat16", put=put, grad=False)
    expected = call(op, given, **options)
    results = as_tuple(getattr(cunorm.torch, f"{op.name}_")(**given, **options))
    written = [given[output.like] for output in op.writes]
    assert all(one is other for one, other in zip(results, written, strict=True))
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_in_place_refuses_each_gradient(op):
    for name in arguments(op, OPERANDS["by sample"], "float32"):
        given = arguments(op, OPERANDS["by sample"], "float32", grad=False)
        given[name].requires_grad_()
        with pytest.raises(
            RuntimeError, match=f"^{name} must not require a gradient, which {op.name}_"
        ):
            getattr(cunorm.torch, f"{op.name}_")(**given)


WRONG = [
    ("rms_norm", {"scale": torch.ones(3, 8)}),
    ("rms_norm", {"scale": torch.ones(8, dtype=torch.float64)}),
    ("rms_norm", {"shift": torch.ones(2, 2, 8)}),
    ("rms_norm", {"scale": torch.ones(8), "scale_offset": float("inf")}),
    ("rms_norm", {"scale_offset": "1"}),
    ("add_rms_norm", {"gate": torch.ones(9)}),
    ("rms_norm_gated", {"gate": torch.ones(2, 4)}),
    ("rms_norm_gated", {"gate": torch.ones(2, 8, dtype=torch.float64)}),
    ("rms_norm_gated", {"activation": "relu"}),
    ("rms_norm_gated", {"activation": 1}),
    ("rms_norm_gated", {"group": 3}),
    ("rms_norm_gated", {"group": True}),
    ("rms_norm_gated", {"group": 2.0}),
    ("layer_norm_gated", {"group": 4, "beta": torch.ones(2, 8)}),
    ("rms_norm_add", {"residual": torch.ones(8)}),
    ("rms_norm_add_rms_norm", {"eps2": -1.0}),
    ("rms_norm_add_rms_norm", {"eps2": "small"}),
    ("rms_norm_add_rms_norm", {"gamma": torch.ones(8), "gamma_offset": 1.0}),
]


@pytest.mark.parametrize("suffix", ["", "_"])
@pytest.mark.parametrize(("op", "wrong"), WRONG)
def test_errors_are_those_of_the_cupy_ops(op, wrong, suffix):
    given = dict.fromkeys(OPS[op].reads, torch.ones(2, 8)) | wrong
    given = {n: t.clone() if isinstance(t, torch.Tensor) else t for n, t in given.items()}

    def raised(function, arguments):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**arguments)
        return error.type, str(error.value)

    expected = raised(getattr(cunorm, op), {name: on_device(a) for name, a in given.items()})
    assert raised(getattr(cunorm.torch, f"{op}{suffix}"), given) == expected


@pytest.mark.parametrize("dtype", ["float32", torch.int8, torch.float8_e4m3fn, 32])
def test_another_dtype_is_refused(dtype):
    with pytest.raises(TypeError, match=r"^dtype must be "):
        cunorm.torch.rms_norm(torch.ones(2, 8), dtype=dtype)


def test_what_is_neither_a_tensor_nor_a_number_is_named():
    x = torch.ones(2, 8)
    for name in ("scale", "shift", "gate"):
        with pytest.raises(
            TypeError, match=rf"^{name} must be a torch\.Tensor or a number, but is a"
        ):
            cunorm.torch.add_rms_norm(x, x, **{name: x.numpy()})


@each_case
def test_operators_pass_opcheck(put, op, shapes, options):
    given = arguments(op, shapes, "float32", put=put)
    fwd = f"{op.name}_fwd"
    torch.library.opcheck(getattr(torch.ops.cunorm, fwd), tuple(every(fwd, **given, **options)))
    plain = {name: tensor.detach() for name, tensor in given.items()}
    torch.library.opcheck(
        getattr(torch.ops.cunorm, f"{op.name}_"),
        tuple(every(op.name, in_place=True, **plain, **options)),
    )


@pytest.mark.parametrize("op", [op for op in OPS.values() if op.is_backward], ids=lambda o: o.name)
@pytest.mark.parametrize("operands", [(), ("scale",), ("shift",), ("scale", "shift")])
@pytest.mark.parametrize("sums", [False, True])
def test_backward_operators_pass_opcheck(put, op, operands, sums):
    if operands and not op.operands:
        return
    shapes = dict.fromkeys((*op.reads, "dresidual"), (3, 8)) | dict.fromkeys(op.family.saves, (3,))
    shapes |= dict.fromkeys((*op.parameters, "beta"), (8,)) | dict.fromkeys(operands, (3, 1))
    shapes |= {"gate": (3, 1)} if "gate" in op.operands else {}
    given = {
        name: put(to_torch(random(shape, "float32", seed=i)))
        for i, (name, shape) in enumerate(shapes.items())
    }
    arguments = every(op.name, **given, sums=sums)
    torch.library.opcheck(getattr(torch.ops.cunorm, op.name), tuple(arguments))


@each_case
def test_the_compiler_traces_forward_and_backward_in_one_graph(put, op, shapes, options):
    torch._dynamo.reset()
    given = arguments(op, shapes, "float32", put=put)
    function = torch.compile(
        lambda given: call(op, given, **options), fullgraph=True, backend="aot_eager"
    )
    outputs, expected = function(given), call(op, given, **options)
    assert all(map(torch.equal, outputs, expected))
    found, wanted = (
        torch.autograd.grad(sum(y.square().sum() for y in ys), given.values())
        for ys in (outputs, expected)
    )
    assert all(map(torch.equal, found, wanted))


def test_the_compiler_takes_numbers_for_operands():
    torch._dynamo.reset()
    x = to_torch(random((3, 8), "float32"))
    numbers = {"gate": 0.5, "scale": 2.0, "shift": 1.0, "scale_offset": 0.0}
    function = torch.compile(
        lambda x: cunorm.torch.add_rms_norm(x, x, **numbers), fullgraph=True, backend="aot_eager"
    )
    assert all(map(torch.equal, function(x), cunorm.torch.add_rms_norm(x, x, **numbers)))


WITH_INPUT = {"rms_norm": cunorm.torch.rms_norm, "layer_norm": cunorm.torch.layer_norm}


@pytest.mark.parametrize("norm", WITH_INPUT)
def test_an_input_that_goes_on_adds_its_gradient_to_the_norms(gradcheck, norm):
    given = arguments(OPS[norm], OPERANDS["by sample"], "float64")
    function = getattr(cunorm.torch, f"{norm}_with_input")
    assert gradcheck(
        lambda *tensors: function(**dict(zip(given, tensors, strict=True))), tuple(given.values())
    )


@pytest.mark.parametrize("norm", WITH_INPUT)
def test_an_input_that_goes_on_is_a_view_of_x_and_its_gradient_part_of_one_kernel(put, norm):
    given = arguments(OPS[norm], {}, "bfloat16", put=put)
    y, again = getattr(cunorm.torch, f"{norm}_with_input")(**given)
    assert again.data_ptr() == given["x"].data_ptr()
    assert torch.equal(y, WITH_INPUT[norm](**given))
    dy, dx = (put(to_torch(random(SHAPE, "bfloat16", seed=i))) for i in (8, 9))
    found = torch.autograd.grad((y, again), given.values(), (dy, dx))
    # What the kernel makes of both, which it rounds once.
    fwd = OPS[f"{norm}_fwd"]
    detached = {name: tensor.detach() for name, tensor in given.items()}
    made = getattr(torch.ops.cunorm, fwd.name)(*every(fwd.name, **detached))
    kept = dict(zip(fwd.returns, made, strict=True))
    both = every(f"{norm}_bwd", **detached | kept, dy=dy, dresidual=dx)
    expected = getattr(torch.ops.cunorm, f"{norm}_bwd")(*both)
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("norm", WITH_INPUT)
def test_an_input_that_goes_on_alone_has_its_gradient_and_no_other(put, norm):
    given = arguments(OPS[norm], {}, "float32", put=put)
    y, again = getattr(cunorm.torch, f"{norm}_with_input")(**given)
    (dx,) = torch.autograd.grad(again.sum(), given["x"], retain_graph=True)
    assert torch.equal(dx, torch.ones_like(dx))
    (alone,) = torch.autograd.grad(y.square().sum(), given["x"])
    (plain,) = torch.autograd.grad(WITH_INPUT[norm](**given).square().sum(), given["x"])
    assert torch.equal(alone, plain)
    y, _ = getattr(cunorm.torch, f"{norm}_with_input")(**given)
    (dx,) = torch.autograd.grad(y.sum(), given["x"], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once and not again"):
        dx.sum().backward()


@pytest.mark.parametrize("norm", WITH_INPUT)
def test_the_compiler_takes_a_norm_and_its_input_in_one_graph(norm):
    torch._dynamo.reset()
    given = arguments(OPS[norm], {}, "float32")
    function = getattr(cunorm.torch, f"{norm}_with_input")
    compiled = torch.compile(lambda t: function(**t), fullgraph=True, backend="aot_eager")
    found, wanted = (
        torch.autograd.grad(sum(y.square().sum() for y in ys), given.values())
        for ys in (compiled(given), function(**given))
    )
    for one, other in zip(found, wanted, strict=True):
        # The sum of two gradients that float32 rounds first.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_modulation_has_the_bits_of_diffusers_chain(dtype):
    # AdaLayerNormZero and its like, with a scale, a shift and a gate for each sample.
    x = to_torch(random((2, 5, 64), dtype))
    scale, shift, gate = (to_torch(random((2, 64), dtype, seed=i)) for i in (1, 2, 3))
    n = cunorm.torch.layer_norm(x)
    y = cunorm.torch.layer_norm(x, scale=scale[:, None], shift=shift[:, None])
    assert torch.equal(y, n * (1 + scale[:, None]) + shift[:, None])
    y, h = cunorm.torch.add_layer_norm(
        n, x, gate=gate[:, None], scale=scale[:, None], shift=shift[:, None]
    )
    assert torch.equal(h, x + gate[:, None] * n)
    assert torch.equal(y, cunorm.torch.layer_norm(h) * (1 + scale[:, None]) + shift[:, None])
    # Its FP32LayerNorm and float32 tables beside 16-bit data.
    wide = scale.float()[:, None]
    y = cunorm.torch.layer_norm(x, scale=wide, shift=wide, dtype=torch.float32)
    assert torch.equal(y, n * (1 + wide) + wide)


def test_the_end_of_gemmas_layers_has_the_bits_of_its_parts():
    x, residual = (to_torch(random((5, 64), "bfloat16", seed=i)) for i in (1, 2))
    gamma, gamma2 = (to_torch(random((64,), "bfloat16", seed=i)) for i in (3, 4))
    gemma = {"gamma_offset": 1.0, "cast": "after"}
    y, h = cunorm.torch.rms_norm_add_rms_norm(x, residual, gamma, gamma2, **gemma)
    assert torch.equal(h, residual + cunorm.torch.rms_norm(x, gamma, **gemma))
    assert torch.equal(y, cunorm.torch.rms_norm(h, gamma2, **gemma))
