"""What the profiler counts: every counter is defined in the docstring of `LaunchCounters`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..device.assembler import Resources
from ..device.occupancy import Occupancy
from .chain import Chain
from .classes import FOLDED

SECTOR = 32  # bytes: the unit in which global memory is moved
Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Traffic:
    """Accesses of one kind to global memory; `LaunchCounters` defines the counters."""

    requests: int = 0
    bytes: int = 0
    sectors: int = 0
    distinct: int = 0

    @property
    def sectors_per_request(self) -> float:
        """Sectors that a warp's instruction asks for on average; 0 where none was made."""
        return self.sectors / self.requests if self.requests else 0.0

    @property
    def requested_per_distinct(self) -> float:
        """Sectors requested over distinct sectors: 1 where each is asked for once; 0 for none."""
        return self.sectors / self.distinct if self.distinct else 0.0


@dataclass(frozen=True)
class SharedTraffic:
    """Accesses of one kind to shared memory; `LaunchCounters` defines the counters."""

    requests: int = 0
    bytes: int = 0
    wavefronts: int = 0
    conflicts: int = 0


@dataclass(frozen=True)
class ArrayTraffic:
    """The global memory traffic of one allocation, which is one array unless CuPy's pool is used.

    Attributes
    ----------
    name : str
        ``arg 0``, or ``args 0, 2`` where several arguments point into it, counted from 0; the name
        of a module's variable; else its address.
    arguments : tuple of int
        The arguments that point into it, directly or from within a structure.
    address, nbytes : int
        The allocation.
    loads, stores, atomics : Traffic
        As in `LaunchCounters`. A request that touches two allocations counts in both.
    """

    name: str
    arguments: tuple[int, ...]
    address: int
    nbytes: int
    loads: Traffic
    stores: Traffic
    atomics: Traffic


@dataclass(frozen=True)
class StandInCall:
    """A call of a stand-in for one of NVIDIA's libraries, which launches no kernel.

    Attributes
    ----------
    library, function : str
        Their names, as the library has them.
    read_bytes, written_bytes : int
        Bytes of the elements that its arguments name: each array once, without gaps, however often
        hardware would load it. What it reads of the host's memory is not in it.
    """

    library: str
    function: str
    read_bytes: int
    written_bytes: int


@dataclass(frozen=True)
class LaunchCounters:
    """All that was counted in one launch. A count is exact and does not depend on the simulator.

    A *warp instruction* is one PTX instruction of one warp, executed for those of its lanes that
    are there together: it counts once, however many they are, and twice where the warp's halves
    come to it one after the other. A lane whose predicate is false is there, as on hardware, where
    the instruction takes its turn all the same. A *request* is the memory access of one warp
    instruction; one whose predicate is false in every lane makes none.

    Attributes
    ----------
    kernel : str
        The name in the PTX.
    arch : int
        The device's compute capability without the dot.
    grid, block : tuple of int
        Extents (x, y, z), in blocks and in threads.
    resources : Resources
        Registers, spills and stack per thread, from the assembler.
    shared_static, shared_dynamic : int
        Bytes of shared memory per block: declared in the kernel, and asked for by the launch.
    occupancy : Occupancy
        Blocks and warps that a multiprocessor holds at once. Registers set no limit where they are
        not known.
    warps : int
        Warps launched.
    opcodes : mapping of str to int
        Warp instructions by opcode, as spelled in PTX. A call counts one, as do the instructions
        of the function called; what a device function's parameters need are loads and stores of
        the space "param".
    classes : mapping of str to int
        Warp instructions by class, as `cunorm.simgpu.profiler.classes` defines them.
    lane_instructions : int
        Lanes that were there, summed over all warp instructions.
    loads, stores, atomics : Traffic
        Global memory: of ``ld``, of ``st``, and of ``atom`` and ``red``, which are in neither of
        the others. ``cp.async`` loads from global and stores to shared memory, by one request each.
        Constant, local and parameter memory is not in it. `requests`: as above.
        `bytes`: what the lanes asked for, a lane's width for each lane, the same bytes again where
        lanes share them. `sectors`: the distinct aligned pieces of 32 bytes within one request,
        summed over the requests. `distinct`: the distinct ones in the whole launch.
    shared_loads, shared_stores, shared_atomics : SharedTraffic
        Shared memory, but for mbarriers and bulk copies, which no lane makes. `requests` and
        `bytes`: as above. `wavefronts`: passes that the 32 banks of
        4 bytes need. A warp's lanes are served together up to 128 bytes: 32 lanes of up to 4 bytes,
        16 neighbours of 8, 8 neighbours of 16. Such a group needs as many passes as the busiest
        bank has different words; lanes that share a word share its pass, except in atomics, which
        take their turns. `conflicts`: passes beyond one for each group with a lane in it.
    barriers : int
        Times that a barrier of a block let its threads go on, summed over the blocks.
    dram_read_sectors : int
        Distinct sectors whose contents must come from memory: those that are loaded (or updated by
        an atomic), but not where the launch itself has written to the sector before. "Before" means
        earlier in the same block, or in a block of a lower number: the order of blocks run one
        after the other.
    dram_written_sectors : int
        Distinct sectors that are stored to or updated by an atomic.
    arrays : tuple of ArrayTraffic
        `loads`, `stores` and `atomics` by allocation, in the order of arguments.
    chain : Chain or None
        The longest chain of instructions each of which needs the one before, from the launch's
        start to a store to global memory; None where it was not asked for.
    """

    kernel: str
    arch: int
    grid: Extent
    block: Extent
    resources: Resources
    shared_static: int
    shared_dynamic: int
    occupancy: Occupancy
    warps: int
    opcodes: Mapping[str, int]
    classes: Mapping[str, int]
    lane_instructions: int
    loads: Traffic
    stores: Traffic
    atomics: Traffic
    shared_loads: SharedTraffic
    shared_stores: SharedTraffic
    shared_atomics: SharedTraffic
    barriers: int
    dram_read_sectors: int
    dram_written_sectors: int
    arrays: tuple[ArrayTraffic, ...]
    chain: Chain | None = None

    @property
    def blocks(self) -> int:
        """Blocks launched."""
        return self.grid[0] * self.grid[1] * self.grid[2]

    @property
    def instructions(self) -> int:
        """All warp instructions."""
        return sum(self.opcodes.values())

    @property
    def instructions_unfolded(self) -> int:
        """All warp instructions except ``mov`` and ``cvta``, which the assembler folds away."""
        return sum(
            count
            for opcode, count in self.opcodes.items()
            if opcode.partition(".")[0] not in FOLDED
        )

    @property
    def bank_conflicts(self) -> int:
        """The conflicts of shared loads, stores and atomics together."""
        kinds = (self.shared_loads, self.shared_stores, self.shared_atomics)
        return sum(kind.conflicts for kind in kinds)

    @property
    def dram_floor_bytes(self) -> int:
        """The least that DRAM can move: sectors read and sectors written, 32 bytes each."""
        return SECTOR * (self.dram_read_sectors + self.dram_written_sectors)
