"""Integer arithmetic, logic and bit fields against Python's own integers."""

import itertools
import random

import numpy as np
import pytest
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


def truncated(a, b):
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


BINARY = {
    "add": lambda a, b: a + b,
    "sub": lambda a, b: a - b,
    "mul.lo": lambda a, b: a * b,
    "min": min,
    "max": max,
}


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_wraps(name, kind):
    check(f"{name}.{kind}", kind, BINARY[name], samples(kind, 2), [kind] * 2)


@pytest.mark.parametrize("kind", WHOLE)
def test_mul_hi_is_the_upper_half(kind):
    check(f"mul.hi.{kind}", kind, lambda a, b: a * b >> bits_of(kind), samples(kind, 2), [kind] * 2)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products_are_whole(kind):
    wide = f"{kind[0]}{2 * bits_of(kind)}"
    check(f"mul.wide.{kind}", wide, lambda a, b: a * b, samples(kind, 2), [kind] * 2)
    columns = [*samples(kind, 2), samples(wide, 1, 500)[0]]
    columns = [column[: min(map(len, columns))] for column in columns]
    check(f"mad.wide.{kind}", wide, lambda a, b, c: a * b + c, columns, [kind, kind, wide])


@pytest.mark.parametrize("kind", WHOLE)
def test_mad_adds_to_either_half(kind):
    columns = samples(kind, 3)
    check(f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, columns, [kind] * 3)
    high = lambda a, b, c: (a * b >> bits_of(kind)) + c  # noqa: E731
    check(f"mad.hi.{kind}", kind, high, columns, [kind] * 3)
    check(f"sad.{kind}", kind, lambda a, b, c: abs(a - b) + c, columns, [kind] * 3)


@pytest.mark.parametrize("kind", WHOLE)
def test_division_truncates(kind):
    a, b = samples(kind, 2)
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if y]
    columns = list(zip(*pairs, strict=True))
    check(f"div.{kind}", kind, truncated, columns, [kind] * 2)
    check(f"rem.{kind}", kind, lambda x, y: x - truncated(x, y) * y, columns, [kind] * 2)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_abs_and_neg_wrap_at_the_least(kind):
    check(f"abs.{kind}", kind, abs, samples(kind, 1), [kind])
    check(f"neg.{kind}", kind, lambda a: -a, samples(kind, 1), [kind])


def test_saturating_sums():
    clamp = lambda value: max(-(1 << 31), min((1 << 31) - 1, value))  # noqa: E731
    check("add.sat.s32", "s32", lambda a, b: clamp(a + b), samples("s32", 2), ["s32"] * 2)
    check("sub.sat.s32", "s32", lambda a, b: clamp(a - b), samples("s32", 2), ["s32"] * 2)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_products_of_24_bits(kind):
    def low24(a):
        a &= 0xFFFFFF
        return a - (1 << 24) if kind == "s32" and a >> 23 else a

    columns = samples(kind, 3)
    for part, shift in (("lo", 0), ("hi", 16)):
        product = lambda a, b, s=shift: low24(a) * low24(b) >> s  # noqa: E731
        check(f"mul24.{part}.{kind}", kind, product, columns[:2], [kind] * 2)
        check(
            f"mad24.{part}.{kind}",
            kind,
            lambda a, b, c, p=product: p(a, b) + c,
            columns,
            [kind] * 3,
        )


@pytest.mark.parametrize("first", ["u32", "s32"])
@pytest.mark.parametrize("second", ["u32", "s32"])
def test_dot_products_of_bytes(first, second):
    def piece(value, at, width, kind):
        return as_type(value >> at * width, f"{kind[0]}{width}")

    def dp4a(a, b, c):
        return sum(piece(a, i, 8, first) * piece(b, i, 8, second) for i in range(4)) + c

    kinds = [first, second, "s32" if "s32" in (first, second) else "u32"]
    columns = [samples(kind, 3)[at] for at, kind in enumerate(kinds)]
    check(f"dp4a.{first}.{second}", kinds[2], dp4a, columns, kinds)
    for part, offset in (("lo", 0), ("hi", 2)):

        def dp2a(a, b, c, offset=offset):
            terms = (piece(a, i, 16, first) * piece(b, i + offset, 8, second) for i in range(2))
            return sum(terms) + c

        check(f"dp2a.{part}.{first}.{second}", kinds[2], dp2a, columns, kinds)


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
    check("fns.b32", "b32", nth, list(zip(*rows, strict=True)), ["b32", "b32", "s32"])


@pytest.mark.parametrize("kind", ["u16x2", "s16x2"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_pairs_of_16_bits(name, kind):
    half = kind.removesuffix("x2")

    def both(a, b):
        low = BINARY[name](as_type(a, half), as_type(b, half))
        high = BINARY[name](as_type(a >> 16, half), as_type(b >> 16, half))
        return as_type(low, "u16") | as_type(high, "u16") << 16

    check(f"{name}.{kind}", "b32", both, samples("u32", 2), ["b32"] * 2)


CHAINS = """
  .reg .b{bits} %a<8>; .reg .b64 %q<8>; .reg .b32 %i;
  ld.param.u64 %q0, [p]; mov.u32 %i, %tid.x;
  mad.wide.u32 %q1, %i, {stride}, %q0;
  ld.global.b{bits} %a0, [%q1]; ld.global.b{bits} %a1, [%q1+{size}];
  ld.global.b{bits} %a2, [%q1+{two}]; ld.global.b{bits} %a3, [%q1+{three}];
  {first}.{kind} %a4, %a0, %a2; {second}.{kind} %a5, %a1, %a3; {third}.{kind} %a6, 0, 0;
  st.global.b{bits} [%q1], %a4; st.global.b{bits} [%q1+{size}], %a5;
  st.global.b{bits} [%q1+{two}], %a6; ret;
"""


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", ["add", "sub"])
def test_carry_chains(name, kind):
    from one_instruction import entry, start

    from cunorm.simgpu.memory import GlobalMemory

    bits = bits_of(kind)
    size = bits // 8
    draw = random.Random(bits)
    top = (1 << bits) - 1
    rows = [
        [draw.choice((0, 1, top, top - 1, draw.getrandbits(bits))) for _ in range(4)]
        for _ in range(256)
    ]
    memory = GlobalMemory(1 << 20)
    data = memory.allocate(256 * 4 * size)
    words = data.data.view(f"u{size}").reshape(256, 4)
    words[:] = rows
    body = CHAINS.format(bits=bits, kind=kind, size=size, stride=4 * size,
                         two=2 * size, three=3 * size,
                         first=f"{name}.cc", second=f"{name}c.cc", third=f"{name}c")  # fmt: skip
    start(entry(body, ["p"]), "k", (1, 1, 1), (256, 1, 1), [data.address], memory=memory)
    for (a0, a1, b0, b1), got in zip(rows, words.tolist(), strict=True):
        a, b = a1 << bits | a0, b1 << bits | b0
        total = a + b if name == "add" else a - b
        assert got[:3] == [total & top, total >> bits & top, total >> 2 * bits & top]


@pytest.mark.parametrize("last", ["addc", "madc.lo", "madc.hi"])
@pytest.mark.parametrize(("first", "second"), [("lo", "hi"), ("hi", "lo")])
@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_mad_with_carry(kind, first, second, last):
    from one_instruction import entry, start

    from cunorm.simgpu.memory import GlobalMemory

    bits = bits_of(kind)
    size, top = bits // 8, (1 << bits) - 1
    columns = samples(kind, 3, 200)
    lanes = len(columns[0])
    memory = GlobalMemory(1 << 20)
    data = memory.allocate(lanes * 4 * size)
    words = data.data.view(f"u{size}").reshape(lanes, 4)
    words[:, :3] = np.array([[value & top for value in column] for column in columns], f"u{size}").T
    operands = "0, 0" if last == "addc" else "%a0, %a1, %a2"
    body = f"""
      .reg .b{bits} %a<8>; .reg .b64 %q<8>; .reg .b32 %i;
      ld.param.u64 %q0, [p]; mov.u32 %i, %tid.x; mad.wide.u32 %q1, %i, {4 * size}, %q0;
      ld.global.b{bits} %a0, [%q1]; ld.global.b{bits} %a1, [%q1+{size}];
      ld.global.b{bits} %a2, [%q1+{2 * size}];
      mad.{first}.cc.{kind} %a3, %a0, %a1, %a2; madc.{second}.cc.{kind} %a4, %a0, %a1, %a2;
      {last}.{kind} %a5, {operands};
      st.global.b{bits} [%q1], %a3; st.global.b{bits} [%q1+{size}], %a4;
      st.global.b{bits} [%q1+{2 * size}], %a5; ret;"""
    start(entry(body, ["p"]), "k", (1, 1, 1), (lanes, 1, 1), [data.address], memory=memory)
    for a, b, c, got in zip(*columns, words.tolist(), strict=True):
        halves = {"lo": a * b & top, "hi": a * b >> bits & top}
        one = halves[first] + (c & top)
        two = halves[second] + (c & top) + (one >> bits)
        three = (halves[last[5:]] + (c & top) if last != "addc" else 0) + (two >> bits)
        assert got[:3] == [one & top, two & top, three & top]


def test_mad_hi_saturates():
    def saturated(a, b, c):
        return max(-(1 << 31), min((1 << 31) - 1, (a * b >> 32) + c))

    check("mad.hi.sat.s32", "s32", saturated, samples("s32", 3), ["s32"] * 3)


@pytest.mark.parametrize("name", ["min", "max"])
def test_relu_extremes_are_not_negative(name):
    choose = {"min": min, "max": max}[name]
    relu = lambda a, b: max(0, choose(a, b))  # noqa: E731
    check(f"{name}.relu.s32", "s32", relu, samples("s32", 2), ["s32"] * 2)

    def both(a, b):
        low = relu(as_type(a, "s16"), as_type(b, "s16"))
        return low | relu(as_type(a >> 16, "s16"), as_type(b >> 16, "s16")) << 16

    check(f"{name}.relu.s16x2", "b32", both, samples("u32", 2), ["b32"] * 2)
