"""The rarer float forms: defaults, mad, saturation, relu, xorsign, approximations."""

import math
from fractions import Fraction

import numpy as np
import pytest
from one_instruction import FORMATS, execute
from test_isa_float import check, columns, expected, is_negative

MODES = ("rn", "rz", "rm", "rp")


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["add", "sub", "mul"])
def test_the_rounding_is_to_nearest_where_none_is_named(name, kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 2)
    wanted = [expected(form, name, bits, "rn", False) for bits in zip(*values, strict=True)]
    check(name, kind, execute(f"{name}.{kind}", [kind], *operands), wanted, values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "ftz"), [("f32", ""), ("f32", ".ftz"), ("f64", "")])
def test_mad_of_floats_is_fused(kind, ftz, mode):
    form = FORMATS[kind]
    values, operands = columns(kind, 3)
    got = execute(f"mad.{mode}{ftz}.{kind}", [kind], *operands)
    wanted = [expected(form, "fma", bits, mode, bool(ftz)) for bits in zip(*values, strict=True)]
    check(f"mad.{mode}{ftz}", kind, got, wanted, values)


def clamped(form, bits):
    value = form.value(bits)
    one = form.round(Fraction(1))
    return 0 if value != value or value <= 0 else one if value >= 1 else bits


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("name", ["sub", "mad"])
def test_saturation_clamps(name, kind):
    if (name, kind) == ("mad", "f16"):
        return  # PTX has no such instruction.
    form = FORMATS[kind]
    base = "fma" if name == "mad" else name
    values, operands = columns(kind, 3 if base == "fma" else 2)
    got = execute(f"{name}.rn.sat.{kind}", [kind], *operands)
    wanted = [
        clamped(form, expected(form, base, bits, "rn", False)) for bits in zip(*values, strict=True)
    ]
    check(f"{name}.sat", kind, got, wanted, values)


@pytest.mark.parametrize(("kind", "ftz"), [("f16", ""), ("f16", ".ftz"), ("bf16", "")])
def test_relu_makes_negative_sums_zero(kind, ftz):
    form = FORMATS[kind]
    values, operands = columns(kind, 3)
    got = execute(f"fma.rn{ftz}.relu.{kind}", [kind], *operands)
    wanted = []
    for bits in zip(*values, strict=True):
        result = expected(form, "fma", bits, "rn", bool(ftz))
        value = form.value(result)
        wanted.append(result if value != value or value > 0 else 0)
    check("fma.relu", kind, got, wanted, values)


def extreme(form, name, a, b, *, nan, xorsign):
    """The ISA's min and max: one NaN loses, unless .NaN is written; -0 is below +0."""
    sign = (a ^ b) & form.sign
    if xorsign:
        a, b = a & ~form.sign, b & ~form.sign
    x, y = form.value(a), form.value(b)
    if x != x or y != y:
        if nan or (x != x and y != y):
            return form.nan
        result = b if x != x else a
    else:
        key = lambda bits: (form.value(bits), not is_negative(form, bits))  # noqa: E731
        result = (min if name == "min" else max)(a, b, key=key)
    return result ^ sign if xorsign else result


KINDS = [("f16", ""), ("f16", ".ftz"), ("bf16", ""), ("f32", ""), ("f32", ".ftz")]


@pytest.mark.parametrize(("kind", "ftz"), KINDS)
@pytest.mark.parametrize("nan", ["", ".NaN"])
@pytest.mark.parametrize("xorsign", ["", ".xorsign.abs"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_every_kind_of_minimum(name, kind, ftz, nan, xorsign):
    form = FORMATS[kind]
    values, operands = columns(kind, 2)
    got = execute(f"{name}{ftz}{nan}{xorsign}.{kind}", [kind], *operands)
    wanted = []
    for a, b in zip(*values, strict=True):
        if ftz:
            a, b = form.flush(a), form.flush(b)
        wanted.append(extreme(form, name, a, b, nan=bool(nan), xorsign=bool(xorsign)))
    check(f"{name}{ftz}{nan}{xorsign}", kind, got, wanted, values)


PAIRED = [
    *(f"{name}{ftz}{nan}{xorsign}.{kind}x2" for name in ("min", "max")
      for kind, ftz in KINDS[:3] for nan in ("", ".NaN") for xorsign in ("", ".xorsign.abs")),
    *(f"{name}.{kind}x2" for name in ("add", "sub", "mul", "neg", "abs")
      for kind in ("f16", "bf16")),
    "neg.ftz.f16x2", "abs.ftz.f16x2", "add.sat.f16x2", "sub.ftz.sat.f16x2", "mul.rn.sat.f16x2",
    "fma.rn.relu.f16x2", "fma.rn.ftz.relu.f16x2", "fma.rn.relu.bf16x2", "fma.rn.sat.f16x2",
    "ex2.approx.f16x2", "ex2.approx.ftz.f16x2", "ex2.approx.ftz.bf16x2", "tanh.approx.f16x2",
    "tanh.approx.bf16x2",
]  # fmt: skip


@pytest.mark.parametrize("opcode", PAIRED)
def test_pairs_are_two_halves(opcode):
    name, kind = opcode.split(".")[0], opcode.split(".")[-1].removesuffix("x2")
    operands = {"fma": 3, "neg": 1, "abs": 1, "ex2": 1, "tanh": 1}.get(name, 2)
    _, singles = columns(kind, operands)
    count = singles[0][0].size // 2 * 2
    halves = [array[:count] for array, _ in singles]
    packed = [(np.ascontiguousarray(array).view(np.uint32), f"{kind}x2") for array in halves]
    pairs = execute(opcode, [f"{kind}x2"], *packed)
    alone = execute(opcode.removesuffix("x2"), [kind], *((array, kind) for array in halves))
    np.testing.assert_array_equal(pairs.view(np.uint16), alone)


def all_of(kind):
    """Every finite value of a 16-bit format."""
    form = FORMATS[kind]
    bits = [each for each in range(1 << 16) if (each & 0x7FFF) < form.infinity]
    return form, bits[::7]


@pytest.mark.parametrize(
    ("opcode", "bound"),
    [
        # The ISA: 2^-9.9 relative for f16, 2^-7 for bf16; tanh 2^-10.987 absolute, 2^-8 for bf16.
        ("ex2.approx.f16", 2**-9.9), ("ex2.approx.ftz.f16", 2**-9.9),
        ("ex2.approx.ftz.bf16", 2**-7), ("tanh.approx.f16", 2**-10.987),
        ("tanh.approx.bf16", 2**-8),
    ],
)  # fmt: skip
def test_approximations_of_16_bits_stay_inside_the_bounds(opcode, bound):
    kind = opcode.split(".")[-1]
    form, bits = all_of(kind)
    got = execute(opcode, [kind], (np.array(bits, np.uint16), kind)).tolist()
    least, largest = form.value(1 << form.precision - 1), form.value(form.infinity - 1)
    for given, result in zip(bits, got, strict=True):
        x, y = float(form.value(given)), form.value(int(result))
        if "tanh" in opcode:
            assert abs(float(y) - math.tanh(x)) <= bound
            continue
        exact = 2.0**x if x < 1000 else math.inf
        if exact > largest * (1 + bound):
            assert y == math.inf or exact <= largest * 1.001
        elif exact < least * (1 + bound):
            # Below the normals the error is of the last place; .ftz may give zero.
            assert abs(float(y) - exact) <= float(form.value(1)) or (".ftz" in opcode and y == 0)
        else:
            assert y == math.inf or abs(float(y) - exact) <= bound * exact


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("kind", ["approx", "full"])
def test_approximate_division_is_within_two_ulp(kind, ftz):
    draw = np.random.default_rng(4)
    a = draw.uniform(-1e6, 1e6, 4000).astype(np.float32)
    b = (draw.uniform(1, 2, 4000) * 2.0 ** draw.integers(-60, 60, 4000)).astype(np.float32)
    got = execute(f"div.{kind}{ftz}.f32", ["f32"], (a, "f32"), (b, "f32")).view(np.float32)
    exact = a.astype(np.float64) / b
    ulp = np.spacing(np.abs(exact).astype(np.float32)).astype(np.float64)
    assert (np.abs(got - exact) <= 2 * ulp).all()


def test_approximate_division_by_huge_numbers_gives_zero_or_nan():
    # The ISA: for 2^126 < |b| < 2^128 the result is 0, and NaN where a is infinite.
    b = np.array([2.0**127, -(2.0**127), 1.5 * 2.0**126, 2.0**127], np.float32)
    a = np.array([5.0, 5.0, -3.0, np.inf], np.float32)
    got = execute("div.approx.f32", ["f32"], (a, "f32"), (b, "f32"))
    assert got.tolist() == [0, 0x80000000, 0x80000000, 0x7FFFFFFF]
    got = execute("div.full.f32", ["f32"], (a[:3], "f32"), (b[:3], "f32")).view(np.float32)
    np.testing.assert_allclose(got, a[:3] / b[:3], rtol=2**-22)


def test_rsqrt_of_doubles():
    draw = np.random.default_rng(5)
    x = draw.uniform(1, 4, 1000) * 4.0 ** draw.integers(-200, 200, 1000)
    got = execute("rsqrt.approx.f64", ["f64"], (x, "f64")).view(np.float64)
    wanted = np.array([1 / math.sqrt(value) for value in x])
    assert (np.abs(got / wanted - 1) <= 2.0**-52).all()
    special = np.array([-1.0, -0.0, 0.0, np.inf, np.nan])
    got = execute("rsqrt.approx.f64", ["f64"], (special, "f64"))
    nan, infinity = 0x7FFFFFFFFFFFFFFF, 0x7FF0000000000000
    assert got.tolist() == [nan, infinity | 1 << 63, infinity, 0, nan]


def _wide(count):
    """Positive float32 values of every exponent, subnormals among them."""
    draw = np.random.default_rng(6)
    bits = draw.integers(1, 0x7F800000, count, dtype=np.uint32)
    return np.concatenate([bits, np.arange(1, 2000, 7, dtype=np.uint32)]).view(np.float32)


def _near(count, width):
    return np.random.default_rng(7).uniform(-width, width, count).astype(np.float32)


# The ISA's table of each function: where, and how far off it may be, relative or absolute.
BOUNDS = [
    ("rcp", _wide(8000), lambda x: 1 / x, 2**-23, "relative"),
    ("sqrt", _wide(8000), math.sqrt, 2**-23, "relative"),
    ("rsqrt", _wide(8000), lambda x: 1 / math.sqrt(x), 2**-22.9, "relative"),
    ("lg2", _wide(8000), math.log2, 2**-22, "relative"),
    ("lg2", np.abs(_near(8000, 1.5)) + np.float32(0.5), math.log2, 2**-22, "absolute"),
    ("ex2", _near(8000, 120), lambda x: 2.0**x, 2**-22.5, "relative"),
    ("sin", _near(8000, 2 * math.pi), math.sin, 2**-20.5, "absolute"),
    ("cos", _near(8000, 2 * math.pi), math.cos, 2**-20.5, "absolute"),
    ("sin", _near(8000, 100 * math.pi), math.sin, 2**-14.7, "absolute"),
    ("cos", _near(8000, 100 * math.pi), math.cos, 2**-14.7, "absolute"),
    ("tanh", _near(8000, 10), math.tanh, 2**-11, "relative"),
]


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize(("name", "x", "function", "bound", "way"), BOUNDS)
def test_approximations_stay_inside_the_isa_s_bounds(name, x, function, bound, way, ftz):
    if name == "tanh" and ftz:
        return  # PTX has no such instruction.
    got = execute(f"{name}.approx{ftz}.f32", ["f32"], (x, "f32")).view(np.float32)
    least, largest = 2.0**-126, (2 - 2**-23) * 2.0**127
    for value, result in zip(x.tolist(), got.tolist(), strict=True):
        if ftz and abs(value) < least:
            value = 0.0
        if value == 0 and name in ("rcp", "rsqrt", "lg2"):
            assert result == (-math.inf if name == "lg2" else math.inf)
            continue
        exact = function(value)
        if abs(exact) > largest:
            assert abs(result) == math.inf
        elif abs(exact) < least and way == "relative":
            assert abs(result - exact) <= 2.0**-149 or (ftz and result == 0)
        else:
            size = abs(exact) if way == "relative" else 1.0
            assert abs(result - exact) <= bound * size, (value, result, exact)
