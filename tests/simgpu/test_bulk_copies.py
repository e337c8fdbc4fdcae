"""cp.async.bulk: bytes that an mbarrier awaits."""

import numpy as np
import pytest
from in_flight import FIRST_WORDS, HEAD, STORE, run
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.memory.space import GlobalMemory

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
