"""mbarriers: who waits for whom, and what they say of memory."""

import numpy as np
import pytest
from in_flight import FIRST_WORDS, HEAD, INIT, STORE, run
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.memory.space import GlobalMemory

WAITS = {
    "token": "mbarrier.test_wait.shared.b64 %p1, [%i1], %t0;",
    "try": "mbarrier.try_wait.shared::cta.b64 %p1, [%i1], %t0;",
    "hint": "mbarrier.try_wait.shared.b64 %p1, [%i1], %t0, 1000;",
    "parity": "mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0;",
    "try parity": "mbarrier.try_wait.parity.acquire.cta.shared::cta.b64 %p1, [%i1], 0, 10;",
}


@pytest.mark.parametrize("wait", WAITS)
@pytest.mark.parametrize("noinc", ["", ".noinc"])
def test_copies_land_when_an_mbarrier_says_so(wait, noinc):
    arrivals = 64 * (2 if noinc else 1)
    got = run(f"""
        @%p0 mbarrier.init.shared.b64 [%i1], {arrivals}; bar.sync 0;
        cp.async.cg.shared.global [%i3], [%q2], 16;
        cp.async.mbarrier.arrive{noinc}.shared.b64 [%i1];
        mbarrier.arrive.shared.b64 %t0, [%i1];
        again: {WAITS[wait]} @!%p1 bra again;
        xor.b32 %r1, %i0, 32; mad.lo.u32 %r2, %r1, 16, %i2; ld.shared.u32 %r0, [%r2]; {STORE}""")
    np.testing.assert_array_equal(got, np.roll(FIRST_WORDS, 32))


def test_an_mbarrier_orders_memory_unless_it_is_relaxed():
    body = """{init} mad.lo.u32 %r1, %i0, 4, %i2; st.shared.u32 [%r1], %i0;
        mbarrier.arrive{how}.shared::cta.b64 %t0, [%i1];
        again: mbarrier.try_wait.shared::cta.b64 %p1, [%i1], %t0; @!%p1 bra again;
        xor.b32 %r1, %r1, 128; ld.shared.u32 %r0, [%r1]; {store}"""
    got = run(body.format(init=INIT, how=".release.cta", store=STORE))
    np.testing.assert_array_equal(got, np.arange(64) ^ 32)
    with pytest.raises(faults.SharedRace):
        run(body.format(init=INIT, how=".relaxed.cta", store=STORE))


def test_an_mbarrier_must_be_initialised_before_others_use_it():
    with pytest.raises(faults.SharedRace):
        run("""@%p0 mbarrier.init.shared.b64 [%i1], 64; setp.gt.u32 %p2, %i0, 31;
            @%p2 mbarrier.arrive.shared.b64 %t0, [%i1]; ret;""")


PHASES = """{init} mov.u32 %r0, 0; mov.u32 %r1, 0;
    loop: mbarrier.arrive.shared.b64 %t0, [%i1];
    again: mbarrier.test_wait.shared.b64 %p1, [%i1], %t0; @!%p1 bra again;
    shr.u64 %t1, %t0, 32; cvt.u32.u64 %r2, %t1; add.u32 %r0, %r0, 1;
    add.u32 %r1, %r1, 1; setp.lt.u32 %p2, %r1, 5; @%p2 bra loop; {store}"""


def test_phases_follow_each_other():
    assert (run(PHASES.format(init=INIT, store=STORE)) == 5).all()


def test_parity_tells_the_phases_apart():
    # A new barrier counts as having completed a phase of odd parity.
    got = run(f"""{INIT} mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 1;
        mbarrier.test_wait.parity.shared.b64 %p2, [%i1], 0; bar.sync 0;
        mbarrier.arrive.shared.b64 %t0, [%i1]; bar.sync 0;
        mbarrier.test_wait.parity.shared.b64 %p3, [%i1], 1;
        mbarrier.test_wait.parity.shared.b64 %p4, [%i1], 0;
        selp.u32 %r0, 1, 0, %p1; selp.u32 %r1, 10, 0, %p2; selp.u32 %r2, 100, 0, %p3;
        selp.u32 %r3, 1000, 0, %p4; add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2;
        add.u32 %r0, %r0, %r3; {STORE}""")
    assert (got == 1001).all()


def test_tokens_hold_the_arrivals_still_awaited():
    got = run(f"""{INIT} mbarrier.arrive.shared.b64 %t0, [%i1];
        mbarrier.pending_count.b64 %r0, %t0; {STORE}""")
    assert sorted(got.tolist()) == list(range(1, 65))


@pytest.mark.parametrize("scope", ["", ".release.cta", ".release.cluster"])
def test_one_arrival_may_stand_for_many(scope):
    got = run(f"""
        @%p0 mbarrier.init.shared.b64 [%i1], 100; bar.sync 0; mov.u32 %r0, 7; mov.u32 %r3, 100;
        @%p0 mbarrier.arrive{scope}.shared::cta.b64 %t0, [%i1], %r3; bar.sync 0;
        mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0; selp.u32 %r0, 1, 0, %p1; {STORE}""")
    assert (got == 1).all()


def test_dropped_threads_are_not_expected_again():
    # Half of the threads drop out: the second phase needs the others alone.
    got = run(f"""{INIT} setp.lt.u32 %p2, %i0, 32; mov.u32 %r0, 9; @%p2 bra stay;
        mbarrier.arrive_drop.shared.b64 %t0, [%i1]; bra done;
        stay: mbarrier.arrive.shared.b64 %t0, [%i1];
        again: mbarrier.test_wait.shared.b64 %p1, [%i1], %t0; @!%p1 bra again;
        mbarrier.arrive.shared.b64 %t0, [%i1];
        more: mbarrier.test_wait.shared.b64 %p1, [%i1], %t0; @!%p1 bra more; mov.u32 %r0, 5;
        done: {STORE}""")
    assert got.tolist() == [5] * 32 + [9] * 32


def test_bytes_are_awaited_like_arrivals():
    body = (
        """
        @%p0 mbarrier.init.shared.b64 [%i1], 1; bar.sync 0; mov.u32 %r3, 48; mov.u32 %r4, 40;
        @%p0 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%i1], 8;
        @%p0 mbarrier.arrive.expect_tx.release.cta.shared::cta.b64 _, [%i1], %r4; bar.sync 0;
        @%p0 mbarrier.complete_tx.relaxed.cta.shared::cta.b64 [%i1], {done}; bar.sync 0;
        mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0; selp.u32 %r0, 1, 0, %p1; """
        + STORE
    )
    assert (run(body.format(done=48)) == 1).all()
    assert (run(body.format(done=47)) == 0).all()


def test_arrivals_at_a_neighbours_mbarrier():
    memory = GlobalMemory(1 << 30)
    out = memory.allocate(4 * 128)
    body = (
        HEAD.replace("ld.param.u64 %q0, [p];", "mov.u64 %q0, 0;")
        + f"""
        mov.u32 %r5, %cluster_ctarank; mov.u32 %r6, %ctaid.x; mad.lo.u32 %r7, %r6, 64, %i0;
        mad.wide.u32 %q3, %r7, 4, %q1; @%p0 mbarrier.init.shared.b64 [%i1], 64;
        @%p0 fence.mbarrier_init.release.cluster; barrier.cluster.arrive.relaxed;
        barrier.cluster.wait; xor.b32 %r9, %r5, 1; mad.lo.u32 %r8, %i0, 4, %i2;
        mapa.shared::cluster.u32 %r11, %r8, %r9; mapa.shared::cluster.u32 %r12, %i1, %r9;
        st.shared::cluster.u32 [%r11], %r7;
        mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%r12];
        wait: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p1, [%i1], 0;
        @!%p1 bra wait; ld.shared.u32 %r0, [%r8]; {STORE}"""
    )
    text = entry(body, ["o"]).replace(")\n{", ")\n.explicitcluster\n.reqnctapercluster 2, 1, 1\n{")
    start(text, "k", (2, 1, 1), (64, 1, 1), [out.address], memory=memory)
    np.testing.assert_array_equal(out.data.view(np.uint32), np.roll(np.arange(128), 64))


MISUSES = {
    "no mbarrier is initialised": "mbarrier.arrive.shared.b64 %t0, [%i1+8];",
    "for 0 arrivals": "@%p0 mbarrier.init.shared.b64 [%i1+8], 0;",
    "65 arrivals at an mbarrier that awaits 64": """mov.u32 %r3, 65;
        @%p0 mbarrier.arrive.shared::cta.b64 %t0, [%i1], %r3;""",
    "noComplete": """mov.u32 %r3, 64;
        @%p0 mbarrier.arrive.noComplete.shared.b64 %t0, [%i1], %r3;""",
    "token of phase 0, in phase 2": """mbarrier.arrive.shared.b64 %t0, [%i1];
        mbarrier.arrive.shared.b64 %t1, [%i1]; bar.sync 0;
        mbarrier.test_wait.shared.b64 %p1, [%i1], %t0;""",
    "offset 0x800": """bar.sync 0; @%p0 mbarrier.inval.shared.b64 [%i1]; bar.sync 0;
        mbarrier.test_wait.parity.shared.b64 %p1, [%i1], 0;""",
    "bytes awaited": """mov.u32 %r3, 0x100000;
        @%p0 mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%i1], %r3;""",
    "no address in shared memory": "mbarrier.arrive.b64 %t0, [%q0];",
}


@pytest.mark.parametrize("words", MISUSES)
def test_misuse_of_an_mbarrier(words):
    with pytest.raises(faults.BarrierMisuse, match=words):
        run(f"{INIT} {MISUSES[words]} ret;")


def test_generic_addresses_name_mbarriers_too():
    got = run(f"""{INIT} cvt.u64.u32 %q5, %i1; cvta.shared.u64 %q5, %q5;
        mbarrier.arrive.b64 %t0, [%q5]; mbarrier.pending_count.b64 %r0, %t0; bar.sync 0;
        mbarrier.test_wait.b64 %p1, [%q5], %t0; @!%p1 mov.u32 %r0, 0; {STORE}""")
    assert sorted(got.tolist()) == list(range(1, 65))
