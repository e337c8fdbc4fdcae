"""`cunorm.torch` on heads that are normalised and rotated: the kernels', and transformers' bits."""

import cupy
import pytest
import torch
import torch_bridge
from arrays import EVERY, bits, random, to_numpy, to_torch
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm, apply_rotary_pos_emb

import cunorm.torch
from cunorm import _reference
from cunorm._families import ROPE_OPS
from cunorm.torch import _statistics

pytestmark = pytest.mark.slow("each way to rotate heads, on each device")

TOKENS, HEADS, KEYS, D = (2, 3), 4, 2, 16
WAYS = [
    {},
    {"interleaved": True},
    {"norm_first": False},
    {"across_heads": True},
    {"cast": "after", "gamma_offset": 1.0},
    {"interleaved": True, "norm_first": False, "cast": "after"},
    {"cast": "between", "gamma_offset": 1.0},
    {"norm_first": False, "cast": "between"},
]
each_way = pytest.mark.parametrize("way", WAYS, ids=lambda way: " ".join(way) or "plain")
OPS = [op.name for op in ROPE_OPS.values() if op.writes and not op.keeps]
each_op = pytest.mark.parametrize("op", OPS)


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    with torch_bridge.tensors_on(request.param) as put:
        yield put


def arguments(op, dtype, way, *, put=lambda t: t, cos="float32", rotated=D, of_heads=False):
    """Return an op's tensors by name: slices of a packed projection, tables, and positions."""
    packed = put(to_torch(random((*TOKENS, HEADS + 2 * KEYS, D), dtype)))
    heads = {"q": packed[..., :HEADS, :], "k": packed[..., HEADS : HEADS + KEYS, :]}
    if op == "rms_norm_rope":
        heads = {"x": heads["q"]}
    made = dict(heads)
    for i, (name, x) in enumerate(heads.items()):
        extent = tuple(x.shape[-2:]) if of_heads else (D,)
        extent = (x.shape[-2] * D,) if way.get("across_heads") else extent
        gamma = "gamma" if name == "x" else f"{name}_gamma"
        made[gamma] = put(
            to_torch(random(extent, "float32" if cos == "float32" else dtype, seed=i))
        )
    angles = random((32, rotated // 2), "float32", seed=7)
    for name, function in (("cos", torch.cos), ("sin", torch.sin)):
        made[name] = put(function(torch.from_numpy(angles)).to(getattr(torch, cos)))
    made["positions"] = put(torch.tensor([[5, 6, 7], [0, 31, 1]]))
    return made


def call(function, given, way):
    made = function(**given, **way)
    return made if isinstance(made, tuple) else (made,)


def on_device(given):
    return {
        name: cupy.asarray(to_numpy(tensor)) if isinstance(tensor, torch.Tensor) else tensor
        for name, tensor in given.items()
    }


@pytest.mark.parametrize(("dtype", "cos"), [("bfloat16", "bfloat16"), ("float16", "float32")])
@each_way
@each_op
def test_results_on_cuda_are_those_of_the_cupy_ops(op, way, dtype, cos):
    with torch_bridge.tensors_on("cuda") as put:
        given = arguments(op, dtype, way, put=put, cos=cos)
        found = call(getattr(cunorm.torch, op), given, way)
    expected = call(getattr(cunorm, op), on_device(given), way)
    for one, other in zip(found, expected, strict=True):
        assert bits(to_numpy(one)) == bits(other)


@pytest.mark.parametrize("rotated", [D, D // 2])
@pytest.mark.parametrize("of_heads", [False, True])
@pytest.mark.parametrize("dtype", EVERY)
@each_way
@each_op
def test_results_on_the_cpu_are_within_tolerance_of_the_definition(
    op, way, dtype, of_heads, rotated
):
    cos = "float64" if dtype == "float64" else dtype
    given = arguments(op, dtype, way, cos=cos, of_heads=of_heads, rotated=rotated)
    found = call(getattr(cunorm.torch, op), given, way)
    arrays = {name: to_numpy(tensor) for name, tensor in given.items()}
    expected = call(getattr(_reference, op), arrays, way)
    for one, other in zip(found, expected, strict=True):
        assert other.accepts(to_numpy(one)).all()


@pytest.mark.parametrize("shape", [(3, 8), (2, 3, 8), (3, 1, 8), (1, 8)])
def test_tables_may_be_of_tokens_or_of_positions_in_order(put, shape):
    x = put(to_torch(random((2, 3, HEADS, D), "float32")))
    angle = put(to_torch(random(shape, "float32", seed=1)))
    given = {"x": x, "gamma": None, "cos": angle.cos(), "sin": angle.sin()}
    if shape == (1, 8) or shape == (3, 1, 8):
        with pytest.raises(ValueError, match=r"^cos must "):
            cunorm.torch.rms_norm_rope(**given)
        return
    found = cunorm.torch.rms_norm_rope(**given)
    expected = cunorm.rms_norm_rope(**on_device(given))
    torch.testing.assert_close(found, torch.from_numpy(expected.get()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("cls", "options"),
    [(Qwen3RMSNorm, {}), (Gemma3RMSNorm, {"cast": "between", "gamma_offset": 1.0})],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_bits_are_those_of_transformers_given_one_rstd(monkeypatch, cls, options, dtype):
    shape = (2, 5, HEADS, D)
    q, k = (to_torch(random(shape, "float32", seed=i)).to(dtype) for i in (1, 2))
    norms = [cls(D).to(dtype) for _ in "qk"]
    for i, norm in enumerate(norms):
        norm.weight.data.copy_(to_torch(random((D,), "float32", seed=3 + i)))
    angle = to_torch(random((1, 5, D // 2), "float32", seed=5))
    cos, sin = (f(torch.cat((angle, angle), -1)).to(dtype) for f in (torch.cos, torch.sin))
    own = []
    of = _statistics.MeanSquare.of
    monkeypatch.setattr(_statistics.MeanSquare, "of", lambda *a: own.append(of(*a)) or own[-1])
    weights = [norm.weight.detach() for norm in norms]
    halves = cos[..., : D // 2], sin[..., : D // 2]
    found = cunorm.torch.qk_norm_rope(q, k, *weights, *halves, **options)
    kept = iter([statistic.saved[0] for statistic in own])
    monkeypatch.setattr(torch, "rsqrt", lambda _: next(kept))
    expected = [norm(x).transpose(1, 2) for norm, x in zip(norms, (q, k), strict=True)]
    rotated = apply_rotary_pos_emb(*expected, cos, sin)
    for one, other in zip(found, rotated, strict=True):
        assert torch.equal(one, other.transpose(1, 2))


@each_way
@each_op
def test_in_place_writes_what_the_op_returns_and_no_more(put, op, way):
    given = arguments(op, "bfloat16", way, put=put)
    expected = call(getattr(cunorm.torch, op), given, way)
    first = given["x"] if op == "rms_norm_rope" else given["q"]
    base = torch.as_strided(first, (*TOKENS, HEADS + 2 * KEYS, D), first.stride(), 0)
    last = base[..., HEADS + KEYS :, :].clone()
    results = call(getattr(cunorm.torch, f"{op}_"), given, way)
    written = [given[output.like] for output in ROPE_OPS[op].writes]
    assert all(one is other for one, other in zip(results, written, strict=True))
    assert all(map(torch.equal, results, expected))
    assert torch.equal(base[..., HEADS + KEYS :, :], last)


WRONG = [
    {"x": torch.ones(8)},
    {"x": torch.ones(3, 4, 7)},
    {"gamma": torch.ones(9)},
    {"cos": torch.ones(3, 9)},
    {"sin": torch.ones(3, 8).double()},
    {"sin": torch.ones(3, 4)},
    {"positions": torch.ones(3)},
    {"positions": torch.zeros(4, dtype=torch.int64)},
    {"cos": torch.ones(2, 8), "sin": torch.ones(2, 8)},
    {"eps": -1.0},
    {"cast": "during"},
]


@pytest.mark.parametrize("suffix", ["", "_"])
@pytest.mark.parametrize("wrong", WRONG, ids=lambda wrong: " ".join(wrong))
def test_errors_are_those_of_the_cupy_ops(wrong, suffix):
    given = {"x": torch.ones(3, 4, 16), "gamma": torch.ones(16)}
    given |= {"cos": torch.ones(3, 8), "sin": torch.ones(3, 8), **wrong}

    def raised(function, arguments):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**arguments)
        return error.type, str(error.value)

    expected = raised(cunorm.rms_norm_rope, on_device(given))
    assert raised(getattr(cunorm.torch, f"rms_norm_rope{suffix}"), given) == expected


def test_positions_that_are_no_rows_are_an_error_on_the_cpu():
    table = torch.ones(4, 8)
    for position in (-1, 4):
        positions = torch.tensor([0, position, 1])
        with pytest.raises(ValueError, match=r"^positions must be rows of cos, from 0 to 3, but "):
            cunorm.torch.rms_norm_rope(torch.ones(3, 1, 16), None, table, table, positions)


def test_in_place_refuses_memory_that_is_shared():
    packed, table = torch.ones(3, 4, 16), torch.ones(3, 8)
    with pytest.raises(ValueError, match=r"^q_out must not overlap k"):
        cunorm.torch.qk_norm_rope_(packed[:, :3], packed[:, 2:], None, None, table, table)


@each_way
@each_op
def test_operators_pass_opcheck_and_the_compiler_takes_them_in_one_graph(put, op, way):
    torch._dynamo.reset()
    given = arguments(op, "float32", way, put=put)
    own = ROPE_OPS[f"{op}_fwd"]
    differentiable = {name for name in given if name in (*own.reads, *own.parameters)}
    leaves = {
        name: given[name].clone().requires_grad_() if name in differentiable else given[name]
        for name in given
    }
    values = [(leaves | way).get(a.name, getattr(a, "default", None)) for a in own.arguments]
    torch.library.opcheck(getattr(torch.ops.cunorm, own.name), tuple(values))
    function = getattr(cunorm.torch, op)
    compiled = torch.compile(
        lambda given: function(**given, **way), fullgraph=True, backend="aot_eager"
    )
    found, expected = call(lambda **_: compiled(given), {}, {}), call(function, given, way)
    assert all(map(torch.equal, found, expected))


OF_HEADS = {"norm_first": False, "gamma_offset": 1.0}


def leaves_of(op, given):
    """Return copies of what has a gradient, by name."""
    own = ROPE_OPS[op]
    return {n: given[n].detach().clone().requires_grad_() for n in (*own.reads, *own.parameters)}


@pytest.mark.parametrize("of_heads", [False, True])
@pytest.mark.parametrize("way", [*WAYS[:4], OF_HEADS], ids=lambda way: " ".join(way) or "plain")
@each_op
def test_gradcheck_accepts_every_gradient(op, way, of_heads):
    if of_heads and way.get("across_heads"):
        return  # the weight is that of all heads there
    given = arguments(op, "float64", way, cos="float64", of_heads=of_heads, rotated=D // 2)
    leaves = leaves_of(op, given)
    names = tuple(leaves)

    def function(*values):
        return call(getattr(cunorm.torch, op), given | dict(zip(names, values, strict=True)), way)

    assert torch.autograd.gradcheck(function, tuple(leaves.values()), atol=1e-6)


@pytest.mark.parametrize("way", [{}, OF_HEADS], ids=lambda way: " ".join(way) or "plain")
@each_op
def test_gradients_on_cuda_are_those_of_the_cupy_op(op, way):
    way = {**way, "gamma_offset": 0.5}
    with torch_bridge.tensors_on("cuda") as put:
        given = arguments(op, "bfloat16", way, put=put)
        leaves = leaves_of(op, given)
        made = call(getattr(cunorm.torch, op), given | leaves, way)
        grads = [put(to_torch(random(y.shape, "bfloat16", seed=i))) for i, y in enumerate(made)]
        torch.autograd.backward(made, grads)
        found = {name: leaf.grad for name, leaf in leaves.items()}
    own = ROPE_OPS[op]
    arrays = on_device(given)
    kept = call(getattr(cunorm, f"{op}_fwd"), arrays, way)
    for i, (name, weight) in enumerate(zip(own.reads, own.parameters, strict=True)):
        dx, dgamma = cunorm.rms_norm_rope_bwd(
            cupy.asarray(to_numpy(grads[i])),
            *(arrays[n] for n in (name, weight, "cos", "sin")),
            kept[len(own.reads) + i],
            arrays["positions"],
            **way,
        )
        assert bits(to_numpy(found[name])) == bits(dx)
        assert bits(to_numpy(found[weight])) == bits(dgamma)


@each_op
def test_what_needs_no_gradient_gets_none(op):
    given = arguments(op, "float32", {})
    first = ROPE_OPS[op].reads[0]
    given[first] = given[first].clone().requires_grad_()
    sum(y.sum() for y in call(getattr(cunorm.torch, op), given, {})).backward()
    assert given[first].grad is not None
    y, *_ = call(getattr(cunorm.torch, op), given, {})
    (dx,) = torch.autograd.grad(y.square().sum(), given[first], create_graph=True)
    with pytest.raises(RuntimeError, match="can be differentiated once and not again"):
        dx.sum().backward()


@each_op
def test_a_gradient_of_angles_is_refused_by_name_and_in_place_each(put, op):
    for name in arguments(op, "float32", {}):
        given = arguments(op, "float32", {}, put=put)
        if name == "positions":
            continue
        given[name] = given[name].clone().requires_grad_()
        for suffix in ("", "_") if name in ("cos", "sin") else ("_",):
            with pytest.raises(
                RuntimeError,
                match=f"^{name} must not require a gradient, which {op}{suffix} has none of",
            ):
                getattr(cunorm.torch, f"{op}{suffix}")(**given)
