"""cvt, setp, set, selp and slct against exact fractions."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from one_instruction import DTYPES, FORMATS, execute

FLOATS = ["f16", "bf16", "f32", "f64"]
INTEGERS = ["u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64"]
MODES = ("rn", "rz", "rm", "rp")


def integer(value, kind):
    bits = int(kind[1:])
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> bits - 1 else value


def integers(kind):
    bits = int(kind[1:])
    draw = random.Random(kind)
    values = [0, 1, 2, 127, 128, 255, 1 << bits - 1, (1 << bits - 1) - 1, (1 << bits) - 1]
    for precision in (8, 11, 24, 53):
        # Halfway points of each format, and their neighbours.
        for top in range(precision + 1, bits):
            tie = (1 << top) + (1 << top - precision)
            values += [tie - 1, tie, tie + 1, tie + (1 << top - precision + 1)]
    values += [draw.getrandbits(draw.randrange(1, bits + 1)) for _ in range(200)]
    return [integer(value, kind) for value in values]


def floats(kind):
    form = FORMATS[kind]
    draw = random.Random(kind)
    bits = form.edges() + [draw.getrandbits(form.bits) for _ in range(500)]
    for value in (
        0.25,
        0.5,
        0.75,
        1.5,
        2.5,
        127.5,
        128.0,
        255.5,
        65504.0,
        65519.0,
        65520.0,
        2.0**31,
        2.0**32,
        2.0**63,
        2.0**64,
    ):
        near = form.round(Fraction(value))
        bits += [
            near - 1,
            near,
            near + 1,
            near | form.sign,
            near - 1 | form.sign,
            near + 1 | form.sign,
        ]
    return [value & ((1 << form.bits) - 1) for value in bits]


def compare(opcode, kind, got, wanted, inputs):
    wrong = [
        (hex(int(a)), hex(int(g)), hex(w))
        for a, g, w in zip(inputs, got, wanted, strict=True)
        if int(g) != w
    ]
    assert not wrong, f"{opcode}: {len(wrong)} wrong, first (operand, got, wanted) {wrong[:3]}"


@pytest.mark.parametrize(("to", "source"), list(itertools.product(INTEGERS, INTEGERS)))
def test_integers_are_cut_extended_or_saturated(to, source):
    values = integers(source)
    operand = (np.array(values, DTYPES[source]), source)
    mask = (1 << int(to[1:])) - 1
    # Results of 8 bits stand extended in a 16-bit register; the store takes the low byte.
    got = execute(f"cvt.{to}.{source}", [to], operand) & np.array(mask, np.uint64).astype(
        DTYPES[to]
    )
    compare(
        f"cvt.{to}.{source}", to, [int(g) & mask for g in got], [v & mask for v in values], values
    )
    bits = int(to[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)
    got = execute(f"cvt.sat.{to}.{source}", [to], operand)
    wanted = [max(low, min(high, v)) & mask for v in values]
    compare(f"cvt.sat.{to}.{source}", to, [int(g) & mask for g in got], wanted, values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("to", "source"), list(itertools.product(FLOATS, INTEGERS)))
def test_integers_to_floats_are_rounded_once(to, source, mode):
    values = integers(source)
    opcode = f"cvt.{mode}.{to}.{source}"
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    wanted = [FORMATS[to].round(Fraction(value), mode) for value in values]
    compare(opcode, to, got, wanted, values)


ROUND = {
    "rni": round,
    "rzi": math.trunc,
    "rmi": math.floor,
    "rpi": math.ceil,
}


@pytest.mark.parametrize("mode", ROUND)
@pytest.mark.parametrize(("to", "source"), list(itertools.product(INTEGERS, FLOATS)))
def test_floats_to_integers_clamp(to, source, mode):
    form, values = FORMATS[source], floats(source)
    bits = int(to[1:])
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if to[0] == "s" else (0, (1 << bits) - 1)

    def wanted(operand):
        value = form.value(operand)
        if value != value:
            return 1 << bits - 1 if source == "f64" or bits == 64 else 0
        if isinstance(value, float):
            return (high if value > 0 else low) & ((1 << bits) - 1)
        # Python rounds fractions half to even, as rni does.
        return max(low, min(high, ROUND[mode](value))) & ((1 << bits) - 1)

    opcode = f"cvt.{mode}.{to}.{source}"
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    got = [int(g) & ((1 << bits) - 1) for g in got]
    compare(opcode, to, got, [wanted(v) for v in values], values)


NARROWING = [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("to", "source"), NARROWING)
def test_narrowing_rounds_once(to, source, mode):
    values = floats(source)
    target = FORMATS[to]
    draw = random.Random(to + source)
    for exact in target.edges():
        # Ties between neighbours of the target, and one bit to either side of them.
        value = target.value(exact)
        if isinstance(value, Fraction) and value:
            half = FORMATS[source].round(value + target.value(1) / 2, "rz")
            values += [half - 1, half, half + 1]
            odd = value * (1 + Fraction(2 * draw.randrange(1 << 6) + 1, 1 << target.precision + 6))
            values.append(FORMATS[source].round(odd))
    values = [value & ((1 << FORMATS[source].bits) - 1) for value in values]
    opcode = f"cvt.{mode}.{to}.{source}"
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    wanted = []
    for operand in values:
        form = FORMATS[source]
        zero = target.sign if operand & form.sign else 0
        value = form.value(operand)
        bits = target.round(value, mode, zero)
        wanted.append(bits)
    compare(opcode, to, got, wanted, values)


@pytest.mark.parametrize(
    ("to", "source"), [("f32", "f16"), ("f32", "bf16"), ("f64", "f16"), ("f64", "f32")]
)
def test_widening_is_exact(to, source):
    form, values = FORMATS[source], floats(source)
    got = execute(f"cvt.{to}.{source}", [to], (np.array(values, DTYPES[source]), source))
    wanted = [
        FORMATS[to].round(form.value(v), "rn", FORMATS[to].sign if v & form.sign else 0)
        for v in values
    ]
    compare(f"cvt.{to}.{source}", to, got, wanted, values)


@pytest.mark.parametrize(
    "opcode", ["cvt.ftz.f64.f32", "cvt.rn.ftz.f16.f32", "cvt.rni.ftz.f32.f32", "cvt.rn.ftz.f32.f64"]
)
def test_conversions_flush_float32_subnormals(opcode):
    *_, to, source = opcode.split(".")
    values = [*floats(source), FORMATS[source].round(Fraction(2) ** -130)]
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    plain = opcode.replace(".ftz", "")
    flushed = [FORMATS["f32"].flush(v) if source == "f32" else v for v in values]
    wanted = execute(plain, [to], (np.array(flushed, DTYPES[source]), source)).tolist()
    if to == "f32":
        wanted = [FORMATS["f32"].flush(w) for w in wanted]
    compare(opcode, to, got, wanted, values)


@pytest.mark.parametrize("mode", ROUND)
@pytest.mark.parametrize("kind", ["f16", "f32", "f64"])
def test_rounding_to_whole_numbers_keeps_the_sign(kind, mode):
    form, values = FORMATS[kind], floats(kind)
    wanted = []
    for operand in values:
        value = form.value(operand)
        sign = operand & form.sign
        if isinstance(value, Fraction):
            wanted.append(form.round(Fraction(ROUND[mode](value)), "rn", sign))
        else:
            wanted.append(form.round(value))
    got = execute(f"cvt.{mode}.{kind}.{kind}", [kind], (np.array(values, DTYPES[kind]), kind))
    compare(mode, kind, got, wanted, values)


@pytest.mark.parametrize(
    "opcode", ["cvt.sat.f32.f32", "cvt.rn.sat.f16.f32", "cvt.rn.sat.f32.f64", "cvt.sat.f64.f64"]
)
def test_saturation_of_conversions(opcode):
    *_, to, source = opcode.split(".")
    form, values = FORMATS[source], floats(source)
    wanted = []
    for operand in values:
        value = form.value(operand)
        value = Fraction(0) if value != value or value <= 0 else min(value, Fraction(1))
        wanted.append(FORMATS[to].round(value))
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    compare(opcode, to, got, wanted, values)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("relu", ["", ".relu"])
def test_two_floats_pack_with_the_first_on_top(kind, relu):
    values = floats("f32")
    other = values[::-1]
    operands = [(np.array(v, np.uint32), "f32") for v in (values, other)]
    got = execute(f"cvt.rn{relu}.{kind}x2.f32", [f"{kind}x2"], *operands)

    def half(operand):
        value = FORMATS["f32"].value(operand)
        if relu and not value > 0 and value == value:
            return 0
        return FORMATS[kind].round(value, "rn", FORMATS[kind].sign if operand >> 31 else 0)

    wanted = [half(a) << 16 | half(b) for a, b in zip(values, other, strict=True)]
    compare(f"{kind}x2", kind, got, wanted, values)


TESTS = {
    "eq": lambda a, b: a == b, "lt": lambda a, b: a < b, "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip


@pytest.mark.parametrize("kind", FLOATS)
def test_setp_of_floats_with_nans_and_zeros(kind):
    form = FORMATS[kind]
    rows = list(itertools.product(form.edges(), repeat=2))
    columns = list(zip(*rows, strict=True))
    operands = [(np.array(column, DTYPES[kind]), kind) for column in columns]
    values = [(form.value(a), form.value(b)) for a, b in rows]
    for name, holds in {**TESTS, "ne": lambda a, b: a != b}.items():
        nan = [a != a or b != b for a, b in values]
        plain = [int(holds(a, b) and not n) for (a, b), n in zip(values, nan, strict=True)]
        unordered = [int(holds(a, b) or n) for (a, b), n in zip(values, nan, strict=True)]
        assert execute(f"setp.{name}.{kind}", ["pred"], *operands).tolist() == plain
        assert execute(f"setp.{name}u.{kind}", ["pred"], *operands).tolist() == unordered
    assert execute(f"setp.nan.{kind}", ["pred"], *operands).tolist() == list(map(int, nan))
    assert execute(f"setp.num.{kind}", ["pred"], *operands).tolist() == [int(not n) for n in nan]


def test_setp_flushes_subnormals():
    tiny = (np.array([1, 0x80000001, 0x00800000], np.uint32), "f32")
    zero = (np.zeros(3, np.uint32), "f32")
    assert execute("setp.eq.f32", ["pred"], tiny, zero).tolist() == [0, 0, 0]
    assert execute("setp.eq.ftz.f32", ["pred"], tiny, zero).tolist() == [1, 1, 0]


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_setp_of_integers_minds_the_sign(kind):
    rows = list(itertools.product(integers(kind)[:9], repeat=2))
    operands = [(np.array(column, DTYPES[kind]), kind) for column in zip(*rows, strict=True)]
    tests = {**TESTS, "ne": lambda a, b: a != b}
    if kind[0] == "u":
        tests |= {"lo": tests["lt"], "ls": tests["le"], "hi": tests["gt"], "hs": tests["ge"]}
    for name, holds in tests.items():
        got = execute(f"setp.{name}.{kind}", ["pred"], *operands).tolist()
        assert got == [int(holds(a, b)) for a, b in rows], name


@pytest.mark.parametrize("combine", ["and", "or", "xor"])
def test_setp_combines_both_results(combine):
    rows = list(itertools.product([1, 2], [1, 2], [0, 1]))
    a, b, c = zip(*rows, strict=True)
    operands = [
        (np.array(a, np.uint32), "u32"),
        (np.array(b, np.uint32), "u32"),
        (np.array(c, np.uint8), "pred"),
    ]
    first, second = execute(f"setp.lt.{combine}.u32", ["pred", "pred"], *operands)
    join = {"and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y}[combine]
    assert first.tolist() == [join(int(x < y), z) for x, y, z in rows]
    assert second.tolist() == [join(int(x >= y), z) for x, y, z in rows]


@pytest.mark.parametrize(
    ("to", "true"), [("u32", 0xFFFFFFFF), ("s32", 0xFFFFFFFF), ("f32", 0x3F800000)]
)
def test_set_writes_its_types_true(to, true):
    a = (np.array([1, 2, 3], np.int32), "s32")
    got = execute(f"set.lt.{to}.s32", [to], a, "2").view(np.uint32)
    assert got.tolist() == [true, 0, 0]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "f32", "f64"])
def test_selp_chooses_bits(kind):
    a, b = (np.array(values, DTYPES[kind]) for values in ([1, 2, 3], [4, 5, 6]))
    chosen = (np.array([1, 0, 1], np.uint8), "pred")
    assert execute(f"selp.{kind}", [kind], (a, kind), (b, kind), chosen).tolist() == [1, 5, 3]


def test_slct_chooses_by_sign_and_takes_nan_for_negative():
    a, b = (np.array([1, 1, 1, 1], np.uint32), "b32"), (np.array([2, 2, 2, 2], np.uint32), "b32")
    by = (np.array([0x80000000, 0, 0x7FC00000, 0xBF800000], np.uint32), "f32")
    assert execute("slct.b32.f32", ["b32"], a, b, by).tolist() == [1, 1, 2, 2]
    by = (np.array([0, 1, -1, -(1 << 31)], np.int32), "s32")
    assert execute("slct.b32.s32", ["b32"], a, b, by).tolist() == [1, 1, 2, 2]
