"""How many blocks of a kernel a multiprocessor holds at once, as CUDA's occupancy functions say.

The rules and granularities are those of ``cuda_occupancy.h``, which comes with the CUDA headers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..lanes import WARP
from .tables import Device

PARTITIONS = 4  # of a multiprocessor, each with its share of the registers
REGISTER_UNIT = 256  # registers are given to a warp in multiples of this many
MAX_REGISTERS = 255  # per thread


@dataclass(frozen=True)
class Occupancy:
    """The blocks that are resident at once, and why not more.

    Attributes
    ----------
    blocks, warps : int
        Resident on one multiprocessor.
    max_warps : int
        The most that one holds.
    limits : tuple of str
        What allows no further block: "blocks", "threads", "registers", "shared memory".
    """

    blocks: int
    warps: int
    max_warps: int
    limits: tuple[str, ...]

    @property
    def share(self) -> float:
        """Resident warps as a share of the most possible."""
        return self.warps / self.max_warps


def occupancy(device: Device, threads: int, registers: int | None, shared_bytes: int) -> Occupancy:
    """Return how many blocks are resident, with shared memory configured as large as it can be.

    Parameters
    ----------
    device : Device
        The limits.
    threads : int
        Per block.
    registers : int or None
        Per thread; None where they are not known, and then they set no limit.
    shared_bytes : int
        Per block, static and dynamic.
    """
    warps = -(-threads // WARP)
    max_warps = device.threads_per_multiprocessor // WARP
    limits = {
        "blocks": device.blocks_per_multiprocessor,
        "threads": max_warps // warps,
    }
    if registers is not None:
        limits["registers"] = _by_registers(device, warps, registers)
    shared = shared_bytes + device.shared_reserved_per_block
    if shared_bytes > device.shared_per_block_opt_in:
        limits["shared memory"] = 0
    elif shared:
        unit = 128 if device.arch >= 80 else 256
        limits["shared memory"] = device.shared_per_multiprocessor // (-(-shared // unit) * unit)
    blocks = min(limits.values())
    binding = tuple(name for name, limit in limits.items() if limit == blocks)
    return Occupancy(blocks, blocks * warps, max_warps, binding)


def _by_registers(device: Device, warps: int, registers: int) -> int:
    per_warp = -(-registers * WARP // REGISTER_UNIT) * REGISTER_UNIT
    # A block may start only where its warps would fit spread evenly over the partitions.
    assumed = per_warp * -(-warps // PARTITIONS) * PARTITIONS
    if registers > MAX_REGISTERS or assumed > device.registers:
        return 0
    return device.registers // PARTITIONS // per_warp * PARTITIONS // warps
