"""Thread-block clusters: their shape, their barrier, and a neighbour's shared memory."""

import struct
from types import SimpleNamespace

import numpy as np
import pytest
from cuda_source import ptx_of
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.execution import launch
from cunorm.simgpu.memory.space import GlobalMemory
from cunorm.simgpu.ptx import module as ptx

CUDA = """
#include <cooperative_groups.h>
namespace cg = cooperative_groups;

// Every block sums what all blocks of its cluster hold, and pushes a 1 to the next one.
extern "C" __global__ void __cluster_dims__(4, 1, 1) sums(float* sums, float* pushed) {
    __shared__ float part[64];
    __shared__ float inbox;
    cg::cluster_group cluster = cg::this_cluster();
    const unsigned i = blockIdx.x * 64 + threadIdx.x;
    part[threadIdx.x] = i;
    if (threadIdx.x == 0) inbox = 0;
    cluster.sync();
    float sum = 0;
    for (unsigned rank = 0; rank < cluster.num_blocks(); ++rank)
        sum += cluster.map_shared_rank(part, rank)[threadIdx.x];
    atomicAdd(cluster.map_shared_rank(&inbox, (cluster.block_rank() + 1) % 4), 1.0f);
    cluster.sync();
    sums[i] = sum;
    pushed[i] = inbox;
}

extern "C" __global__ void __cluster_dims__(2, 3, 1) shape(int* out) {
    __shared__ int here;
    if (threadIdx.x == 0) here = blockIdx.x + 100 * blockIdx.y;
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    const dim3 at = __clusterIdx(), within = __clusterRelativeBlockIdx(), size = __clusterDim();
    const dim3 clusters = __clusterGridDimInClusters();
    int* row = out + (blockIdx.y * gridDim.x + blockIdx.x) * 16;
    row[0] = at.x, row[1] = at.y, row[2] = at.z;
    row[3] = within.x, row[4] = within.y, row[5] = within.z;
    row[6] = size.x, row[7] = size.y, row[8] = size.z;
    row[9] = clusters.x, row[10] = clusters.y, row[11] = clusters.z;
    row[12] = __clusterRelativeBlockRank(), row[13] = __clusterSizeInBlocks();
    int* last = (int*)__cluster_map_shared_rank(&here, 5);
    row[14] = *last;
    row[15] = __cluster_query_shared_rank(last) + 10 * __clusterDimIsSpecified();
    __cluster_barrier_arrive_relaxed();
    __cluster_barrier_wait();
}

extern "C" __global__ void alone(int* out) {
    __cluster_barrier_arrive();
    __cluster_barrier_wait();
    out[blockIdx.x] = __clusterSizeInBlocks() + 10 * __clusterDimIsSpecified();
}

// A generic address handed on to a neighbour still means the block that it was made in.
extern "C" __global__ void __cluster_dims__(2, 1, 1) handed(int* out) {
    cg::cluster_group cluster = cg::this_cluster();
    __shared__ int value;
    __shared__ int* letter;
    value = 7 + blockIdx.x;
    cluster.sync();
    *cluster.map_shared_rank(&letter, 1 - cluster.block_rank()) = &value;
    cluster.sync();
    out[blockIdx.x] = *letter;
    out[2 + blockIdx.x] = cluster.map_shared_rank(&value, cluster.block_rank()) == &value;
    out[4 + blockIdx.x] = __isShared(&value) + 10 * __isShared(letter);
    cluster.sync();
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) too_early(int* out) {
    __shared__ int value;
    if (threadIdx.x == 0) value = 0;
    *cg::this_cluster().map_shared_rank(&value, 1 - blockIdx.x) = 1;
    cg::this_cluster().sync();
    out[0] = value;
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) too_late(int* out) {
    __shared__ int value;
    if (threadIdx.x == 0) value = 3;
    cg::this_cluster().sync();
    out[blockIdx.x] = *cg::this_cluster().map_shared_rank(&value, 1 - blockIdx.x);
}

extern "C" __global__ void __cluster_dims__(2, 1, 1) gone(int* out) {
    __shared__ int value;
    if (threadIdx.x == 0) value = 3;
    cg::this_cluster().sync();
    if (blockIdx.x == 1) asm volatile("exit;");
    for (int i = 0; i < 10; ++i) out[i] = *cg::this_cluster().map_shared_rank(&value, 1);
}
"""


def run(kernel, grid, threads, *arrays, source=CUDA, arch=90, **options):
    """Launch a kernel on arrays, which are copied in and out."""
    memory = GlobalMemory(1 << 30)
    held = [memory.allocate(array.nbytes) for array in arrays]
    for allocation, array in zip(held, arrays, strict=True):
        allocation.data[:] = array.view(np.uint8).reshape(-1)
    function = ptx.parse(ptx_of(source)).functions[kernel]
    launch.run(
        function, grid, (threads, 1, 1), 0,
        [struct.pack("<Q", allocation.address) for allocation in held],
        memory=memory, device=SimpleNamespace(arch=arch, multiprocessors=132), symbols={},
        **options,
    )  # fmt: skip
    for allocation, array in zip(held, arrays, strict=True):
        array.view(np.uint8).reshape(-1)[:] = allocation.data


def test_blocks_of_a_cluster_read_and_push_to_each_other():
    # 600 clusters of 256 threads: several batches.
    sums, pushed = np.zeros((2400, 64), np.float32), np.zeros((2400, 64), np.float32)
    run("sums", (2400, 1, 1), 64, sums, pushed)
    part = np.arange(2400 * 64, dtype=np.float32).reshape(600, 4, 64)
    np.testing.assert_array_equal(sums, np.repeat(part.sum(1), 4, axis=0))
    assert (pushed == 64).all()


def test_coordinates_of_a_cluster_in_two_dimensions():
    out = np.zeros((6, 4, 16), np.int32)
    run("shape", (4, 6, 1), 32, out)
    for y in range(6):
        for x in range(4):
            cluster, within = (x // 2, y // 3, 0), (x % 2, y % 3, 0)
            rank = x % 2 + 2 * (y % 3)
            last = (x // 2 * 2 + 1) + 100 * (y // 3 * 3 + 2)
            wanted = [*cluster, *within, 2, 3, 1, 2, 2, 1, rank, 6, last, 15]
            assert out[y, x].tolist() == wanted


def test_a_block_without_a_cluster_is_one_by_itself():
    out = np.zeros(3, np.int32)
    run("alone", (3, 1, 1), 64, out)
    assert out.tolist() == [1, 1, 1]


def test_generic_addresses_keep_their_block():
    out = np.zeros(6, np.int32)
    run("handed", (2, 1, 1), 1, out)
    assert out.tolist() == [8, 7, 1, 1, 1, 1]


@pytest.mark.parametrize(
    ("kernel", "words", "line"),
    [
        ("too_early", "may not have started", "value, 1 - blockIdx.x) = 1;"),
        ("too_late", "may exit before this access", "out[blockIdx.x] = *cg"),
        ("gone", "which has exited", "for (int i = 0"),
    ],
)
def test_a_neighbour_must_be_there(kernel, words, line):
    with pytest.raises(faults.AbsentBlock, match=words) as caught:
        run(kernel, (2, 1, 1), 32, np.zeros(32, np.int32))
    number = next(n for n, text in enumerate(CUDA.split("\n"), 1) if line in text)
    assert caught.value.place.source.endswith(f"test.cu:{number}")
    assert caught.value.place.kernel == kernel


@pytest.mark.parametrize(
    ("grid", "arch", "words"),
    [
        ((6, 1, 1), 90, "no multiple of its cluster"),
        ((8, 1, 1), 80, "which begin with sm_90"),
    ],
)
def test_launches_that_clusters_refuse(grid, arch, words):
    arrays = np.zeros((8, 64), np.float32), np.zeros((8, 64), np.float32)
    with pytest.raises(faults.LaunchError, match=words):
        run("sums", grid, 64, *arrays, arch=arch)


READY = "barrier.cluster.arrive; barrier.cluster.wait;"


def clustered(body, threads=64, size=2, blocks=None, **options):
    """Run PTX in clusters of `size` blocks; every thread stores %r0."""
    memory = GlobalMemory(1 << 30)
    blocks = blocks or size
    out = memory.allocate(4 * threads * blocks)
    text = entry(
        """
        .reg .b64 %q<10>; .reg .b32 %i<10>; .reg .pred %p<8>; .reg .b32 %r<20>;
        ld.param.u64 %q0, [o]; mov.u32 %i0, %tid.x; mov.u32 %i1, %ctaid.x; mov.u32 %i2, %ntid.x;
        mad.lo.u32 %i3, %i1, %i2, %i0; mad.wide.u32 %q1, %i3, 4, %q0;
        mov.u32 %i4, %cluster_ctarank; mov.u32 %r0, 0; setp.eq.u32 %p7, %i0, 0;
        """
        + body
        + "\nst.global.u32 [%q1], %r0; ret;",
        ["o"],
    )
    directive = f".explicitcluster\n.reqnctapercluster {size}, 1, 1"
    text = text.replace(")\n{", f")\n{directive}\n{{")
    start(text, "k", (blocks, 1, 1), (threads, 1, 1), [out.address], memory=memory, **options)
    return out.data.view(np.uint32).reshape(blocks, threads)


@pytest.mark.parametrize(
    "arrive", ["", ".release", ".relaxed", ".aligned", ".release.aligned", ".relaxed.aligned"]
)
@pytest.mark.parametrize("wait", ["", ".acquire", ".aligned", ".acquire.aligned"])
def test_every_form_of_the_barrier_waits_for_all(arrive, wait):
    # Block 1 stores late, after a loop; block 0 must not read before.
    got = clustered(f"""
        .shared .align 4 .b8 cell[4]; barrier.cluster.arrive; barrier.cluster.wait;
        mov.u32 %r2, 0; setp.eq.u32 %p0, %i4, 0; @%p0 bra ready;
        again: add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 50; @%p1 bra again;
        @%p7 st.volatile.shared.u32 [cell], %r2;
        ready: barrier.cluster.arrive{arrive}; barrier.cluster.wait{wait};
        mov.u32 %r3, cell; mapa.shared::cluster.u32 %r4, %r3, 1;
        ld.volatile.shared::cluster.u32 %r0, [%r4];
        barrier.cluster.arrive; barrier.cluster.wait;""")  # fmt: skip
    assert (got == 50).all()


def test_a_relaxed_arrival_orders_no_memory():
    with pytest.raises(faults.SharedRace):
        clustered(f"""
            .shared .align 4 .b8 cell[4]; {READY} @%p7 st.shared.u32 [cell], 5;
            barrier.cluster.arrive.relaxed; barrier.cluster.wait;
            mov.u32 %r3, cell; mapa.shared::cluster.u32 %r4, %r3, 1;
            ld.shared::cluster.u32 %r0, [%r4]; {READY}""")  # fmt: skip


def test_a_barrier_of_the_block_does_not_do_for_the_cluster():
    with pytest.raises(faults.SharedRace):
        clustered(f"""
            .shared .align 4 .b8 cell[4]; {READY} @%p7 st.shared.u32 [cell], 5; bar.sync 0;
            mov.u32 %r3, cell; mapa.shared::cluster.u32 %r4, %r3, 1;
            ld.shared::cluster.u32 %r0, [%r4]; {READY}""")  # fmt: skip


def test_work_between_arrival_and_wait():
    # A thread that arrived goes on; only its wait waits.
    got = clustered("""
        .shared .align 4 .b8 cell[4]; setp.eq.u32 %p0, %i4, 1;
        and.pred %p7, %p7, %p0; @%p7 st.shared.u32 [cell], 9;
        barrier.cluster.arrive; add.u32 %r2, %i4, 5; barrier.cluster.wait;
        mov.u32 %r3, cell; mapa.shared::cluster.u32 %r4, %r3, 1;
        ld.shared::cluster.u32 %r0, [%r4]; add.u32 %r0, %r0, %r2;
        barrier.cluster.arrive; barrier.cluster.wait;""")  # fmt: skip
    assert got[:, 0].tolist() == [14, 15]


def test_clusters_do_not_wait_for_each_other():
    # Cluster 1 spins until cluster 0, which runs on after its own barriers, has stored.
    got = clustered(
        """
        mov.u32 %r5, %clusterid.x; setp.ne.u32 %p0, %r5, 0; barrier.cluster.arrive;
        barrier.cluster.wait; @%p0 bra spin; mov.u32 %r0, 3;
        st.volatile.global.u32 [%q0], %r0; bra done;
        spin: ld.volatile.global.u32 %r0, [%q0]; setp.ne.u32 %p1, %r0, 3; @%p1 bra spin;
        done: barrier.cluster.arrive; barrier.cluster.wait;""",
        blocks=4,
    )
    assert (got == 3).all()


def test_threads_that_exited_are_not_waited_for():
    got = clustered("""
        mov.u32 %r0, 4; setp.gt.u32 %p0, %i0, 40; @%p0 st.global.u32 [%q1], %r0; @%p0 ret;
        barrier.cluster.arrive; barrier.cluster.wait; mov.u32 %r0, 6;""")
    assert (got == np.where(np.arange(64) > 40, 4, 6)).all()


def test_threads_that_exit_later_release_those_that_wait():
    got = clustered("""
        setp.gt.u32 %p0, %i0, 40; mov.u32 %r2, 0; @%p0 bra late;
        barrier.cluster.arrive; barrier.cluster.wait; mov.u32 %r0, 6; bra done;
        late: add.u32 %r2, %r2, 1; setp.lt.u32 %p1, %r2, 9; @%p1 bra late; mov.u32 %r0, %r2;
        done:""")
    assert (got == np.where(np.arange(64) > 40, 9, 6)).all()


BROKEN = {
    "waits for 32 threads": """
        setp.lt.u32 %p0, %i0, 16; @%p0 bra other; barrier.cluster.arrive; barrier.cluster.wait;
        bra done; other: bar.sync 1; done:""",
    "no arrival before": "barrier.cluster.wait;",
    "second arrival": "barrier.cluster.arrive; barrier.cluster.arrive; barrier.cluster.wait;",
    "different aligned": """
        and.b32 %r2, %i0, 1; setp.eq.u32 %p0, %r2, 0; @%p0 bra even;
        barrier.cluster.arrive.aligned; bra join; even: barrier.cluster.arrive.aligned;
        join: barrier.cluster.wait;""",
}


@pytest.mark.parametrize("words", BROKEN)
def test_barriers_that_cannot_complete(words):
    with pytest.raises(faults.DivergentBarrier, match=words):
        clustered(BROKEN[words])


@pytest.mark.parametrize("access", ["ld.shared::cluster.u32 %r0, [%r4];", "ld.u32 %r0, [%q5];"])
@pytest.mark.parametrize("rank", [2, 254, 255, 70000])
def test_ranks_outside_the_cluster_are_refused(access, rank):
    with pytest.raises(faults.SharedOutOfBounds, match="no block of the cluster"):
        clustered(f"""
            .shared .align 4 .b8 cell[4]; {READY} mov.u32 %r3, cell; cvt.u64.u32 %q4, %r3;
            cvta.shared::cluster.u64 %q4, %q4; mapa.shared::cluster.u32 %r4, %r3, {rank};
            mapa.u64 %q5, %q4, {rank}; {access}""")


def test_bounds_and_alignment_hold_in_a_neighbours_memory():
    body = """.shared .align 4 .b8 cell[8]; {READY} mov.u32 %r3, cell;
        mapa.shared::cluster.u32 %r4, %r3, 1; @%p7 st.shared::cluster.u32 [%r4+{at}], %r3;"""
    with pytest.raises(faults.SharedOutOfBounds):
        clustered(body.format(READY=READY, at=8))
    with pytest.raises(faults.Misaligned):
        clustered(body.format(READY=READY, at=2))


def test_shared_cta_accesses_reach_their_own_block_alone():
    body = """.shared .align 4 .b8 cell[4]; @%p7 st.shared.u32 [cell], 5; {READY} mov.u32 %r3, cell;
        mapa.shared::cluster.u32 %r4, %r3, {rank}; ld.shared.u32 %r0, [%r4]; {READY}"""
    assert (clustered(body.format(READY=READY, rank="%i4")) == 5).all()
    with pytest.raises(faults.SharedOutOfBounds, match="shared::cta"):
        clustered(body.format(READY=READY, rank=1))


@pytest.mark.parametrize(
    ("instruction", "left"),
    [
        ("atom.shared::cluster.add.u32 %r2, [%r4], 2;", 256),
        ("atom.relaxed.cluster.shared::cluster.max.u32 %r2, [%r4], %i3;", 127),
        ("red.shared::cluster.add.u32 [%r4], 3;", 384),
        ("red.relaxed.cluster.shared::cluster.or.b32 [%r4], %i3;", 127),
    ],
)
def test_atomics_in_a_neighbours_memory(instruction, left):
    got = clustered(f"""
        .shared .align 4 .b8 cell[4]; @%p7 st.shared.u32 [cell], 0; {READY} mov.u32 %r3, cell;
        mapa.shared::cluster.u32 %r4, %r3, 0; {instruction} {READY}
        ld.shared.u32 %r0, [cell];""")
    assert (got[0] == left).all()
    assert (got[1] == 0).all()


def test_getctarank_names_the_block_of_an_address():
    got = clustered("""
        .shared .align 4 .b8 cell[4]; mov.u32 %r3, cell; mapa.shared::cluster.u32 %r4, %r3, 1;
        getctarank.shared::cluster.u32 %r5, %r3; getctarank.shared::cluster.u32 %r6, %r4;
        mov.u64 %q4, cell; cvta.shared.u64 %q4, %q4; mapa.u64 %q5, %q4, 0;
        getctarank.u64 %r7, %q4; getctarank.u64 %r8, %q5;
        mad.lo.u32 %r0, %r5, 10, %r6; mad.lo.u32 %r0, %r0, 10, %r7;
        mad.lo.u32 %r0, %r0, 10, %r8;""")
    assert got[:, 0].tolist() == [100 * 0 + 100 * 1, 1000 + 100 + 10]


def test_isspacep_tells_own_from_neighbouring_memory():
    got = clustered("""
        .shared .align 4 .b8 cell[4]; mov.u64 %q4, cell; cvta.shared.u64 %q4, %q4;
        mapa.u64 %q5, %q4, 1; isspacep.shared::cta %p0, %q5; isspacep.shared::cluster %p1, %q5;
        isspacep.shared %p2, %q4; selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 10, 0, %p1;
        selp.u32 %r2, 100, 0, %p2; add.u32 %r0, %r0, %r1; add.u32 %r0, %r0, %r2;""")
    assert got[:, 0].tolist() == [110, 111]


def test_a_fence_and_a_flag_stand_in_for_a_barrier():
    # Block 1 says through global memory that it has read; block 0 waits for that and exits.
    got = clustered(f"""
        .shared .align 4 .b8 cell[4]; @%p7 st.shared.u32 [cell], 8; {READY} mov.u32 %r3, cell;
        mapa.shared::cluster.u32 %r4, %r3, 0; setp.eq.u32 %p0, %i4, 0; @%p0 bra spin;
        ld.shared::cluster.u32 %r0, [%r4]; fence.acq_rel.gpu;
        st.volatile.global.u32 [%q1], %r0; bra done;
        spin: ld.volatile.global.u32 %r0, [%q1+4]; setp.ne.u32 %p1, %r0, 8; @%p1 bra spin;
        fence.acq_rel.gpu;
        done:""", threads=1)  # fmt: skip
    assert (got == 8).all()
