"""Races in shared memory, on PTX small enough to see who is ordered and who is not."""

import pytest
from test_warps import run

from cunorm.simgpu import faults

# %q2 is this thread's word of the tile, %q3 that of the thread 32 further on, in the next warp.
TILE = """
  .shared .align 8 .b8 tile[512]; mov.u64 %q4, tile; mad.wide.u32 %q2, %i0, 4, %q4;
  add.u32 %r9, %i0, 32; and.b32 %r9, %r9, 63; mad.wide.u32 %q3, %r9, 4, %q4; mov.u32 %r0, 0;
  setp.lt.u32 %p6, %i0, 32; setp.eq.u32 %p7, %i0, 0;
"""
CAS = "{v}: atom.shared.cas.b32 %r3, [tile+256], 0, 1; setp.ne.u32 %p0, %r3, 0; @%p0 bra {v};"

RACES = {
    "a read of what another warp wrote": "st.shared.u32 [%q2], %i0; ld.shared.u32 %r0, [%q3];",
    "a write where another warp read": "ld.shared.u32 %r0, [%q2]; st.shared.u32 [%q3], %i0;",
    "a write where two warps read": """ld.shared.u32 %r0, [%q2]; ld.shared.u32 %r1, [%q3];
        @%p6 st.shared.u32 [tile], %i0;""",
    "a write where another warp wrote": """@%p6 st.shared.u32 [tile], 1;
        @!%p6 st.shared.u32 [tile], 2;""",
    "writes of two warps at once": "st.shared.u32 [tile], %i0;",
    "a byte inside another warp's word": """st.shared.u32 [%q2], %i0; mov.u32 %r1, 1;
        ld.shared.u8 %r0, [%q3+3];""",
    "a word over another warp's byte": """add.u64 %q5, %q4, 131; @%p7 st.shared.u8 [%q5], %i0;
        @!%p6 ld.shared.v2.u32 {%r0, %r1}, [tile+128];""",
    "an atomic on what another warp wrote": """st.shared.u32 [%q2], %i0;
        atom.shared.add.u32 %r0, [%q3], 1;""",
    "a read of what an atomic changed": """atom.shared.add.u32 %r1, [%q2], 1;
        ld.shared.u32 %r0, [%q3];""",
    "a read between two barriers": """bar.sync 0; st.shared.u32 [%q2], %i0; mov.u32 %r1, 1;
        ld.shared.u32 %r0, [%q3]; bar.sync 0;""",
    "a barrier for another warp": """@%p6 st.shared.u32 [tile], %i0; @%p6 bar.sync 1, 32;
        @!%p6 bar.sync 1, 32; @!%p6 ld.shared.u32 %r0, [tile];""",
    "a lock without a fence": f"""setp.eq.u32 %p2, %r9, 0;
        @%p7 bra go; @%p2 bra go; bra end; go: {CAS.format(v="spin")}
        ld.shared.u32 %r0, [tile+260]; st.shared.u32 [tile+260], %i0;
        atom.shared.exch.b32 %r3, [tile+256], 0; end:""",
    "a generic address": """cvta.shared.u64 %q5, %q2; cvta.shared.u64 %q6, %q3;
        st.u32 [%q5], %i0; ld.u32 %r0, [%q6];""",
}


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", RACES)
def test_a_race_is_seen(name, blocks):
    with pytest.raises(faults.SharedRace, match="which thread") as caught:
        run(TILE + RACES[name], blocks=blocks, uninitialised=True)
    assert caught.value.place.block == (0, 0, 0)
    assert "shared" in caught.value.place.ptx_text or "%q" in caught.value.place.ptx_text


LOCKED = f"""setp.eq.u32 %p2, %r9, 0; @%p7 bra go; @%p2 bra go; bra end; go: {CAS.format(v="spin")}
    membar.cta; ld.shared.u32 %r0, [tile+260]; st.shared.u32 [tile+260], %i0; membar.cta;
    atom.shared.exch.b32 %r3, [tile+256], 0; end:"""

ORDERED = {
    "a lock with fences": LOCKED,
    "a barrier": "st.shared.u32 [%q2], %i0; bar.sync 0; ld.shared.u32 %r0, [%q3];",
    "barriers of either side": """st.shared.u32 [%q2], %i0; @%p6 bra low; bar.sync 0; bra on;
        low: bar.sync 0; on: ld.shared.u32 %r0, [%q3];""",
    "a barrier before the next round": """mov.u32 %r5, 0; again: st.shared.u32 [%q2], %i0;
        bar.sync 0; ld.shared.u32 %r0, [%q3]; bar.sync 0; add.u32 %r5, %r5, 1;
        setp.lt.u32 %p0, %r5, 3; @%p0 bra again;""",
    "the warp's own order": """xor.b32 %r9, %i0, 1; mad.wide.u32 %q3, %r9, 4, %q4;
        st.shared.u32 [%q2], %i0; bar.warp.sync -1; ld.shared.u32 %r0, [%q3];
        st.shared.u32 [%q3], %i0;""",
    "reads of everybody": "ld.shared.u32 %r0, [tile]; ld.shared.u32 %r1, [%q3];",
    "atomics": "atom.shared.add.u32 %r0, [tile], 1; atom.shared.add.u32 %r1, [tile], 1;",
    "volatile accesses": "st.volatile.shared.u32 [%q2], %i0; ld.volatile.shared.u32 %r0, [%q3];",
    "one flag set by all": "mov.u32 %r1, 9; st.shared.u32 [tile], %r1; st.shared.u32 [tile], 9;",
    "NaNs that are one": """mov.u64 %q5, 0x7ff8000000000001;
        st.shared.v2.u64 [tile], {%q5, %q5}; st.shared.v2.u64 [tile], {%q5, %q5};""",
    "neighbouring bytes": """cvt.u64.u32 %q5, %i0; add.u64 %q5, %q4, %q5;
        st.shared.u8 [%q5], %i0; ld.shared.u8 %r0, [%q5];""",
    "an arrival": """@!%p6 bra second; st.shared.u32 [tile], %i0; bar.arrive 3, 64; bra end;
        second: bar.sync 3, 64; ld.shared.u32 %r0, [tile]; end:""",
}


@pytest.mark.parametrize("blocks", [1, 3])
@pytest.mark.parametrize("name", ORDERED)
def test_what_is_ordered_is_no_race(name, blocks):
    run(TILE + ORDERED[name], blocks=blocks, uninitialised=True)


def test_blocks_do_not_race_in_shared_memory():
    run(
        TILE + "@%p6 st.shared.u32 [%q2], %i0; ld.shared.u32 %r0, [%q2];",
        blocks=5,
        uninitialised=True,
    )


def test_the_message_names_both_accesses():
    with pytest.raises(faults.SharedRace) as caught:
        run(TILE + "st.shared.u32 [%q2], %i0;\nld.shared.u32 %r0, [%q3];")
    message = str(caught.value)
    assert message.startswith(
        "4-byte read at offset 0x80 of shared memory, which thread (32, 0, 0)"
    )
    assert "wrote with no barrier since: PTX line" in message
    assert "`st.shared.u32 [%q2], %i0` (kernel k, PTX line" in message
    assert caught.value.place.thread == (0, 0, 0)
