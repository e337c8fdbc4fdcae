"""Counters of instructions and barriers, by hand, and that no count depends on the simulator."""

import dataclasses

import cupy
import numpy as np
import pytest
from counted import added, count

from cunorm import simgpu
from cunorm.simgpu import isa
from cunorm.simgpu.execution import launch
from cunorm.simgpu.profiler.classes import class_of


def test_an_instruction_counts_once_a_warp():
    body = "add.s32 %r1, %r0, 1; add.s32 %r1, %r1, %r1; mul.wide.u32 %q1, %r1, 4;"
    found = count(body, grid=3, block=96)
    assert found.warps == 9
    assert added(found, 9) == {"add.s32": 18, "mul.wide.u32": 9}
    assert found.instructions == 9 * 6
    assert found.lane_instructions == 9 * 6 * 32
    assert found.classes == {"control": 9, "integer": 27, "load param": 9, "move": 9}


def test_a_part_of_a_warp_counts_as_one():
    found = count("add.s32 %r1, %r0, 1;", block=33)
    assert added(found, 2) == {"add.s32": 2}
    assert found.lane_instructions == 4 * 33


def test_a_false_predicate_takes_its_turn():
    body = "setp.lt.u32 %p0, %r0, LIMIT; @%p0 add.s32 %r1, %r0, 1; @!%p0 add.s32 %r1, %r0, 2;"
    for limit in (0, 7, 32):
        found = added(count(body.replace("LIMIT", str(limit))))
        assert found == {"setp.lt.u32": 1, "add.s32": 2}


@pytest.mark.parametrize(
    ("limit", "sides"), [(0, (0, 3)), (40, (2, 2)), (64, (2, 1)), (96, (3, 0))]
)
def test_a_branch_costs_both_sides_where_a_warp_takes_both(limit, sides):
    # Three warps: those below the limit subtract, the others multiply and jump.
    body = f"""setp.lt.u32 %p0, %r0, {limit}; @%p0 bra LOW; mul.lo.s32 %r1, %r0, 3; bra END;
      LOW: sub.s32 %r1, %r0, 3; END: add.s32 %r1, %r1, 1;"""
    low, high = sides
    expected = {
        "setp.lt.u32": 3, "sub.s32": low, "mul.lo.s32": high, "bra": 3 + high, "add.s32": 3
    }  # fmt: skip
    expected = {opcode: number for opcode, number in expected.items() if number}
    assert added(count(body, block=96), 3) == expected


def test_a_loop_counts_as_long_as_its_longest_lane():
    # Lane i of both warps runs i + 1 rounds.
    body = """and.b32 %r2, %r0, 31; mov.b32 %r1, 0; LOOP: add.u32 %r1, %r1, 1;
      setp.le.u32 %p0, %r1, %r2; @%p0 bra LOOP; xor.b32 %r3, %r1, %r2;"""
    found = count(body, block=64)
    assert added(found, 2) == {
        "and.b32": 2, "mov.b32": 2, "add.u32": 64, "setp.le.u32": 64, "bra": 64, "xor.b32": 2
    }  # fmt: skip
    assert found.lane_instructions == 2 * (3 * sum(range(1, 33)) + 6 * 32)


def test_lanes_that_left_no_longer_count():
    body = "setp.ge.u32 %p0, %r0, 40; @%p0 ret; add.s32 %r1, %r0, 1;"
    found = count(body, block=96)
    # Two returns a warp: the guarded one, and the last one where somebody is left.
    assert added(found, 3) == {"setp.ge.u32": 3, "ret": 2, "add.s32": 2}
    assert found.lane_instructions == 4 * 96 + 2 * 40


def test_collectives_count_as_lanes_go_through():
    body = """mov.b32 %r2, -1; setp.lt.u32 %p0, %r0, 16; @%p0 bra LOW; add.s32 %r1, %r0, 1;
      LOW: shfl.sync.bfly.b32 %r3, %r0, 1, 31, %r2; vote.sync.ballot.b32 %r4, %p0, %r2;"""
    found = added(count(body))
    assert (found["shfl.sync.bfly.b32"], found["vote.sync.ballot.b32"]) == (1, 1)
    # Each half on its own way, with its own mask.
    body = """setp.lt.u32 %p0, %r0, 16; mov.b32 %r2, 65535; @%p0 bra LOW;
      mov.b32 %r2, 0xffff0000; shfl.sync.bfly.b32 %r3, %r0, 1, 31, %r2; bra END;
      LOW: shfl.sync.bfly.b32 %r3, %r0, 1, 31, %r2; END:"""
    assert added(count(body))["shfl.sync.bfly.b32"] == 2


def test_a_guarded_collective_counts_once():
    body = """setp.lt.u32 %p0, %r0, 64; mov.b32 %r2, -1;
      @%p0 shfl.sync.bfly.b32 %r3, %r0, 1, 31, %r2; @%p0 bar.sync 1, 64;"""
    found = count(body, block=96)
    assert added(found, 3) == {
        "setp.lt.u32": 3, "mov.b32": 3, "shfl.sync.bfly.b32": 3, "bar.sync": 3
    }  # fmt: skip
    assert found.barriers == 1


def test_barriers_are_counted_by_block():
    found = count("bar.sync 0; bar.sync 0;", block=100, grid=7)
    assert added(found, 28) == {"bar.sync": 56}
    assert found.barriers == 14
    assert found.classes["barrier"] == 56
    body = """setp.lt.u32 %p0, %r0, 32; @%p0 bra LOW; bar.arrive 1, 128; bra END;
      LOW: bar.sync 1, 128; END: bar.sync 0;"""
    assert count(body, block=128, grid=2).barriers == 4
    # Threads that returned early are not waited for.
    body = "setp.ge.u32 %p0, %r0, 40; @%p0 ret; bar.sync 0;"
    assert count(body, block=96, grid=3).barriers == 3


def test_a_call_counts_itself_and_what_it_runs():
    source = r"""
    __device__ __noinline__ int turned(int x) { return x ^ 5; }
    extern "C" __global__ void call(int *x) { x[0] = turned(turned(x[0])); }
    """
    kernel, x = cupy.RawKernel(source, "call"), cupy.ones(1, np.int32)
    with simgpu.profile(registers=False) as profile:
        kernel((1,), (1,), (x,))
    assert x.item() == 1
    opcodes = profile.launches[0].opcodes
    assert (opcodes["call.uni"], opcodes["xor.b32"], opcodes["ret"]) == (2, 2, 3)


def test_reading_a_clock_is_one_move():
    assert added(count("mov.u32 %r1, %clock; mov.u32 %r2, %clock;")) == {"mov.u32": 2}


def test_the_total_without_moves_leaves_out_mov_and_cvta():
    found = count("cvta.to.global.u64 %q1, %q0; mov.b64 %q2, %q1; cvt.u64.u32 %q3, %r0;")
    assert (found.instructions, found.instructions_unfolded) == (6, 3)


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        ("add.s32", "integer"),
        ("and.b32", "integer"),
        ("and.pred", "predicate"),
        ("setp.lt.u64", "integer"),
        ("setp.lt.ftz.f32", "float32"),
        ("selp.b32", "integer"),
        ("slct.f32.s32", "float32"),
        ("fma.rn.f16x2", "float16"),
        ("add.rn.bf16", "float16"),
        ("fma.rn.ftz.f32", "float32"),
        ("fma.rn.f64", "float64"),
        ("div.rn.f32", "float32"),
        ("div.s32", "integer"),
        ("div.full.ftz.f32", "special"),
        ("rsqrt.approx.ftz.f32", "special"),
        ("cvt.f32.f16", "conversion"),
        ("cvt.u64.u32", "conversion"),
        ("prmt.b32", "integer"),
        ("mov.b32", "move"),
        ("cvta.to.global.u64", "move"),
        ("mapa.shared::cluster.u32", "integer"),
        ("ld.global.nc.v4.u32", "load global"),
        ("ld.u32", "load generic"),
        ("ld.param.u64", "load param"),
        ("st.shared.v2.f32", "store shared"),
        ("st.shared::cta.u32", "store shared"),
        ("red.global.add.f32", "atomic global"),
        ("atom.shared.cas.b32", "atomic shared"),
        ("bra.uni", "control"),
        ("membar.gl", "fence"),
        ("shfl.sync.bfly.b32", "collective"),
        ("bar.warp.sync", "collective"),
        ("activemask.b32", "collective"),
        ("bar.sync", "barrier"),
        ("barrier.cluster.arrive.aligned", "barrier"),
    ],
)
def test_classes(opcode, expected):
    assert class_of(opcode) == expected


def _spelled(pattern):
    """Spell a form of the table with its first choices."""
    head, *fields = pattern.split()
    words = [word.partition(":")[0].split("|")[0] for word in fields if not word.startswith("[")]
    return ".".join([head, *words]).replace("=", "::")


def test_every_form_has_a_class():
    forms = [form for forms in isa.FORMS.values() for form in forms]
    assert len(forms) > 100
    for form in forms:
        assert class_of(_spelled(form.pattern)), form.pattern


def test_an_opcode_without_a_class_is_refused():
    with pytest.raises(LookupError, match=r"frob\.u32"):
        class_of("frob.u32")


BUSY = r"""
extern "C" __global__ void busy(const float *x, float *y, int *count, int n) {
    __shared__ float held[192];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    float sum = 0;
    // Lanes leave these loops one by one: the first after rounds that grow with the block's number,
    // while those of other blocks wait; the second after up to 480.
    #pragma unroll 1
    for (int j = 0; j < blockIdx.x * 200 + threadIdx.x % 7; j++) sum -= x[i ^ (j & 3)];
    #pragma unroll 1
    for (int j = 0; j < (i * 37 % 97) * 5 + 3; j++) sum += x[i ^ (j & 7)];
    held[threadIdx.x * 2] = sum;
    __syncthreads();
    for (int at = 16; at; at >>= 1) sum += __shfl_xor_sync(~0u, sum, at);
    if (i % 3 == 0) atomicAdd(count, 1);
    if (i & 4) y[i] = sum + held[threadIdx.x * 32 % 192];
    y[n / 2 + i] = x[i * 2] + y[i];
}
"""


def test_counts_do_not_depend_on_how_many_blocks_run_together(monkeypatch):
    kernel = cupy.RawKernel(BUSY, "busy")
    x, y = cupy.ones(4096, np.float32), cupy.zeros(4096, np.float32)
    counter = cupy.zeros(1, np.int32)
    found = []
    for lanes in (launch.LANES, 96, 300):
        monkeypatch.setattr(launch, "LANES", lanes)
        with simgpu.profile(registers=False) as profile:
            kernel((5,), (96,), (x, y, counter, np.int32(4096)))
        found += profile.launches
    assert found[0].atomics.requests == 15
    for other in found[1:]:
        assert dataclasses.asdict(other) == dataclasses.asdict(found[0])
