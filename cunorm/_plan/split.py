"""How the columns of a row are shared out: lanes, blocks, and where packets are kept.

Pure, from N, the dtype and the architecture. It never looks at the number of rows, at alignment or
at strides. A kernel gives column c to the same lane, in the same order, whatever those are, and so
a row has the same bits alone and in a batch.
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
    """

    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int

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
        lanes = 4 if packets <= 16 else 8 if packets <= 32 else WARP
        return Split(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes)
    warps = -(-packets // (WARP * PACKETS_IN_FLIGHT))
    lanes = min(warps * WARP, MOST_LANES)
    turn = lanes * PACKET_BYTES

    cluster = 1
    if arch in CLUSTER_ARCHS:
        beside = PACKETS_IN_FLIGHT + half_of_shared_bytes(arch) // turn
        cluster = min(-(-packets // (lanes * beside)), MOST_BLOCKS)
    turns = -(-packets // (lanes * cluster))
    shared = min(max(turns - PACKETS_IN_FLIGHT, 0), shared_bytes(arch) // turn)
    registers = turns - shared
    if registers > (PACKETS_IN_FLIGHT if residual else MOST_PACKETS):
        registers = PACKETS_IN_FLIGHT  # what is left over is read again
    return Split(lanes, cluster, registers, shared, 1)


def backward(
    cols: int, dtype: str, arch: int, *, most_packets: int, most_lanes: int, packet_bytes: int
) -> Split:
    """Share out rows of a backward pass.

    As `forward`, but without clusters: what registers and shared memory cannot keep is read again.
    `packet_bytes` are those of all that lies in shared memory beside a packet of x, with it.
    """
    packets = whole_packets(cols, dtype)
    if packets <= WARP * most_packets:
        lanes = 4 if packets <= 4 * most_packets else 8 if packets <= 8 * most_packets else WARP
        return Split(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes)
    lanes = min(-(-packets // (WARP * most_packets)) * WARP, most_lanes)
    turns = -(-packets // lanes)
    shared = min(max(turns - most_packets, 0), shared_bytes(arch) // (lanes * packet_bytes))
    return Split(lanes, 1, min(turns, most_packets), shared, 1)
