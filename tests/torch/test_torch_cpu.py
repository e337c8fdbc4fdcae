"""`cunorm.torch` without CUDA: the kernels' bits of given statistics, and bounds for those."""

import json
import subprocess
import sys
from pathlib import Path

import cupy
import ml_dtypes
import numpy as np
import pytest
import torch
from arrays import EVERY, NARROW, bits, random, to_numpy, to_torch
from torch_norms import OPS, arguments, call, every, names

import cunorm.torch
from cunorm import _reference
from cunorm.torch import _cpu, _statistics

pytestmark = pytest.mark.slow("each op in each dtype at each size, without a kernel")

ROOT = Path(__file__).parents[2]


def fresh(code, *options):
    """Run code in a new interpreter and return what it printed, as JSON."""
    run = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


TRAIN = """
import json, sys
import torch, cunorm.torch
x, gamma, beta = (torch.randn(n, requires_grad=True) for n in ((4, 8), 8, 8))
y, h = cunorm.torch.add_layer_norm(cunorm.torch.rms_norm(x, gamma), x, gamma, beta)
(y + h).sum().backward()
with torch.no_grad():
    cunorm.torch.layer_norm_(y, gamma, beta)
print(json.dumps([t.grad.abs().sum().item() > 0 for t in (x, gamma)] + ["cupy" in sys.modules]))
"""


def test_cpu_tensors_train_without_importing_cupy():
    assert fresh(TRAIN) == [True, True, False]


@pytest.mark.parametrize("order", ["cupy, torch", "torch, cupy"])
def test_cupy_and_torch_are_imported_in_any_order(order):
    code = (
        f"import json, cunorm.simgpu; cunorm.simgpu.install(); import {order}, cunorm.torch\n"
        "y = cunorm.torch.rms_norm(torch.ones(2, 8), eps=0.0)\n"
        "z = cunorm.rms_norm(cupy.ones((2, 8), 'float32'), eps=0.0)\n"
        "print(json.dumps([y.tolist(), z.tolist()]))"
    )
    assert fresh(code) == [[[1.0] * 8] * 2] * 2


def kernel(op, tensors, **options):
    """Return what the CuPy op returns, as NumPy arrays."""
    arrays = [None if t is None else cupy.asarray(to_numpy(t)) for t in tensors]
    return [array.get() for array in getattr(cunorm, op)(*arrays, **options)]


def with_an_axis(statistic):
    return torch.from_numpy(statistic).unsqueeze(-1)


@pytest.mark.parametrize(
    ("cast", "gamma_offset"), [("before", 0.0), ("after", 0.0), ("before", 1.0)]
)
@pytest.mark.parametrize("gamma", ["same", "float32", None])
@pytest.mark.parametrize("dtype", NARROW)
def test_rms_norm_has_the_kernels_bits_given_its_rstd(dtype, gamma, cast, gamma_offset):
    if gamma is None and gamma_offset:
        return  # there is nothing to add it to
    own = {} if gamma == "same" else {"gamma": gamma}
    tensors = arguments("rms_norm", (16, 1031), dtype, grad=False, **own)
    options = {"gamma_offset": gamma_offset, "cast": cast}
    y, rstd = kernel("rms_norm_fwd", tensors, **options)
    x, weight = tensors
    normal = _statistics.MeanSquare(with_an_axis(rstd)).normal(x)
    own = _cpu.scale(normal, weight, **options, dtype=x.dtype)
    assert bits(to_numpy(own)) == bits(y)


@pytest.mark.parametrize("op", ["add_rms_norm", "add_layer_norm"])
@pytest.mark.parametrize(
    ("dtype", "residual"),
    [
        ("float16", "float16"),
        ("float16", "bfloat16"),
        ("bfloat16", "float32"),
        ("float32", "float16"),
    ],
)
def test_h_has_the_kernels_bits(op, dtype, residual):
    tensors = arguments(op, (16, 1031), dtype, grad=False, residual=residual)
    _, h = kernel(op, tensors)
    assert bits(to_numpy(call(op, tensors)[1])) == bits(h)


@pytest.mark.parametrize("left_out", [{}, {"beta": None}, {"gamma": None}])
@pytest.mark.parametrize(
    ("dtype", "parameters"),
    [
        ("float16", "float16"),
        ("bfloat16", "float32"),
        ("float32", "bfloat16"),
        ("float32", "float32"),
    ],
)
def test_layer_norm_has_the_kernels_bits_given_its_moments(dtype, parameters, left_out):
    # Sums of small whole numbers are exact in any order, and so is a mean of 1024 of them.
    dtypes = {"gamma": parameters, "beta": parameters, **left_out}
    _, gamma, beta = arguments("layer_norm", (8, 1024), dtype, grad=False, **dtypes)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.integers(-16, 17, (8, 1024)).astype("f4")).to(getattr(torch, dtype))
    y, mean, rstd = kernel("layer_norm_fwd", (x, gamma, beta))
    assert np.array_equal(mean, to_numpy(x.double()).mean(-1))
    center = with_an_axis(mean)
    moments = _statistics.Moments(center, with_an_axis(rstd), torch.zeros_like(center))
    own = _cpu.affine(moments.normal(x), gamma, beta, gamma_offset=0.0, dtype=x.dtype)
    assert bits(to_numpy(own)) == bits(y)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_a_multiply_add_of_float32_is_rounded_once(sign):
    # The exact result, 1 + 2^-23 + 2^-24 - 2^-54, lies below a tie of float32, on which float64
    # puts it: rounded twice, it would go up to 1 + 2^-22.
    a = torch.tensor([sign * 2.0**-12 * (1 + 2.0**-15), sign * 3.0])
    b = torch.tensor([2.0**-12 * (1 - 2.0**-15), 7.0])
    c = torch.tensor([sign * (1 + 2.0**-23), sign])
    twice = (a.double() * b.double() + c.double()).float()
    assert twice.tolist() == [sign * (1 + 2.0**-22), sign * 22]
    assert _statistics.fma(a, b, c).tolist() == [sign * (1 + 2.0**-23), sign * 22]


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("dtype", EVERY)
def test_statistics_of_the_cpu_are_the_definitions_to_half_an_ulp(op, dtype):
    shift = 100.0 if op == "layer_norm" else 0.0
    x = to_torch(random((32, 1031), dtype, shift=shift))
    _, *found = getattr(torch.ops.cunorm, f"{op}_fwd")(*every(f"{op}_fwd", x=x))
    _, *expected = getattr(_reference, f"{op}_fwd")(to_numpy(x))
    for statistic, other in zip(found, expected, strict=True):
        # In float64, whose own roundings are some ulps, nothing wider is at hand.
        most = 0.5 + 1e-6 if dtype != "float64" else other.allowed
        assert (other.ulps(to_numpy(statistic)) <= most).all()


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("dtype", NARROW)
def test_results_differ_from_the_kernels_by_their_tolerance_at_most(op, dtype):
    tensors = arguments(op, (16, 1031), dtype, grad=False)
    y, *_ = kernel(f"{op}_fwd", tensors)
    own = to_numpy(call(op, tensors)[0])
    expected = getattr(_reference, op)(*map(to_numpy, tensors))
    expected = expected[0] if isinstance(expected, tuple) else expected
    assert expected.accepts(own).all()
    assert expected.accepts(y).all()
    # Nearly everywhere they are the same: rstd differs by a unit or two in its last place.
    assert (own == y).mean() > (0.9 if dtype != "float32" else 0.2)


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize(
    ("dtype", "size"),
    [
        *[("float32", 1e30), ("bfloat16", 1e30), ("float64", 1e300)],
        *[("float32", 1e-20), ("bfloat16", 1e-30), ("float64", 1e-155), ("float64", 1e-290)],
    ],
)
def test_rows_whose_squares_leave_the_range_are_right(op, dtype, size):
    x = to_torch(random((4, 129), dtype, scale=size))
    y = getattr(cunorm.torch, op)(x, eps=0)
    assert getattr(_reference, op)(to_numpy(x), eps=0).accepts(to_numpy(y)).all()


@pytest.mark.parametrize("op", ["rms_norm", "layer_norm"])
@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_special_rows_come_out_as_the_kernels_do(op, value):
    x = random((3, 9), "float32")
    x[1] = 0
    x[1, 4] = value
    tensors = (torch.from_numpy(x),)
    for eps in (0.0, 1e-5):
        y, *_ = kernel(f"{op}_fwd", tensors, eps=eps)
        own = to_numpy(getattr(cunorm.torch, op)(*tensors, eps=eps))
        assert np.array_equal(np.isnan(own), np.isnan(y))
        np.testing.assert_array_equal(own[1], y[1])


WRONG = [
    ("rms_norm", {"x": torch.ones(2, 8, dtype=torch.int32)}),
    ("rms_norm", {"x": torch.ones(())}),
    ("rms_norm", {"gamma": torch.ones(7)}),
    ("rms_norm", {"gamma": torch.ones(8, dtype=torch.float64)}),
    ("rms_norm", {"gamma_offset": 1.0}),
    ("rms_norm", {"gamma_offset": "1"}),
    ("rms_norm", {"gamma_offset": float("inf"), "gamma": torch.ones(8)}),
    ("rms_norm", {"eps": -1.0}),
    ("rms_norm", {"eps": "small"}),
    ("rms_norm", {"eps": True}),
    ("rms_norm", {"eps": 1e300}),
    ("rms_norm", {"cast": "during"}),
    ("rms_norm", {"cast": None}),
    ("layer_norm", {"gamma": torch.ones(8), "beta": torch.ones(4)}),
    ("layer_norm", {"beta": torch.ones(8, dtype=torch.int8)}),
    ("add_rms_norm", {"residual": torch.ones(2, 4)}),
    ("add_rms_norm", {"residual": torch.ones(2, 8, dtype=torch.float64)}),
    ("add_layer_norm", {"residual": torch.ones(2, 8, dtype=torch.bool)}),
]


@pytest.mark.parametrize("suffix", ["", "_"])
@pytest.mark.parametrize(("op", "wrong"), WRONG)
def test_errors_are_those_of_the_cupy_ops(op, wrong, suffix):
    given = {"x": torch.ones(2, 8), **wrong}
    if "residual" in names(op):
        given = {"residual": torch.ones(2, 8), **given}

    def raised(function, arguments):
        with pytest.raises((TypeError, ValueError)) as error:
            function(**arguments)
        return error.type, str(error.value)

    on_device = {
        name: cupy.asarray(to_numpy(a)) if isinstance(a, torch.Tensor) else a
        for name, a in given.items()
    }
    expected = raised(getattr(cunorm, op), on_device)
    assert raised(getattr(cunorm.torch, f"{op}{suffix}"), given) == expected


@pytest.mark.parametrize("op", OPS)
def test_what_is_no_tensor_is_named(op):
    for name in names(op):
        tensors = dict(zip(names(op), arguments(op, (2, 8), "float32", grad=False), strict=True))
        tensors[name] = tensors[name].numpy()
        message = f"^{name} must be a torch.Tensor, but is a numpy.ndarray$"
        with pytest.raises(TypeError, match=message):
            getattr(cunorm.torch, op)(**tensors)
        with pytest.raises(TypeError, match=message):
            getattr(cunorm.torch, f"{op}_")(**tensors)


def test_devices_must_be_one_and_known():
    x = torch.ones(2, 8)
    with pytest.raises(
        ValueError, match=r"^gamma must be on the device of x, cpu, but is on meta$"
    ):
        cunorm.torch.rms_norm(x, torch.ones(8, device="meta"))


def test_bfloat16_is_that_of_ml_dtypes():
    # The tests compare by it.
    x = torch.tensor([1.0, 1.00390625, 3e38]).bfloat16()
    assert to_numpy(x).dtype == ml_dtypes.bfloat16
