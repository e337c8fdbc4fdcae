"""Loads, stores and atomics in every space and width."""

import struct

import numpy as np
import pytest
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.memory.space import GlobalMemory

HEAD = """
  .reg .b64 %q<10>; .reg .b32 %i<10>; .reg .b16 %h<10>; .reg .pred %p<5>; .reg .b32 %r<10>;
  ld.param.u64 %q0, [p]; ld.param.u64 %q1, [o]; mov.u32 %i0, %tid.x;
"""


@pytest.fixture
def memory():
    return GlobalMemory(1 << 30)


def array(memory, values, dtype):
    values = np.ascontiguousarray(values, dtype)
    allocation = memory.allocate(max(values.nbytes, 1))
    allocation.data[:] = values.view(np.uint8).reshape(-1)
    return allocation, allocation.data.view(values.dtype)


def launch(memory, body, *allocations, threads=64, grid=(1, 1, 1), top="", **options):
    names = ["p", "o", "q"][: len(allocations)]
    pointers = [allocation.address for allocation in allocations]
    start(
        entry(HEAD + body, names, top=top),
        "k",
        grid,
        (threads, 1, 1),
        pointers,
        memory=memory,
        **options,
    )


@pytest.mark.parametrize(
    ("opcode", "extended"),
    [("u8", 0x0080), ("s8", 0xFF80), ("b8", 0x0080)],
)
def test_loads_extend_into_wider_registers(memory, opcode, extended):
    given, _ = array(memory, np.full(64, 0x80), "u1")
    out, got = array(memory, np.zeros(64), "u2")
    launch(memory, f"""
      cvt.u64.u32 %q2, %i0; add.u64 %q3, %q0, %q2; mad.wide.u32 %q4, %i0, 2, %q1;
      ld.global.{opcode} %h0, [%q3]; st.global.b16 [%q4], %h0; ret;""", given, out)  # fmt: skip
    assert (got == extended).all()


@pytest.mark.parametrize("vector", [1, 2, 4])
@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("order", [1, -1])
def test_vectors_move_neighbours(memory, bits, vector, order):
    if bits * vector > 128:
        return  # PTX has no such vector before sm_100.
    size, count = bits // 8 * vector, 64 * vector
    values = np.random.default_rng(1).integers(0, 1 << 7, count)
    given, _ = array(memory, values, f"u{bits // 8}")
    out, got = array(memory, np.zeros(count), f"u{bits // 8}")
    names = [f"%v{at}" for at in range(vector)]
    group = "{" + ", ".join(names) + "}" if vector > 1 else "%v0"
    mark = f".v{vector}" if vector > 1 else ""
    # Lanes in rising order read and write slices; in falling order every lane its own place.
    index = "mov.u32 %i1, %i0;" if order > 0 else "sub.u32 %i1, 63, %i0;"
    launch(memory, f"""
      .reg .b{max(bits, 16)} %v<4>; {index}
      mad.wide.u32 %q2, %i1, {size}, %q0; mad.wide.u32 %q3, %i1, {size}, %q1;
      ld.global.nc{mark}.b{bits} {group}, [%q2];
      st.global{mark}.b{bits} [%q3], {group}; ret;""", given, out)  # fmt: skip
    np.testing.assert_array_equal(got, values)


@pytest.mark.parametrize(
    "marks",
    ["", ".volatile", ".weak", ".relaxed.gpu", ".acquire.sys"],
)
@pytest.mark.parametrize("cache", ["", ".ca", ".cg", ".cs", ".cv", ".L1::no_allocate", ".L2::128B"])
def test_orders_and_hints_change_nothing(memory, marks, cache):
    given, values = array(memory, np.arange(64), "u4")
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, f"""
      mad.wide.u32 %q2, %i0, 4, %q0; mad.wide.u32 %q3, %i0, 4, %q1;
      ld{marks}.global{cache}.u32 %r0, [%q2];
      st.global.u32 [%q3], %r0; ret;""", given, out)  # fmt: skip
    np.testing.assert_array_equal(got, values)


def test_generic_addresses_find_their_space(memory):
    # Even lanes store to shared memory and odd ones to local memory, through one instruction.
    given, _ = array(memory, np.arange(64) + 100, "u4")
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, """
      .local .align 8 .b8 depot[16]; .shared .align 4 .b8 tile[256];
      mov.u64 %q2, depot; cvta.local.u64 %q3, %q2; mov.u64 %q4, tile; cvta.shared.u64 %q5, %q4;
      mad.wide.u32 %q5, %i0, 4, %q5; and.b32 %i1, %i0, 1; setp.eq.u32 %p0, %i1, 0;
      selp.b64 %q6, %q5, %q3, %p0;
      mad.wide.u32 %q7, %i0, 4, %q0; ld.u32 %r0, [%q7]; st.u32 [%q6], %r0;
      isspacep.shared %p1, %q6; ld.u32 %r1, [%q6]; @%p1 add.u32 %r1, %r1, 1000;
      mad.wide.u32 %q8, %i0, 4, %q1; st.u32 [%q8], %r1; ret;""", given, out)  # fmt: skip
    wanted = np.arange(64) + 100 + 1000 * (np.arange(64) % 2 == 0)
    np.testing.assert_array_equal(got, wanted)


def test_parameters_can_be_indexed(memory):
    text = """.version 8.8\n.target sm_90\n.address_size 64
    .visible .entry k(.param .align 8 .b8 table[64], .param .u64 o) {
      .reg .b64 %q<9>; .reg .b32 %i<9>;
      mov.u32 %i0, %tid.x; mov.b64 %q0, table; mad.wide.u32 %q1, %i0, 4, %q0;
      ld.param.u32 %i1, [%q1]; ld.param.u32 %i2, [table+4];
      ld.param.u64 %q2, [o]; mad.wide.u32 %q3, %i0, 8, %q2;
      st.global.v2.u32 [%q3], {%i1, %i2}; ret; }"""
    out, got = array(memory, np.zeros(32), "u4")
    table = np.arange(16, dtype=np.uint32) ** 2
    start(text, "k", (1, 1, 1), (16, 1, 1), [table.tobytes(), out.address], memory=memory)
    np.testing.assert_array_equal(got.reshape(16, 2), np.stack([table, np.full(16, 1)], 1))


def test_module_variables_have_addresses_and_initial_bytes(memory):
    top = """.global .align 4 .u32 table[4] = {1, 2, 0xFF, 4};
      .const .align 8 .f64 half = 0d3FE0000000000000;"""
    from cunorm.simgpu.ptx import module as ptx

    body = (
        HEAD
        + """
      mov.u64 %q2, table; ld.global.u32 %r0, [%q2+8]; ld.global.u32 %r1, [table+4];
      ld.const.b64 %q3, [half]; st.global.u32 [%q1], %r0; st.global.u32 [%q1+4], %r1;
      st.global.b64 [%q1+8], %q3; ret;"""
    )
    text = entry(body, ["p", "o"], top=top)
    variables = ptx.parse(text).globals
    assert (variables["table"].size, variables["half"].space) == (16, "const")
    symbols = {}
    for name, variable in variables.items():
        allocation, _ = array(memory, np.frombuffer(variable.initial, "u1"), "u1")
        symbols[name] = allocation.address
    out, got = array(memory, np.zeros(4), "u4")
    start(text, "k", (1, 1, 1), (1, 1, 1), [0, out.address], memory=memory, symbols=symbols)
    assert got.tolist() == [255, 2, 0, 0x3FE00000]


def test_dynamic_shared_memory_follows_the_static(memory):
    out, got = array(memory, np.zeros(64), "u4")
    top = ".extern .shared .align 16 .b8 dynamic[];"
    launch(memory, """
      .shared .align 4 .b8 tile[20]; mov.u32 %r0, dynamic; mov.u32 %r1, tile;
      sub.u32 %r2, %r0, %r1; shl.b32 %r3, %i0, 2; add.u32 %r4, %r0, %r3;
      st.shared.u32 [%r4], %i0; bar.sync 0; sub.u32 %i1, 63, %i0; shl.b32 %i1, %i1, 2;
      add.u32 %r5, %r0, %i1; ld.shared.u32 %r6, [%r5]; add.u32 %r6, %r6, %r2;
      mad.wide.u32 %q2, %i0, 4, %q1;
      st.global.u32 [%q2], %r6; ret;""", out, out, top=top, shared=256)  # fmt: skip
    np.testing.assert_array_equal(got, 63 - np.arange(64) + 32)


@pytest.mark.parametrize("grid", [1, 5])
def test_blocks_have_shared_memory_of_their_own(memory, grid):
    out, got = array(memory, np.zeros(64 * grid), "u4")
    launch(memory, """
      .shared .align 4 .b8 tile[4]; mov.u32 %i1, %ctaid.x; setp.ne.u32 %p0, %i0, 0;
      @%p0 bra wait; st.shared.u32 [tile], %i1;
      wait: bar.sync 0; ld.shared.u32 %r0, [tile]; mad.lo.u32 %i2, %i1, 64, %i0;
      mad.wide.u32 %q2, %i2, 4, %q1;
      st.global.u32 [%q2], %r0; ret;""", out, out, grid=(grid, 1, 1))  # fmt: skip
    np.testing.assert_array_equal(got, np.repeat(np.arange(grid), 64))


ATOMICS = {
    "add.u32": lambda old, v: old + v, "min.s32": min, "max.u32": max,
    "and.b32": lambda old, v: old & v, "or.b32": lambda old, v: old | v,
    "xor.b32": lambda old, v: old ^ v, "exch.b32": lambda old, v: v,
    "inc.u32": lambda old, v: 0 if old >= v else old + 1,
    "dec.u32": lambda old, v: v if old == 0 or old > v else old - 1,
}  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared", "generic"])
@pytest.mark.parametrize("operation", ATOMICS)
def test_atomics_go_lane_by_lane(memory, operation, space):
    values = np.random.default_rng(5).integers(0, 1000, 64).astype(np.uint32)
    counters = [7, 500, 3]
    data, cells = array(memory, np.concatenate([values, counters]), "u4")
    out, got = array(memory, np.zeros(64), "u4")
    at = "[%q5]"
    setup = "mad.wide.u32 %q5, %i1, 4, %q0; add.u64 %q5, %q5, 256;"
    finish = ""
    if space == "shared":
        setup = """mad.wide.u32 %q6, %i1, 4, %q0; ld.global.u32 %r5, [%q6+256]; mov.u64 %q7, tile;
          mad.wide.u32 %q5, %i1, 4, %q7; setp.lt.u32 %p0, %i0, 3; @%p0 st.shared.u32 [%q5], %r5;
          bar.sync 0;"""
        finish = "bar.sync 0; ld.shared.u32 %r6, [%q5]; st.global.u32 [%q6+256], %r6;"
    mark = "" if space == "generic" else f".{space}"
    launch(memory, f"""
      .shared .align 4 .b8 tile[12]; rem.u32 %i1, %i0, 3; {setup}
      mad.wide.u32 %q2, %i0, 4, %q0; ld.global.u32 %r0, [%q2];
      atom{mark}.{operation} %r1, {at}, %r0; mad.wide.u32 %q3, %i0, 4, %q1;
      st.global.u32 [%q3], %r1; {finish} ret;""", data, out)  # fmt: skip
    wanted = []
    for lane, value in enumerate(values.tolist()):
        wanted.append(counters[lane % 3])
        counters[lane % 3] = ATOMICS[operation](counters[lane % 3], value) & 0xFFFFFFFF
    assert got.tolist() == wanted
    assert cells[64:].tolist() == counters


@pytest.mark.parametrize(
    "operation", ["add.u32", "and.b32", "or.b32", "xor.b32", "min.u32", "max.u32"]
)
def test_reductions_without_results(memory, operation):
    values = np.random.default_rng(5).integers(0, 1 << 32, 64).astype(np.uint32)
    data, cells = array(memory, np.append(values, 0xF0F0F0F0), "u4")
    launch(memory, f"""
      mad.wide.u32 %q2, %i0, 4, %q0; ld.global.u32 %r0, [%q2];
      red.global.{operation} [%q0+256], %r0; ret;""", data, data)  # fmt: skip
    function = ATOMICS.get(operation, min if "min" in operation else max)
    wanted = 0xF0F0F0F0
    for value in values.tolist():
        wanted = function(wanted, value) & 0xFFFFFFFF
    assert cells[64] == wanted


def test_compare_and_swap_lets_one_lane_win(memory):
    data, cells = array(memory, [0, 0], "u4")
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, """
      add.u32 %r0, %i0, 1; atom.global.cas.b32 %r1, [%q0], 0, %r0;
      mad.wide.u32 %q3, %i0, 4, %q1; st.global.u32 [%q3], %r1; ret;""", data, out)  # fmt: skip
    assert cells[0] == 1
    assert got.tolist() == [0] + [1] * 63


def test_float_atomics_round_after_every_lane(memory):
    values = np.random.default_rng(2).standard_normal(64).astype(np.float32)
    data, cells = array(memory, np.append(values, np.float32(0.1)), "f4")
    launch(memory, """
      .reg .f32 %f; mad.wide.u32 %q2, %i0, 4, %q0; ld.global.f32 %f, [%q2];
      red.global.add.f32 [%q0+256], %f; ret;""", data, data)  # fmt: skip
    total = np.float32(0.1)
    for value in values:
        total = np.float32(total + value)
    assert cells[64] == total


def test_half_atomics(memory):
    data, cells = array(memory, [1.0, 2.0], "f2")
    launch(memory, """
      mov.b32 %r0, 0x3C003800;
      red.global.add.noftz.f16x2 [%q0], %r0; ret;""", data, data, threads=3)  # fmt: skip
    assert cells.tolist() == [2.5, 5.0]


BAD = {
    "past the end": ("[%q0+256]", faults.OutOfBounds, 0),
    "one lane past the end": ("[%q2+4]", faults.OutOfBounds, 63),
    "before the start": ("[%q0+-4]", faults.OutOfBounds, 0),
    "null": ("[0]", faults.OutOfBounds, 0),
    "misaligned": ("[%q2+2]", faults.Misaligned, 0),
}


@pytest.mark.parametrize("what", BAD)
@pytest.mark.parametrize("store", [False, True])
def test_global_faults_name_the_first_lane(memory, what, store):
    address, fault, lane = BAD[what]
    data, _ = array(memory, np.zeros(64), "u4")
    access = f"st.global.u32 {address}, %i0;" if store else f"ld.global.u32 %r0, {address};"
    with pytest.raises(fault) as caught:
        launch(memory, f"mad.wide.u32 %q2, %i0, 4, %q0;\n{access}\nret;", data, data)
    place = caught.value.place
    assert (place.kernel, place.block, place.thread) == ("k", (0, 0, 0), (lane, 0, 0))
    assert place.ptx_text == access.rstrip(";")
    # A fault leaves the memory usable.
    launch(memory, "ret;", data, data)


def test_freed_memory_is_named(memory):
    data, _ = array(memory, np.zeros(64), "u4")
    memory.free(data.address)
    with pytest.raises(faults.UseAfterFree, match="256 bytes"):
        launch(memory, "ld.global.u32 %r0, [%q0]; ret;", data, data)


def test_lanes_may_access_several_allocations_at_once(memory):
    first, _ = array(memory, np.arange(64), "u4")
    second, _ = array(memory, np.arange(64) + 500, "u4")
    out, got = array(memory, np.zeros(64), "u4")
    body = """
      .reg .b64 %s; ld.param.u64 %s, [q]; and.b32 %i1, %i0, 1; setp.eq.u32 %p0, %i1, 0;
      selp.b64 %q2, %q0, %s, %p0; mad.wide.u32 %q3, %i0, 4, %q2; ld.global.u32 %r0, [%q3];
      add.u32 %r0, %r0, 1; st.global.u32 [%q3], %r0;
      mad.wide.u32 %q4, %i0, 4, %q1; st.global.u32 [%q4], %r0; ret;"""
    launch(memory, body, first, out, second)
    lanes = np.arange(64)
    np.testing.assert_array_equal(got, np.where(lanes % 2 == 0, lanes, lanes + 500) + 1)


@pytest.mark.parametrize(
    ("offset", "fault"),
    [(64, faults.SharedOutOfBounds), (62, faults.SharedOutOfBounds), (2, faults.Misaligned)],
)
def test_shared_faults(memory, offset, fault):
    data, _ = array(memory, np.zeros(64), "u4")
    with pytest.raises(fault, match="shared"):
        launch(
            memory,
            f".shared .align 4 .b8 tile[64]; ld.shared.u32 %r0, [tile+{offset}]; ret;",
            data,
            data,
        )


def test_local_faults(memory):
    data, _ = array(memory, np.zeros(64), "u4")
    body = ".local .align 8 .b8 depot[16]; mov.u64 %q2, depot; st.local.u32 [%q2+16], %i0; ret;"
    with pytest.raises(faults.LocalOutOfBounds):
        launch(memory, body, data, data)


def test_values_pass_through_local_memory_by_lane(memory):
    out, got = array(memory, np.zeros(64), "u4")
    launch(memory, """
      .local .align 8 .b8 depot[16]; mov.u64 %q2, depot; and.b32 %i1, %i0, 3;
      mad.wide.u32 %q3, %i1, 4, %q2; st.local.u32 [%q3], %i0; ld.local.u32 %r0, [%q3];
      mad.wide.u32 %q4, %i0, 4, %q1; st.global.u32 [%q4], %r0; ret;""", out, out)  # fmt: skip
    np.testing.assert_array_equal(got, np.arange(64))


def test_scalars_arrive_by_value(memory):
    text = """.version 8.8\n.target sm_90\n.address_size 64
    .visible .entry k(.param .u8 a, .param .f32 b, .param .u64 o) {
      .reg .b64 %q; .reg .b16 %h; .reg .f32 %f<3>;
      ld.param.s8 %h, [a]; ld.param.f32 %f0, [b]; cvt.rn.f32.s16 %f1, %h; add.f32 %f2, %f0, %f1;
      ld.param.u64 %q, [o]; st.global.f32 [%q], %f2; ret; }"""
    out, got = array(memory, [0], "f4")
    start(
        text,
        "k",
        (1, 1, 1),
        (1, 1, 1),
        [b"\xfe", struct.pack("<f", 0.5), out.address],
        memory=memory,
    )
    assert got[0] == -1.5
