"""What a simulated device says of itself: one table, by compute capability.

The numbers are those of a well-known product of each architecture: limits of a multiprocessor from
the table "Technical Specifications per Compute Capability" of the CUDA programming guide (libcu++
has the same in ``cuda/__device/arch_traits.h``), the rest from NVIDIA's data sheets, and for AGX
Orin, B300 and GB10 from what CUDA was reported to say of them. They decide which launches are
possible; nothing here measures a speed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ..lanes import WARP

KIB = 1024
MIB = 1 << 20


@dataclass(frozen=True)
class Device:
    """One simulated device.

    Attributes
    ----------
    arch : int
        Compute capability without the dot: 90 for sm_90.
    model : str
        The product whose numbers these are.
    multiprocessors : int
        Streaming multiprocessors.
    shared_per_multiprocessor, shared_per_block_opt_in : int
        Bytes of shared memory a multiprocessor has, and the most one block may have after
        ``cudaFuncSetAttribute``.
    threads_per_multiprocessor, blocks_per_multiprocessor : int
        The most that are resident at once.
    l2_bytes : int
        Size of the L2 cache.
    clock_khz, memory_clock_khz, memory_bus_bits : int
        What ``cudaGetDeviceProperties`` reports as such.
    ordinal : int
        The number of the device.
    memory_bytes : int
        Bytes of global memory.
    """

    arch: int
    model: str
    multiprocessors: int
    shared_per_multiprocessor: int
    shared_per_block_opt_in: int
    threads_per_multiprocessor: int
    blocks_per_multiprocessor: int
    l2_bytes: int
    clock_khz: int
    memory_clock_khz: int
    memory_bus_bits: int
    ordinal: int = 0
    memory_bytes: int = 8 << 30

    # The same on every architecture in the table.
    max_threads_per_block: int = 1024
    max_block: tuple[int, int, int] = (1024, 1024, 64)
    max_grid: tuple[int, int, int] = (2**31 - 1, 65535, 65535)
    shared_per_block: int = 48 * KIB
    registers: int = 65536
    constant_bytes: int = 64 * KIB

    @property
    def major(self) -> int:
        """The compute capability before the dot."""
        return self.arch // 10

    @property
    def minor(self) -> int:
        """The compute capability after the dot."""
        return self.arch % 10

    @property
    def name(self) -> str:
        """A name that nobody takes for hardware."""
        return f"cunorm.simgpu with numbers of {self.model}"

    @property
    def shared_reserved_per_block(self) -> int:
        """Bytes of shared memory the system keeps in each block."""
        return KIB if self.arch >= 80 else 0

    @property
    def pci_bus_id(self) -> str:
        """The address it would have on a PCI bus."""
        return f"0000:{self.ordinal + 1:02x}:00.0"


# arch: model, SMs, shared per SM, shared per block (opt-in), threads per SM, blocks per SM, L2,
# clock (kHz), memory clock (kHz), memory bus (bits)
_TABLE = {
    75: ("Tesla T4", 40, 64, 64, 1024, 16, 4, 1_590_000, 5_001_000, 256),
    80: ("A100 SXM4", 108, 164, 163, 2048, 32, 40, 1_410_000, 1_593_000, 5120),
    86: ("RTX 3090", 82, 100, 99, 1536, 16, 6, 1_695_000, 9_751_000, 384),
    87: ("Jetson AGX Orin", 16, 164, 163, 1536, 16, 4, 1_300_000, 1_300_000, 256),
    89: ("RTX 4090", 128, 100, 99, 1536, 24, 72, 2_520_000, 10_501_000, 384),
    90: ("H100 SXM", 132, 228, 227, 2048, 32, 50, 1_980_000, 2_619_000, 5120),
    100: ("B200", 148, 228, 227, 2048, 32, 126, 1_965_000, 3_996_000, 8192),
    103: ("B300 SXM6", 148, 228, 227, 2048, 32, 126, 2_032_000, 3_996_000, 8192),
    120: ("RTX 5090", 170, 100, 99, 1536, 24, 96, 2_407_000, 14_001_000, 512),
    121: ("GB10", 48, 100, 99, 1536, 24, 24, 2_418_000, 8_533_000, 256),
}

ARCHITECTURES = tuple(_TABLE)
_INTEGRATED = (87, 121)  # on one chip with the host's processor


def make(arch: int, ordinal: int = 0, memory_bytes: int = 8 << 30) -> Device:
    """Return device `ordinal` of architecture `arch`; ValueError for one not in the table."""
    if arch not in _TABLE:
        known = ", ".join(map(str, ARCHITECTURES))
        raise ValueError(f"arch must be one of {known}, not {arch!r}")
    model, sms, shared, opt_in, threads, blocks, l2, clock, memory_clock, bus = _TABLE[arch]
    device = Device(
        arch=arch,
        model=model,
        multiprocessors=sms,
        shared_per_multiprocessor=shared * KIB,
        shared_per_block_opt_in=opt_in * KIB,
        threads_per_multiprocessor=threads,
        blocks_per_multiprocessor=blocks,
        l2_bytes=l2 * MIB,
        clock_khz=clock,
        memory_clock_khz=memory_clock,
        memory_bus_bits=bus,
    )
    return replace(device, ordinal=ordinal, memory_bytes=memory_bytes)


def attributes(device: Device) -> dict[int, int]:
    """Return ``cudaDeviceGetAttribute``'s answers by the number of the attribute."""
    return {
        1: device.max_threads_per_block,
        2: device.max_block[0],
        3: device.max_block[1],
        4: device.max_block[2],
        5: device.max_grid[0],
        6: device.max_grid[1],
        7: device.max_grid[2],
        8: device.shared_per_block,
        9: device.constant_bytes,
        10: WARP,
        11: 2**31 - 1,  # largest pitch of a 2D copy
        12: device.registers,
        13: device.clock_khz,
        15: 1,  # copies overlap with kernels
        16: device.multiprocessors,
        17: 0,  # no time limit on kernels
        18: int(device.arch in _INTEGRATED),
        19: 1,  # host memory can be mapped
        20: 0,  # compute mode: default
        31: 1,  # concurrent kernels
        32: 0,  # no error correction
        33: device.ordinal + 1,
        34: 0,
        35: 0,
        36: device.memory_clock_khz,
        37: device.memory_bus_bits,
        38: device.l2_bytes,
        39: device.threads_per_multiprocessor,
        40: 3,  # copy engines
        41: 1,  # unified addressing
        50: 0,
        75: device.major,
        76: device.minor,
        78: 1,  # stream priorities
        79: 1,
        80: 1,
        81: device.shared_per_multiprocessor,
        82: device.registers,
        83: 1,  # managed memory
        84: 0,
        85: device.ordinal,
        86: 0,
        87: 2 if device.arch in (80, 90, 100) else 64,  # single to double precision rate
        88: 0,
        89: 1,  # the host may touch managed memory at any time
        90: 1,
        91: 1,  # registered memory has the same address on the device
        95: 1,  # cooperative launch
        96: 0,
        97: device.shared_per_block_opt_in,
        98: 0,
        99: 1,  # cudaHostRegister
        100: 0,
        101: 0,
        106: device.blocks_per_multiprocessor,
        108: 0,
        109: 0,
        111: device.shared_reserved_per_block,
        115: 1,  # memory pools
        119: 0,
        120: 1 if device.arch >= 90 else 0,  # thread block clusters
    }


def properties(device: Device) -> dict[str, object]:
    """Return what ``cudaGetDeviceProperties`` says, under CuPy's keys.

    Textures and surfaces are not emulated, so their limits are absent.
    """
    return {
        "name": device.name.encode(),
        "totalGlobalMem": device.memory_bytes,
        "sharedMemPerBlock": device.shared_per_block,
        "sharedMemPerBlockOptin": device.shared_per_block_opt_in,
        "sharedMemPerMultiprocessor": device.shared_per_multiprocessor,
        "reservedSharedMemPerBlock": device.shared_reserved_per_block,
        "regsPerBlock": device.registers,
        "regsPerMultiprocessor": device.registers,
        "warpSize": WARP,
        "maxThreadsPerBlock": device.max_threads_per_block,
        "maxThreadsDim": device.max_block,
        "maxGridSize": device.max_grid,
        "maxThreadsPerMultiProcessor": device.threads_per_multiprocessor,
        "maxBlocksPerMultiProcessor": device.blocks_per_multiprocessor,
        "multiProcessorCount": device.multiprocessors,
        "clockRate": device.clock_khz,
        "memoryClockRate": device.memory_clock_khz,
        "memoryBusWidth": device.memory_bus_bits,
        "l2CacheSize": device.l2_bytes,
        "totalConstMem": device.constant_bytes,
        "major": device.major,
        "minor": device.minor,
        "pciBusID": device.ordinal + 1,
        "pciDeviceID": 0,
        "pciDomainID": 0,
        "uuid": b"cunorm.simgpu" + bytes([0, 0, device.ordinal]),
        "kernelExecTimeoutEnabled": 0,
        "integrated": int(device.arch in _INTEGRATED),
        "canMapHostMemory": 1,
        "computeMode": 0,
        "concurrentKernels": 1,
        "ECCEnabled": 0,
        "tccDriver": 0,
        "deviceOverlap": 1,
        "asyncEngineCount": 3,
        "unifiedAddressing": 1,
        "managedMemory": 1,
        "concurrentManagedAccess": 1,
        "pageableMemoryAccess": 0,
        "streamPrioritiesSupported": 1,
        "isMultiGpuBoard": 0,
        "cooperativeLaunch": 1,
        "cooperativeMultiDeviceLaunch": 0,
    }
