"""Every type, vector and word of loads, stores, atomics and address instructions."""

import itertools

import numpy as np
import pytest
from one_instruction import FORMATS, entry, start
from test_isa_access import HEAD, array, launch

from cunorm.simgpu import faults
from cunorm.simgpu.memory.space import GlobalMemory

TYPES = ["b8", "b16", "b32", "b64", "u8", "u16", "u32", "u64", "s8", "s16", "s32", "s64",
         "f16", "bf16", "f16x2", "f32", "f64"]  # fmt: skip
BYTES = {"bf16": 2, "f16x2": 4}


@pytest.fixture
def memory():
    return GlobalMemory(1 << 30)


def width(kind):
    return BYTES.get(kind) or int(kind[1:]) // 8


def moved(memory, load, store, kind, vector=1, target=90, shift=0):
    """Copy 64 elements through one load and one store, and return source and copy."""
    size = width(kind) * vector
    values = np.random.default_rng(7).integers(0, 256, 64 * size).astype("u1")
    given, source = array(memory, values, "u1")
    out, got = array(memory, np.zeros(64 * size), "u1")
    names = [f"%v{at}" for at in range(vector)]
    group = "{" + ", ".join(names) + "}" if vector > 1 else "%v0"
    text = entry(HEAD + f"""
        .reg .b{max(8 * width(kind), 16)} %v<8>; mad.wide.u32 %q2, %i0, {size}, %q0;
        mad.wide.u32 %q3, %i0, {size}, %q1; ld{load} {group}, [%q2+{shift}];
        st{store} [%q3+{shift}], {group}; ret;""", ["p", "o"])  # fmt: skip
    text = text.replace("sm_90", f"sm_{target}")
    start(text, "k", (1, 1, 1), (64, 1, 1), [given.address, out.address], memory=memory)
    return source, got


@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("kind", TYPES)
def test_every_type_moves_its_bits(memory, kind, vector):
    if width(kind) * vector > 16:
        return  # 32 bytes have a test of their own.
    mark = f".v{vector}" if vector > 1 else ""
    for space in (".global", ""):
        for cache in ("", ".nc") if space else ("",):
            source, got = moved(
                memory, f"{space}{cache}{mark}.{kind}", f"{space}{mark}.{kind}", kind, vector
            )
            np.testing.assert_array_equal(got, source)


WIDE = [("v8", kind) for kind in ("b32", "u32", "s32", "f32")]
WIDE += [("v4", kind) for kind in ("b64", "u64", "s64", "f64")]


@pytest.mark.parametrize(("vector", "kind"), WIDE)
def test_32_bytes_move_at_once_from_sm_100_on(memory, vector, kind):
    count = int(vector[1:])
    for hint in ("", *HINTS, ".L1::evict_last.L2::evict_first"):
        for cache in ("", ".nc") if hint in ("", HINTS[0]) else ("",):
            load, store = f".global{cache}{hint}", f".global{hint}"
            source, got = moved(
                memory, f"{load}.{vector}.{kind}", f"{store}.{vector}.{kind}", kind, count, 100
            )
            np.testing.assert_array_equal(got, source)
    with pytest.raises(faults.UnknownInstruction, match="sm_100"):
        moved(memory, f".global.{vector}.{kind}", f".global.{vector}.{kind}", kind, count, 90)
    for load in (f".relaxed.gpu.global.{vector}.{kind}", f".{vector}.{kind}"):
        with pytest.raises(faults.UnknownInstruction):
            moved(memory, load, f".global.{vector}.{kind}", kind, count, 100)
    with pytest.raises(faults.Misaligned, match="32-byte"):
        moved(memory, f".global.{vector}.{kind}", f".global.{vector}.{kind}", kind, count, 100, 16)
    with pytest.raises(faults.UnknownInstruction):
        moved(memory, f".shared.{vector}.{kind}", f".global.{vector}.{kind}", kind, count, 100)


LOADS = [
    *itertools.product([".weak", ".volatile", ".relaxed", ".acquire", ".mmio.relaxed"],
                       ["", ".cta", ".cluster", ".gpu", ".sys"], [""]),
    *itertools.product([""], [""], [".ca", ".cg", ".cs", ".cv", ".lu", ".nc", ".ca.nc"]),
]  # fmt: skip
L1 = ["evict_normal", "evict_unchanged", "evict_first", "evict_last", "no_allocate"]
L2 = ["evict_normal", "evict_first", "evict_last"]
HINTS = [*(f".L1::{each}" for each in L1), *(f".L2::{each}" for each in L2)]
PREFETCH = [".L2::64B", ".L2::128B", ".L2::256B"]


def test_words_of_loads_change_no_value(memory):
    words = [f"{order}{scope}.global{cache}" for order, scope, cache in LOADS
             if not (scope and order in ("", ".weak", ".volatile"))]  # fmt: skip
    words = [word.replace(".mmio.relaxed", ".mmio") for word in words]
    words += [f".global{hint}" for hint in [*HINTS, *PREFETCH, ".L1::evict_last.L2::128B"]]
    for word in words:
        source, got = moved(memory, f"{word}.u32", ".global.u32", "u32")
        np.testing.assert_array_equal(got, source, word)


def test_words_of_stores_change_no_value(memory):
    words = [".weak.global", ".volatile.global", ".mmio.sys.global"]
    words += [f"{order}{scope}.global" for order in (".relaxed", ".release")
              for scope in (".cta", ".cluster", ".gpu", ".sys")]  # fmt: skip
    words += [f".global{cache}" for cache in (".wb", ".cg", ".cs", ".wt")]
    words += [f".global{hint}" for hint in HINTS]
    for word in words:
        source, got = moved(memory, ".global.u32", f"{word}.u32", "u32")
        np.testing.assert_array_equal(got, source, word)


@pytest.mark.parametrize("kind", ["b8", "b16", "b32", "b64", "u32", "f32", "f64"])
@pytest.mark.parametrize("vector", [1, 2, 4])
def test_ldu_loads_as_ld_does(memory, kind, vector):
    if width(kind) * vector > 16:
        return  # PTX has no such vector.
    mark = f".v{vector}" if vector > 1 else ""
    size, count = width(kind) * vector, width(kind) * 8
    for space in (".global", ""):
        values = np.random.default_rng(8).integers(0, 256, 64 * size).astype("u1")
        given, _ = array(memory, values, "u1")
        out, got = array(memory, np.zeros(64 * size), "u1")
        group = "{" + ", ".join(f"%v{at}" for at in range(vector)) + "}" if vector > 1 else "%v0"
        launch(memory, f"""
          .reg .b{max(count, 16)} %v<4>; mad.wide.u32 %q2, %i0, {size}, %q0;
          mad.wide.u32 %q3, %i0, {size}, %q1; ldu{space}{mark}.{kind} {group}, [%q2];
          st.global{mark}.b{count} [%q3], {group}; ret;""", given, out)  # fmt: skip
        np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize("space", ["shared", "shared::cta", "shared::cluster", "local"])
def test_spaces_of_their_own(memory, space):
    plain = space.partition("::")[0]
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, f"""
      .{plain} .align 8 .b8 cell[256]; mov.u64 %q2, cell; mul.lo.u32 %i1, %i0, 4;
      cvt.u64.u32 %q3, %i1; add.u64 %q2, %q2, %q3; st.{space}.u32 [%q2], %i0;
      ld.{space}.u32 %r0, [%q2]; mad.wide.u32 %q4, %i0, 4, %q1;
      st.global.u32 [%q4], %r0; ret;""", out, out)  # fmt: skip
    np.testing.assert_array_equal(got, np.arange(64))


def test_parameters_by_either_name(memory):
    out, got = array(memory, np.zeros(2), "u4")
    top = """.func (.param .b32 result) twice(.param .b32 value) { .reg .b32 %r<3>;
      ld.param::func.u32 %r0, [value]; add.u32 %r1, %r0, %r0;
      st.param::func.b32 [result], %r1; ret; }"""
    launch(memory, """
      ld.param::entry.u64 %q2, [o];
      { .param .b32 a; .param .b32 b; st.param::func.b32 [a], 21; call (b), twice, (a);
        ld.param::func.b32 %r0, [b]; }
      st.global.u32 [%q2], %r0; ret;""", out, out, threads=1, top=top)  # fmt: skip
    assert got[0] == 42


@pytest.mark.parametrize("kind", ["u32", "u64"])
@pytest.mark.parametrize("space", ["shared", "local", "global", "param", "const", "shared::cta",
                                   "shared::cluster", "param::entry"])  # fmt: skip
def test_cvta_there_and_back(memory, space, kind):
    out, got = array(memory, np.zeros(1), "u8")
    launch(memory, f"""
      mov.u64 %q2, 40; cvta.{space}.{kind} %q3, %q2; cvta.to.{space}.{kind} %q4, %q3;
      st.global.u64 [%q1], %q4; ret;""", out, out, threads=1)  # fmt: skip
    assert got[0] == 40


SPACES = ["shared", "local", "global", "param", "const"]


@pytest.mark.parametrize("of", ["shared", "local", "global", "param"])
def test_isspacep_knows_each_space_from_the_others(memory, of):
    tests = [*SPACES, "shared::cta", "shared::cluster", "param::entry"]
    out, got = array(memory, np.zeros(8), "u4")
    checks = "".join(
        f"isspacep.{space} %p0, %q3; selp.u32 %r0, 1, 0, %p0; st.global.u32 [%q1+{4 * at}], %r0;"
        for at, space in enumerate(tests)
    )
    start = "mov.u64 %q3, %q0;" if of == "global" else f"mov.u64 %q2, 8; cvta.{of}.u64 %q3, %q2;"
    launch(memory, f"{start} {checks} ret;", out, out, threads=1)
    assert got.tolist() == [int(space.startswith(of)) for space in tests]


@pytest.mark.parametrize("kind", ["b16", "b32", "b64", "u16", "u32", "u64", "s16", "s32", "s64",
                                  "f16", "bf16", "f32", "f64"])  # fmt: skip
def test_mov_copies_bits(memory, kind):
    size = width(kind)
    values = np.random.default_rng(3).integers(0, 256, 64 * size).astype("u1")
    given, _ = array(memory, values, "u1")
    out, got = array(memory, np.zeros(64 * size), "u1")
    launch(memory, f"""
      .reg .b{8 * size} %v<2>; mad.wide.u32 %q2, %i0, {size}, %q0;
      mad.wide.u32 %q3, %i0, {size}, %q1; ld.global.b{8 * size} %v0, [%q2];
      mov.{kind} %v1, %v0; st.global.b{8 * size} [%q3], %v1; ret;""", given, out)  # fmt: skip
    np.testing.assert_array_equal(got, values)


def test_mov_copies_predicates(memory):
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, """
      setp.lt.u32 %p0, %i0, 9; mov.pred %p1, %p0; selp.u32 %r0, 1, 0, %p1;
      mad.wide.u32 %q3, %i0, 4, %q1; st.global.u32 [%q3], %r0; ret;""", out, out)  # fmt: skip
    assert got.sum() == 9


@pytest.mark.parametrize("prefetch", ["prefetch.global.L1", "prefetch.global.L2", "prefetch.L1",
                                      "prefetch.local.L2", "prefetchu.L1"])  # fmt: skip
def test_prefetches_change_nothing(memory, prefetch):
    data, cells = array(memory, np.arange(64), "u4")
    launch(memory, f"{prefetch} [%q0]; ret;", data, data)
    np.testing.assert_array_equal(cells, np.arange(64))


WORDS = ["", ".relaxed.cta", ".acquire.gpu", ".release.sys", ".acq_rel.cluster"]
FUNCTIONS = {
    "add": lambda old, v: old + v, "min": min, "max": max, "and": lambda old, v: old & v,
    "or": lambda old, v: old | v, "xor": lambda old, v: old ^ v, "exch": lambda old, v: v,
    "inc": lambda old, v: 0 if old >= v else old + 1,
    "dec": lambda old, v: v if old == 0 or old > v else old - 1,
}  # fmt: skip
WHOLE = [*((name, kind) for name in ("add", "min", "max") for kind in ("u32", "u64", "s32", "s64")),
         *((name, kind) for name in ("and", "or", "xor", "exch") for kind in ("b32", "b64")),
         ("inc", "u32"), ("dec", "u32")]  # fmt: skip


@pytest.mark.parametrize("order_first", [True, False])
@pytest.mark.parametrize("form", ["atom", "red"])
@pytest.mark.parametrize(("name", "kind"), WHOLE)
def test_every_integer_atomic_in_every_space(memory, form, name, kind, order_first):
    if name == "exch" and (form == "red" or not order_first):
        return  # There is no such instruction, and nobody spells it so.
    bits = 8 * width(kind)
    values = np.random.default_rng(9).integers(0, 1 << bits, 64, np.uint64).tolist()
    initial = 1 << bits - 1 | 5

    def value(x):
        return x - (1 << bits) if kind[0] == "s" and x >> bits - 1 else x

    wanted, seen = initial, []
    for x in values:
        seen.append(wanted)
        wanted = FUNCTIONS[name](value(wanted), value(x)) & ((1 << bits) - 1)
    places = ["", ".global", ".shared", ".shared::cta", ".shared::cluster"]
    for at, space in enumerate(places):
        some = WORDS if order_first else WORDS[1:]
        words = some[(at + len(name)) % len(some)]
        spelled = f"{words}{space}.{name}" if order_first else f".{name}{words}{space}"
        data, cells = array(memory, [*values, initial], f"u{bits // 8}")
        out, got = array(memory, np.zeros(64), f"u{bits // 8}")
        shared = "shared" in space
        target = "%old, " if form == "atom" else ""
        start_ = f"""mov.u64 %q4, tile; @%p0 ld.global.b{bits} %new, [%q0+{64 * bits // 8}];
            @%p0 st.shared.b{bits} [%q4], %new; bar.sync 0;""" if shared else (
            f"add.u64 %q4, %q0, {64 * bits // 8};")  # fmt: skip
        end = f"""bar.sync 0; @%p0 ld.shared.b{bits} %new, [%q4];
            @%p0 st.global.b{bits} [%q0+{64 * bits // 8}], %new;""" if shared else ""  # fmt: skip
        launch(memory, f"""
          .reg .b{bits} %old, %new; .shared .align 8 .b8 tile[8]; setp.eq.u32 %p0, %i0, 0;
          {start_} mad.wide.u32 %q2, %i0, {bits // 8}, %q0; ld.global.b{bits} %new, [%q2];
          mov.b{bits} %old, 0; {form}{spelled}.{kind} {target}[%q4], %new;
          mad.wide.u32 %q3, %i0, {bits // 8}, %q1; st.global.b{bits} [%q3], %old; {end}
          ret;""", data, out)  # fmt: skip
        assert int(cells[64]) == wanted
        assert got.tolist() == (seen if form == "atom" else [0] * 64)


@pytest.mark.parametrize("bits", [16, 32, 64])
@pytest.mark.parametrize("words", WORDS)
def test_compare_and_swap_of_every_width(memory, bits, words):
    data, cells = array(memory, [7, 0], f"u{bits // 8}")
    out, got = array(memory, np.zeros(64), f"u{bits // 8}")
    launch(memory, f"""
      .reg .b{bits} %a<4>; cvt.u{bits}.u32 %a0, %i0; add.u{bits} %a1, %a0, 7;
      add.u{bits} %a2, %a0, 8; atom{words}.global.cas.b{bits} %a3, [%q0], %a1, %a2;
      mad.wide.u32 %q3, %i0, {bits // 8}, %q1; st.global.b{bits} [%q3], %a3; ret;""",
           data, out)  # fmt: skip
    # Lane i expects 7 + i and finds it, because every lane before it counted one up.
    assert cells[0] == 71
    assert got.tolist() == list(range(7, 71))


FLOATS = [("f32", ""), ("f64", ""), ("f16", ".noftz"), ("bf16", ".noftz"), ("f16x2", ".noftz"),
          ("bf16x2", ".noftz")]  # fmt: skip


@pytest.mark.parametrize("form", ["atom", "red"])
@pytest.mark.parametrize(("kind", "noftz"), FLOATS)
def test_float_atomics_round_each_sum_once(memory, form, kind, noftz):
    one = FORMATS[kind.removesuffix("x2")]
    halves = 2 if kind.endswith("x2") else 1
    draw = np.random.default_rng(4)
    bits = one.round(1) + draw.integers(-40, 40, (64, halves)) * (1 << one.precision - 4)
    unit = f"u{one.bits // 8}"
    data, cells = array(memory, np.append(bits.reshape(-1), [one.round(3)] * halves), unit)
    out, got = array(memory, np.zeros(64 * halves), unit)
    size = halves * one.bits // 8
    target = "%old, " if form == "atom" else ""
    for words in WORDS[:1] if form == "red" else WORDS[1:2]:
        launch(memory, f"""
          .reg .b{8 * size} %old, %new; mad.wide.u32 %q2, %i0, {size}, %q0;
          ld.global.b{8 * size} %new, [%q2]; mov.b{8 * size} %old, 0;
          {form}{words}.global.add{noftz}.{kind} {target}[%q0+{64 * size}], %new;
          mad.wide.u32 %q3, %i0, {size}, %q1; st.global.b{8 * size} [%q3], %old; ret;""",
               data, out)  # fmt: skip
    total, seen = [one.round(3)] * halves, []
    for row in bits.tolist():
        seen += total
        total = [one.round(one.value(a) + one.value(b)) for a, b in zip(total, row, strict=True)]
    assert cells[64 * halves :].tolist() == total
    if form == "atom":
        assert got.tolist() == seen
