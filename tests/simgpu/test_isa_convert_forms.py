"""cvt in every combination of types, rounding, .ftz, .sat and .relu, against exact fractions."""

import itertools
import math
import random
from fractions import Fraction

import numpy as np
import pytest
from one_instruction import DTYPES, FORMATS, execute
from test_isa_convert import FLOATS, INTEGERS, compare, floats, integer, integers

MODES = ("rn", "rz", "rm", "rp")
WHOLE = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}
MANY = {"ftz": ("", ".ftz"), "sat": ("", ".sat")}


def few(kind):
    """Edges of a type, and some random values; in floats the ties of the narrower formats too."""
    values = integers(kind) if kind in INTEGERS else floats(kind)
    return [*values[:70], *random.Random(kind).sample(values, 60)]


def saturated(value):
    return Fraction(0) if value != value or value <= 0 else Fraction(min(value, 1))


def run(opcode, to, source, values):
    got = execute(opcode, [to], (np.array(values, DTYPES[source]), source))
    mask = (1 << int(to.strip("uscbft"))) - 1 if to in INTEGERS else -1
    return [int(each) & mask if mask > 0 else int(each) for each in got]


@pytest.mark.parametrize(("ftz", "sat"), list(itertools.product(*MANY.values())))
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("to", FLOATS)
def test_integers_to_floats(to, mode, ftz, sat):
    form = FORMATS[to]
    for source in INTEGERS:
        values = few(source)
        opcode = f"cvt.{mode}{ftz}{sat}.{to}.{source}"
        exact = [saturated(value) if sat else Fraction(value) for value in values]
        wanted = [form.round(value, mode) for value in exact]
        compare(opcode, to, run(opcode, to, source, values), wanted, values)


@pytest.mark.parametrize(("ftz", "sat"), list(itertools.product(*MANY.values())))
@pytest.mark.parametrize("mode", WHOLE)
@pytest.mark.parametrize("source", FLOATS)
def test_floats_to_integers(source, mode, ftz, sat):
    form, values = FORMATS[source], few(source)
    for to in INTEGERS:
        bits = int(to[1:])
        signed = to[0] == "s"
        low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)

        def converted(operand, bits=bits, low=low, high=high):
            value = form.value(form.flush(operand) if ftz and source == "f32" else operand)
            if value != value:
                return 1 << bits - 1 if source == "f64" or bits == 64 else 0
            if isinstance(value, float):
                return (high if value > 0 else low) & ((1 << bits) - 1)
            return max(low, min(high, WHOLE[mode](value))) & ((1 << bits) - 1)

        opcode = f"cvt.{mode}{ftz}{sat}.{to}.{source}"
        wanted = [converted(value) for value in values]
        compare(opcode, to, run(opcode, to, source, values), wanted, values)


def float_to_float(to, source, mode, marks):
    """Return the exact conversion of one value's bits."""
    before, after = FORMATS[source], FORMATS[to]

    def converted(operand):
        if ".ftz" in marks and source == "f32":
            operand = before.flush(operand)
        value = before.value(operand)
        sign = after.sign if operand & before.sign else 0
        if mode in WHOLE and isinstance(value, Fraction):
            value = Fraction(WHOLE[mode](value))
        if ".sat" in marks:
            value, sign = saturated(value), 0
        if ".relu" in marks and not value > 0 and value == value:
            value, sign = Fraction(0), 0
        result = after.round(value, mode if mode in MODES else "rn", sign)
        return after.flush(result) if ".ftz" in marks and to == "f32" else result

    return converted


WIDENING = [("f32", "f16"), ("f32", "bf16"), ("f64", "f16"), ("f64", "bf16"), ("f64", "f32")]
NARROWING = [("f16", "f32"), ("bf16", "f32"), ("f16", "f64"), ("bf16", "f64"), ("f32", "f64")]
ITSELF = [(kind, kind) for kind in FLOATS]
CONVERSIONS = [
    *((pair, "", marks) for pair in WIDENING + ITSELF for marks in ("", ".ftz", ".sat")),
    *((pair, mode, marks) for pair in NARROWING for mode in MODES
      for marks in ("", ".ftz", ".sat", ".ftz.sat")),
    *((pair, mode, marks) for pair in NARROWING[:2] for mode in MODES for marks in (".relu",)),
    *((pair, mode, marks) for pair in ITSELF for mode in WHOLE for marks in ("", ".ftz", ".sat")),
]  # fmt: skip


@pytest.mark.parametrize(("pair", "mode", "marks"), CONVERSIONS)
def test_floats_to_floats(pair, mode, marks):
    to, source = pair
    values = floats(source)
    opcode = f"cvt{'.' * bool(mode)}{mode}{marks}.{to}.{source}"
    converted = float_to_float(to, source, mode, marks)
    got = run(opcode, to, source, values)
    compare(opcode, to, got, [converted(value) for value in values], values)


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("marks", ["", ".relu", ".sat"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_from_two_floats(kind, marks, mode):
    values = floats("f32")
    others = values[::-1]
    operands = [(np.array(each, np.uint32), "f32") for each in (values, others)]
    got = execute(f"cvt.{mode}{marks}.{kind}x2.f32", [f"{kind}x2"], *operands)
    one = float_to_float(kind, "f32", mode, marks)
    wanted = [one(a) << 16 | one(b) for a, b in zip(values, others, strict=True)]
    compare(f"{kind}x2", kind, got.tolist(), wanted, values)


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("mode", ["rn", "rz", "rna"])
def test_tf32_keeps_ten_bits_of_the_fraction(mode, relu):
    form, values = FORMATS["f32"], floats("f32")

    def rounded(bits):
        value = form.value(bits)
        if value != value:
            return form.nan
        if relu and not value > 0:
            return 0
        if isinstance(value, float):
            return bits
        # The kept bits count in units of 2^13 of the pattern, subnormals like the others.
        units, rest = divmod(bits & ~form.sign, 1 << 13)
        half = {"rn": rest > 4096 or (rest == 4096 and units & 1), "rz": False, "rna": rest >= 4096}
        return (units + half[mode] << 13) | bits & form.sign

    got = execute(f"cvt.{mode}{relu}.tf32.f32", ["tf32"], (np.array(values, np.uint32), "f32"))
    compare("tf32", "f32", got.tolist(), [rounded(value) for value in values], values)


@pytest.mark.parametrize("to", ["u16", "s16"])
def test_two_integers_pack_saturated(to):
    values = [integer(value, "s32") for value in integers("s32")]
    others = values[::-1]
    low, high = (-(1 << 15), (1 << 15) - 1) if to == "s16" else (0, (1 << 16) - 1)
    operands = [(np.array(each, np.int32), "s32") for each in (values, others)]
    got = execute(f"cvt.pack.sat.{to}.s32", ["b32"], *operands)
    clip = lambda value: max(low, min(high, value)) & 0xFFFF  # noqa: E731
    wanted = [clip(a) << 16 | clip(b) for a, b in zip(values, others, strict=True)]
    compare(f"pack.{to}", to, got.tolist(), wanted, values)


# Bits of the fraction, the bias, and the code of the largest number.
EIGHT_BITS = {"e4m3": (3, 7, 0x7E), "e5m2": (2, 15, 0x7B)}


def eight_bit_numbers(kind):
    """Return the numbers from 0 up, each at the place of its code."""
    fraction, bias, last = EIGHT_BITS[kind]
    least = Fraction(2) ** (1 - bias - fraction)
    return [
        least * (code if code < 1 << fraction else (code & (1 << fraction) - 1 | 1 << fraction))
        * 2 ** max((code >> fraction) - 1, 0)
        for code in range(last + 1)
    ]  # fmt: skip


def near_numbers_of(kind):
    """Return float32 bits: those numbers, the ties between them, and all next to them."""
    form, numbers = FORMATS["f32"], eight_bit_numbers(kind)
    ties = [(a + b) / 2 for a, b in itertools.pairwise(numbers)]
    past = [numbers[-1] * (1 + Fraction(i, 64)) for i in range(9)]
    at = [form.round(value) for value in (*numbers, *ties, *past)]
    near = {max(0, bits + step) for bits in at for step in (-1, 0, 1)}
    positive = sorted(near | {bits & form.sign - 1 for bits in floats("f32")})
    return positive + [bits | form.sign for bits in positive]


@pytest.mark.parametrize("relu", ["", ".relu"])
@pytest.mark.parametrize("kind", EIGHT_BITS)
def test_pairs_of_8_bits(kind, relu):
    form, numbers = FORMATS["f32"], eight_bit_numbers(kind)
    assert max(numbers) == (448 if kind == "e4m3" else 57344)

    def rounded(operand):
        value = form.value(operand)
        if value != value:
            return 0x7F
        if relu and operand & form.sign:
            return 0
        size = min(abs(value), numbers[-1])
        above = next(code for code, number in enumerate(numbers) if number >= size)
        below = max(above - 1, 0)
        code = min(above, below, key=lambda c: (abs(numbers[c] - size), c & 1))
        return code | (0x80 if operand & form.sign else 0)

    values = near_numbers_of(kind)
    others = values[7:] + values[:7]
    operands = [(np.array(each, np.uint32), "f32") for each in (values, others)]
    got = execute(f"cvt.rn.satfinite{relu}.{kind}x2.f32", ["b16"], *operands)
    wanted = [rounded(a) << 8 | rounded(b) for a, b in zip(values, others, strict=True)]
    assert got.tolist() == wanted
