"""Divergence, barriers, warp collectives, calls and budgets."""

import numpy as np
import pytest
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.memory.space import GlobalMemory

HEAD = """
  .reg .b64 %q<10>; .reg .b32 %i<10>; .reg .pred %p<8>; .reg .b32 %r<20>;
  ld.param.u64 %q0, [o]; mov.u32 %i0, %tid.x; mov.u32 %i1, %ctaid.x; mov.u32 %i2, %ntid.x;
  mad.lo.u32 %i3, %i1, %i2, %i0; mad.wide.u32 %q1, %i3, 4, %q0;
"""
TAIL = "\nst.global.u32 [%q1], %r0; ret;"


def run(body, threads=64, blocks=1, top="", uninitialised=False, **options):
    memory = GlobalMemory(1 << 30)
    memory.uninitialised = uninitialised
    out = memory.allocate(4 * threads * blocks)
    start(entry(HEAD + body + TAIL, ["o"], top=top), "k", (blocks, 1, 1), (threads, 1, 1),
          [out.address], memory=memory, **options)  # fmt: skip
    return out.data.view(np.uint32)


LANES = np.arange(64)


@pytest.mark.parametrize("blocks", [1, 7])
@pytest.mark.parametrize("threads", [1, 31, 64, 100])
def test_loops_of_different_lengths_meet_again(threads, blocks):
    # Collatz: every lane runs its own number of rounds, through two sides of a branch.
    got = run(
        """
        add.u32 %r1, %i3, 1; mov.u32 %r0, 0;
        again: setp.eq.u32 %p0, %r1, 1; @%p0 bra done;
        add.u32 %r0, %r0, 1; and.b32 %r2, %r1, 1; setp.eq.u32 %p1, %r2, 0; @%p1 bra even;
        mad.lo.u32 %r1, %r1, 3, 1; bra again;
        even: shr.u32 %r1, %r1, 1; bra.uni again;
        done: add.u32 %r0, %r0, 1000;""",
        threads,
        blocks,
    )

    def steps(n):
        count = 0
        while n != 1:
            n = n // 2 if n % 2 == 0 else 3 * n + 1
            count += 1
        return count

    np.testing.assert_array_equal(got, [1000 + steps(n + 1) for n in range(threads * blocks)])


def test_a_register_of_the_other_side_survives():
    # %r1 is written by one side while the other's lanes, waiting, still want their own.
    got = run("""
        add.u32 %r1, %i0, 500; and.b32 %r2, %i0, 1; setp.eq.u32 %p0, %r2, 1; @%p0 bra odd;
        mov.u32 %r1, 7; add.u32 %r1, %r1, %i0;
        odd: mov.u32 %r0, %r1;""")
    np.testing.assert_array_equal(got, np.where(LANES % 2, LANES + 500, LANES + 7))


@pytest.mark.parametrize("few", [3, 40])
def test_small_and_large_groups_agree(few):
    # A group below one lane in eight is gathered, a larger one computes in every lane.
    got = run(f"""
        mov.u32 %r1, 5; mov.u32 %r0, 1; setp.ge.u32 %p0, %i0, {few}; @%p0 bra rest;
        mul.lo.u32 %r1, %r1, %i0; mov.u32 %r3, 9; add.u32 %r0, %r1, %r3; bra end;
        rest: add.u32 %r0, %r1, %r0;
        end:""")
    wanted = [5 * lane + 9 if lane < few else 6 for lane in range(64)]
    np.testing.assert_array_equal(got, wanted)


def test_predicated_instructions_leave_other_lanes_alone():
    got = run("""
        mov.u32 %r0, 1; setp.lt.u32 %p0, %i0, 10; @%p0 mov.u32 %r0, %i0;
        @!%p0 add.u32 %r0, %r0, %i0;""")
    np.testing.assert_array_equal(got, np.where(LANES < 10, LANES, LANES + 1))


def test_a_predicated_store_stores_for_its_lanes():
    got = run("""
        mov.u32 %r0, 3; setp.lt.u32 %p0, %i0, 10; @%p0 st.global.u32 [%q1], %r0; @%p0 ret;
        mov.u32 %r0, 4;""")
    np.testing.assert_array_equal(got, np.where(LANES < 10, 3, 4))


def test_jump_tables():
    got = run("""
        and.b32 %r1, %i0, 3; mov.u32 %r0, 0;
        table: .branchtargets one, two, three, one;
        brx.idx %r1, table;
        one: add.u32 %r0, %r0, 1; bra end;
        two: mov.u32 %r0, 2; bra end;
        three: mov.u32 %r0, 3;
        end:""")
    np.testing.assert_array_equal(got, np.array([1, 2, 3, 1])[LANES % 4])


def test_a_spin_lock_is_passed_on():
    # The lanes that spin stand below the lane that holds the lock: it must get its turn.
    got = run(
        """
        .shared .align 4 .b8 lock[8]; mov.u32 %r8, 0; st.shared.v2.u32 [lock], {%r8, %r8};
        spin: atom.shared.cas.b32 %r1, [lock], 0, 1; setp.ne.u32 %p0, %r1, 0; @%p0 bra spin;
        ld.shared.u32 %r0, [lock+4]; add.u32 %r2, %r0, 1; st.shared.u32 [lock+4], %r2;
        atom.shared.exch.b32 %r3, [lock], 0;""",
        threads=8,
    )
    assert sorted(got.tolist()) == list(range(8))


def test_an_endless_loop_ends_with_a_fault():
    with pytest.raises(faults.EndlessLoop, match="budget of 1,000 instructions"):
        run("mov.u32 %r0, 1; again: add.u32 %r0, %r0, 1; bra again;", budget=1000)


def test_functions_are_called_with_parameters_in_memory():
    top = """.func (.param .b64 result) twice(.param .b32 value, .param .align 8 .b8 pair[8])
    { .reg .b32 %r<5>; .reg .b64 %q; .reg .pred %p;
      ld.param.u32 %r0, [value]; ld.param.u32 %r1, [pair+4]; setp.gt.u32 %p, %r0, 5; @%p bra big;
      mul.lo.u32 %r0, %r0, 2; add.u32 %r0, %r0, %r1; cvt.u64.u32 %q, %r0;
      st.param.b64 [result], %q; ret;
      big: cvt.u64.u32 %q, %r1; st.param.b64 [result], %q; ret; }"""
    call = """{ .param .b32 a; .param .align 8 .b8 b[8]; .param .b64 c;
      st.param.b32 [a], %r1; st.param.v2.b32 [b], {%r1, %r2};
      call.uni (c), twice, (a, b); ld.param.b64 %q5, [c]; cvt.u32.u64 %r1, %q5; }"""
    got = run(f"mov.u32 %r1, %i0; mov.u32 %r2, 100; {call} {call} mov.u32 %r0, %r1;", top=top)
    once = lambda v: 100 if v > 5 else 2 * v + 100  # noqa: E731
    np.testing.assert_array_equal(got, [once(once(v)) for v in range(64)])


def test_recursion_raises_when_reached():
    top = """.func f() { .reg .pred %p; call f; ret; }"""
    with pytest.raises(faults.UnknownInstruction, match="recursion"):
        run("call f; mov.u32 %r0, 0;", top=top)


def test_an_unknown_instruction_raises_only_when_a_lane_reaches_it():
    body = "mov.u32 %r0, 1; setp.lt.u32 %p0, %i0, {n}; @%p0 wgmma.fence.sync.aligned;"
    assert (run(body.format(n=0)) == 1).all()
    with pytest.raises(faults.UnknownInstruction, match=r"wgmma.fence") as caught:
        run(body.format(n=1))
    assert isinstance(caught.value, NotImplementedError)
    assert caught.value.place.ptx_line > 1


def test_a_form_with_an_unknown_modifier_is_unknown():
    with pytest.raises(faults.UnknownInstruction, match=r"add\.rn\.weird\.f32"):
        run("add.rn.weird.f32 %r0, %r0, %r0;")


# Barriers.


def test_a_barrier_orders_shared_memory():
    got = run(
        """
        .shared .align 4 .b8 tile[256]; mov.u32 %r1, tile; shl.b32 %r2, %i0, 2;
        add.u32 %r3, %r1, %r2;
        st.shared.u32 [%r3], %i3; setp.lt.u32 %p0, %i0, 32; @%p0 bra low;
        bar.sync 0; bra meet;
        low: bar.sync 0;
        meet: xor.b32 %r4, %r2, 252; add.u32 %r4, %r4, %r1; ld.shared.u32 %r0, [%r4];""",
        blocks=3,
    )
    np.testing.assert_array_equal(got.reshape(3, 64), np.arange(192).reshape(3, 64)[:, ::-1])


def test_a_barrier_that_threads_skip_names_them():
    with pytest.raises(faults.DivergentBarrier, match=r"60 of 64 threads .* threads 60-63 do not"):
        run("mov.u32 %r0, 0; setp.ge.u32 %p0, %i0, 60; @%p0 bra on; bar.sync 0; on: bar.sync 1;")


def test_a_barrier_that_threads_went_past_says_that_they_exited():
    with pytest.raises(faults.DivergentBarrier, match=r"exited: 0-4\)") as caught:
        run(
            """mov.u32 %r0, 0; setp.lt.u32 %p0, %i0, 5; @%p0 bra past; bar.sync 0;
            past: add.u32 %r0, %r0, 1; @%p0 ret;""",
            blocks=2,
        )
    assert caught.value.place.ptx_text == "bar.sync 0"


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("returning", ["lt.u32 %p0, %i0, 5", "gt.u32 %p0, %i0, 40"])
@pytest.mark.parametrize("way", ["@%p0 ret;", "@%p0 bra end;"])
def test_threads_that_returned_early_count_as_arrived(returning, way, blocks):
    # What they wrote before they returned, the others may read behind the barrier.
    got = run(
        f"""
        .shared .align 4 .b8 tile[256]; mov.u32 %r1, tile; shl.b32 %r2, %i0, 2;
        add.u32 %r3, %r1, %r2; st.shared.u32 [%r3], %i0; setp.{returning}; {way}
        bar.sync 0; xor.b32 %r4, %r2, 252; add.u32 %r4, %r4, %r1; ld.shared.u32 %r0, [%r4];
        bar.sync 0; st.global.u32 [%q1], %r0; end: ret;""",
        blocks=blocks,
    )
    thread = np.arange(64)
    gone = thread < 5 if "lt" in returning else thread > 40
    np.testing.assert_array_equal(got, np.tile(np.where(gone, 0, 63 - thread), blocks))


def test_threads_leave_a_loop_of_barriers_one_by_one():
    got = run(
        """mov.u32 %r1, 0; again: st.global.u32 [%q1], %r1; setp.ge.u32 %p0, %r1, %i0; @%p0 bra end;
        bar.sync 0; add.u32 %r1, %r1, 1; bra again; end: ret;""",
    )
    np.testing.assert_array_equal(got, LANES)


def test_an_aligned_barrier_wants_whole_warps_together():
    body = "mov.u32 %r0, 0; setp.lt.u32 %p0, %i0, 5; @%p0 bra low; {b} 0; bra on; low: {b} 0; on:"
    with pytest.raises(faults.DivergentBarrier, match="one warp"):
        run(body.format(b="bar.sync"))
    assert (run(body.format(b="barrier.sync")) == 0).all()


def test_barriers_for_some_warps():
    got = run(
        """
        .shared .align 4 .b8 tile[4]; mov.u32 %r0, 0; setp.ge.u32 %p0, %i0, 64; @%p0 bra third;
        setp.ge.u32 %p1, %i0, 32; @%p1 bra second;
        mov.u32 %r1, 42; st.shared.u32 [tile], %r1; bar.arrive 3, 64; bra end;
        second: bar.sync 3, 64; ld.shared.u32 %r0, [tile]; bra end;
        third: mov.u32 %r0, 5;
        end:""",
        threads=96,
    )
    np.testing.assert_array_equal(got, np.repeat([0, 42, 5], 32))


@pytest.mark.parametrize(
    ("reduction", "wanted"), [("popc.u32", 10), ("or.pred", 1), ("and.pred", 0)]
)
def test_barriers_reduce(reduction, wanted):
    target = "%r0" if "popc" in reduction else "%p1"
    after = "" if "popc" in reduction else "selp.u32 %r0, 1, 0, %p1;"
    got = run(
        f"""setp.lt.u32 %p0, %i0, 10; setp.eq.u32 %p2, %i1, 0; and.pred %p0, %p0, %p2;
        bar.red.{reduction} {target}, 0, %p0; {after}""",
        threads=50, blocks=2,
    )  # fmt: skip
    np.testing.assert_array_equal(got, np.repeat([wanted, 0], 50))


# Warp collectives.


def shuffled(mode, by, clamp, threads=64):
    got = run(
        f"""add.u32 %r1, %i0, 100; shfl.sync.{mode}.b32 %r2|%p0, %r1, {by}, {clamp}, -1;
        selp.u32 %r3, 1000, 0, %p0; add.u32 %r0, %r2, %r3;""",
        threads,
    )
    return got - 100


@pytest.mark.parametrize("width", [32, 16, 8])
@pytest.mark.parametrize("by", [0, 1, 5, 16, 31])
def test_shuffles(by, width):
    lane = LANES % 32
    base = LANES - lane % width  # the first lane of each segment
    mask = (32 - width) << 8
    wanted = {
        "up": (LANES - by, LANES - by >= base, mask),
        "down": (LANES + by, LANES + by < base + width, mask | 31),
        "bfly": (LANES ^ by, (LANES ^ by) < base + width, mask | 31),
        "idx": (base + by % width, np.full(64, True), mask | 31),
    }
    for mode, (source, inside, clamp) in wanted.items():
        expected = np.where(inside, source + 1000, LANES)
        np.testing.assert_array_equal(shuffled(mode, by, clamp), expected, err_msg=mode)


def test_shuffles_wait_for_the_lanes_that_the_mask_names():
    # Both halves of the warp reach the shuffle, over ways of different length.
    got = run(
        """
        mov.u32 %r1, %i0; setp.lt.u32 %p0, %i0, 16; mov.u32 %r5, 0; @%p0 bra meet;
        wait: add.u32 %r5, %r5, 1; setp.lt.u32 %p1, %r5, 9; @%p1 bra wait; add.u32 %r1, %r1, %r5;
        meet: shfl.sync.bfly.b32 %r0, %r1, 16, 31, 0xffffffff;""",
        threads=32,
    )
    lane = np.arange(32)
    np.testing.assert_array_equal(got, (lane ^ 16) + 9 * (lane < 16))


def test_half_warps_may_shuffle_apart():
    got = run(
        """
        setp.lt.u32 %p0, %i0, 16; @%p0 bra low;
        shfl.sync.bfly.b32 %r0, %i0, 1, 31, 0xffff0000; bra end;
        low: shfl.sync.bfly.b32 %r0, %i0, 2, 31, 0x0000ffff;
        end:""",
        threads=32,
    )
    lane = np.arange(32)
    np.testing.assert_array_equal(got, np.where(lane < 16, lane ^ 2, lane ^ 1))


def test_a_mask_that_names_lanes_elsewhere_raises():
    body = """mov.u32 %r0, 0; setp.ge.u32 %p0, %i0, 30; @%p0 bra end;
        shfl.sync.bfly.b32 %r0, %i0, 1, 31, -1; end: bar.sync 0;"""
    with pytest.raises(faults.MissingLanes, match=r"lanes \[30, 31\]"):
        run(body, threads=32)


def test_a_mask_without_the_lane_itself_raises():
    with pytest.raises(faults.MissingLanes, match="leaves it out") as caught:
        run("shfl.sync.bfly.b32 %r0, %i0, 1, 31, 0x7fffffff;", threads=32)
    assert caught.value.place.thread == (31, 0, 0)


def test_lanes_that_exited_are_not_waited_for():
    got = run(
        "setp.ge.u32 %p0, %i0, 20; @%p0 ret;"
        " setp.ge.u32 %p1, %i0, 4; vote.sync.ballot.b32 %r0, %p1, -1;",
        threads=32,
    )
    np.testing.assert_array_equal(got, [0xFFFF0] * 20 + [0] * 12)


@pytest.mark.parametrize("threads", [64, 40])
def test_votes(threads):
    lane = np.arange(threads)
    got = run("setp.gt.u32 %p0, %i0, 35; vote.sync.ballot.b32 %r0, %p0, -1;", threads)
    ballot = sum(1 << at for at in range(32) if 35 < 32 + at < threads)
    np.testing.assert_array_equal(got, np.where(lane < 32, 0, ballot))
    for mode, wanted in (("all", [0, 0]), ("any", [0, 1]), ("uni", [1, 0])):
        got = run(
            f"setp.gt.u32 %p0, %i0, 35; vote.sync.{mode}.pred %p1, %p0, -1;"
            " selp.u32 %r0, 1, 0, %p1;",
            threads,
        )
        np.testing.assert_array_equal(got, np.array(wanted)[lane // 32], err_msg=mode)


def test_activemask_and_elect():
    got = run("mov.u32 %r0, 0; setp.lt.u32 %p0, %i0, 3; @%p0 bra end; activemask.b32 %r0; end:", 32)
    np.testing.assert_array_equal(got, [0] * 3 + [0xFFFFFFF8] * 29)
    got = run(
        """
        setp.lt.u32 %p1, %i0, 4; mov.u32 %r0, 9; @%p1 bra end;
        elect.sync %r1|%p0, 0xfffffff0; selp.u32 %r0, 1, 0, %p0; add.u32 %r0, %r0, %r1;
        end:""",
        threads=32,
    )
    np.testing.assert_array_equal(got, [9] * 4 + [5] + [4] * 27)


def test_match():
    got = run("rem.u32 %r1, %i0, 5; match.any.sync.b32 %r0, %r1, -1;", 32)
    lane = np.arange(32)
    np.testing.assert_array_equal(
        got, [sum(1 << int(o) for o in lane if o % 5 == v % 5) for v in lane]
    )
    got = run("shr.u32 %r1, %i0, 5; match.all.sync.b32 %r0|%p0, %r1, -1;")
    assert (got == 0xFFFFFFFF).all()
    got = run(
        "match.all.sync.b32 %r2|%p0, %i0, -1; selp.u32 %r0, 1, 0, %p0; add.u32 %r0, %r0, %r2;"
    )
    assert (got == 0).all()


def test_redux():
    for name, function in (("add.u32", np.sum), ("min.s32", np.min), ("max.u32", np.max)):
        got = run(f"xor.b32 %r1, %i0, 5; redux.sync.{name} %r0, %r1, -1;")
        wanted = [function(np.arange(32) ^ 5), function(np.arange(32, 64) ^ 5)]
        np.testing.assert_array_equal(got, np.repeat(wanted, 32))
    for name, function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        got = run(f"mad.lo.u32 %r1, %i0, 77, 1025; redux.sync.{name}.b32 %r0, %r1, -1;", 32)
        wanted = function.reduce(np.arange(32) * 77 + 1025)
        assert (got == wanted).all()
