"""cp.async and mbarrier: what lands when, who waits for whom."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_source import ptx_of
from one_instruction import entry, start

from cunorm.simgpu import faults, launch, ptx
from cunorm.simgpu.memory import GlobalMemory

HEAD = """
  .reg .b64 %q<20>; .reg .b32 %i<10>; .reg .pred %p<8>; .reg .b32 %r<20>; .reg .b64 %t<9>;
  .shared .align 16 .b8 tile[2048]; .shared .align 8 .b8 bar[16];
  ld.param.u64 %q0, [p]; ld.param.u64 %q1, [o]; mov.u32 %i0, %tid.x; mov.u32 %i1, bar;
  mov.u32 %i2, tile; setp.eq.u32 %p0, %i0, 0;
  mad.wide.u32 %q2, %i0, 16, %q0; mad.lo.u32 %i3, %i0, 16, %i2; mad.wide.u32 %q3, %i0, 4, %q1;
"""
INIT = "@%p0 mbarrier.init.shared.b64 [%i1], 64; bar.sync 0;"
STORE = "st.global.u32 [%q3], %r0; ret;"


def run(body, threads=64, target=90, data=None, **options):
    """Run PTX over 64 rows of 16 bytes; every thread stores one word."""
    memory = GlobalMemory(1 << 30)
    given = np.arange(256, dtype=np.uint32) + 1 if data is None else data
    source, out = memory.allocate(given.nbytes), memory.allocate(4 * threads)
    source.data[:] = given.view(np.uint8)
    text = entry(HEAD + body, ["p", "o"]).replace("sm_90", f"sm_{target}")
    start(
        text, "k", (1, 1, 1), (threads, 1, 1), [source.address, out.address], memory=memory,
        **options,
    )  # fmt: skip
    return out.data.view(np.uint32).copy()


FIRST_WORDS = np.arange(64) * 4 + 1


@pytest.mark.parametrize("space", ["shared", "shared::cta"])
@pytest.mark.parametrize(
    ("form", "size"),
    [("ca", 4), ("ca", 8), ("ca", 16), ("cg", 16), ("cg.space.global.L2::128B", 16)],
)
@pytest.mark.parametrize(
    "wait",
    ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"],
)
def test_copies_land_when_they_are_waited_for(space, form, size, wait):
    cop, _, hint = form.partition(".space.global")
    got = run(f"""
        cp.async.{cop}.{space}.global{hint} [%i3], [%q2], {size}; {wait}
        ld.shared.u32 %r0, [%i3]; {STORE}""")  # fmt: skip
    np.testing.assert_array_equal(got, FIRST_WORDS)


@pytest.mark.parametrize(
    "early",
    [
        "",
        "cp.async.commit_group;",
        "cp.async.commit_group; cp.async.wait_group 1;",
        "cp.async.wait_group 0;",  # the group was not committed
        "cp.async.commit_group; bar.sync 0;",
    ],
)
@pytest.mark.parametrize("access", ["ld.shared.u32 %r0, [%i3];", "st.shared.u32 [%i3+12], %i0;"])
def test_touching_what_is_in_flight_is_a_fault(early, access):
    with pytest.raises(faults.CopyInFlight, match="thread") as caught:
        run(f"cp.async.cg.shared.global [%i3], [%q2], 16; {early} {access} {STORE}")
    assert "cp.async.cg" in str(caught.value)
    assert caught.value.place.ptx_text == access.rstrip(";")


def test_waiting_is_for_a_threads_own_copies_alone():
    # Threads below 32 wait; the others' copies are still on their way.
    body = """
        cp.async.ca.shared.global [%i3], [%q2], 4; cp.async.commit_group;
        setp.lt.u32 %p1, %i0, 32; @!%p1 bra rest; cp.async.wait_group 0;
        rest: bar.sync 0; mov.u32 %r1, 0; {read}"""
    with pytest.raises(faults.CopyInFlight) as caught:
        run(body.format(read=f"ld.shared.u32 %r0, [%i3]; {STORE}"))
    assert caught.value.place.thread == (32, 0, 0)
    got = run(body.format(read=f"@%p1 ld.shared.u32 %r1, [%i3]; mov.u32 %r0, %r1; {STORE}"))
    np.testing.assert_array_equal(got, np.where(np.arange(64) < 32, FIRST_WORDS, 0))


def test_groups_land_in_order():
    # Two stages of a pipeline: the older has landed while the newer is in flight.
    got = run(f"""
        cp.async.ca.shared.global [%i3], [%q2], 4; cp.async.commit_group;
        cp.async.ca.shared.global [%i3+1024], [%q2+4], 4; cp.async.commit_group;
        cp.async.wait_group 1; ld.shared.u32 %r1, [%i3];
        cp.async.wait_group 0; ld.shared.u32 %r2, [%i3+1024];
        mad.lo.u32 %r0, %r1, 1000, %r2; {STORE}""")  # fmt: skip
    np.testing.assert_array_equal(got, FIRST_WORDS * 1000 + FIRST_WORDS + 1)


@pytest.mark.parametrize("size", [0, 1, 2, 3, 4, 5, 8, 11, 15, 16])
def test_bytes_past_the_source_size_are_zeros(size):
    got = run(f"""
        mov.u32 %r5, {size}; cp.async.cg.shared.global [%i3], [%q2], 16, %r5; cp.async.wait_all;
        .reg .b32 %v<4>; ld.shared.v4.u32 {{%v0, %v1, %v2, %v3}}, [%i3]; mul.lo.u32 %r0, %v0, 7;
        mad.lo.u32 %r0, %v1, 11, %r0; mad.lo.u32 %r0, %v2, 13, %r0; mad.lo.u32 %r0, %v3, 17, %r0;
        {STORE}""")  # fmt: skip
    data = (np.arange(256, dtype=np.uint32) + 1).view(np.uint8).reshape(64, 16).copy()
    data[:, size:] = 0
    wanted = data.view(np.uint32).astype(np.int64) @ np.array([7, 11, 13, 17])
    np.testing.assert_array_equal(got, wanted)


def test_a_source_of_no_bytes_is_not_read():
    # The last rows lie past the end of the allocation; predicate and size spare them.
    few = np.arange(128, dtype=np.uint32) + 1
    for form in ("selp.u32 %r5, 16, 0, %p1;", "not.pred %p2, %p1;"):
        last = "%r5" if "selp" in form else "%p2"
        got = run(
            f"""setp.lt.u32 %p1, %i0, 32; {form} cp.async.cg.shared.global [%i3], [%q2], 16, {last};
            cp.async.wait_all; ld.shared.u32 %r0, [%i3]; {STORE}""",
            data=few,
        )
        np.testing.assert_array_equal(got, np.where(np.arange(64) < 32, FIRST_WORDS, 0))
    with pytest.raises(faults.OutOfBounds):
        run("cp.async.cg.shared.global [%i3], [%q2], 16; ret;", data=few)


@pytest.mark.parametrize(
    ("copy", "fault"),
    [
        ("cp.async.cg.shared.global [%i3], [%q2+4], 16;", faults.Misaligned),
        ("cp.async.ca.shared.global [%i3+2], [%q2], 4;", faults.Misaligned),
        ("cp.async.ca.shared.global [%i3+4096], [%q2], 4;", faults.SharedOutOfBounds),
    ],
)
def test_addresses_of_copies_are_checked(copy, fault):
    with pytest.raises(fault):
        run(f"{copy} {STORE}")


@pytest.mark.parametrize(
    "copy",
    ["cp.async.cg.shared.global [%i3], [%q2], 8;", "cp.async.ca.shared.global [%i3], [%q2], 3;"],
)
def test_sizes_that_do_not_exist_are_unknown(copy):
    with pytest.raises(faults.UnknownInstruction):
        run(f"{copy} {STORE}")


def test_another_warp_needs_a_barrier_after_the_wait():
    body = (
        """cp.async.cg.shared.global [%i3], [%q2], 16; cp.async.wait_all; {barrier}
        xor.b32 %r1, %i0, 32; mad.lo.u32 %r2, %r1, 16, %i2; ld.shared.u32 %r0, [%r2]; """
        + STORE
    )
    with pytest.raises(faults.SharedRace):
        run(body.format(barrier=""))
    np.testing.assert_array_equal(run(body.format(barrier="bar.sync 0;")), np.roll(FIRST_WORDS, 32))


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


BULK = (
    """@%p0 mbarrier.init.shared.b64 [%i1], 1; bar.sync 0; mov.u32 %r3, 1024; @!%p0 bra wait;
    mbarrier.arrive.expect_tx.shared::cta.b64 _, [%i1], %r3;
    cp.async.bulk.{to}.global.mbarrier::complete_tx::bytes [%i2], [%q0], {size}, [%i1];
    wait: {wait} ld.shared.u32 %r0, [%i3]; """
    + STORE
)
SPIN = "mbarrier.try_wait.parity.shared::cta.b64 %p1, [%i1], 0; @!%p1 bra wait;"


@pytest.mark.parametrize("to", ["shared::cluster", "shared::cta"])
def test_bulk_copies_count_their_bytes(to):
    got = run(BULK.format(to=to, size="%r3", wait=SPIN))
    np.testing.assert_array_equal(got, FIRST_WORDS)


def test_bulk_copies_are_faults_before_their_time():
    with pytest.raises(faults.Misaligned, match="multiple of 16"):
        run(BULK.format(to="shared::cta", size="40", wait=SPIN))
    with pytest.raises(faults.OutOfBounds):
        run(BULK.format(to="shared::cta", size="1040", wait=SPIN))
    # Half of the bytes arrive: nobody may look.
    with pytest.raises(faults.CopyInFlight):
        run(BULK.format(to="shared::cta", size="512", wait="bar.sync 0;"))
    with pytest.raises(faults.EndlessLoop):
        run(BULK.format(to="shared::cta", size="512", wait=SPIN), budget=2000)


def test_bulk_copies_between_blocks_of_a_cluster():
    memory = GlobalMemory(1 << 30)
    out = memory.allocate(4 * 128)
    ready = "barrier.cluster.arrive; barrier.cluster.wait;"
    body = (
        HEAD.replace("ld.param.u64 %q0, [p];", "mov.u64 %q0, 0;")
        + f"""
        mov.u32 %r5, %cluster_ctarank; mov.u32 %r6, %ctaid.x; mad.lo.u32 %r7, %r6, 64, %i0;
        mad.wide.u32 %q3, %r7, 4, %q1; mad.lo.u32 %r8, %i0, 4, %i2; st.shared.u32 [%r8], %r7;
        mov.u32 %r3, 256; @%p0 mbarrier.init.shared.b64 [%i1], 1;
        @%p0 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%i1], %r3; {ready}
        xor.b32 %r9, %r5, 1; add.u32 %r10, %i2, 1024; mapa.shared::cluster.u32 %r11, %r10, %r9;
        mapa.shared::cluster.u32 %r12, %i1, %r9; @!%p0 bra wait;
        cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes
          [%r11], [%i2], %r3, [%r12];
        wait: {SPIN} ld.shared.u32 %r0, [%r8+1024]; {ready} {STORE}"""
    )
    text = entry(body, ["o"]).replace(")\n{", ")\n.explicitcluster\n.reqnctapercluster 2, 1, 1\n{")
    start(text, "k", (2, 1, 1), (64, 1, 1), [out.address], memory=memory)
    np.testing.assert_array_equal(out.data.view(np.uint32), np.roll(np.arange(128), 64))


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


OLDER = {
    "cp.async.wait_all;": 75,
    "mbarrier.arrive.shared.b64 %t0, [%i1];": 75,
    "mbarrier.try_wait.shared.b64 %p1, [%i1], %t0;": 80,
    "elect.sync %r0|%p1, -1;": 80,
    "griddepcontrol.wait;": 80,
}


@pytest.mark.parametrize("instruction", OLDER)
def test_older_targets_do_not_know_it(instruction):
    with pytest.raises(faults.UnknownInstruction, match="begins with sm_"):
        run(f"{instruction} ret;", target=OLDER[instruction])


SOURCES = {
    "pipeline": """
        #include <cuda_pipeline.h>
        extern "C" __global__ void k(float* out, const float* x, int rows) {
            __shared__ float4 stage[2][64];
            const float4* rows4 = (const float4*)x;
            __pipeline_memcpy_async(&stage[0][threadIdx.x], &rows4[threadIdx.x], 16);
            __pipeline_commit();
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                if (row + 1 < rows)
                    __pipeline_memcpy_async(&stage[(row + 1) % 2][threadIdx.x],
                                            &rows4[(row + 1) * 64 + threadIdx.x], 16);
                __pipeline_commit();
                __pipeline_wait_prior(1);
                __syncthreads();
                float4 v = stage[row % 2][threadIdx.x ^ 33];
                sum += v.x + v.y + v.z + v.w;
                __syncthreads();
            }
            out[threadIdx.x ^ 33] = sum;
        }""",
    "awbarrier": """
        #include <cuda_pipeline.h>
        #include <cuda_awbarrier_primitives.h>
        extern "C" __global__ void k(float* out, const float* x, int rows) {
            __shared__ float4 stage[64];
            __shared__ __mbarrier_t full;
            if (threadIdx.x == 0) __mbarrier_init(&full, 64);
            __syncthreads();
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                __pipeline_memcpy_async(&stage[threadIdx.x],
                                        &((const float4*)x)[row * 64 + threadIdx.x], 16);
                __pipeline_arrive_on(&full);
                __mbarrier_token_t token = __mbarrier_arrive(&full);
                while (!__mbarrier_test_wait(&full, token)) {}
                float4 v = stage[threadIdx.x ^ 33];
                sum += v.x + v.y + v.z + v.w;
                __syncthreads();
            }
            out[threadIdx.x ^ 33] = sum;
            if (threadIdx.x == 0) __mbarrier_inval(&full);
        }""",
    "barrier": """
        #include <cuda/barrier>
        #include <cooperative_groups.h>
        extern "C" __global__ void k(float* out, const float* x, int rows) {
            __shared__ cuda::barrier<cuda::thread_scope_block> full;
            __shared__ alignas(16) float stage[256];
            auto block = cooperative_groups::this_thread_block();
            if (threadIdx.x == 0) init(&full, blockDim.x);
            __syncthreads();
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                cuda::memcpy_async(block, stage, x + row * 256, cuda::aligned_size_t<16>(1024),
                                   full);
                full.arrive_and_wait();
                for (int j = 0; j < 4; ++j) sum += stage[threadIdx.x * 4 + j];
                __syncthreads();
            }
            out[threadIdx.x] = sum;
        }""",
    "cooperative": """
        #include <cooperative_groups.h>
        #include <cooperative_groups/memcpy_async.h>
        namespace cg = cooperative_groups;
        extern "C" __global__ void k(float* out, const float* x, int rows) {
            __shared__ alignas(16) float stage[256];
            auto block = cg::this_thread_block();
            float sum = 0;
            for (int row = 0; row < rows; ++row) {
                cg::memcpy_async(block, stage, x + row * 256, 1024);
                cg::wait(block);
                for (int j = 0; j < 4; ++j) sum += stage[threadIdx.x * 4 + j];
                block.sync();
            }
            out[threadIdx.x] = sum;
        }""",
}


@pytest.mark.parametrize("arch", [80, 90, 100])
@pytest.mark.parametrize("name", SOURCES)
def test_cuda_s_own_pipelines_and_barriers(name, arch):
    rows = 5
    x = np.random.default_rng(0).standard_normal((rows, 64, 4)).astype(np.float32)
    memory = GlobalMemory(1 << 30)
    source, out = memory.allocate(x.nbytes), memory.allocate(256)
    source.data[:] = x.view(np.uint8).reshape(-1)
    function = ptx.parse(ptx_of(SOURCES[name], arch)).functions["k"]
    arguments = [struct.pack("<Q", out.address), struct.pack("<Q", source.address)]
    launch.run(
        function, (1, 1, 1), (64, 1, 1), 0, [*arguments, struct.pack("<i", rows)], memory=memory,
        device=SimpleNamespace(arch=arch, multiprocessors=132), symbols={},
    )  # fmt: skip
    np.testing.assert_allclose(out.data.view(np.float32), x.sum((0, 2)), rtol=1e-5, atol=1e-5)
