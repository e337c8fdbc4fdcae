"""The longest chain of a launch, of kernels whose chains can be counted by hand."""

import pytest
from counted import count

from cunorm.simgpu import faults
from cunorm.simgpu.profiler.chain import BARRIERS, COLLECTIVES, LOADS, SHARED_LOADS, WEIGHTS, Chain

# x in %r9 of an address of the lane's own, which takes two instructions; what follows ends there.
ADDRESS = "mul.wide.s32 %q1, %r0, 4; add.s64 %q2, %q0, %q1;"
LOAD = f"{ADDRESS} ld.global.u32 %r9, [%q2];"
STORE = "st.global.u32 [%q2], %r9;"


def chain(body, **options):
    return count(body, chains=True, **options).chain


def made(instructions, loads=0, shared_loads=0, collectives=0, barriers=0):
    """Return a chain of so many instructions, with its weight."""
    kinds = {
        LOADS: loads,
        SHARED_LOADS: shared_loads,
        COLLECTIVES: collectives,
        BARRIERS: barriers,
    }
    weight = instructions + sum((WEIGHTS[kind] - 1) * n for kind, n in kinds.items())
    return Chain(weight, instructions, loads, shared_loads, collectives, barriers)


def steps(number, register="%r9"):
    return f"add.u32 {register}, {register}, 1;" * number


def test_a_straight_line_is_a_chain():
    assert chain(f"{LOAD} {STORE}") == made(4, loads=1)
    assert chain(f"{LOAD} {steps(5)} {STORE}") == made(9, loads=1)


def test_of_two_chains_that_meet_the_longer_counts():
    both = f"mov.u32 %r10, %r9; {steps(3, '%r9')} {steps(8, '%r10')} add.u32 %r9, %r9, %r10;"
    assert chain(f"{LOAD} {both} {STORE}") == made(4 + 8 + 1, loads=1)


def test_what_is_not_stored_is_in_no_chain():
    assert chain(f"{LOAD} mov.u32 %r10, %r9; {steps(50, '%r10')} {STORE}") == made(4, loads=1)


def test_a_chain_of_more_weight_is_longer_than_one_of_more_instructions():
    assert chain(f"mov.u32 %r9, 0; {ADDRESS} {steps(40)} {STORE}") == made(41)
    both = f"{LOAD} mov.u32 %r10, 0; {steps(40, '%r10')} add.u32 %r9, %r9, %r10;"
    assert chain(f"{both} {STORE}") == made(5, loads=1)


def test_moves_and_arguments_are_free():
    assert chain(f"{LOAD} mov.u32 %r10, %r9; mov.b32 %r9, %r10; {STORE}") == made(4, loads=1)


def test_a_predicate_is_needed_by_what_it_guards():
    guarded = f"mov.u32 %r10, %r9; {steps(6, '%r10')} setp.gt.u32 %p1, %r10, 3;"
    assert chain(f"{LOAD} {guarded} @%p1 add.u32 %r9, %r9, 1; {STORE}") == made(4 + 6 + 2, loads=1)


def test_what_a_guard_leaves_alone_is_known_once_that_is_decided():
    late = f"mov.u32 %r10, %r9; {steps(6, '%r10')} setp.eq.u32 %p1, %r10, 77;"
    body = f"{LOAD} {late} @%p1 mov.u32 %r9, 3; {STORE}"
    assert chain(body) == made(3 + 6 + 1 + 1 + 1, loads=1)


def test_two_lanes_that_store_halves_of_a_word_make_it_as_late_as_the_later():
    body = f"""{LOAD} mul.lo.u32 %r10, %r0, 2; setp.eq.u32 %p1, %r0, 4; @!%p1 bra after;
        {steps(20)} after: cvt.u16.u32 %h1, %r9; st.shared.u16 [%r10], %h1; bar.warp.sync -1;
        ld.shared.u32 %r9, [8]; {STORE}"""
    # Lane 4 stores the lower half of that word, and lane 5 the upper one.
    found = chain(body, shared=256)
    assert (found.shared_loads, found.instructions) == (1, 3 + 20 + 1 + 1 + 1 + 1)


def test_a_block_of_one_instruction_counts_for_each_group_that_runs_it():
    body = f"""{ADDRESS} mov.u32 %r9, 0; mov.u32 %r10, 0; again: add.u32 %r9, %r9, 1;
        setp.lt.u32 %p1, %r9, %r0; @%p1 bra again; {STORE}"""
    assert chain(body).instructions == 3 * 31 + 1


def test_nothing_after_a_branch_starts_before_it_is_decided():
    body = f"""{LOAD} mov.u32 %r10, 7; {steps(6)} setp.gt.u32 %p1, %r9, 3;
        @%p1 bra after; add.u32 %r10, %r10, 1; after: st.global.u32 [%q2], %r10;"""
    assert chain(body) == made(3 + 6 + 1 + 1 + 1, loads=1)


def test_lanes_that_diverge_have_chains_of_their_own():
    body = f"""{ADDRESS} mov.u32 %r9, 0; setp.eq.u32 %p1, %r0, 5;
        @!%p1 bra after; {steps(30)} after: {STORE}"""
    # The branch is the second instruction after the predicate's, and the steps come after it.
    assert chain(body) == made(2 + 30 + 1)


@pytest.mark.parametrize("turns", [1, 4])
def test_each_turn_of_a_loop_is_part_of_the_chain(turns):
    body = f"""{LOAD} mov.u32 %r10, 0; again: {steps(1)} add.u32 %r10, %r10, 1;
        setp.lt.u32 %p1, %r10, {turns}; @%p1 bra again; {STORE}"""
    # The counter's add, setp and branch of each turn; the last step waits for the turns before.
    loop = made(3 * turns + 1)
    own = made(3 + turns + 1, loads=1)
    assert chain(body) == max(loop, own, key=lambda found: found.weight)


def test_through_shared_memory_and_a_barrier():
    body = f"""{LOAD} {steps(3)} mul.lo.u32 %r10, %r0, 4; st.shared.u32 [%r10], %r9; bar.sync 0;
        xor.b32 %r10, %r10, 4; ld.shared.u32 %r9, [%r10]; {STORE}"""
    # The load and its address, steps, the store to shared memory, the barrier, which the address
    # of the load from there waits for, too, that load, and the store.
    expected = made(3 + 3 + 1 + 1 + 1 + 1 + 1, loads=1, shared_loads=1, barriers=1)
    assert chain(body, block=64, shared=256) == expected


def test_through_a_neighbours_shared_memory_and_the_barrier_of_a_cluster():
    body = f"""{LOAD} mov.u32 %r1, %cluster_ctarank; setp.ne.u32 %p1, %r1, 0; @%p1 bra after;
        {steps(20)} after: mul.lo.u32 %r10, %r0, 4; st.shared.u32 [%r10], %r9;
        barrier.cluster.arrive; barrier.cluster.wait; xor.b32 %r2, %r1, 1;
        mapa.shared::cluster.u32 %r10, %r10, %r2; ld.shared::cluster.u32 %r9, [%r10];
        barrier.cluster.arrive; barrier.cluster.wait; setp.eq.u32 %p2, %r1, 1; @%p2 {STORE}"""
    # In block 0 the load, steps, the store and the barrier; in block 1 the xor, mapa and the load;
    # and in both what a second barrier makes the store wait for: the neighbour's loads, no more.
    own = made(3 + 20 + 1 + 1 + 1 + 1 + 1 + 1, loads=1, shared_loads=1, barriers=1)
    assert chain(body, grid=2, block=32, shared=256, cluster=2) == own


def test_a_barrier_lets_all_go_on_after_the_last():
    body = f"""{LOAD} setp.ne.u32 %p1, %r0, 40; @%p1 bra after; {steps(20)}
        st.shared.u32 [0], %r9; after: bar.sync 0; mov.u32 %r9, 1; {STORE}"""
    assert chain(body, block=64, shared=256) == made(3 + 20 + 1 + 1 + 1, loads=1, barriers=1)


def test_a_shuffle_needs_every_lane_of_its_warp():
    slow = f"setp.eq.u32 %p1, %r0, 5; @!%p1 bra after; {steps(30)} after:"
    shuffle = "shfl.sync.idx.b32 %r9, %r9, 0, 31, -1;"
    body = f"{ADDRESS} mov.u32 %r9, 0; {slow} {shuffle} setp.eq.u32 %p2, %r0, 9;"
    found = chain(f"{body} @%p2 {STORE}")
    assert found == made(2 + 30 + 1 + 1, collectives=1)
    # Of another warp's lanes it needs none.
    assert chain(f"{body.replace('%r0, 9', '%r0, 41')} @%p2 {STORE}", block=64).instructions < 10


def test_an_atomic_loads_and_stores():
    body = f"{ADDRESS} mov.u32 %r9, 1; atom.global.add.u32 %r9, [%q2], %r9; {steps(2)} {STORE}"
    assert chain(body) == made(2 + 1 + 2 + 1, loads=1)


def test_what_was_stored_is_needed_by_who_loads_it():
    body = f"{LOAD} {steps(9)} {STORE} ld.global.u32 %r10, [%q2]; st.global.u32 [%q2+256], %r10;"
    assert chain(body) == made(3 + 9 + 1 + 1 + 1, loads=2)


def test_blocks_begin_anew_in_whichever_batch_they_run():
    place = "mov.u32 %r1, %ctaid.x; mad.lo.u32 %r0, %r1, 1024, %r0;"
    found = chain(f"{place} {LOAD} {steps(5)} {STORE}", grid=40, block=1024, nbytes=1 << 18)
    assert found == made(10, loads=1)


def test_a_launch_without_stores_has_none():
    assert chain(LOAD) == made(0)


def test_it_is_followed_where_it_is_asked_for_alone():
    assert count(f"{LOAD} {STORE}").chain is None


@pytest.mark.parametrize(
    ("body", "what"),
    [
        ("bar.arrive 1, 64;", "a barrier that does not wait"),
        ("cp.async.ca.shared.global [0], [%q0], 4;", "cp.async.ca.shared.global"),
    ],
)
def test_what_it_does_not_know_is_refused(body, what):
    with pytest.raises(faults.NotEmulated, match=f"the longest chain through {what}"):
        chain(body, block=64, shared=256)


def test_counters_are_the_same_with_it():
    body = f"""{LOAD} setp.eq.u32 %p1, %r0, 5; @%p1 bra after; {steps(3)}
        after: shfl.sync.idx.b32 %r9, %r9, 0, 31, -1; @%p1 {steps(1)} {STORE}"""
    plain, followed = (count(body, block=64, chains=chains) for chains in (False, True))
    assert followed.chain is not None
    for name in ("opcodes", "lane_instructions", "loads", "stores"):
        assert getattr(plain, name) == getattr(followed, name), name
