"""What the plans know of architectures. One that is not listed has what every device has."""

from __future__ import annotations

from typing import NamedTuple


class Device(NamedTuple):
    """What a launch's plan knows of its device."""

    arch: int
    multiprocessors: int
    name: str


# Shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability").
SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    120: 99 << 10,
    121: 99 << 10,
}
SHARED_BYTES_ELSEWHERE = 48 << 10
# Each block costs an SM this much more than it may have itself.
RESERVED_BYTES = 1 << 10
# What sums and the seams of shifted rows take of a block's shared memory: up to four float64 sums
# of each of 128 chunks, and 32 bytes for each of 16 warps and each array.
SUMS_BYTES = 6 << 10
MOST_SEAMS = 4

# Where blocks can form clusters; eight are what every such device allows.
CLUSTER_ARCHS = (90, 100, 103)
MOST_BLOCKS = 8


def shared_bytes(arch: int) -> int:
    """Return the bytes of dynamic shared memory that a block may have."""
    return SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) - SUMS_BYTES


def half_of_shared_bytes(arch: int) -> int:
    """Return the same where another block like it is to share its SM."""
    of_sm = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) + RESERVED_BYTES
    return of_sm // 2 - RESERVED_BYTES - SUMS_BYTES
