"""Kernels built ahead: calls that follow compile and load nothing, and nothing was touched."""

import inspect

import cupy
import ml_dtypes
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import random, to_torch
from cupy.cuda import compiler, runtime
from kinds import IN_TURNS

import cunorm
import cunorm.torch
from cunorm import _families
from cunorm._call import remembered
from cunorm._launch.launches import Launch

OPS = list(_families.OPS)


@pytest.fixture
def built(monkeypatch):
    """The kernels that CuPy compiled or read from its disk cache; the ops' own are forgotten."""
    remembered.clear()
    cupy.clear_memo()
    codes = []
    build = compiler._compile_module_with_cache

    def building(code, *arguments, **options):
        codes.append(code)
        return build(code, *arguments, **options)

    monkeypatch.setattr(compiler, "_compile_module_with_cache", building)
    return codes


def required(op):
    """Return the operands that an op cannot do without."""
    arguments = _families.OPS[op].arguments
    return [a.name for a in arguments if isinstance(a, _families.Operand) and not a.optional]


def arguments(op, shape, dtype, **dtypes):
    """Return an op's arrays: of x's dtype where not given, without those of dtype None."""
    wide = "float64" if dtype == "float64" else "float32"
    parameters = ("gamma", "gamma2", "beta")
    extents = dict.fromkeys(parameters, shape[-1:]) | dict.fromkeys(("mean", "rstd"), shape[:-1])
    extents |= dict.fromkeys(required(op), shape[-1:])
    kinds = dict.fromkeys(("x", "h", "dy", "residual", "gate", *parameters), dtype)
    kinds |= {"mean": wide, "rstd": wide} | dtypes
    return {
        name: None if kinds[name] is None else cupy.asarray(random(extents.get(name, shape), kind))
        for name in inspect.signature(getattr(cunorm, op)).parameters
        if (kind := kinds.get(name, "absent")) != "absent"
        and (name not in _families.OPS[op].operands or name in required(op))
    }


@IN_TURNS
@pytest.mark.parametrize("dtype", ["bfloat16", "float64"])
@pytest.mark.parametrize("op", OPS)
def test_a_call_after_warm_up_builds_nothing(built, op, dtype):
    given = arguments(op, (6, 24), dtype)
    built.clear()
    cunorm.warm_up(op, [(6, 24)], [dtype])
    # The sums of columns, and before them those of each gate.
    assert len(built) == 1 + _families.OPS[op].is_backward + len(required(op))
    built.clear()
    getattr(cunorm, op)(**given)
    assert built == []


@pytest.mark.parametrize(
    ("op", "options", "call"),
    [
        ("rms_norm", {"gamma": None}, {}),
        ("rms_norm", {"gamma": "float32"}, {}),
        ("rms_norm", {"gamma": "float32", "gamma_offset": 1.0}, {"gamma_offset": 0.5}),
        ("rms_norm", {"cast": "after"}, {"cast": "after"}),
        ("layer_norm", {"beta": None}, {}),
        ("add_rms_norm", {"residual": "float32"}, {}),
        ("add_layer_norm_fwd", {"residual": "float32", "gamma": "float32", "beta": "float32"}, {}),
        ("rms_norm_bwd", {"dresidual": True}, {}),
        ("rms_norm_bwd", {"sums": False}, {"sums": False}),
        ("layer_norm_bwd", {"gamma": None}, {}),
        ("rms_norm_gated", {"gate": "float32"}, {}),
        ("rms_norm_gated", {"gate_first": True, "group": 24}, {"gate_first": True, "group": 24}),
    ],
)
def test_what_makes_another_kernel_can_be_said(built, op, options, call):
    dtypes = {n: d for n, d in options.items() if n in ("residual", "gate", "gamma", "beta")}
    dtypes |= {"dresidual": "float16"} if options.get("dresidual") else {}
    given = arguments(op, (6, 72), "float16", **dtypes)
    cunorm.warm_up(op, [(6, 72)], ["float16"])
    built.clear()
    cunorm.warm_up(op, [(6, 72)], ["float16"], **options)
    assert built
    built.clear()
    getattr(cunorm, op)(**given, **call)
    assert built == []


@pytest.mark.parametrize("norm", ["rms_norm", "layer_norm"])
def test_quantised_ops_are_warmed_up_for_schemes_of_any_numbers(built, norm):
    x, gamma = (cupy.asarray(random(shape, "float16")) for shape in ((6, 72), 72))
    cunorm.warm_up(f"{norm}_quant", [(6, 72)], ["float16"], quant=cunorm.Quant.fp8_static(2))
    cunorm.warm_up(f"add_{norm}_quant", [(6, 72)], ["float16"], quant=cunorm.Quant.int8_row())
    assert len(built) == 2
    parameters = (gamma,) if norm == "rms_norm" else (gamma, gamma)
    getattr(cunorm, f"{norm}_quant")(x, *parameters, quant=cunorm.Quant.fp8_static(3))
    getattr(cunorm, f"add_{norm}_quant")(x, x, *parameters, quant=cunorm.Quant("int8", floor=1))
    assert len(built) == 2
    with pytest.raises(TypeError, match=r"^quant must be a cunorm\.Quant"):
        cunorm.warm_up(f"{norm}_quant", [(6, 72)], ["float16"])


@IN_TURNS
@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("op", _families.ROPE_OPS)
@pytest.mark.parametrize(
    ("dtypes", "options"),
    [
        ({}, {}),
        ({"cos": "float32", "positions": "int64"}, {}),
        ({"gamma": None, "positions": "uint8"}, {"interleaved": True}),
        ({"gamma": "float32"}, {"across_heads": True, "norm_first": False}),
    ],
)
def test_a_call_on_heads_after_warm_up_builds_nothing(built, op, dtypes, options, tokens):
    shape, x = (tokens, 4, 64), "bfloat16"
    of = {"gamma": x, "cos": x, "positions": None} | dtypes
    given = {name: cupy.asarray(random(shape, x)) for name in _families.ROPE_OPS[op].reads}
    weight, rows = ((256,), (tokens,)) if "across_heads" in options else ((64,), (tokens, 4))
    if _families.ROPE_OPS[op].is_backward:
        given["rstd"] = cupy.asarray(random(rows, "float32"))
    for name in _families.ROPE_OPS[op].parameters:
        given[name] = None if of["gamma"] is None else cupy.asarray(random(weight, of["gamma"]))
    given |= {name: cupy.asarray(random((9, 32), of["cos"])) for name in ("cos", "sin")}
    if of["positions"] is not None:
        given["positions"] = cupy.arange(tokens).astype(of["positions"])
    built.clear()
    with cupy.cuda.using_allocator(lambda nbytes: pytest.fail(f"{nbytes} bytes")):
        cunorm.warm_up(op, [shape], [x], **dtypes, **options)
    # A gradient of gamma has a kernel for its sums. One that comes in parts has more.
    count = 1
    if _families.ROPE_OPS[op].is_backward:
        count = 4 if "norm_first" in options else 1 if of["gamma"] is None else 2
    assert len(built) == count
    built.clear()
    getattr(cunorm, op)(**given, **options)
    # Between the parts of a gradient stand conversions, which are CuPy's.
    assert [code for code in built if "cupy/carray.cuh" not in code] == []


def test_what_makes_another_kernel_of_heads_is_refused_where_it_is_not_taken():
    with pytest.raises(TypeError, match=r"^positions must be left out where op is rms_norm"):
        cunorm.warm_up("rms_norm", [(2, 64)], ["float16"], positions="int64")
    with pytest.raises(TypeError, match=r"^cos must be left out where op is rms_norm"):
        cunorm.warm_up("rms_norm", [(2, 64)], ["float16"], cos="float32")
    with pytest.raises(TypeError, match=r"^residual must be left out where op is qk_norm_rope"):
        cunorm.warm_up("qk_norm_rope", [(2, 1, 64)], ["float16"], residual="float32")
    for wrong in ("float32", "numbers", bool):
        with pytest.raises(TypeError, match=r"^positions must be a dtype of integers or None"):
            cunorm.warm_up("qk_norm_rope", [(2, 1, 64)], ["float16"], positions=wrong)
    for named in (np.int64, np.dtype("i8"), torch.int64, "int64"):
        cunorm.warm_up("qk_norm_rope", [(2, 1, 64)], ["float16"], positions=named)


# Packets of 4 lanes, shared memory, a cluster, and rows that are read twice.
@pytest.mark.parametrize("rows", [1, 1000])
def test_few_rows_and_many_are_both_warmed_up(built, rows):
    given = [arguments("rms_norm", (count, 4096), "float16") for count in (2, 200)]
    built.clear()
    cunorm.warm_up("rms_norm", [(rows, 4096)], ["float16"])
    assert len(built) == 2
    for arrays in given:
        cunorm.rms_norm(**arrays)
    assert len(built) == 2


@pytest.mark.parametrize("cols", [8, 4096, 40_000, 1_300_000])
def test_rows_of_any_length_are_warmed_up_without_memory_for_them(built, monkeypatch, cols):
    with cupy.cuda.using_allocator(lambda nbytes: pytest.fail(f"{nbytes} bytes")):
        cunorm.warm_up("add_rms_norm_fwd", [(1 << 20, cols)], ["float16"])
        cunorm.warm_up("rms_norm_bwd", [(1 << 20, cols)], ["float16"])
    # Of 4096 columns few rows have a kernel, too; a backward pass adds up columns in another.
    assert len(built) == 3 + (cols == 4096)


def test_the_number_of_rows_makes_no_kernel_where_rows_are_multiples_of_16_bytes(built):
    cunorm.warm_up("rms_norm", [(1, 40)], ["float16"])
    given = [arguments("rms_norm", (rows, 40), "float16") for rows in (1, 2, 999)]
    given.append(arguments("rms_norm", (3, 4, 5, 40), "float16"))
    given.append(arguments("rms_norm", (40,), "float16"))
    built.clear()
    for each in given:
        cunorm.rms_norm(**each)
        cunorm.rms_norm(**each, out=each["x"])
    assert built == []


def test_a_single_row_of_other_bytes_has_a_kernel_of_its_own(built):
    cunorm.warm_up("rms_norm", [(1, 33), (2, 33)], ["float16"])
    assert len(built) == 2
    given = [arguments("rms_norm", (rows, 33), "float16") for rows in (1, 2, 999)]
    built.clear()
    for each in given:
        cunorm.rms_norm(**each)
    assert built == []


def test_every_shape_is_built_with_every_dtype_however_it_is_named(built):
    cunorm.warm_up("rms_norm", [(2, 64), (2, 128)], [np.float16, ml_dtypes.bfloat16, "float32"])
    assert len(built) == 6
    cunorm.warm_up("rms_norm", [(2, 64)], [torch.bfloat16, np.dtype("f4"), "f2"], gamma=None)
    assert len(built) == 9


@pytest.mark.skipif(runtime.getDeviceCount() < 2, reason="needs two devices (--simgpu-devices 2)")
def test_each_device_has_kernels_of_its_own(built):
    cunorm.warm_up("rms_norm", [(2, 64)], ["float16"], devices=[0, 1])
    assert runtime.getDevice() == 0
    for device in (1, 0):
        with cupy.cuda.Device(device):
            given = arguments("rms_norm", (2, 64), "float16")
        built.clear()
        cunorm.rms_norm(**given)
        assert built == []


def test_a_shape_without_elements_needs_no_kernel(built):
    cunorm.warm_up("rms_norm_fwd", [(0, 64), (4, 0)], ["float16"])
    assert built == []


def test_nothing_is_launched_and_no_call_is_remembered(built, monkeypatch):
    monkeypatch.setattr(Launch, "enqueue", lambda *_: pytest.fail("launched"))
    cunorm.warm_up("rms_norm", [(2, 64)], ["float16"])
    cunorm.warm_up("layer_norm_bwd", [(2, 64)], ["float16"])
    assert not remembered._known


def test_the_ops_on_tensors_share_the_kernels(built):
    with torch_bridge.tensors_on("cuda") as put:
        for op in ("add_rms_norm", "rms_norm"):
            cunorm.warm_up(op, [(6, 72)], ["bfloat16"])
        cunorm.warm_up("rms_norm_bwd", [(6, 72)], ["bfloat16"], dresidual=True)
        x, residual = (put(to_torch(random((6, 72), "bfloat16", seed=i))) for i in range(2))
        gamma = put(to_torch(random((72,), "bfloat16"))).requires_grad_()
        built.clear()
        cunorm.rms_norm(x, gamma.detach())
        y, h = cunorm.torch.add_rms_norm(x, residual, gamma)
        torch.autograd.backward((y, h), (torch.ones_like(y), torch.ones_like(h)))
        assert built == []


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"op": "batch_norm"}, ValueError, "op must be one of add_layer_norm, .* is 'batch_norm'$"),
        ({"op": cunorm.rms_norm}, ValueError, "op must be one of .* but is <function"),
        ({"shapes": (2, 64)}, TypeError, "shapes must be of tuples of int, but has 2$"),
        ({"shapes": 64}, TypeError, "shapes must be a sequence of shapes, but is 64$"),
        ({"shapes": [(2, 6.4)]}, TypeError, r"shapes must be of tuples of int, but has \(2, 6.4\)"),
        ({"shapes": [()]}, ValueError, r"shapes must be of one axis or more, .* but has \(\)"),
        ({"shapes": [(2, -4)]}, ValueError, r"shapes must .* none negative, but has \(2, -4\)"),
        ({"dtypes": "float16"}, TypeError, "dtypes must be a sequence of dtypes, but is 'float16'"),
        ({"dtypes": np.float16}, TypeError, "dtypes must be a sequence of dtypes, but is <class"),
        ({"dtypes": ["int32"]}, TypeError, "dtypes must be float16, .* or float64, but is int32$"),
        ({"dtypes": ["fp8"]}, TypeError, "dtypes must be float16, .* or float64, but is 'fp8'$"),
        ({"gamma": "int8"}, TypeError, "gamma must be float16, .* or float64, but is int8$"),
        ({"gamma": "float64"}, TypeError, "gamma must be .* where x is float16, but is float64"),
        ({"op": "add_rms_norm", "residual": None}, TypeError, "residual must be a cupy.ndarray"),
        ({"residual": "float32"}, TypeError, "residual must be left out where op is rms_norm, whi"),
        ({"op": "layer_norm", "cast": "after"}, TypeError, "cast must be left out where op is lay"),
        ({"sums": False}, TypeError, "sums must be left out where op is rms_norm, which does not"),
        ({"cast": "never"}, ValueError, "cast must be 'before' or 'after', but is 'never'"),
        ({"gamma_offset": "1"}, TypeError, "gamma_offset must be a real number, but is a str"),
        ({"gamma": None, "gamma_offset": 1}, ValueError, "gamma_offset must be 0 where gamma is"),
        ({"devices": 0}, TypeError, "devices must be a sequence of devices, but is 0"),
        ({"devices": [99]}, ValueError, "devices must be of ids from 0 to [0-9]+, but has 99$"),
        ({"devices": ["cuda:0"]}, TypeError, "devices must be of ids of devices, but has a str$"),
    ],
)
def test_wrong_arguments_are_refused_by_name_and_nothing_is_built(built, given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        cunorm.warm_up(**{"op": "rms_norm", "shapes": [(2, 64)], "dtypes": ["float16"]} | given)
    assert built == []
