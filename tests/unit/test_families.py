"""The families, and what is written out by hand beside them: public functions and their names."""

import inspect
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import cunorm
import cunorm.torch
from cunorm import _check
from cunorm._families import (
    ALL_OPS,
    BACKWARD,
    FAMILIES,
    GRADIENTS,
    LAZY,
    OPS,
    PLAIN,
    QUANTISED,
    ROPE_OPS,
    Input,
)

every_op = pytest.mark.parametrize("op", ALL_OPS.values(), ids=ALL_OPS)
# What else is public: schemes of quantised ops, and what is no norm.
BESIDE = ["Quant", "combine_moments", "dequantize", "quantize", "row_sums", "warm_up"]
POSITIONAL, KEYWORD = (
    inspect.Parameter.POSITIONAL_OR_KEYWORD,
    inspect.Parameter.KEYWORD_ONLY,
)


def described(function):
    """Return name, kind and default of each parameter."""
    parameters = inspect.signature(function).parameters.values()
    return [(p.name, p.kind, p.default) for p in parameters]


def signature(op, results=True, arguments=None):
    """Return what a family says of an op's parameters, in the same form.

    What may be None is so by default, unless something without a default follows.
    """
    found, kind, required = [], POSITIONAL, False
    for argument in reversed(arguments or op.arguments):
        if isinstance(argument, Input):
            required |= not argument.optional and not argument.keyword
            default = inspect.Parameter.empty if required else None
        else:
            default = argument.default
        found.insert(0, (argument.name, argument.keyword, default))
    parameters = []
    for name, keyword, default in found:
        kind = KEYWORD if keyword else kind
        parameters.append((name, kind, default))
    if results:
        parameters += [(output.argument, KEYWORD, None) for output in op.writes]
    return parameters


@every_op
def test_a_public_function_has_the_signature_of_its_family(op):
    assert described(getattr(cunorm, op.name)) == signature(op)


@every_op
def test_every_argument_arrives_under_its_own_name(monkeypatch, op):
    def caught(*call):
        calls.append(call)
        return (None,) * len(op.returns)

    calls = []
    function = getattr(cunorm, op.name)
    made_by = "backward" if op.is_backward else "forward"
    if op.name in ROPE_OPS:
        made_by = "rope_backward" if op.is_backward else "rope"
    made_by = "quantised" if op.name in QUANTISED else made_by
    monkeypatch.setitem(function.__globals__, made_by, caught)
    given = {name: object() for name, *_ in signature(op)}
    function(**given)
    ((called, arrays, options),) = calls
    assert called is op
    arguments = {output.name: output.argument for output in op.writes}
    found = {arguments.get(n, n): a for n, a in zip(op.slots, arrays, strict=True)}
    found |= {o.name: value for o, value in zip(op.options, options, strict=True)}
    assert found == given


def test_the_public_names_are_those_of_the_families():
    assert sorted([*ALL_OPS, *BESIDE]) == cunorm.__all__


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_functions_of_tensors_have_the_signatures_of_their_families(op):
    for name, arguments in (
        (op.name, op.of_tensors),
        (f"{op.name}_", op.of_tensors_in_place),
    ):
        assert described(getattr(cunorm.torch, name)) == signature(op, False, arguments)


OF_HEADS = [op for op in ROPE_OPS.values() if op.name == op.norm]


@pytest.mark.parametrize("op", [*QUANTISED.values(), *OF_HEADS], ids=lambda op: op.name)
def test_functions_of_codes_and_heads_have_the_signatures_of_their_families(op):
    names = [op.name, f"{op.name}_"] if op.name in ROPE_OPS else [op.name]
    y_out = [("y_out", KEYWORD, None)] if op.name in QUANTISED else []
    for name in names:
        assert described(getattr(cunorm.torch, name)) == signature(op, False) + y_out


@pytest.mark.parametrize("op", PLAIN, ids=lambda op: op.name)
def test_every_argument_of_a_function_of_tensors_arrives_under_its_own_name(monkeypatch, op):
    def caught(*call):
        calls.append(call)
        return (None,) * len(OPS[f"{op.name}_fwd"].returns)

    # A different number, word or tensor for each.
    given = {}
    for index, argument in enumerate(op.of_tensors):
        own = {"cast": "after", "activation": None, "group": 4, "dtype": torch.float64}
        own |= {"gate_first": True}
        is_input = isinstance(argument, Input)
        tensor = torch.zeros(index + 1)
        given[argument.name] = tensor if is_input else own.get(argument.name, float(index))
    for name, arguments in (
        (op.name, op.of_tensors),
        (f"{op.name}_", op.of_tensors_in_place),
    ):
        calls = []
        function = getattr(cunorm.torch, name)
        called = name if name == f"{op.name}_" else f"{name}_fwd"
        monkeypatch.setitem(function.__globals__, "_operators", SimpleNamespace(**{called: caught}))
        function(**{argument.name: given[argument.name] for argument in arguments})
        (call,) = calls
        assert len(call) == len(arguments)
        for argument, value in zip(arguments, call, strict=True):
            assert value is given[argument.name] or value == given[argument.name]


SCHEMAS = """
rms_norm_fwd(Tensor x, Tensor? gamma, float eps, float gamma_offset, str cast, Tensor? scale,
 Tensor? shift, float scale_offset, ScalarType? dtype) -> (Tensor, Tensor)
layer_norm_fwd(Tensor x, Tensor? gamma, Tensor? beta, float eps, float gamma_offset, Tensor? scale,
 Tensor? shift, float scale_offset, ScalarType? dtype) -> (Tensor, Tensor, Tensor)
add_rms_norm_fwd(Tensor x, Tensor residual, Tensor? gamma, float eps, Tensor? gate, float
 gamma_offset, str cast, Tensor? scale, Tensor? shift, float scale_offset, ScalarType? dtype) ->
 (Tensor, Tensor, Tensor)
add_layer_norm_fwd(Tensor x, Tensor residual, Tensor? gamma, Tensor? beta, float eps, Tensor? gate,
 float gamma_offset, Tensor? scale, Tensor? shift, float scale_offset, ScalarType? dtype) ->
 (Tensor, Tensor, Tensor, Tensor)
rms_norm_gated_fwd(Tensor x, Tensor gate, Tensor? gamma, float eps, str? activation, bool
 gate_first, int? group, float gamma_offset, str cast, ScalarType? dtype) -> (Tensor, Tensor)
layer_norm_gated_fwd(Tensor x, Tensor gate, Tensor? gamma, Tensor? beta, float eps, str?
 activation, bool gate_first, int? group, float gamma_offset, str cast, ScalarType? dtype) ->
 (Tensor, Tensor, Tensor)
rms_norm_add_fwd(Tensor x, Tensor residual, Tensor? gamma, float eps, Tensor? gate, float
 gamma_offset, str cast) -> (Tensor, Tensor)
layer_norm_add_fwd(Tensor x, Tensor residual, Tensor? gamma, Tensor? beta, float eps, Tensor? gate,
 float gamma_offset) -> (Tensor, Tensor, Tensor)
rms_norm_add_rms_norm_fwd(Tensor x, Tensor residual, Tensor? gamma, Tensor? gamma2, float eps,
 float? eps2, float gamma_offset, str cast) -> (Tensor, Tensor, Tensor, Tensor)
rms_norm_bwd(Tensor dy, Tensor x, Tensor? gamma, Tensor rstd, float gamma_offset, Tensor? scale,
 Tensor? shift, float scale_offset, Tensor? dresidual, bool sums) -> (Tensor, Tensor, Tensor,
 Tensor)
layer_norm_bwd(Tensor dy, Tensor x, Tensor? gamma, Tensor mean, Tensor rstd, float gamma_offset,
 Tensor? beta, Tensor? scale, Tensor? shift, float scale_offset, Tensor? dresidual, bool sums) ->
 (Tensor, Tensor, Tensor, Tensor, Tensor)
add_rms_norm_bwd(Tensor dy, Tensor h, Tensor? gamma, Tensor rstd, Tensor x, Tensor gate, float
 gamma_offset, Tensor? scale, Tensor? shift, float scale_offset, Tensor? dresidual, bool sums) ->
 (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
add_layer_norm_bwd(Tensor dy, Tensor h, Tensor? gamma, Tensor mean, Tensor rstd, Tensor x, Tensor
 gate, float gamma_offset, Tensor? beta, Tensor? scale, Tensor? shift, float scale_offset, Tensor?
 dresidual, bool sums) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)
rms_norm_gated_bwd(Tensor dy, Tensor x, Tensor gate, Tensor? gamma, Tensor rstd, str? activation,
 bool gate_first, int? group, float gamma_offset, bool sums) -> (Tensor, Tensor, Tensor)
layer_norm_gated_bwd(Tensor dy, Tensor x, Tensor gate, Tensor? gamma, Tensor mean, Tensor rstd,
 str? activation, bool gate_first, int? group, float gamma_offset, Tensor? beta, bool sums) ->
 (Tensor, Tensor, Tensor, Tensor)
rms_norm_(Tensor(a0!) x, Tensor? gamma, float eps, float gamma_offset, str cast, Tensor? scale,
 Tensor? shift, float scale_offset) -> ()
layer_norm_(Tensor(a0!) x, Tensor? gamma, Tensor? beta, float eps, float gamma_offset, Tensor?
 scale, Tensor? shift, float scale_offset) -> ()
add_rms_norm_(Tensor(a0!) x, Tensor(a1!) residual, Tensor? gamma, float eps, Tensor? gate, float
 gamma_offset, str cast, Tensor? scale, Tensor? shift, float scale_offset) -> ()
add_layer_norm_(Tensor(a0!) x, Tensor(a1!) residual, Tensor? gamma, Tensor? beta, float eps,
 Tensor? gate, float gamma_offset, Tensor? scale, Tensor? shift, float scale_offset) -> ()
rms_norm_gated_(Tensor(a0!) x, Tensor gate, Tensor? gamma, float eps, str? activation, bool
 gate_first, int? group, float gamma_offset, str cast) -> ()
layer_norm_gated_(Tensor(a0!) x, Tensor gate, Tensor? gamma, Tensor? beta, float eps, str?
 activation, bool gate_first, int? group, float gamma_offset, str cast) -> ()
rms_norm_add_(Tensor x, Tensor(a0!) residual, Tensor? gamma, float eps, Tensor? gate, float
 gamma_offset, str cast) -> ()
layer_norm_add_(Tensor x, Tensor(a0!) residual, Tensor? gamma, Tensor? beta, float eps, Tensor?
 gate, float gamma_offset) -> ()
rms_norm_add_rms_norm_(Tensor(a0!) x, Tensor(a1!) residual, Tensor? gamma, Tensor? gamma2, float
 eps, float? eps2, float gamma_offset, str cast) -> ()
rms_norm_quant(Tensor x, Tensor? gamma, float eps, str quant_format, int? quant_group, str
 quant_scale, str quant_layout, float quant_floor, float quant_minimum, float? quant_ceiling,
 float? quant_static, float? quant_global_scale, float gamma_offset, str cast) -> (Tensor, Tensor)
layer_norm_quant(Tensor x, Tensor? gamma, Tensor? beta, float eps, str quant_format, int?
 quant_group, str quant_scale, str quant_layout, float quant_floor, float quant_minimum, float?
 quant_ceiling, float? quant_static, float? quant_global_scale, float gamma_offset) -> (Tensor,
 Tensor)
add_rms_norm_quant(Tensor x, Tensor residual, Tensor? gamma, float eps, Tensor? gate, str
 quant_format, int? quant_group, str quant_scale, str quant_layout, float quant_floor, float
 quant_minimum, float? quant_ceiling, float? quant_static, float? quant_global_scale, float
 gamma_offset, str cast) -> (Tensor, Tensor, Tensor)
add_layer_norm_quant(Tensor x, Tensor residual, Tensor? gamma, Tensor? beta, float eps, Tensor?
 gate, str quant_format, int? quant_group, str quant_scale, str quant_layout, float quant_floor,
 float quant_minimum, float? quant_ceiling, float? quant_static, float? quant_global_scale, float
 gamma_offset) -> (Tensor, Tensor, Tensor)
quantize(Tensor x, str quant_format, int? quant_group, str quant_scale, str quant_layout, float
 quant_floor, float quant_minimum, float? quant_ceiling, float? quant_static, float?
 quant_global_scale) -> (Tensor, Tensor)
dequantize(Tensor x, Tensor factors, str quant_format, int? quant_group, str quant_scale, str
 quant_layout, float quant_floor, float quant_minimum, float? quant_ceiling, float? quant_static,
 float? quant_global_scale, ScalarType? dtype) -> Tensor
rms_norm_rope_fwd(Tensor x, Tensor? gamma, Tensor cos, Tensor sin, Tensor? positions, float eps,
 bool interleaved, bool norm_first, bool across_heads, float gamma_offset, str cast) -> (Tensor,
 Tensor)
qk_norm_rope_fwd(Tensor q, Tensor k, Tensor? q_gamma, Tensor? k_gamma, Tensor cos, Tensor sin,
 Tensor? positions, float eps, bool interleaved, bool norm_first, bool across_heads, float
 gamma_offset, str cast) -> (Tensor, Tensor, Tensor, Tensor)
rms_norm_rope_bwd(Tensor dy, Tensor x, Tensor? gamma, Tensor cos, Tensor sin, Tensor rstd, Tensor?
 positions, bool interleaved, bool norm_first, bool across_heads, float gamma_offset, bool sums)
 -> (Tensor, Tensor)
rms_norm_rope_(Tensor(a0!) x, Tensor? gamma, Tensor cos, Tensor sin, Tensor? positions, float eps,
 bool interleaved, bool norm_first, bool across_heads, float gamma_offset, str cast) -> ()
qk_norm_rope_(Tensor(a0!) q, Tensor(a1!) k, Tensor? q_gamma, Tensor? k_gamma, Tensor cos, Tensor
 sin, Tensor? positions, float eps, bool interleaved, bool norm_first, bool across_heads, float
 gamma_offset, str cast) -> ()
"""


def test_operators_have_the_schemas_that_saved_programs_name():
    for schema in SCHEMAS.strip().replace("\n ", " ").splitlines():
        operator = getattr(torch.ops.cunorm, schema.partition("(")[0])
        assert str(operator.default._schema) == f"cunorm::{schema}"
        assert operator.default.tags == [torch.Tag.pt2_compliant_tag]


def test_every_option_has_a_check_and_every_family_a_backward_op():
    assert {option.check for op in ALL_OPS.values() for option in op.options} == set(_check.OPTIONS)
    assert list(BACKWARD) == [family for family in FAMILIES if family.has_gradient]
    assert list(GRADIENTS) == list(FAMILIES)
    assert LAZY == ("rms_norm", "layer_norm")


def test_no_name_of_an_op_is_taken_apart():
    parsed = re.compile(
        r"""(startswith|endswith|removeprefix|removesuffix|replace|partition|split)\(\s*f?["']_?"""
        r"""(add|rms|layer|norm|fwd|bwd)|["'](add_|rms|rms_norm|layer|layer_norm|bwd|fwd)["'] in """
    )
    root = Path(cunorm.__file__).parent
    files = [f for f in root.rglob("*.py") if "simgpu" not in f.parts]
    assert len(files) > 40
    assert [f.name for f in files if parsed.search(f.read_text("utf-8"))] == []
