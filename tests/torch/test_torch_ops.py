"""`cunorm.torch`: results, gradients and what is kept for them, on the CPU and by the kernels."""

import pytest
import torch
import torch_bridge
from arrays import EVERY, NARROW, random, to_numpy, to_torch
from torch.autograd import forward_ad
from torch_norms import OPS, arguments, call, definition, names, operator

import cunorm.torch
from cunorm import _families, _reference

pytestmark = pytest.mark.slow("each operator in each dtype on each device")

# One row and many, one column, odd N, a row of several packets with a tail, no rows at all.
SHAPES = [(1, 1), (3, 8), (2, 5, 37), (7, 129), (4, 1024), (0, 16)]
# A gradient in float64 is a sum of at most 1024 terms of size 100 or less, and both sides round
# each a few times: sqrt(1024) * 100 * 2^-53 is 4e-13.
FLOAT64 = {"rtol": 1e-12, "atol": 1e-12}
LEFT_OUT = [("gamma",), ("beta",), ("gamma", "beta")]


@pytest.fixture(params=["cpu", "cuda"])
def put(request):
    """What brings a tensor to the place where it is computed."""
    with torch_bridge.tensors_on(request.param) as put:
        yield put


def host(tensor):
    return to_numpy(tensor.detach().cpu())


def upstream(outputs, put):
    """Return a gradient for each output."""
    names = [str(y.dtype).removeprefix("torch.") for y in outputs]
    return [
        put(to_torch(random(y.shape, name, seed=90 + i)))
        for i, (y, name) in enumerate(zip(outputs, names, strict=True))
    ]


def gradients(outputs, tensors, given):
    return torch.autograd.grad(outputs, [t for t in tensors if t is not None], given)


@pytest.mark.parametrize("shape", [(3, 8), (2, 1, 5)])
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_those_of_finite_differences(put, op, shape):
    tensors = arguments(op, shape, "float64", put=put)
    assert torch.autograd.gradcheck(lambda *t: call(op, t), tensors)


@pytest.mark.parametrize(
    ("shape", "left_out"),
    [(shape, ()) for shape in SHAPES]
    + [(shape, out) for shape in SHAPES[2::3] for out in LEFT_OUT],
)
@pytest.mark.parametrize("op", OPS)
def test_float64_gradients_are_those_of_autograd_through_the_definition(put, op, shape, left_out):
    if not set(left_out) <= set(names(op)):
        return  # rms_norm has no beta
    tensors = arguments(op, shape, "float64", put=put, **dict.fromkeys(left_out))
    outputs, expected = call(op, tensors), definition(op, tensors)
    given = upstream(outputs, put)
    found, wanted = (gradients(ys, tensors, given) for ys in (outputs, expected))
    for one, other in zip((*outputs, *found), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("op", OPS)
def test_an_offset_is_added_to_gamma_in_both_directions(put, op):
    tensors = arguments(op, (3, 8), "float64", put=put)
    outputs = call(op, tensors, gamma_offset=1.0)
    expected = definition(op, tensors, gamma_offset=1.0)
    given = upstream(outputs, put)
    found, wanted = (gradients(ys, tensors, given) for ys in (outputs, expected))
    for one, other in zip((*outputs, *found), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("op", ["layer_norm", "add_layer_norm"])
@pytest.mark.parametrize("gamma", ["float64", None])
def test_several_axes_are_normalised_as_beta_or_gamma_says(put, op, gamma):
    tensors = arguments(op, (4, 2, 3, 5), "float64", put=put)
    extent = [put(to_torch(random((3, 5), "float64", seed=i)).requires_grad_()) for i in (7, 8)]
    tensors[-2:] = [extent[0] if gamma else None, extent[1]]
    outputs, expected = call(op, tensors), definition(op, tensors)
    given = upstream(outputs, put)
    found, wanted = (gradients(ys, tensors, given) for ys in (outputs, expected))
    for one, other in zip((*outputs, *found), (*expected, *wanted), strict=True):
        torch.testing.assert_close(one, other, **FLOAT64)


@pytest.mark.parametrize("shape", [(5, 129)])
@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("op", OPS)
def test_results_are_within_tolerance_of_the_definition(put, op, dtype, shape):
    tensors = arguments(op, shape, dtype, put=put, grad=False)
    expected = getattr(_reference, op)(*map(host, tensors))
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other in zip(call(op, tensors), expected, strict=True):
        assert other.accepts(host(one)).all()


# Parameters as narrow as x, and float32 beside it.
@pytest.mark.parametrize("parameters", [{}, {"gamma": "float32", "beta": "float32"}])
@pytest.mark.parametrize("shape", [(7, 129)])
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize("op", OPS)
def test_gradients_are_within_tolerance_of_the_definition_of_the_statistics_kept(
    put, op, dtype, shape, parameters
):
    tensors = arguments(op, shape, dtype, put=put, **parameters)
    outputs = call(op, tensors)
    given = upstream(outputs, put)
    found = dict(zip(names(op), gradients(outputs, tensors, given), strict=True))
    # The statistics are those of the operator, and within their own tolerance of the definition.
    adds = "residual" in names(op)
    norm = _families.OPS[op].family.name
    h = outputs[1] if adds else tensors[0]
    statistics = operator(f"{op}_fwd", tensors)[len(outputs) :]
    own = getattr(_reference, f"{norm}_fwd")(host(h), *map(host, tensors[adds + 1 :]))[1:]
    assert all(o.accepts(host(s)).all() for o, s in zip(own, statistics, strict=True))

    expected = dict(
        zip(
            ("x", "gamma", "beta"),
            getattr(_reference, f"{norm}_bwd")(
                *(host(t) for t in (given[0], h, tensors[adds + 1], *statistics)),
                dresidual=host(given[1]) if adds else None,
            ),
            strict=False,
        )
    )
    expected["residual"] = expected["x"]
    for name, gradient in found.items():
        assert expected[name].accepts(host(gradient)).all(), name


@pytest.mark.parametrize(("x", "residual"), [("bfloat16", "float32"), ("float32", "bfloat16")])
@pytest.mark.parametrize("op", ["add_rms_norm", "add_layer_norm"])
def test_gradients_have_the_dtypes_of_their_arguments(put, op, x, residual):
    dtypes = {"residual": residual, "gamma": "float16", "beta": "float32"}
    tensors = arguments(op, (3, 8), x, put=put, **dtypes)
    outputs = call(op, tensors)
    assert [y.dtype for y in outputs] == [t.dtype for t in tensors[:2]]
    given = upstream(outputs, put)
    found = gradients(outputs, tensors, given)
    assert [g.dtype for g in found] == [t.dtype for t in tensors]
    # The kernel's dx has h's dtype: both arrays have that gradient, and x's is cast.
    assert torch.equal(found[0], found[1].to(found[0].dtype))
    wide = [t.detach().double().requires_grad_() for t in tensors]
    expected = gradients(definition(op, wide), wide, [g.double() for g in given])
    for one, other in zip(found, expected, strict=True):
        # Both h and the gradient of y are rounded to residual's dtype, bfloat16 where it is narrow:
        # 2^-9 each of numbers up to 4, and as much again for the gradient's own rounding.
        torch.testing.assert_close(one.double(), other, rtol=2**-7, atol=4 * 2**-7)


@pytest.mark.parametrize("gamma", ["bfloat16", None])
def test_a_beta_wider_than_gamma_has_a_gradient_as_wide(put, gamma):
    tensors = arguments("layer_norm", (64, 8), "bfloat16", put=put, gamma=gamma, beta="float32")
    outputs = call("layer_norm", tensors)
    (dy,) = upstream(outputs, put)
    (dbeta,) = torch.autograd.grad(outputs, tensors[2:], dy)
    # 64 numbers of 8 bits each are added up in float32: few of their sums are rounded, by 2^-24.
    torch.testing.assert_close(dbeta.double(), dy.double().sum(0), rtol=1e-6, atol=1e-6)


def test_gradients_of_h_alone_and_of_y_alone_are_parts_of_that_of_both(put):
    tensors = arguments("add_rms_norm", (3, 8), "float64", put=put)
    y, h = call("add_rms_norm", tensors)
    dy, dh = upstream((y, h), put)

    def grad(outputs, given):
        return torch.autograd.grad(outputs, tensors, given, retain_graph=True, allow_unused=True)

    both, of_y, of_h = grad((y, h), (dy, dh)), grad(y, dy), grad(h, dh)
    assert of_h[2] is None
    assert torch.equal(of_h[0], dh)
    assert torch.equal(of_h[1], dh)
    for i in (0, 1):
        torch.testing.assert_close(both[i], of_y[i] + dh)
    torch.testing.assert_close(both[2], of_y[2])


def test_gradients_of_any_layout_are_taken(put):
    x, gamma = arguments("rms_norm", (6, 8), "float32", put=put)
    dy = put(to_torch(random((8, 6), "float32", seed=5)))
    for given in (
        dy.t(),
        dy[:1, :1].expand(6, 8),
        put(to_torch(random((6, 16), "float32")))[:, ::2],
    ):
        found = torch.autograd.grad(cunorm.torch.rms_norm(x, gamma), (x, gamma), given)
        expected = torch.autograd.grad(
            cunorm.torch.rms_norm(x, gamma), (x, gamma), given.contiguous()
        )
        assert all(map(torch.equal, found, expected))


def test_inputs_of_any_layout_give_contiguous_outputs_with_the_same_bits(put):
    packed = put(to_torch(random((4, 3, 24), "bfloat16")))
    gamma = put(to_torch(random((8,), "bfloat16")))
    for x in (packed[:, :, 8:16], packed.transpose(0, 1)[..., :8], packed[..., ::3]):
        y = cunorm.torch.rms_norm(x, gamma)
        assert y.is_contiguous()
        assert torch.equal(y, cunorm.torch.rms_norm(x.contiguous(), gamma))


@pytest.mark.parametrize("op", OPS)
def test_what_is_kept_is_one_array_of_rows_gamma_and_the_statistics(put, op):
    tensors = arguments(op, (6, 128), "bfloat16", put=put)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        outputs = call(op, tensors)
    h = outputs[1] if "residual" in names(op) else tensors[0]
    gamma = tensors[names(op).index("gamma")]
    assert kept[0].data_ptr() == h.data_ptr()
    assert kept[1].data_ptr() == gamma.data_ptr()
    statistics = kept[2:]
    assert [(s.shape, s.dtype) for s in statistics] == [((6,), torch.float32)] * len(statistics)
    assert len(statistics) == len(_families.OPS[op].family.saves)
    rows, row = 6 * 128 * 2, 128 * 2
    assert sum(t.nbytes for t in kept) == rows + row + len(statistics) * 6 * 4


@pytest.mark.parametrize("op", OPS)
def test_nothing_is_kept_where_no_gradient_is_recorded(put, op):
    tensors = arguments(op, (6, 128), "bfloat16", put=put)
    with torch.no_grad():
        assert not any(y.requires_grad for y in call(op, tensors))
    with torch.inference_mode():
        assert all(y.is_inference() for y in call(op, tensors))


@pytest.mark.parametrize("op", OPS)
def test_only_the_gradients_that_are_wanted_are_returned(put, op):
    tensors = arguments(op, (3, 8), "float32", put=put)
    outputs = call(op, tensors)
    given = upstream(outputs, put)
    whole = gradients(outputs, tensors, given)
    for index, wanted in enumerate(tensors):
        fresh = [t.detach().requires_grad_(t is wanted) for t in tensors]
        (found,) = torch.autograd.grad(call(op, fresh), [fresh[index]], given)
        assert torch.equal(found, whole[index])


@pytest.mark.parametrize("op", OPS)
def test_a_gradient_is_not_differentiated_again(put, op):
    tensors = arguments(op, (3, 8), "float64", put=put)
    y, *_ = call(op, tensors)
    (dx,) = torch.autograd.grad(y.sum(), tensors[0], create_graph=True)
    norm = _families.OPS[op].family.name
    with pytest.raises(RuntimeError, match=f"^{norm} can be differentiated once and not again: "):
        dx.sum().backward()


@pytest.mark.parametrize("op", OPS)
def test_in_place_writes_what_the_op_returns_and_returns_its_arguments(put, op):
    tensors = arguments(op, (3, 8), "bfloat16", put=put, grad=False)
    expected = call(op, tensors)
    versions = [t._version for t in tensors]
    results = call(f"{op}_", tensors)
    assert all(one is other for one, other in zip(results, tensors, strict=False))
    assert all(map(torch.equal, results, expected))
    # Autograd knows that they were written.
    written = [t._version > v for t, v in zip(tensors, versions, strict=True)]
    assert written == [i < len(results) for i in range(len(tensors))]


@pytest.mark.parametrize("op", OPS)
def test_in_place_refuses_a_gradient_unless_none_is_recorded(put, op):
    for index, name in enumerate(names(op)):
        tensors = arguments(op, (3, 8), "float32", put=put, grad=False)
        tensors[index].requires_grad_()
        before = [t.detach().clone() for t in tensors]
        with pytest.raises(RuntimeError, match=f"^{name} must not require a gradient"):
            call(f"{op}_", tensors)
        assert all(map(torch.equal, tensors, before))
        with torch.no_grad():
            assert torch.equal(call(f"{op}_", tensors)[0], call(op, before)[0])


def overlapping(op, put):
    """Return an op's tensors where each kind of memory that must not be shared is shared once."""
    packed = put(to_torch(random((5, 8), "float32")))
    own = dict(zip(names(op), arguments(op, (4, 8), "float32", put=put, grad=False), strict=True))
    yield "out must not overlap itself", {**own, "x": packed[:1].expand(4, 8)}
    yield "out must not overlap gamma", {**own, "x": packed[:4], "gamma": packed[3]}
    if "beta" in own:
        yield "out must not overlap beta", {**own, "x": packed[:4], "beta": packed[0]}
    if "residual" in own:
        both = {"x": packed[:4], "residual": packed[:4]}
        yield "out must not overlap residual", {**own, **both}
        yield "out must not overlap residual", {**own, **both, "residual": packed[1:]}
        step = {"residual": packed[:1].expand(4, 8)}
        yield "residual_out must not overlap itself", {**own, **step}
        step = {"residual": packed[:4], "gamma": packed[0]}
        yield "residual_out must not overlap gamma", {**own, **step}


@pytest.mark.parametrize("op", OPS)
def test_in_place_refuses_memory_that_is_not_one_arguments_own(put, op):
    for message, tensors in overlapping(op, put):
        before = [t.clone() for t in tensors.values()]
        with pytest.raises(ValueError, match=f"^{message}"):
            call(f"{op}_", tensors.values())
        assert all(map(torch.equal, tensors.values(), before))


def test_in_place_writes_heads_of_a_packed_tensor_and_no_more(put):
    packed = put(to_torch(random((4, 3, 8), "bfloat16")))
    x, residual, gamma = packed[:, 0], packed[:, 1], packed[0, 2].clone()
    y, h = cunorm.torch.add_rms_norm(x, residual, gamma)
    expected = torch.stack((y, h, packed[:, 2]), dim=1)
    cunorm.torch.add_rms_norm_(x, residual, gamma)
    assert torch.equal(packed, expected)


@pytest.mark.parametrize("op", OPS)
def test_a_tensor_that_is_not_strided_is_refused(put, op):
    for index, name in enumerate(names(op)):
        tensors = arguments(op, (3, 8), "float32", put=put, grad=False)
        tensors[index] = put(tensors[index].to_sparse())
        with pytest.raises(TypeError, match=f"^{name} must be a strided tensor, but has layout"):
            call(op, tensors)


# PyTorch's own, of the decompositions that it loads for forward-mode differentiation.
@pytest.mark.filterwarnings("ignore:`torch.jit.script:DeprecationWarning")
@pytest.mark.parametrize("op", OPS)
def test_forward_mode_derivatives_are_refused_and_not_zero(put, op):
    for index, name in enumerate(names(op)):
        tensors = arguments(op, (3, 8), "float32", put=put, grad=False)
        with forward_ad.dual_level():
            tensors[index] = forward_ad.make_dual(tensors[index], tensors[index])
            for suffix in ("", "_"):
                with pytest.raises(RuntimeError, match=f"^{name} must not have a tangent: "):
                    call(f"{op}{suffix}", tensors)
    x = put(torch.ones(3, 8))
    with pytest.raises(RuntimeError, match=r"^x must not have a tangent: "):
        torch.func.jvp(lambda x: call(op, (x, x)), (x,), (x,))


def test_autocast_changes_nothing(put):
    x, gamma = arguments("rms_norm", (3, 8), "bfloat16", put=put, gamma="float32")
    y = cunorm.torch.rms_norm(x, gamma)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.autocast("cuda", enabled=False):
        again = cunorm.torch.rms_norm(x, gamma)
    assert again.dtype == torch.bfloat16
    assert torch.equal(y, again)


def test_torch_func_gradients_are_refused(put):
    x = put(torch.ones(3, 8))
    with pytest.raises(RuntimeError, match="functorch transforms"):
        torch.func.grad(lambda x: cunorm.torch.rms_norm(x).sum())(x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_vmap_runs_the_op_on_each(put):
    x, gamma = arguments("rms_norm", (4, 3, 8), "float32", put=put, grad=False)
    y = torch.vmap(lambda rows: cunorm.torch.rms_norm(rows, gamma))(x)
    assert torch.equal(y, cunorm.torch.rms_norm(x, gamma))
