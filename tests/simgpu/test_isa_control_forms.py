"""Barriers, fences, branches and ends in every spelling, and the words of mbarrier and cp.async."""

import numpy as np
import pytest
from in_flight import FIRST_WORDS, INIT, STORE
from in_flight import run as run_asynchronous
from test_warps import LANES, run

from cunorm.simgpu import faults

TURNED = """
    .shared .align 4 .b8 tile[256]; mov.u32 %r1, tile; mad.lo.u32 %r2, %i0, 4, %r1;
    st.shared.u32 [%r2], %i0; {barrier} xor.b32 %r3, %r2, 128; ld.shared.u32 %r0, [%r3];"""


@pytest.mark.parametrize("cta", ["", ".cta"])
@pytest.mark.parametrize("barrier", ["bar{}.sync", "barrier{}.sync.aligned", "barrier{}.sync"])
@pytest.mark.parametrize("operands", ["0", "3", "3, 64"])
def test_barriers_wait_for_all(barrier, cta, operands):
    got = run(TURNED.format(barrier=f"{barrier.format(cta)} {operands};"))
    np.testing.assert_array_equal(got, LANES ^ 32)


@pytest.mark.parametrize("arrive", ["bar.arrive", "bar.cta.arrive", "barrier.arrive",
                                    "barrier.cta.arrive", "barrier.arrive.aligned"])  # fmt: skip
def test_producers_arrive_and_consumers_wait(arrive):
    got = run(f"""
        .shared .align 4 .b8 tile[256]; mov.u32 %r1, tile; mad.lo.u32 %r2, %i0, 4, %r1;
        setp.lt.u32 %p0, %i0, 32; mov.u32 %r0, 1; @%p0 bra consumer;
        st.shared.u32 [%r2], %i0; {arrive} 2, 64; bra done;
        consumer: barrier.sync 2, 64; ld.shared.u32 %r0, [%r2+128];
        done:""")
    np.testing.assert_array_equal(got, np.where(LANES < 32, LANES + 32, 1))


@pytest.mark.parametrize("cta", ["", ".cta"])
@pytest.mark.parametrize("name", ["bar{}.red.{}", "barrier{}.red.{}", "barrier{}.red.{}.aligned"])
@pytest.mark.parametrize("limit", [0, 10, 64])
def test_barriers_that_reduce(name, cta, limit):
    opcodes = [name.format(cta, reduction) for reduction in ("popc", "and", "or")]
    got = run(f"""
        setp.lt.u32 %p0, %i0, {limit}; {opcodes[0]}.u32 %r0, 1, %p0;
        {opcodes[1]}.pred %p1, 1, %p0; {opcodes[2]}.pred %p2, 1, %p0;
        selp.u32 %r1, 100, 0, %p1; selp.u32 %r2, 1000, 0, %p2; add.u32 %r0, %r0, %r1;
        add.u32 %r0, %r0, %r2;""")
    assert (got == limit + 100 * (limit == 64) + 1000 * (limit > 0)).all()


def test_a_warp_s_barrier_lets_its_members_meet():
    got = run("""
        setp.lt.u32 %p0, %i0, 16; mov.u32 %r0, 1; @!%p0 bra join; mov.u32 %r0, 2;
        join: bar.warp.sync -1;""")
    np.testing.assert_array_equal(got, np.where(LANES < 16, 2, 1))
    with pytest.raises(faults.MissingLanes):
        run("mov.u32 %r0, 1; bar.warp.sync 1;")


FENCES = [
    *(f"membar.{level}" for level in ("cta", "gl", "sys")),
    *(f"fence{order}.{scope}" for order in ("", ".sc", ".acq_rel", ".acquire", ".release")
      for scope in ("cta", "cluster", "gpu", "sys")),
    "fence.proxy.async", "fence.proxy.async.global", "fence.proxy.async.shared::cta",
    "griddepcontrol.wait", "griddepcontrol.launch_dependents", "nanosleep.u32 100", "pmevent 1",
]  # fmt: skip


@pytest.mark.parametrize("fence", FENCES)
def test_fences_and_hints_keep_every_value(fence):
    got = run(f"mov.u32 %r0, %i0; st.global.u32 [%q1], 7; {fence}; ld.global.u32 %r1, [%q1];"
              "add.u32 %r0, %r0, %r1;")  # fmt: skip
    np.testing.assert_array_equal(got, LANES + 7)


def test_exit_and_ret_end_a_thread():
    got = run("""
        mov.u32 %r0, 1; setp.lt.u32 %p0, %i0, 5; setp.gt.u32 %p1, %i0, 60;
        st.global.u32 [%q1], %r0; @%p0 exit; @%p1 ret.uni; mov.u32 %r0, 2;""")
    np.testing.assert_array_equal(got, np.where((LANES < 5) | (LANES > 60), 1, 2))


def test_trap_is_a_fault_of_its_thread():
    with pytest.raises(faults.Trap) as caught:
        run("mov.u32 %r0, 1; setp.eq.u32 %p0, %i0, 37; @%p0 trap;")
    assert caught.value.place.thread == (37, 0, 0)


def test_a_uniform_jump_table():
    got = run("""
        table: .branchtargets one, two; mov.u32 %r1, 1; brx.idx.uni %r1, table;
        one: mov.u32 %r0, 1; bra.uni end; two: mov.u32 %r0, 2; end:""")
    assert (got == 2).all()


def test_match_of_64_bits_minds_the_upper_half():
    got = run("""
        cvt.u64.u32 %q2, %i0; and.b64 %q2, %q2, 1; shl.b64 %q2, %q2, 40;
        match.any.sync.b64 %r0, %q2, -1;""")
    np.testing.assert_array_equal(got, np.where(LANES % 2, 0xAAAAAAAA, 0x55555555))


GENERIC = "cvt.u64.u32 %q9, %i1; cvta.shared.u64 %q9, %q9;"
PLACES = {"": "[%q9]", ".shared": "[%i1]", ".shared::cta": "[%i1]", ".shared::cluster": "[%i1]"}


@pytest.mark.parametrize("space", ["", ".shared", ".shared::cta"])
def test_mbarriers_in_every_spelling_of_their_space(space):
    at = PLACES[space]
    got = run_asynchronous(f"""
        {GENERIC} @%p0 mbarrier.init{space}.b64 {at}, 128; bar.sync 0;
        cp.async.ca.shared.global.L2::64B [%i3], [%q2], 4; cp.async.mbarrier.arrive{space}.b64 {at};
        cp.async.cg.shared.global.L2::256B [%i3+1024], [%q2], 16;
        cp.async.mbarrier.arrive.noinc{space}.b64 {at}; mbarrier.arrive{space}.b64 %t0, {at};
        again: mbarrier.try_wait{space}.b64 %p1, {at}, %t0; @!%p1 bra again;
        ld.shared.u32 %r1, [%i3]; ld.shared.u32 %r2, [%i3+1024]; add.u32 %r0, %r1, %r2;
        bar.sync 0; @%p0 mbarrier.inval{space}.b64 {at}; {STORE}""")
    np.testing.assert_array_equal(got, 2 * FIRST_WORDS)


ORDERS = ["", ".release.cta", ".release.cluster", ".relaxed.cta", ".relaxed.cluster"]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("space", PLACES)
@pytest.mark.parametrize("action", ["arrive", "arrive_drop"])
@pytest.mark.parametrize("how", ["", ".expect_tx"])
def test_arrivals_in_every_spelling(action, how, order, space):
    at, count = PLACES[space], ", 0" if how else ""
    target = "_" if space == ".shared::cluster" else "%t0"
    got = run_asynchronous(f"""
        {INIT} {GENERIC} mbarrier.{action}{how}{order}{space}.b64 {target}, {at}{count};
        bar.sync 0; mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0;
        selp.u32 %r0, 1, 0, %p1; {STORE}""")
    assert (got == 1).all()


@pytest.mark.parametrize("action", ["arrive", "arrive_drop"])
@pytest.mark.parametrize("words", ["", ".release.cta"])
@pytest.mark.parametrize("space", ["", ".shared", ".shared::cta"])
def test_arrivals_that_complete_no_phase(action, words, space):
    got = run_asynchronous(f"""
        @%p0 mbarrier.init.shared.b64 [%i1], 65; bar.sync 0; {GENERIC}
        mbarrier.{action}.noComplete{words}{space}.b64 %t0, {PLACES[space]}, 1; bar.sync 0;
        mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0; selp.u32 %r0, 1, 0, %p1; {STORE}""")
    assert (got == 0).all()


@pytest.mark.parametrize("words", ["", ".relaxed.cta", ".relaxed.cluster"])
@pytest.mark.parametrize("space", PLACES)
def test_bytes_in_every_spelling(words, space):
    at = PLACES[space]
    got = run_asynchronous(f"""
        {INIT} {GENERIC} mbarrier.expect_tx{words}{space}.b64 {at}, 4; bar.sync 0;
        mbarrier.arrive.shared.b64 %t0, [%i1]; bar.sync 0;
        mbarrier.test_wait.shared.b64 %p1, [%i1], %t0; bar.sync 0;
        mbarrier.complete_tx{words}{space}.b64 {at}, 4; bar.sync 0;
        mbarrier.test_wait.shared.b64 %p2, [%i1], %t0;
        selp.u32 %r1, 1, 0, %p1; selp.u32 %r2, 2, 0, %p2; add.u32 %r0, %r1, %r2; {STORE}""")
    assert (got == 2).all()


@pytest.mark.parametrize("order", ["", ".acquire.cta", ".acquire.cluster", ".relaxed.cta"])
@pytest.mark.parametrize("space", ["", ".shared", ".shared::cta"])
@pytest.mark.parametrize("test", ["test_wait", "try_wait"])
def test_waits_in_every_spelling(test, order, space):
    got = run_asynchronous(f"""
        {INIT} {GENERIC} mbarrier.arrive.shared.b64 %t0, [%i1];
        again: mbarrier.{test}{order}{space}.b64 %p1, {PLACES[space]}, %t0; @!%p1 bra again;
        more: mbarrier.{test}.parity{order}{space}.b64 %p1, {PLACES[space]}, 0; @!%p1 bra more;
        mov.u32 %r0, 5; {STORE}""")
    assert (got == 5).all()
