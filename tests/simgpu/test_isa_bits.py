"""Logic, shifts and bit fields against Python's own integers."""

import itertools
import random

import numpy as np
import pytest
from one_instruction import execute
from whole_numbers import WHOLE, as_type, bits_of, check, samples


@pytest.mark.parametrize("bits", [16, 32, 64])
def test_logic(bits):
    kind, columns = f"b{bits}", samples(f"u{bits}", 2)
    check(f"and.{kind}", kind, lambda a, b: a & b, columns, [kind] * 2)
    check(f"or.{kind}", kind, lambda a, b: a | b, columns, [kind] * 2)
    check(f"xor.{kind}", kind, lambda a, b: a ^ b, columns, [kind] * 2)
    check(f"not.{kind}", kind, lambda a: ~a, columns[:1], [kind])
    check(f"cnot.{kind}", kind, lambda a: a == 0, columns[:1], [kind])


@pytest.mark.parametrize("name", ["and", "or", "xor"])
def test_logic_of_predicates(name):
    function = {"and": lambda a, b: a & b, "or": lambda a, b: a | b, "xor": lambda a, b: a ^ b}[
        name
    ]
    check(f"{name}.pred", "pred", function, [[0, 0, 1, 1], [0, 1, 0, 1]], ["pred"] * 2)


@pytest.mark.parametrize("kind", WHOLE)
def test_shifts_past_the_width_empty_or_fill(kind):
    bits = bits_of(kind)
    counts = [0, 1, 7, bits - 1, bits, bits + 1, 63, 64, 255, 1 << 31, (1 << 32) - 1]
    rows = list(itertools.product(samples(kind, 1, 20)[0], counts))
    columns = list(zip(*rows, strict=True))
    right = lambda a, n: a >> min(n, bits)  # noqa: E731
    check(f"shr.{kind}", kind, right, columns, [kind, "u32"])
    check(f"shl.b{bits}", kind, lambda a, n: a << min(n, bits), columns, [kind, "u32"])
    if kind[0] == "u":
        check(f"shr.b{bits}", kind, right, columns, [kind, "u32"])


@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_funnel_shifts(mode):
    counts = [0, 1, 5, 31, 32, 33, 63, 64, (1 << 32) - 1]
    low, high = samples("u32", 2, 20)
    rows = [(a, b, n) for a, b in zip(low, high, strict=True) for n in counts]
    columns = list(zip(*rows, strict=True))
    by = lambda n: n & 31 if mode == "wrap" else min(n, 32)  # noqa: E731
    left = lambda a, b, n: ((b << 32 | a) << by(n)) >> 32  # noqa: E731
    right = lambda a, b, n: (b << 32 | a) >> by(n)  # noqa: E731
    check(f"shf.l.{mode}.b32", "b32", left, columns, ["b32", "b32", "u32"])
    check(f"shf.r.{mode}.b32", "b32", right, columns, ["b32", "b32", "u32"])


@pytest.mark.parametrize("bits", [32, 64])
def test_counts_of_bits(bits):
    kind, columns = f"b{bits}", samples(f"u{bits}", 1)
    columns[0] += [1 << at for at in range(bits)] + [(1 << at) - 1 for at in range(bits)]
    check(f"popc.{kind}", "b32", lambda a: a.bit_count(), columns, [kind])
    check(f"clz.{kind}", "b32", lambda a: bits - a.bit_length(), columns, [kind])
    check(f"brev.{kind}", kind, lambda a: int(f"{a:0{bits}b}"[::-1], 2), columns, [kind])


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfind_finds_the_highest_bit_that_is_no_sign(kind):
    def find(a):
        return (~a if a < 0 else a).bit_length() - 1

    columns = samples(kind, 1)
    check(f"bfind.{kind}", "b32", find, columns, [kind])
    shift = lambda a: bits_of(kind) - 1 - find(a) if find(a) >= 0 else -1  # noqa: E731
    check(f"bfind.shiftamt.{kind}", "b32", shift, columns, [kind])


FIELD = [0, 1, 5, 8, 31, 32, 33, 63, 64, 65, 255, 256 + 3]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bfe_extracts_and_extends(kind):
    bits = bits_of(kind)

    def extract(a, position, length):
        # The loop of the ISA's own description.
        position, length = position & 255, length & 255
        unsigned = as_type(a, f"u{bits}")
        if kind[0] == "u" or length == 0:
            sign = 0
        else:
            sign = unsigned >> min(position + length - 1, bits - 1) & 1
        result = 0
        for at in range(bits):
            inside = at < length and position + at < bits
            result |= (unsigned >> position + at & 1 if inside else sign) << at
        return result

    rows = list(itertools.product(samples(kind, 1, 10)[0], FIELD, FIELD))
    check(f"bfe.{kind}", kind, extract, list(zip(*rows, strict=True)), [kind, "u32", "u32"])


@pytest.mark.parametrize("bits", [32, 64])
def test_bfi_inserts(bits):
    def insert(a, b, position, length):
        position, length = position & 255, length & 255
        for at in range(length):
            if position + at < bits:
                b = b & ~(1 << position + at) | (a >> at & 1) << position + at
        return b

    pairs = list(zip(*samples(f"u{bits}", 2, 10), strict=True))[::7]
    rows = [
        (*pair, *where) for pair, where in itertools.product(pairs, itertools.product(FIELD, FIELD))
    ]
    kinds = [f"b{bits}", f"b{bits}", "u32", "u32"]
    check(f"bfi.b{bits}", f"b{bits}", insert, list(zip(*rows, strict=True)), kinds)


def test_bmsk():
    rows = list(itertools.product(FIELD, FIELD))
    columns = list(zip(*rows, strict=True))
    clamp = lambda a, b: ((1 << min(b, 32)) - 1) << min(a, 32)  # noqa: E731
    wrap = lambda a, b: ((1 << (b & 31)) - 1) << (a & 31)  # noqa: E731
    check("bmsk.clamp.b32", "b32", clamp, columns, ["b32", "b32"])
    check("bmsk.wrap.b32", "b32", wrap, columns, ["b32", "b32"])


@pytest.mark.parametrize("table", [0x00, 0x80, 0xFE, 0x96, 0xE8, 0xCA, 0x1B, 0xFF])
def test_lop3_looks_each_bit_up(table):
    columns = samples("u32", 3)
    operands = [(np.array(column, np.uint32), "b32") for column in columns]
    got = execute("lop3.b32", ["b32"], *operands, f"{table:#x}")
    for result, (a, b, c) in zip(got.tolist(), zip(*columns, strict=True), strict=True):
        wanted = sum(
            (table >> ((a >> i & 1) << 2 | (b >> i & 1) << 1 | (c >> i & 1)) & 1) << i
            for i in range(32)
        )
        assert result == wanted


PERMUTED = {
    "f4e": [[3, 2, 1, 0], [4, 3, 2, 1], [5, 4, 3, 2], [6, 5, 4, 3]],
    "b4e": [[5, 6, 7, 0], [6, 7, 0, 1], [7, 0, 1, 2], [0, 1, 2, 3]],
    "rc8": [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [3, 3, 3, 3]],
    "ecl": [[3, 2, 1, 0], [3, 2, 1, 1], [3, 2, 2, 2], [3, 3, 3, 3]],
    "ecr": [[0, 0, 0, 0], [1, 1, 1, 0], [2, 2, 1, 0], [3, 2, 1, 0]],
    "rc16": [[1, 0, 1, 0], [3, 2, 3, 2], [1, 0, 1, 0], [3, 2, 3, 2]],
}


@pytest.mark.parametrize("mode", [None, *PERMUTED])
def test_prmt_picks_bytes(mode):
    # The tables are the ISA's, whose columns run from byte 3 to byte 0.
    def permute(a, b, selector):
        octets = (b << 32 | a).to_bytes(8, "little")
        if mode:
            return int.from_bytes(
                bytes(octets[at] for at in PERMUTED[mode][selector & 3][::-1]), "little"
            )
        chosen = []
        for at in range(4):
            pick = selector >> 4 * at & 15
            octet = octets[pick & 7]
            chosen.append((255 if octet >> 7 else 0) if pick & 8 else octet)
        return int.from_bytes(bytes(chosen), "little")

    a, b, selector = samples("u32", 3)
    selector = [value if at % 3 else at // 3 & 3 for at, value in enumerate(selector)]
    opcode = "prmt.b32" + (f".{mode}" if mode else "")
    check(opcode, "b32", permute, [a, b, selector], ["b32"] * 3)


def test_fns_finds_the_nth_set_bit():
    def nth(mask, base, offset):
        # The ISA's description, step by step.
        position, found = base, 0xFFFFFFFF
        if base > 31:
            return found
        offset = as_type(offset, "s32")
        if offset == 0:
            return base if mask >> base & 1 else found
        step, count = (1, offset - 1) if offset > 0 else (-1, -offset - 1)
        while 0 <= position < 32:
            if mask >> position & 1:
                if count == 0:
                    return position
                count -= 1
            position += step
        return found

    draw = random.Random(2)
    rows = [(draw.getrandbits(32), draw.randrange(32), draw.randrange(-6, 7)) for _ in range(300)]
    # What is no position is looked for in no time.
    rows += [(draw.getrandbits(32), draw.getrandbits(32) | 32, n) for n in (-3, 0, 3)]
    check("fns.b32", "b32", nth, list(zip(*rows, strict=True)), ["b32", "b32", "s32"])
