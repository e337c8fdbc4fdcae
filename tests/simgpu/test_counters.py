"""Counters of memory accesses, on kernels small enough to count by hand."""

import numpy as np
import pytest
from counted import count

from cunorm.simgpu.memory.space import GlobalMemory
from cunorm.simgpu.profiler.counters import SharedTraffic, Traffic

# (requests, bytes, sectors, distinct) of one warp that accesses width bytes, stride apart.
PATTERNS = {
    "neighbours": (4, 4, 0, (1, 128, 4, 4)),
    "bytes": (1, 1, 0, (1, 32, 1, 1)),
    "halves": (2, 2, 0, (1, 64, 2, 2)),
    "doubles": (8, 8, 0, (1, 256, 8, 8)),
    "packets": (16, 16, 0, (1, 512, 16, 16)),
    "double packets": (32, 32, 0, (1, 1024, 32, 32)),
    "one element off": (4, 4, 4, (1, 128, 5, 5)),
    "one element before a sector": (4, 4, 28, (1, 128, 5, 5)),
    "one packet off": (16, 16, 16, (1, 512, 17, 17)),
    "one sector off": (4, 4, 32, (1, 128, 4, 4)),
    "every other": (4, 8, 0, (1, 128, 8, 8)),
    "a sector each": (4, 32, 0, (1, 128, 32, 32)),
    "far apart": (4, 1024, 0, (1, 128, 32, 32)),
    "backwards": (4, -4, 124, (1, 128, 4, 4)),
    "the same word": (4, 0, 0, (1, 128, 1, 1)),
    "the same packet": (16, 0, 32, (1, 512, 1, 1)),
}
ACCESSES = {
    1: ("u8", "%r9"),
    2: ("u16", "%h1"),
    4: ("u32", "%r9"),
    8: ("v2.u32", "{%r9, %r10}"),
    16: ("v4.u32", "{%r9, %r10, %r11, %r12}"),
    32: ("v8.u32", "{%r9, %r10, %r11, %r12, %r13, %r14, %r15, %r16}"),
}


def address(stride, offset):
    return f"mul.wide.s32 %q1, %r0, {stride}; add.s64 %q1, %q1, {offset}; add.s64 %q2, %q0, %q1;"


@pytest.mark.parametrize("name", PATTERNS)
def test_sectors_of_one_load_and_one_store(name):
    width, stride, offset, expected = PATTERNS[name]
    kind, value = ACCESSES[width]
    # Accesses of 32 bytes begin with sm_100.
    loaded = count(f"{address(stride, offset)} ld.global.{kind} {value}, [%q2];", arch=100)
    assert (loaded.loads, loaded.stores) == (Traffic(*expected), Traffic())
    stored = count(f"{address(stride, offset)} st.global.{kind} [%q2], {value};", arch=100)
    assert (stored.loads, stored.stores) == (Traffic(), Traffic(*expected))


def test_an_offset_in_the_instruction_is_part_of_the_address():
    body = f"{address(4, 0)} ld.global.u32 %r9, [%q2+4]; ld.global.u32 %r9, [%q2+-0];"
    assert count(body).loads == Traffic(2, 256, 9, 5)
    body = f"{address(4, 64)} ld.global.u32 %r9, [%q2+-60];"
    assert count(body).loads == Traffic(1, 128, 5, 5)


def test_an_address_that_all_lanes_hold_as_one_is_one_sector():
    assert count("ld.global.u32 %r9, [%q0+64];", block=96).loads == Traffic(3, 384, 3, 1)


def test_a_load_may_overwrite_its_own_address():
    memory = GlobalMemory(1 << 20)
    body = f"{address(8, 0)} ld.global.u64 %q2, [%q2];"
    assert count(body, memory=memory).loads == Traffic(1, 256, 8, 8)


def test_only_lanes_whose_predicate_holds_ask():
    guarded = f"{address(4, 0)} setp.lt.u32 %p0, %r0, 10; @%p0 ld.global.u32 %r9, [%q2];"
    assert count(guarded).loads == Traffic(1, 40, 2, 2)
    negated = guarded.replace("@%p0", "@!%p0")
    assert count(negated).loads == Traffic(1, 88, 3, 3)
    nobody = guarded.replace("%r0, 10", "%r0, 0")
    assert count(nobody).loads == Traffic()
    # Of three warps the first is whole, the second has 8 lanes, the third none.
    some = guarded.replace("%r0, 10", "%r0, 40")
    assert count(some, block=96).loads == Traffic(2, 160, 5, 5)


def test_a_block_that_is_no_whole_warps_has_no_lanes_beyond():
    body = f"{address(4, 0)} ld.global.u32 %r9, [%q2];"
    assert count(body, block=40).loads == Traffic(2, 160, 5, 5)
    assert count(body, block=40, grid=3).loads == Traffic(6, 480, 15, 5)


def test_diverged_halves_make_requests_of_their_own():
    body = f"""{address(4, 0)} setp.lt.u32 %p0, %r0, 16; @%p0 bra LOW;
      ld.global.u32 %r9, [%q2]; bra END; LOW: ld.global.u32 %r9, [%q2]; END:"""
    assert count(body).loads == Traffic(2, 128, 4, 4)


def test_requested_and_distinct_differ_where_sectors_are_asked_for_again():
    body = f"{address(4, 0)} ld.global.u32 %r9, [%q2]; ld.global.u32 %r9, [%q2];"
    loads = count(body, grid=5).loads
    assert loads == Traffic(10, 1280, 40, 4)
    assert (loads.sectors_per_request, loads.requested_per_distinct) == (4, 10)
    assert (Traffic().sectors_per_request, Traffic().requested_per_distinct) == (0, 0)


def test_atomics_are_neither_loads_nor_stores():
    body = f"{address(0, 0)} red.global.add.u32 [%q2], 1; atom.global.add.u64 %q3, [%q2+64], %q1;"
    found = count(body)
    assert found.atomics == Traffic(2, 128 + 256, 2, 2)
    assert (found.loads, found.stores) == (Traffic(), Traffic())
    assert (found.dram_read_sectors, found.dram_written_sectors) == (2, 2)
    assert found.dram_floor_bytes == 128


@pytest.mark.parametrize(
    ("body", "read", "written"),
    [
        ("ld.global.u32 %r9, [%q2]; st.global.u32 [%q2], %r9;", 4, 4),
        ("st.global.u32 [%q2], %r0; ld.global.u32 %r9, [%q2];", 0, 4),
        ("st.global.u32 [%q2], %r0; red.global.add.u32 [%q2], 1;", 0, 4),
        ("ld.global.u32 %r9, [%q2]; st.global.u32 [%q2+512], %r9;", 4, 4),
        # One of the four sectors was stored to before.
        ("@%p0 st.global.u32 [%q2], %r0; ld.global.u32 %r9, [%q2];", 3, 1),
    ],
)
def test_the_floor_reads_what_was_not_written_before(body, read, written):
    found = count(f"{address(4, 0)} setp.eq.u32 %p0, %r0, 3; {body}")
    assert (found.dram_read_sectors, found.dram_written_sectors) == (read, written)
    assert found.dram_floor_bytes == 32 * (read + written)


@pytest.mark.parametrize(("writer", "read"), [(0, 0), (1, 4), (2, 4)])
def test_before_is_the_order_of_blocks(writer, read):
    # Each block reads the same words; one of three wrote them before it read them itself.
    body = f"""{address(4, 0)} mov.u32 %r1, %ctaid.x; setp.eq.u32 %p0, %r1, {writer};
      @%p0 st.relaxed.gpu.global.u32 [%q2], %r0; ld.relaxed.gpu.global.u32 %r9, [%q2];"""
    found = count(body, grid=3)
    assert (found.dram_read_sectors, found.dram_written_sectors) == (read, 4)


def test_a_generic_address_counts_where_it_leads():
    # Even lanes load from the array, odd ones from shared memory, by one instruction.
    body = f"""{address(4, 0)} mov.u64 %q3, held; cvta.shared.u64 %q3, %q3;
      add.u64 %q3, %q3, %q1; mov.u32 %r1, held; shl.b32 %r2, %r0, 2; add.u32 %r1, %r1, %r2;
      st.shared.u32 [%r1], %r0;
      and.b32 %r3, %r0, 1; setp.eq.u32 %p0, %r3, 0; selp.b64 %q4, %q2, %q3, %p0;
      ld.u32 %r9, [%q4];"""
    found = count(body, shared=128)
    assert found.loads == Traffic(1, 64, 4, 4)
    assert found.shared_loads == SharedTraffic(1, 64, 1, 0)
    assert found.shared_stores == SharedTraffic(1, 128, 1, 0)


def test_an_asynchronous_copy_loads_and_stores():
    body = f"""{address(16, 16)} mov.u32 %r1, held; shl.b32 %r2, %r0, 4; add.u32 %r2, %r2, %r1;
      cp.async.cg.shared.global [%r2], [%q2], 16; cp.async.wait_all;"""
    found = count(body, shared=512)
    assert (found.loads, found.stores) == (Traffic(1, 512, 17, 17), Traffic())
    assert (found.shared_loads, found.shared_stores) == (SharedTraffic(), SharedTraffic(1, 512, 4))
    assert found.classes["copy"] == 2
    # Odd lanes ask for 12 of their 16 bytes, even ones for none.
    some = body.replace("], 16;", "], 16, %r4;").replace(
        "mov", "and.b32 %r4, %r0, 1; mul.lo.u32 %r4, %r4, 12; mov"
    )
    found = count(some, shared=512)
    assert found.loads == Traffic(1, 16 * 12, 16, 16)
    assert found.shared_stores == SharedTraffic(1, 512, 4)


def test_a_bulk_copy_is_one_request():
    body = """setp.ne.u32 %p0, %r0, 0; @%p0 ret; mov.u32 %r1, held;
      mbarrier.init.shared.b64 [%r1], 1;
      mbarrier.arrive.expect_tx.shared.b64 %q3, [%r1], 256;
      cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes
      [%r1+16], [%q0+16], 256, [%r1];
      WAIT: mbarrier.try_wait.shared.b64 %p1, [%r1], %q3; @!%p1 bra WAIT;"""
    found = count(body, shared=512)
    assert found.loads == Traffic(1, 256, 9, 9)
    assert found.shared_stores == found.shared_atomics == SharedTraffic()


def test_local_and_constant_memory_are_not_global():
    body = """.local .align 4 .b8 frame[64]; mov.u64 %q1, frame; st.local.u32 [%q1], %r0;
      ld.local.u32 %r9, [%q1];"""
    found = count(body)
    assert (found.loads, found.stores) == (Traffic(), Traffic())
    assert found.classes["load local"] == found.classes["store local"] == 1


# Lanes at stride words of 4 bytes: the wavefronts of one warp, and the groups it is served in.
BANKS = {
    (4, 1): (1, 1),
    (4, 0): (1, 1),  # a broadcast
    (4, 2): (2, 1),
    (4, 3): (1, 1),  # odd strides meet every bank
    (4, 4): (4, 1),
    (4, 8): (8, 1),
    (4, 16): (16, 1),
    (4, 32): (32, 1),
    (4, 33): (1, 1),  # the padded column
    (1, 1): (1, 1),
    (2, 32): (32, 1),
    (8, 2): (2, 2),  # dense: 16 lanes take all the banks
    (8, 0): (2, 2),
    (8, 4): (4, 2),
    (8, 32): (32, 2),
    (16, 4): (4, 4),  # dense: 8 lanes take all the banks
    (16, 8): (8, 4),
    (16, 0): (4, 4),
    (16, 32): (32, 4),
    (16, 36): (4, 4),  # padded by one packet a row
}


@pytest.mark.parametrize(("width", "words"), BANKS)
def test_bank_conflicts(width, words):
    wavefronts, groups = BANKS[width, words]
    kind, value = ACCESSES[width]
    head = f"""mul.lo.u32 %r1, %r0, {4 * words}; mov.u32 %r2, held; add.u32 %r2, %r2, %r1;
      st.shared.{kind} [%r2], {value};"""
    expected = SharedTraffic(1, 32 * width, wavefronts, wavefronts - groups)
    found = count(head, shared=32 * 4 * 40)
    assert (found.shared_stores, found.shared_loads) == (expected, SharedTraffic())
    found = count(f"{head} bar.sync 0; ld.shared.{kind} {value}, [%r2];", shared=32 * 4 * 40)
    assert (found.shared_stores, found.shared_loads) == (expected, expected)
    assert found.bank_conflicts == 2 * (wavefronts - groups)


def test_several_words_of_a_bank_conflict_whoever_shares_them():
    # Lanes 0-15 share a word, lanes 16-31 another one of the same bank.
    body = """shr.u32 %r1, %r0, 4; mul.lo.u32 %r1, %r1, 128;
      mov.u32 %r2, held; add.u32 %r2, %r2, %r1; st.shared.u32 [%r2], %r0;"""
    assert count(body, shared=1024).shared_stores == SharedTraffic(1, 128, 2, 1)


def test_groups_without_lanes_need_no_wavefront():
    # Lanes 0-9: of 8-byte accesses one half-warp, of 16-byte accesses two quarters.
    body = """mul.lo.u32 %r1, %r0, 16; mov.u32 %r2, held;
      add.u32 %r2, %r2, %r1; setp.lt.u32 %p0, %r0, 10;
      @%p0 st.shared.v4.u32 [%r2], {%r0, %r0, %r0, %r0};"""
    assert count(body, shared=1024).shared_stores == SharedTraffic(1, 160, 2, 0)
    body = body.replace("v4.u32 [%r2], {%r0, %r0, %r0, %r0}", "v2.u32 [%r2], {%r0, %r0}")
    assert count(body, shared=1024).shared_stores == SharedTraffic(1, 80, 2, 1)


@pytest.mark.parametrize(("words", "wavefronts"), [(1, 1), (0, 32), (2, 2), (32, 32)])
def test_shared_atomics_take_turns_at_a_word(words, wavefronts):
    body = f"""mul.lo.u32 %r1, %r0, {4 * words};
      mov.u32 %r2, held; add.u32 %r2, %r2, %r1; st.shared.u32 [%r2], 0; bar.sync 0;
      red.shared.add.u32 [%r2], 1;"""
    found = count(body, shared=32 * 4 * 33)
    assert found.shared_atomics == SharedTraffic(1, 128, wavefronts, wavefronts - 1)


def test_traffic_is_told_apart_by_allocation():
    memory = GlobalMemory(1 << 30)
    other = memory.allocate(4096)
    body = f"""{address(4, 0)} ld.global.u32 %r9, [%q2]; st.global.u32 [%q2], %r9;
      and.b32 %r3, %r0, 1; setp.eq.u32 %p0, %r3, 0; mov.u64 %q5, {other.address};
      add.s64 %q5, %q5, %q1; selp.b64 %q6, %q2, %q5, %p0; st.global.u32 [%q6], %r9;"""
    first, second = count(body, memory=memory).arrays
    assert (first.name, first.arguments, first.nbytes) == ("arg 0", (0,), 1 << 16)
    assert (first.loads, first.stores) == (Traffic(1, 128, 4, 4), Traffic(2, 192, 8, 4))
    assert (second.name, second.arguments) == (f"{other.address:#x}", ())
    assert second.stores == Traffic(1, 64, 4, 4)


def test_large_sparse_arrays_are_counted_by_what_is_touched():
    body = f"{address(4, 0)} ld.global.u32 %r9, [%q2+{5 << 30}];"
    assert count(body, nbytes=6 << 30).loads == Traffic(1, 128, 4, 4)


def test_sectors_are_those_of_a_model_at_random_addresses():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 4096, 256)
    memory = GlobalMemory(1 << 30)
    table = memory.allocate(1024)
    table.data.view(np.uint32)[:] = words
    body = f"""mov.u64 %q5, {table.address}; mul.wide.u32 %q1, %r0, 4; add.s64 %q5, %q5, %q1;
      ld.global.u32 %r1, [%q5]; mul.wide.u32 %q1, %r1, 4; add.s64 %q2, %q0, %q1;
      ld.global.u32 %r9, [%q2];"""
    found = count(body, block=256, memory=memory).arrays[0].loads
    sectors = words // 8
    requested = sum(len(set(warp)) for warp in sectors.reshape(-1, 32).tolist())
    assert found == Traffic(8, 1024, requested, len(set(sectors.tolist())))
