"""RMSNorm and LayerNorm as modules: arguments, state dicts, and the rounding of each family.

Hugging Face's classes are compared bit for bit, given the same statistics: they run as they are,
but for ``torch.rsqrt``, which returns the op's rstd. Two results for different rstd differ in what
a nearby rstd does to a rounding, which is another property.
"""

import copy
import io
import pickle

import numpy as np
import pytest
import torch
from arrays import NARROW, random, to_numpy, to_torch
from norm_modules import rstd, same_bits
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.olmo2.modeling_olmo2 import Olmo2RMSNorm
from transformers.models.qwen2.modeling_qwen2 import Qwen2RMSNorm
from transformers.models.t5.modeling_t5 import T5LayerNorm

import cunorm.torch
from cunorm import _reference
from cunorm.torch import LayerNorm, RMSNorm

pytestmark = pytest.mark.slow("each family of models in each dtype")

HUGGING_FACE = {
    Qwen2RMSNorm: {},
    LlamaRMSNorm: {},
    T5LayerNorm: {},
    Olmo2RMSNorm: {"cast": "after"},
    GemmaRMSNorm: {"gamma_offset": 1.0, "cast": "after"},
    Gemma3RMSNorm: {"gamma_offset": 1.0, "cast": "after"},
}
FAMILIES = [
    pytest.param(cls, arguments, id=cls.__name__) for cls, arguments in HUGGING_FACE.items()
]
SIZES = [1, 64, 127, 896]


def filled(module, dtype=None):
    """Give each parameter numbers that no initialisation gives."""
    for index, parameter in enumerate(module.parameters()):
        values = to_torch(random(tuple(parameter.shape), "float32", seed=7 + index, scale=0.3))
        parameter.data.copy_(values + 0.1)
    return module if dtype is None else module.to(getattr(torch, dtype))


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        pytest.param(torch.nn.RMSNorm(6), RMSNorm(6), id="torch-rms_norm"),
        pytest.param(torch.nn.RMSNorm((2, 3)), RMSNorm((2, 3)), id="torch-rms_norm-two-axes"),
        pytest.param(torch.nn.LayerNorm(6), LayerNorm(6), id="torch-layer_norm"),
        pytest.param(
            torch.nn.LayerNorm((2, 3), bias=False),
            LayerNorm((2, 3), bias=False),
            id="torch-layer_norm-without-bias",
        ),
        pytest.param(
            torch.nn.LayerNorm(6, elementwise_affine=False),
            LayerNorm(6, elementwise_affine=False),
            id="torch-layer_norm-without-weight",
        ),
        *(
            pytest.param(cls(6), RMSNorm(6, **arguments), id=cls.__name__)
            for cls, arguments in HUGGING_FACE.items()
        ),
    ],
)
def test_state_dicts_load_in_both_directions(theirs, ours):
    filled(theirs)
    ours.load_state_dict(theirs.state_dict())
    back = copy.deepcopy(theirs)
    for parameter in back.parameters():
        parameter.data.zero_()
    back.load_state_dict(ours.state_dict())

    assert list(ours.state_dict()) == list(theirs.state_dict())
    for key, value in theirs.state_dict().items():
        assert value.abs().min() > 0
        assert same_bits(ours.state_dict()[key], value)
        assert same_bits(back.state_dict()[key], value)


@pytest.mark.parametrize("columns", SIZES)
@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("cls", "arguments"), FAMILIES)
def test_given_one_rstd_the_bits_are_those_of_hugging_face(
    monkeypatch, cls, arguments, dtype, columns
):
    theirs = filled(cls(columns), dtype)
    ours = RMSNorm(columns, **arguments, dtype=getattr(torch, dtype))
    ours.load_state_dict(theirs.state_dict())
    x = to_torch(random((5, columns), dtype, scale=3))

    y = ours(x)
    given = rstd(x, 1e-6)
    monkeypatch.setattr(torch, "rsqrt", lambda _: given)
    assert same_bits(y, theirs(x))


@pytest.mark.parametrize("dtype", NARROW)
@pytest.mark.parametrize(("cls", "arguments"), FAMILIES)
def test_with_its_own_rstd_hugging_face_is_as_near_as_roundings_that_flip(cls, arguments, dtype):
    theirs = filled(cls(896), dtype)
    ours = RMSNorm(896, **arguments, dtype=getattr(torch, dtype))
    ours.load_state_dict(theirs.state_dict())
    x = to_torch(random((64, 896), dtype, scale=3))

    with torch.no_grad():
        y, other = ours(x), theirs(x)
    steps = (896**0.5 + 5) / 2 + 3  # of rstd: a sum of 896 terms, halved by the root, and the root
    error = steps * 2.0**-24
    # A rounding before and one after the weight may each go the other way: at most an ulp each.
    step, smallest = torch.finfo(x.dtype).eps, torch.finfo(x.dtype).smallest_normal
    bound = (error + 2 * step) * other.abs().double() + step * smallest
    assert ((y.double() - other.double()).abs() <= bound).all()
    if dtype != "float32":
        # That happens where a tie lies between the two, and ties are half an eps apart or more.
        share = (y != other).double().mean().item()
        assert share <= 2 * error / (step / 2)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(96,), (4, 24), 96])
@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
def test_torch_rms_norm_is_as_near_to_the_definition_as_ours(dtype, shape, affine):
    kind = getattr(torch, dtype)
    theirs = filled(torch.nn.RMSNorm(shape, 1e-5, affine, dtype=kind))
    ours = RMSNorm(shape, 1e-5, affine, cast="after", dtype=kind)
    ours.load_state_dict(theirs.state_dict())
    sizes = ours.normalized_shape
    x = random((7, *sizes), dtype, scale=2)
    weight = to_numpy(theirs.weight.detach()).reshape(96) if affine else None
    expected = _reference.rms_norm(x.reshape(7, 96), weight, 1e-5, cast="after")

    for module in (ours, theirs):
        y = to_numpy(module(to_torch(x)).detach())
        assert y.shape == x.shape
        assert expected.accepts(y.reshape(7, 96)).all()


@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
def test_eps_none_is_what_torch_takes_for_none(dtype):
    """Rows as small as eps itself, so that another eps shows in every element."""
    x = to_torch(random((9, 32), "float64", scale=2.0**-12)).to(getattr(torch, dtype))
    if dtype == "float64":
        x *= 2.0**-14
    y = RMSNorm(32, eps=None, elementwise_affine=False, cast="after")(x)
    theirs = torch.nn.RMSNorm(32, elementwise_affine=False)(x)
    step = torch.finfo(x.dtype).eps
    assert ((y - theirs).abs().double() <= 2 * max(step, 2.0**-22) * theirs.abs().double()).all()
    # The claim would be empty if eps made no difference there.
    other = torch.nn.RMSNorm(32, eps=torch.finfo(torch.float16).eps, elementwise_affine=False)(x)
    assert ((y - other).abs().double() > 0.1 * theirs.abs().double()).any()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(96,), (4, 24)])
@pytest.mark.parametrize("dtype", [*NARROW, "float64"])
def test_torch_layer_norm_is_as_near_to_the_definition_as_ours(dtype, shape, affine, bias):
    kind = getattr(torch, dtype)
    theirs = filled(torch.nn.LayerNorm(shape, 1e-5, affine, bias, dtype=kind))
    ours = LayerNorm(shape, 1e-5, affine, bias, dtype=kind)
    ours.load_state_dict(theirs.state_dict())
    x = random((7, *shape), dtype, scale=2, shift=1)
    given = [
        None if p is None else to_numpy(p.detach()).reshape(96)
        for p in (theirs.weight, theirs.bias)
    ]
    expected = _reference.layer_norm(x.reshape(7, 96), *given, 1e-5)

    y = to_numpy(ours(to_torch(x)).detach())
    assert y.shape == x.shape
    assert expected.accepts(y.reshape(7, 96)).all()
    # torch takes the variance in one pass, so its error is not the one derived; it is near, though.
    other = to_numpy(theirs(to_torch(x)).detach()).reshape(7, 96)
    assert (expected.ulps(other) <= expected.allowed + 8 * (dtype in ("float32", "float64"))).all()


@pytest.mark.parametrize(
    ("module", "theirs"),
    [
        (RMSNorm(24, 1e-5, cast="after"), torch.nn.RMSNorm(24, 1e-5)),
        (RMSNorm((4, 6), eps=None, cast="after"), torch.nn.RMSNorm((4, 6))),
        (RMSNorm((4, 6), 1e-5, False, cast="after"), torch.nn.RMSNorm((4, 6), 1e-5, False)),
        (RMSNorm(24, gamma_offset=1.0, cast="after"), GemmaRMSNorm(24)),
        (RMSNorm(24), Qwen2RMSNorm(24)),
        (LayerNorm((4, 6)), torch.nn.LayerNorm((4, 6))),
        (LayerNorm(24, bias=False), torch.nn.LayerNorm(24, bias=False)),
        (LayerNorm((4, 6), elementwise_affine=False), torch.nn.LayerNorm((4, 6), 1e-5, False)),
    ],
    ids=str,
)
def test_gradients_are_those_of_the_module_it_stands_for(module, theirs):
    filled(theirs)
    module.load_state_dict(theirs.state_dict())
    shape = getattr(theirs, "normalized_shape", (24,))
    x = to_torch(random((5, 3, *shape), "float32"))
    dy = to_torch(random((5, 3, *shape), "float32", seed=1))

    def gradients(norm):
        data = x.clone().requires_grad_()
        norm(data).backward(dy)
        return [data.grad, *(p.grad for p in norm.parameters())]

    # Sums of 24 terms and of 15 rows, and a handful of roundings: sizes are about one.
    for ours, other in zip(gradients(module), gradients(theirs), strict=True):
        assert other.abs().max() > 0.1
        assert (ours - other).abs().max() <= 64 * 2.0**-24 * other.abs().max()


def test_a_module_is_the_op_of_its_parameters():
    x = to_torch(random((5, 24), "bfloat16", scale=3))
    rms = filled(RMSNorm(24, 1e-3, gamma_offset=0.5, cast="after"))
    norm = filled(LayerNorm(24, 1e-3))
    y = cunorm.torch.rms_norm(x, rms.weight, 1e-3, gamma_offset=0.5, cast="after")
    assert same_bits(rms(x), y)
    assert same_bits(norm(x), cunorm.torch.layer_norm(x, norm.weight, norm.bias, 1e-3))


@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_a_fresh_weight_multiplies_by_one_and_a_bias_adds_nothing(offset):
    rms, norm = RMSNorm(24, gamma_offset=offset), LayerNorm(24)
    x = to_torch(random((5, 24), "float32"))
    assert same_bits(rms(x), cunorm.torch.rms_norm(x))
    assert same_bits(norm(x), cunorm.torch.layer_norm(x))
    for module in (rms, norm):
        fresh = copy.deepcopy(module.state_dict())
        filled(module).reset_parameters()
        assert all(same_bits(fresh[key], value) for key, value in module.state_dict().items())


def test_device_and_dtype_of_the_parameters_are_as_asked():
    for module in (
        RMSNorm(6, device="meta", dtype=torch.bfloat16),
        LayerNorm(6, device="meta", dtype=torch.bfloat16),
    ):
        assert {(p.device.type, p.dtype) for p in module.parameters()} == {("meta", torch.bfloat16)}
        y = module(torch.empty(2, 6, device="meta", dtype=torch.bfloat16))
        assert (y.shape, y.dtype, y.device.type) == ((2, 6), torch.bfloat16, "meta")
        assert module.to_empty(device="cpu").to(torch.float32).weight.dtype == torch.float32
        module.reset_parameters()
        assert torch.equal(module.weight, torch.ones(6))


def test_the_output_has_the_dtype_of_x_whatever_the_weight_has():
    x = to_torch(random((2, 6), "bfloat16"))
    assert {RMSNorm(6)(x).dtype, LayerNorm(6)(x).dtype} == {torch.bfloat16}


@pytest.mark.parametrize(
    "module", [RMSNorm((2, 3), eps=None, gamma_offset=1.0, cast="after"), LayerNorm((2, 3), 1e-4)]
)
def test_copies_and_pickles_are_the_same_module(module):
    filled(module)
    buffer = io.BytesIO()
    torch.save(module, buffer)
    buffer.seek(0)
    x = to_torch(random((5, 2, 3), "float32"))
    for other in (
        copy.deepcopy(module),
        pickle.loads(pickle.dumps(module)),
        torch.load(buffer, weights_only=False),
    ):
        assert repr(other) == repr(module)
        assert same_bits(other(x), module(x))


def test_repr_says_what_it_is():
    assert repr(RMSNorm(6)) == "RMSNorm((6,), eps=1e-06, cast='before')"
    assert (
        repr(RMSNorm(6, 1e-5, False))
        == "RMSNorm((6,), eps=1e-05, elementwise_affine=False, cast='before')"
    )
    assert (
        repr(RMSNorm((2, 3), None, gamma_offset=1.0, cast="after"))
        == "RMSNorm((2, 3), eps=None, gamma_offset=1.0, cast='after')"
    )
    for arguments in ((6,), ((2, 3), 1e-3, True, False), (6, 1e-5, False)):
        assert repr(LayerNorm(*arguments)) == repr(torch.nn.LayerNorm(*arguments))


@pytest.mark.parametrize(
    ("build", "error", "message"),
    [
        (lambda: RMSNorm(0), ValueError, "one positive int or more, but is 0"),
        (lambda: RMSNorm(()), ValueError, r"one positive int or more, but is \(\)"),
        (
            lambda: LayerNorm((2, 1.5)),
            TypeError,
            r"an int or a sequence of them, but is \(2, 1.5\)",
        ),
        (lambda: LayerNorm(None), TypeError, "an int or a sequence of them, but is None"),
        (lambda: RMSNorm(6, eps=-1.0), ValueError, "eps must be finite and not negative"),
        (lambda: RMSNorm(6, eps=float("nan")), ValueError, "eps must be finite"),
        (lambda: LayerNorm(6, eps=None), TypeError, "eps must be a real number, but is a NoneType"),
        (lambda: RMSNorm(6, cast="never"), ValueError, "cast must be"),
        (lambda: RMSNorm(6, gamma_offset="1"), TypeError, "gamma_offset must be a real number"),
        (
            lambda: RMSNorm(6, 1e-6, False, gamma_offset=1.0),
            ValueError,
            "must be 0 without a weight",
        ),
    ],
)
def test_arguments_that_make_no_norm_are_refused(build, error, message):
    with pytest.raises(error, match=message):
        build()


@pytest.mark.parametrize("kind", [RMSNorm, LayerNorm])
@pytest.mark.parametrize("affine", [True, False])
def test_rows_of_another_shape_are_refused(kind, affine):
    module = kind((4, 6), elementwise_affine=affine)
    for shape in [(5, 6, 4), (5, 24), (6,)]:
        with pytest.raises(ValueError, match="shape"):
            module(torch.zeros(shape))


@pytest.mark.parametrize("module", [RMSNorm((4, 6), eps=None), LayerNorm((4, 6), 1e-5, False)])
def test_a_graph_is_compiled_without_a_break(module):
    x = to_torch(random((5, 4, 6), "float32"))
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert np.array_equal(compiled(x).detach().numpy(), module(x).detach().numpy())
