"""cp.async: what lands when, and CUDA's own pipelines over it."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_source import ptx_of
from in_flight import FIRST_WORDS, STORE, run

from cunorm.simgpu import faults
from cunorm.simgpu.execution import launch
from cunorm.simgpu.memory.space import GlobalMemory
from cunorm.simgpu.ptx import module as ptx


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


@pytest.mark.slow("CUDA's own headers compile for a second each")
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
