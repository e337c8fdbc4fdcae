"""Float arithmetic, instruction by instruction, against exact fractions rounded once."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from one_instruction import FORMATS, execute

MODES = ("rn", "rz", "rm", "rp")


def samples(kind, operands, count=400):
    """All pairs of edges (for three operands a draw of them), and random bit patterns."""
    form = FORMATS[kind]
    draw = random.Random(f"{kind} {operands}")
    edges = form.edges()
    lists = list(itertools.product(edges, repeat=min(operands, 2)))
    if operands == 3:
        lists = [(*pair, draw.choice(edges)) for pair in lists]
    one = form.round(Fraction(1))
    for _ in range(count):
        # Near one exponent, so that sums cancel and products neither overflow nor vanish.
        near = [one + draw.randrange(-5, 5) * (1 << form.precision - 1) for _ in range(operands)]
        lists.append(
            tuple(
                (bits + draw.getrandbits(form.precision - 1)) | draw.choice((0, form.sign))
                for bits in near
            )
        )
        lists.append(tuple(draw.getrandbits(form.bits) for _ in range(operands)))
    return list(zip(*lists, strict=True))


def columns(kind, operands):
    dtype = np.dtype(f"u{FORMATS[kind].bits // 8}")
    values = samples(kind, operands)
    return values, [(np.array(column, dtype), kind) for column in values]


def is_negative(form, bits):
    return bool(bits & form.sign)


def exact_sum(form, a, b, mode):
    """Add two values that may be infinite, with the sign that IEEE gives a zero."""
    x, y = form.value(a), form.value(b)
    if isinstance(x, float) or isinstance(y, float):
        return float(x if isinstance(x, float) else 0) + float(y if isinstance(y, float) else 0), 0
    both = is_negative(form, a) and is_negative(form, b)
    either = is_negative(form, a) or is_negative(form, b)
    same_zero = x == 0 and y == 0
    zero = form.sign if both or (mode == "rm" and (either or not same_zero)) else 0
    return x + y, zero


def exact_product(form, a, b):
    x, y = form.value(a), form.value(b)
    negative = is_negative(form, a) != is_negative(form, b)
    if isinstance(x, float) or isinstance(y, float):
        if x != x or y != y or x == 0 or y == 0:
            return math.nan, 0
        return (-math.inf if negative else math.inf), 0
    return x * y, form.sign if negative else 0


def expected(form, name, bits, mode, ftz):
    if ftz:
        bits = [form.flush(each) for each in bits]
    if name in ("add", "sub"):
        second = bits[1] ^ form.sign if name == "sub" else bits[1]
        value, zero = exact_sum(form, bits[0], second, mode)
    elif name == "mul":
        value, zero = exact_product(form, *bits)
    else:
        product, sign = exact_product(form, *bits[:2])
        addend = form.value(bits[2])
        if isinstance(product, float) or isinstance(addend, float):
            infinite = [x for x in (product, addend) if isinstance(x, float)]
            value, zero = sum(infinite), 0
        else:
            value = product + addend
            negative = (bool(sign), is_negative(form, bits[2]))
            same_zero = product == 0 and addend == 0
            zero = (
                form.sign
                if all(negative) or (mode == "rm" and (any(negative) or not same_zero))
                else 0
            )
            if not same_zero and mode != "rm":
                zero = 0
    result = form.round(value, mode, zero)
    return form.flush(result) if ftz else result


def check(opcode, kind, got, wanted, values):
    wrong = [
        (list(map(hex, bits)), hex(int(is_)), hex(should))
        for bits, is_, should in zip(zip(*values, strict=True), got, wanted, strict=True)
        if int(is_) != should
    ]
    assert not wrong, (
        f"{opcode} {kind}: {len(wrong)} wrong, first (operands, got, wanted) {wrong[:3]}"
    )


OPCODES = [
    (f"{name}.{mode}{ftz}.{kind}", name, kind, mode, bool(ftz))
    for name in ("add", "sub", "mul", "fma")
    for mode in MODES
    for kind, ftz in (("f32", ""), ("f32", ".ftz"), ("f64", ""))
] + [
    (f"{name}.rn{ftz}.{kind}", name, kind, "rn", bool(ftz))
    for name in ("add", "sub", "mul", "fma")
    for kind, ftz in (("f16", ""), ("f16", ".ftz"), ("bf16", ""))
]


@pytest.mark.parametrize(("opcode", "name", "kind", "mode", "ftz"), OPCODES)
def test_sums_and_products_are_rounded_once(opcode, name, kind, mode, ftz):
    form = FORMATS[kind]
    values, operands = columns(kind, 3 if name == "fma" else 2)
    got = execute(opcode, [kind], *operands)
    wanted = [expected(form, name, bits, mode, ftz) for bits in zip(*values, strict=True)]
    check(opcode, kind, got, wanted, values)


def test_half_fma_differs_from_two_roundings_somewhere():
    # Otherwise the test above could not tell a fused operation from a product and a sum.
    _, operands = columns("f16", 3)
    fused = execute("fma.rn.f16", ["f16"], *operands)
    product = execute("mul.rn.f16", ["f16"], *operands[:2])
    apart = execute("add.rn.f16", ["f16"], (product, "f16"), operands[2])
    assert (fused != apart).any()


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_pairs_are_two_halves(name, kind):
    operands = 3 if name == "fma" else 2
    _, singles = columns(kind, operands)
    count = singles[0][0].size // 2 * 2
    halves = [array[:count] for array, _ in singles]
    packed = [(np.ascontiguousarray(array).view(np.uint32), f"{kind}x2") for array in halves]
    pairs = execute(f"{name}.rn.{kind}x2", [f"{kind}x2"], *packed)
    alone = execute(f"{name}.rn.{kind}", [kind], *((array, kind) for array in halves))
    np.testing.assert_array_equal(pairs.view(np.uint16), alone)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("kind", "ftz"), [("f32", False), ("f32", True), ("f64", False)])
def test_quotients_reciprocals_and_roots_are_rounded_once(kind, ftz, mode):
    form = FORMATS[kind]
    mark = ".ftz" if ftz else ""
    values, operands = columns(kind, 2)

    def divided(a, b):
        if ftz:
            a, b = form.flush(a), form.flush(b)
        x, y = form.value(a), form.value(b)
        sign = (a ^ b) & form.sign
        if x != x or y != y or (x == 0 and y == 0):
            return form.nan
        if isinstance(x, float):
            return form.nan if isinstance(y, float) else form.infinity | sign
        if isinstance(y, float) or x == 0:
            return sign
        if y == 0:
            return form.infinity | sign
        result = form.round(x / y, mode)
        return form.flush(result) if ftz else result

    got = execute(f"div.{mode}{mark}.{kind}", [kind], *operands)
    wanted = [divided(a, b) for a, b in zip(*values, strict=True)]
    check(f"div.{mode}", kind, got, wanted, values)

    got = execute(f"rcp.{mode}{mark}.{kind}", [kind], operands[0])
    wanted = [divided(form.round(Fraction(1)), a) for a in values[0]]
    check(f"rcp.{mode}", kind, got, wanted, values[:1])

    def root(a):
        if ftz:
            a = form.flush(a)
        x = form.value(a)
        if x != x or (x < 0):
            return form.nan
        if x == 0 or x == math.inf:
            return a
        # An integer square root with many more digits than the format has, made sticky.
        shift = 2 * (form.precision + abs(form.lowest))
        scaled = x * Fraction(2) ** (2 * shift)
        whole = scaled.numerator // scaled.denominator
        digits = math.isqrt(whole)
        exact = digits * digits == whole and scaled.denominator == 1
        value = Fraction(digits if exact else 2 * digits + 1, 1 if exact else 2)
        return form.round(value / Fraction(2) ** shift, mode)

    got = execute(f"sqrt.{mode}{mark}.{kind}", [kind], operands[0])
    check(f"sqrt.{mode}", kind, got, [root(a) for a in values[0]], values[:1])


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
@pytest.mark.parametrize("name", ["min", "max"])
def test_min_and_max_order_zeros_and_drop_one_nan(name, kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 2)

    def chosen(a, b):
        x, y = form.value(a), form.value(b)
        if x != x or y != y:
            return form.nan if x != x and y != y else (b if x != x else a)
        key = lambda bits: (form.value(bits), not is_negative(form, bits))  # noqa: E731
        return (min if name == "min" else max)(a, b, key=key)

    wanted = [chosen(a, b) for a, b in zip(*values, strict=True)]
    check(name, kind, execute(f"{name}.{kind}", [kind], *operands), wanted, values)
    if kind != "f64":
        either = [
            form.nan if form.value(a) != form.value(a) or form.value(b) != form.value(b) else right
            for a, b, right in zip(*values, wanted, strict=True)
        ]
        got = execute(f"{name}.NaN.{kind}", [kind], *operands)
        check(f"{name}.NaN", kind, got, either, values)


@pytest.mark.parametrize("kind", ["f16", "bf16", "f32", "f64"])
def test_neg_and_abs_change_the_sign_bit_alone(kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 1)
    check(
        "neg",
        kind,
        execute(f"neg.{kind}", [kind], *operands),
        [a ^ form.sign for a in values[0]],
        values,
    )
    check(
        "abs",
        kind,
        execute(f"abs.{kind}", [kind], *operands),
        [a & ~form.sign for a in values[0]],
        values,
    )


@pytest.mark.parametrize("name", ["neg", "abs"])
@pytest.mark.parametrize("kind", ["f16", "f32"])
def test_neg_and_abs_flush_subnormals(name, kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 1)
    change = (lambda a: a ^ form.sign) if name == "neg" else (lambda a: a & ~form.sign)
    wanted = [form.flush(change(a)) for a in values[0]]
    check(name, kind, execute(f"{name}.ftz.{kind}", [kind], *operands), wanted, values)


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("name", ["add", "mul", "fma"])
def test_saturation_clamps_to_the_unit_interval(name, kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 3 if name == "fma" else 2)
    got = execute(f"{name}.rn.sat.{kind}", [kind], *operands)
    one = form.round(Fraction(1))
    wanted = []
    for bits in zip(*values, strict=True):
        result = expected(form, name, bits, "rn", False)
        value = form.value(result)
        wanted.append(0 if value != value or value <= 0 else one if value >= 1 else result)
    check(name, kind, got, wanted, values)


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_copysign_takes_the_sign_of_its_first_operand(kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 2)
    wanted = [(a & form.sign) | (b & ~form.sign) for a, b in zip(*values, strict=True)]
    check("copysign", kind, execute(f"copysign.{kind}", [kind], *operands), wanted, values)


@pytest.mark.parametrize(
    "test", ["finite", "infinite", "number", "notanumber", "normal", "subnormal"]
)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_testp(test, kind):
    form = FORMATS[kind]
    values, operands = columns(kind, 1)

    def holds(a):
        size = a & ~form.sign
        least = 1 << form.precision - 1
        return {
            "finite": size < form.infinity, "infinite": size == form.infinity,
            "number": size <= form.infinity, "notanumber": size > form.infinity,
            "normal": least <= size < form.infinity, "subnormal": 0 < size < least,
        }[test]  # fmt: skip

    got = execute(f"testp.{test}.{kind}", ["pred"], *operands)
    check(test, kind, got, [int(holds(a)) for a in values[0]], values)


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize(
    ("name", "bound"),
    # The ISA's bounds: relative 2^-22 or better, absolute for sin, cos, lg2 near their zeros.
    [("rcp", 2**-23), ("rsqrt", 2**-22.9), ("sqrt", 2**-23), ("ex2", 2**-22.5),
     ("lg2", 2**-22), ("sin", 2**-20.9), ("cos", 2**-20.9)],
)  # fmt: skip
def test_approximate_functions_stay_inside_the_bounds(name, bound, ftz):
    draw = np.random.default_rng(3)
    x = draw.uniform(-3, 3, 2000).astype(np.float32)
    if name in ("rsqrt", "sqrt", "lg2"):
        x = np.abs(x) + np.float32(0.01)
    reference = {
        "rcp": lambda v: 1 / v, "rsqrt": lambda v: 1 / math.sqrt(v), "sqrt": math.sqrt,
        "ex2": lambda v: 2.0**v, "lg2": math.log2, "sin": math.sin, "cos": math.cos,
    }[name]  # fmt: skip
    got = execute(f"{name}.approx{ftz}.f32", ["f32"], (x, "f32")).view(np.float32)
    for value, result in zip(x.tolist(), got.tolist(), strict=True):
        exact = reference(value)
        size = 1.0 if name in ("lg2", "sin", "cos") else abs(exact)
        assert abs(result - exact) <= bound * size, (value, result, exact)


INFINITY, NAN = math.inf, math.nan
SPECIAL = {
    "rcp": [(-INFINITY, -0.0), (-0.0, -INFINITY), (0.0, INFINITY), (INFINITY, 0.0), (NAN, NAN)],
    "rsqrt": [(-INFINITY, NAN), (-1.0, NAN), (-0.0, -INFINITY), (0.0, INFINITY), (INFINITY, 0.0)],
    "sqrt": [(-INFINITY, NAN), (-1.0, NAN), (-0.0, -0.0), (0.0, 0.0), (INFINITY, INFINITY)],
    "ex2": [(-INFINITY, 0.0), (-0.0, 1.0), (0.0, 1.0), (INFINITY, INFINITY), (NAN, NAN)],
    "lg2": [(-INFINITY, NAN), (-1.0, NAN), (-0.0, -INFINITY), (0.0, -INFINITY),
            (INFINITY, INFINITY)],
    "sin": [(-INFINITY, NAN), (-0.0, -0.0), (0.0, 0.0), (INFINITY, NAN), (NAN, NAN)],
    "cos": [(-INFINITY, NAN), (-0.0, 1.0), (0.0, 1.0), (INFINITY, NAN), (NAN, NAN)],
    "tanh": [(-INFINITY, -1.0), (-0.0, -0.0), (0.0, 0.0), (INFINITY, 1.0), (NAN, NAN)],
}  # fmt: skip


@pytest.mark.parametrize("name", SPECIAL)
def test_approximate_functions_at_the_isa_tables_of_special_values(name):
    inputs, wanted = (np.array(column, np.float32) for column in zip(*SPECIAL[name], strict=True))
    got = execute(f"{name}.approx.f32", ["f32"], (inputs, "f32"))
    wanted = np.where(np.isnan(wanted), np.uint32(0x7FFFFFFF), wanted.view(np.uint32))
    np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("name", ["rcp", "rsqrt"])
def test_gross_float64_seeds_have_twenty_bits(name):
    x = np.random.default_rng(1).uniform(0.1, 100, 500)
    got = execute(f"{name}.approx.ftz.f64", ["f64"], (x, "f64"))
    assert not (got & np.uint64(0xFFFFFFFF)).any()
    exact = 1 / x if name == "rcp" else x**-0.5
    assert (np.abs(got.view(np.float64) / exact - 1) < 2**-19).all()
