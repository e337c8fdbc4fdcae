"""How the columns of a row are shared out: lanes, blocks, and where packets are kept.

Who adds up a row is chosen here, in which order is not: that is a tree (kernels/tree.cuh) whose
`depth` follows from N and the dtype alone. So a row has the same bits however it is shared out.
"""

from __future__ import annotations

from dataclasses import dataclass

from .devices import CLUSTER_ARCHS, MOST_BLOCKS, half_of_shared_bytes, shared_bytes
from .dtypes import ITEMSIZE

WARP = 32
PACKET_BYTES = 16
# A lane asks for up to four packets, 64 bytes, before it needs the first: enough bytes in flight to
# cover DRAM latency at half occupancy, in 16 registers.
PACKETS_IN_FLIGHT = 4
# Longer rows stay with 512 lanes, which keep more packets each. Two such blocks share an SM while
# their shared memory lasts, and one loads while the other sums or stores.
MOST_LANES = 512
# Where shared memory is too small for the rest of a row, a lane takes more packets into registers,
# up to 36 of the 128 that each of 512 lanes may have. With a residual there is no room for them,
# and to read again what was just written to L2 costs less.
MOST_PACKETS = 9
# Chunks of a tree, whose sums pass through shared memory. Rows of more packets than are LONG may be
# shared by several blocks, and have chunks for their warps.
MOST_CHUNKS = 128
LONG = 8192
# From 4096 16-bit columns on, twice as many lanes may share a row as it takes: for few rows.
PACKETS_OF_HALF_LEAVES = 512
# Rows that share a warp come 128 threads a block: the smallest block that fills an SM (16 blocks of
# 128 are the 2048 threads of sm_80 and sm_90, 8 the 1024 of sm_75).
THREADS_OF_SHARED_BLOCK = 128


@dataclass(frozen=True)
class Split:
    """How a row is shared out.

    Attributes
    ----------
    lanes : int
        Threads of a block that share a row: 4, 8 or a multiple of 32. Rows that do not start on 16
        bytes need whole warps to be read in 16-byte accesses.
    cluster : int
        Blocks that share a row.
    packets : int
        16-byte packets that each lane keeps in registers.
    shared : int
        Packets that each lane keeps in shared memory after those. What is left of a longer row is
        read again.
    rows : int
        Rows that share a block.
    depth : int
        Packets of a leaf of the tree in which a row is summed.
    """

    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int
    depth: int

    @property
    def in_registers(self) -> int:
        """Packets of a row that its lanes keep in registers."""
        return self.packets * self.lanes * self.cluster

    def shared_bytes(self, packet_bytes: int = PACKET_BYTES) -> int:
        """Return the bytes that a block keeps in shared memory, so many for each packet."""
        return self.shared * self.lanes * packet_bytes


def whole_packets(cols: int, dtype: str) -> int:
    """Return the 16-byte packets of a row, without its tail; one at least."""
    return max(1, cols * ITEMSIZE[dtype] // PACKET_BYTES)


def depth(packets: int, most: int, lanes: int = MOST_LANES) -> int:
    """Return how many packets of a row make a leaf of the tree in which it is summed.

    A lane has whole leaves, and a warp 32 of each. So a leaf is what a lane has of a row that as
    few warps as can be keep, up to `most` packets a lane; half of that where up to `lanes` have
    more. Of the longest rows it grows with them: a tree has up to 128 chunks of 32 leaves.
    """
    if packets <= WARP:
        return 1
    warps = min(-(-packets // (WARP * most)), lanes // WARP)
    turns = -(-packets // (WARP * warps))
    if packets > LONG:
        return max(8, -(-packets // (WARP * MOST_CHUNKS)))
    return turns if turns <= 4 else -(-turns // 2)


def _power_of_two(least: int) -> int:
    """Return the smallest power of two that is not less."""
    return 1 << (least - 1).bit_length()


def forward(cols: int, dtype: str, arch: int, *, residual: bool) -> Split:
    """Share out rows of `cols` elements of `dtype`; from 528 bytes on they have a whole warp.

    ============================  =====================================================
    16-byte packets of a row      what keeps them
    ============================  =====================================================
    up to 16, 32, 128             4, 8 or 32 lanes, up to 4 packets each in registers
    up to 2048                    up to 512 lanes, up to 4 packets each in registers
    while two blocks fit an SM    512 lanes: 4 packets in registers, the others in shared
    more, where there are some    a cluster of up to 8 such blocks
    more                          all the shared memory and up to 9 packets in registers
    more                          what is left over is read again
    ============================  =====================================================
    """
    packets = whole_packets(cols, dtype)
    if packets <= WARP * PACKETS_IN_FLIGHT:
        return _of_one_warp(packets, PACKETS_IN_FLIGHT)
    leaf = depth(packets, PACKETS_IN_FLIGHT)
    if leaf == PACKETS_IN_FLIGHT and packets >= PACKETS_OF_HALF_LEAVES:
        leaf = 2
    chunks = -(-packets // (WARP * leaf))

    cluster, of_block = 1, chunks
    in_half = MOST_LANES * PACKETS_IN_FLIGHT + half_of_shared_bytes(arch) // PACKET_BYTES
    if arch in CLUSTER_ARCHS and packets > in_half:
        # A power of two of chunks for each block, which is a tree of its own; the fewest idle.
        least = _power_of_two(-(-chunks // MOST_BLOCKS))
        sizes = [2**i for i in range(8) if least <= 2**i <= max(least, in_half // (WARP * leaf))]
        of_block = min(sizes, key=lambda size: (-(-chunks // size) * size, -size))
        cluster = -(-chunks // of_block)
    leaves = max(1, PACKETS_IN_FLIGHT // leaf, -(-of_block * WARP // MOST_LANES))
    lanes = -(-of_block // leaves) * WARP
    turns = leaves * leaf
    shared = min(max(turns - PACKETS_IN_FLIGHT, 0), shared_bytes(arch) // (lanes * PACKET_BYTES))
    registers = turns - shared
    if registers > (PACKETS_IN_FLIGHT if residual else MOST_PACKETS):
        registers = PACKETS_IN_FLIGHT  # what is left over is read again
    return Split(lanes, cluster, registers, shared, 1, leaf)


def most_lanes(share: Split, cols: int, dtype: str, most: int, packets: int) -> Split | None:
    """Return how as many lanes as there can be, up to `most`, keep a row in registers.

    They have whole leaves, one each where there are lanes enough. None where that are no more lanes
    than share the row already, or they would keep more than so many packets; and of rows that share
    a warp.
    """
    if share.lanes < WARP:
        return None
    chunks = -(-whole_packets(cols, dtype) // (WARP * share.depth))
    leaves = -(-chunks * WARP // most)
    lanes = -(-chunks // leaves) * WARP
    if lanes <= share.lanes or share.cluster > 1 or leaves * share.depth > packets:
        return None
    return Split(lanes, 1, leaves * share.depth, 0, 1, share.depth)


def _of_one_warp(packets: int, most: int) -> Split:
    """Share out rows that one warp or less keeps, up to `most` packets a lane."""
    lanes = 4 if packets <= 4 * most else 8 if packets <= 8 * most else WARP
    rows = THREADS_OF_SHARED_BLOCK // lanes
    return Split(lanes, 1, -(-packets // lanes), 0, rows, depth(packets, most))


def backward(
    cols: int,
    dtype: str,
    arch: int,
    *,
    most_packets: int,
    most_lanes: int,
    lanes_of_leaf: int,
    packet_bytes: int,
) -> Split:
    """Share out rows of a backward pass.

    As `forward`, but without clusters: what registers and shared memory cannot keep is read again.
    `lanes_of_leaf` are those that `depth` asks for, and `packet_bytes` those of all that lies in
    shared memory beside a packet of x, with it.
    """
    packets = whole_packets(cols, dtype)
    if packets <= WARP * most_packets:
        return _of_one_warp(packets, most_packets)
    leaf = depth(packets, most_packets, lanes_of_leaf)
    chunks = -(-packets // (WARP * leaf))
    leaves = max(1, most_packets // leaf, -(-chunks * WARP // most_lanes))
    lanes = -(-chunks // leaves) * WARP
    turns = leaves * leaf
    shared = min(max(turns - most_packets, 0), shared_bytes(arch) // (lanes * packet_bytes))
    return Split(lanes, 1, min(turns, most_packets), shared, 1, leaf)
