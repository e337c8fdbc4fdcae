"""Integers of every type at their edges, and instructions on them against Python's own."""

import itertools
import random

import numpy as np
from one_instruction import DTYPES, execute

WHOLE = ["u16", "s16", "u32", "s32", "u64", "s64"]


def bits_of(kind):
    return int(kind[1:])


def as_type(value, kind):
    """Wrap an integer to a type."""
    bits = bits_of(kind)
    value &= (1 << bits) - 1
    return value - (1 << bits) if kind[0] == "s" and value >> bits - 1 else value


def samples(kind, operands, count=300):
    bits = bits_of(kind)
    edges = [0, 1, 2, 3, 5, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1,
             (1 << bits) - 2,
             (1 << bits) - 1, 0x55 << bits - 8, 1 << bits // 2, (1 << bits // 2) - 1]  # fmt: skip
    draw = random.Random(kind)
    rows = list(itertools.product(edges, repeat=min(operands, 2)))
    if operands == 3:
        rows = [(*row, draw.choice(edges)) for row in rows]
    rows += [tuple(draw.getrandbits(bits) for _ in range(operands)) for _ in range(count)]
    return [[as_type(value, kind) for value in column] for column in zip(*rows, strict=True)]


def check(opcode, result, function, columns, kinds):
    operands = [
        (np.array(column, dtype=DTYPES[kind].newbyteorder("=")), kind)
        for column, kind in zip(columns, kinds, strict=True)
    ]
    got = execute(opcode, [result], *operands)
    unsigned = "u" + result[1:] if result != "pred" else "u8"
    for is_, values in zip(got.tolist(), zip(*columns, strict=True), strict=True):
        wanted = as_type(int(function(*values)), unsigned)
        assert as_type(is_, unsigned) == wanted, f"{opcode} of {values}: {is_}, not {wanted}"


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}
