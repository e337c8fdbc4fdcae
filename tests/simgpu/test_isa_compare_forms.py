"""setp, set, selp and slct for every test and every type, over edge values."""

import itertools

import numpy as np
import pytest
from one_instruction import DTYPES, FORMATS, execute

FLOATS = ["f16", "bf16", "f32", "f64"]
UNSIGNED, SIGNED = ["u16", "u32", "u64"], ["s16", "s32", "s64"]
BITS = ["b16", "b32", "b64"]
ORDERED = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a != b, "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b, "gt": lambda a, b: a > b, "ge": lambda a, b: a >= b,
}  # fmt: skip
SAME = {"lo": "lt", "ls": "le", "hi": "gt", "hs": "ge"}
JOIN = {"and": lambda x, y: x & y, "or": lambda x, y: x | y, "xor": lambda x, y: x ^ y}


def names_of(kind):
    """Return the names of the tests that the ISA has for a type."""
    if kind in FLOATS:
        return [*ORDERED, *(f"{name}u" for name in ORDERED), "num", "nan"]
    return ["eq", "ne"] if kind in BITS else [*ORDERED, *(SAME if kind in UNSIGNED else ())]


def holds(test, kind, a, b):
    """Decide a test of two bit patterns without NumPy."""
    if kind not in FLOATS:
        bits = int(kind[1:])
        if kind[0] == "s":
            a, b = (x - (1 << bits) if x >> bits - 1 else x for x in (a, b))
        return ORDERED[SAME.get(test, test)](a, b)
    x, y = FORMATS[kind].value(a), FORMATS[kind].value(b)
    nan = x != x or y != y
    if test in ("num", "nan"):
        return nan == (test == "nan")
    return nan if test[-1] == "u" and nan else not nan and ORDERED[test.removesuffix("u")](x, y)


def pairs(kind):
    """Return all pairs of edges of a type, as bits."""
    if kind in FLOATS:
        edges = FORMATS[kind].edges()
        return list(itertools.product(edges, edges))
    bits = int(kind[1:])
    edges = [0, 1, 2, (1 << bits - 1) - 1, 1 << bits - 1, (1 << bits - 1) + 1, (1 << bits) - 1]
    return list(itertools.product(edges, edges))


def operands(kind, rows):
    return [(np.array(column, DTYPES[kind].str.replace("i", "u")), kind) for column in zip(*rows)]  # noqa: B905


EVERY = [(kind, test) for kind in FLOATS + UNSIGNED + SIGNED + BITS for test in names_of(kind)]


@pytest.mark.parametrize(("kind", "test"), EVERY)
def test_setp_and_set_agree_with_the_definition(kind, test):
    rows = pairs(kind)
    given = operands(kind, rows)
    wanted = [int(holds(test, kind, a, b)) for a, b in rows]
    assert execute(f"setp.{test}.{kind}", ["pred"], *given).tolist() == wanted
    got = execute(f"set.{test}.u32.{kind}", ["u32"], *given)
    assert got.tolist() == [0xFFFFFFFF * each for each in wanted]


RESULTS = {"u32": 0xFFFFFFFF, "s32": -1, "f32": 0x3F800000, "u16": 0xFFFF, "s16": -1,
           "f16": 0x3C00, "bf16": 0x3F80}  # fmt: skip


@pytest.mark.parametrize("to", RESULTS)
@pytest.mark.parametrize("kind", FLOATS + UNSIGNED + SIGNED + BITS)
def test_set_writes_its_own_types_true(kind, to):
    rows = pairs(kind)[::3]
    got = execute(f"set.ne.{to}.{kind}", [to], *operands(kind, rows))
    assert got.tolist() == [RESULTS[to] * holds("ne", kind, a, b) for a, b in rows]


@pytest.mark.parametrize("kind", ["f16", "f32"])
@pytest.mark.parametrize("test", names_of("f32"))
def test_flushed_subnormals_are_zeros_to_every_test(kind, test):
    form, rows = FORMATS[kind], pairs(kind)
    flushed = [(form.flush(a), form.flush(b)) for a, b in rows]
    wanted = [int(holds(test, kind, a, b)) for a, b in flushed]
    given = operands(kind, rows)
    assert execute(f"setp.{test}.ftz.{kind}", ["pred"], *given).tolist() == wanted
    got = execute(f"set.{test}.ftz.f32.{kind}", ["f32"], *given)
    assert got.tolist() == [0x3F800000 * each for each in wanted]


@pytest.mark.parametrize("combine", JOIN)
@pytest.mark.parametrize("kind", ["f16", "f64", "s16", "u64", "b32"])
def test_results_combine_with_a_predicate(kind, combine):
    rows = pairs(kind)
    given = operands(kind, rows)
    other = [at % 3 % 2 for at in range(len(rows))]
    plain = [int(holds("eq", kind, a, b)) for a, b in rows]
    wanted = [JOIN[combine](x, y) for x, y in zip(plain, other, strict=True)]
    opposite = [JOIN[combine](1 - x, y) for x, y in zip(plain, other, strict=True)]
    given.append((np.array(other, np.uint8), "pred"))
    got = execute(f"setp.eq.{combine}.{kind}", ["pred", "pred"], *given)
    assert [each.tolist() for each in got] == [wanted, opposite]
    for to, true in (("u32", 0xFFFFFFFF), ("s32", -1), ("f32", 0x3F800000)):
        got = execute(f"set.eq.{combine}.{to}.{kind}", [to], *given)
        assert got.tolist() == [true * each for each in wanted]


@pytest.mark.parametrize("combine", JOIN)
def test_set_combines_for_every_test(combine):
    rows = pairs("f32")
    other = [at % 2 for at in range(len(rows))]
    given = [*operands("f32", rows), (np.array(other, np.uint8), "pred")]
    for test in names_of("f32"):
        plain = [int(holds(test, "f32", a, b)) for a, b in rows]
        got = execute(f"set.{test}.{combine}.u32.f32", ["u32"], *given)
        joined = [JOIN[combine](x, y) for x, y in zip(plain, other, strict=True)]
        assert got.tolist() == [0xFFFFFFFF * each for each in joined], test
    for test in SAME:
        rows = pairs("u32")
        given = [*operands("u32", rows), (np.array([1] * len(rows), np.uint8), "pred")]
        got = execute(f"set.{test}.{combine}.u32.u32", ["u32"], *given)
        joined = [JOIN[combine](int(holds(test, "u32", a, b)), 1) for a, b in rows]
        assert got.tolist() == [0xFFFFFFFF * each for each in joined], test
    for kind in ("b16", "b64", "u16", "u64", "s32", "s64", "f16", "bf16", "f64", "s16", "b32"):
        rows = pairs(kind)
        given = [*operands(kind, rows), (np.array([0] * len(rows), np.uint8), "pred")]
        got = execute(f"set.eq.{combine}.ftz.u32.{kind}" if kind == "f16" else
                      f"set.eq.{combine}.u32.{kind}", ["u32"], *given)  # fmt: skip
        form = FORMATS.get(kind)
        clean = [(form.flush(a), form.flush(b)) if kind == "f16" else (a, b) for a, b in rows]
        joined = [JOIN[combine](int(holds("eq", kind, a, b)), 0) for a, b in clean]
        assert got.tolist() == [0xFFFFFFFF * each for each in joined], kind


@pytest.mark.parametrize("ftz", ["", ".ftz"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("test", names_of("f16"))
def test_pairs_are_compared_half_by_half(test, kind, ftz):
    if ftz and kind == "bf16":
        return  # PTX has no such instruction.
    form, rows = FORMATS[kind], pairs(kind)
    count = len(rows) // 2 * 2
    clean = [(form.flush(a), form.flush(b)) if ftz else (a, b) for a, b in rows[:count]]
    plain = [int(holds(test, kind, a, b)) for a, b in clean]
    halves = (np.array(column, np.uint16)[:count] for column in zip(*rows, strict=True))
    given = [(half.view(np.uint32), f"{kind}x2") for half in halves]
    low, high = execute(f"setp.{test}{ftz}.{kind}x2", ["pred", "pred"], *given)
    assert (low.tolist(), high.tolist()) == (plain[::2], plain[1::2])
    trues = {"f16x2": 0x3C00, "bf16x2": 0x3F80, "u32": 0xFFFF, "s32": 0xFFFF}
    for to, true in trues.items():
        got = execute(f"set.{test}{ftz}.{to}.{kind}x2", ["b32"], *given)
        assert got.view(np.uint16).tolist() == [true * each for each in plain]


@pytest.mark.parametrize("combine", JOIN)
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_both_halves_combine_with_the_predicate(kind, combine):
    a, b = (np.array([x, y], np.uint16).view(np.uint32) for x, y in ((1, 2), (1, 3)))
    given = [(np.repeat(a, 2), f"{kind}x2"), (np.repeat(b, 2), f"{kind}x2")]
    given.append((np.array([0, 1], np.uint8), "pred"))
    low, high = execute(f"setp.eq.{combine}.{kind}x2", ["pred", "pred"], *given)
    join = JOIN[combine]
    assert low.tolist() == [join(1, 0), join(1, 1)]
    assert high.tolist() == [join(0, 0), join(0, 1)]


@pytest.mark.parametrize(
    "test",
    [("u16", "lo"), ("u32", "ls"), ("u64", "hi"), ("s64", "lt")],
    ids="-".join,
)
def test_selp_follows_setp(test):
    kind, name = test
    rows = pairs(kind)
    given = operands(kind, rows)
    chosen = execute(f"setp.{name}.{kind}", ["pred"], *given)
    got = execute(f"selp.{kind}", [kind], *given, (chosen, "pred"))
    mask = (1 << int(kind[1:])) - 1
    wanted = [a if holds(name, kind, a, b) else b for a, b in rows]
    assert [int(each) & mask for each in got] == wanted


SELECTED = [*BITS, *UNSIGNED, *SIGNED, "f32", "f64"]


@pytest.mark.parametrize("kind", SELECTED)
def test_selections_move_bits_untouched(kind):
    bits = 8 * DTYPES[kind].itemsize
    unsigned = np.dtype(f"u{bits // 8}")
    a, b = np.arange(1, 9).astype(unsigned), np.full(8, (1 << bits) - 3).astype(unsigned)
    given = [(a, kind), (b, kind)]
    chosen = np.array([1, 0, 0, 1, 1, 0, 1, 0], np.uint8)
    got = execute(f"selp.{kind}", [kind], *given, (chosen, "pred")).view(unsigned)
    np.testing.assert_array_equal(got, np.where(chosen, a, b))
    by = np.array([0, 1, -1, 1 << 30, -(1 << 31), 5, -7, 0], np.int32)
    got = execute(f"slct.{kind}.s32", [kind], *given, (by, "s32")).view(unsigned)
    np.testing.assert_array_equal(got, np.where(by >= 0, a, b))
    by = np.array([0, 0x80000000, 1, 0x80000001, 0x7FC00000, 0xFF800000, 0x7F800000, 0xBF800000])
    for ftz, wanted in (("", [1, 1, 1, 0, 0, 0, 1, 0]), (".ftz", [1, 1, 1, 1, 0, 0, 1, 0])):
        got = execute(f"slct{ftz}.{kind}.f32", [kind], *given, (by.astype(np.uint32), "f32"))
        np.testing.assert_array_equal(got.view(unsigned), np.where(wanted, a, b))
