"""The longest chain of instructions each of which needs the one before, up to a store.

What a launch of few rows takes is its latency, and what instructions there are beside that chain
takes no time. Lengths are kept for each register of each lane, for what was stored to memory, and
for the lane itself: nothing of it starts before a branch is decided or a barrier let it go on.

The longest chain is the one of most weight, where an instruction weighs as much as others take in
its time. Hardware may be slower: a warp's instructions start in the order of the machine code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Lanes, indices
from ..memory.access import Access
from ..ptx.op import Op
from ..ptx.terminators import Barrier, Branch, ClusterArrive, ClusterWait, IndexedBranch, Jump
from ..sync.clusters import OFFSET, RANK_SHIFT
from .classes import FOLDED, class_of

GRANULE = 4  # bytes of memory that are one place
# What the assembler folds into the instruction that reads it.
FREE = ("ld.param", "ld.const", *FOLDED)
UNKNOWN = ("copy",)


@dataclass(frozen=True)
class Chain:
    """The longest chain of a launch, from its start to a store to global memory.

    Attributes
    ----------
    weight : int
        `WEIGHTS` of its instructions: about a quarter of the cycles that it takes where memory is
        idle. A model to compare kernels by, and no time.
    instructions : int
        PTX instructions of the chain, but ``mov``, ``cvta``, and loads of arguments and constants,
        which the assembler folds away.
    loads, shared_loads, collectives, barriers : int
        Those among them that load from global memory, atomics included, and from shared memory;
        warp collectives; and barriers of a block or a cluster.
    """

    weight: int = 0
    instructions: int = 0
    loads: int = 0
    shared_loads: int = 0
    collectives: int = 0
    barriers: int = 0


KINDS = tuple(field.name for field in fields(Chain))
WEIGHT, INSTRUCTIONS, LOADS, SHARED_LOADS, COLLECTIVES, BARRIERS = range(len(KINDS))
# Of a global load, from memory; of a shared load, a collective and a barrier. Any other instruction
# weighs 1, some 4 cycles (Jia, Maggioni, Staiger, Scarpazza: Dissecting the NVIDIA Volta GPU
# Architecture via Microbenchmarking, 2018: some 400 to 500 cycles, 19 and 22).
WEIGHTS = {LOADS: 120, SHARED_LOADS: 6, COLLECTIVES: 6, BARRIERS: 6}


def _longer(one: Array, other: Array) -> Array:
    """Return the longer of two chains for each lane; chains are rows of numbers of `KINDS`."""
    longer: Array = np.where(other[:, :1] > one[:, :1], other, one)
    return longer


def _longest(chains: Array) -> Array:
    longest: Array = chains[chains[:, WEIGHT].argmax()]
    return longest


def _and(chains: Array, *kinds: int) -> Array:
    """Return chains with one more instruction, of these kinds."""
    more = chains.copy()
    more[:, [INSTRUCTIONS, *kinds]] += 1
    more[:, WEIGHT] += max((WEIGHTS[kind] for kind in kinds), default=1)
    return more


class Chains:
    """The chains of a launch as it runs: it is told of every operation, in the order of each lane.

    Attributes
    ----------
    longest : ndarray
        The longest chain that ends in a store to global memory.
    """

    def __init__(self) -> None:
        self.longest = np.zeros(len(KINDS), np.int64)
        self._memory: dict[tuple[str, int, int], Array] = {}
        self._batch: Geometry | None = None
        self._accesses: list[tuple[str, Array, int, Access]] = []
        self._statement: object = None

    @property
    def chain(self) -> Chain:
        """The longest chain."""
        return Chain(*self.longest.tolist())

    def begin(self, batch: Geometry) -> None:
        """Learn of which batch of blocks the next operations are."""
        if batch is self._batch:
            return
        self._batch = batch
        nothing = np.zeros((1, len(KINDS)), np.int64)
        self._registers: list[Array] = [nothing] * len(batch.program.initial)
        # What nothing of a lane starts before, what it has stored, and it came to a barrier after.
        self._lane, self._stored, self._arrival = (
            np.zeros((batch.lanes, len(KINDS)), np.int64) for _ in range(3)
        )

    def computed(self, op: Op, lanes: Lanes) -> None:
        """Learn that lanes ran an operation on registers."""
        chains = self._after(op, self._needed(op, lanes))
        for slot in op.targets:
            self._put(slot, chains, lanes)

    def passed_over(self, op: Op, lanes: Array) -> None:
        """Learn that an operation left lanes alone, whose registers stay, once that was decided."""
        decided = _and(self._take(self._registers[op.guard], lanes))
        for slot in op.targets:
            chains = _longer(self._take(self._registers[slot], lanes), decided)
            self._put(slot, chains, lanes)

    def accessed(self, space: str, addresses: Array, width: int, access: Access) -> None:
        """Learn that the operation under way accesses memory."""
        if space != "generic":  # which is told again as what it is
            self._accesses.append((space, addresses, width, access))

    def performed(self, op: Op, lanes: Lanes) -> None:
        """Learn that lanes ran an operation that accesses memory or meets other lanes."""
        accesses, self._accesses = self._accesses, []
        kind = class_of(op.statement.opcode)
        if kind in UNKNOWN or op.statement.opcode.startswith("mbarrier"):
            raise faults.NotEmulated(
                f"the longest chain through {op.statement.opcode}, which ends while others run"
            )
        assert self._batch is not None
        here = indices(lanes, self._batch.lanes)
        chains = np.broadcast_to(self._needed(op, lanes), (here.size, len(KINDS)))
        kinds = []
        if kind == "collective":
            kinds.append(COLLECTIVES)
            for warp in np.unique(here // WARP):
                mine = here // WARP == warp
                chains = np.where(mine[:, None], _longest(chains[mine]), chains)
        for space, addresses, width, access in accesses:
            if access.reads and space not in ("param", "const"):
                chains = _longer(chains, self._read(space, here, addresses, width))
                kinds.append(LOADS if space == "global" else SHARED_LOADS)
        chains = self._after(op, chains, *dict.fromkeys(kinds))
        for space, addresses, width, access in accesses:
            if access.writes:
                self._write(space, here, addresses, width, chains)
                self._stored[here] = _longer(self._stored[here], chains)
                if space == "global":
                    self.longest = _longest(np.vstack([self.longest, chains]))
        for slot in op.targets:
            self._put(slot, chains, lanes)

    def ends(self, end: Jump, lanes: Lanes) -> None:
        """Learn that lanes came to the end of a block of the program."""
        here = slice(None) if lanes is None else lanes
        self._statement = None
        if isinstance(end, (Branch, IndexedBranch)):
            decided = self._take(self._registers[end.slots[0]], lanes)
            self._lane[here] = _and(_longer(self._lane[here], decided))
        elif isinstance(end, Barrier) and not end.waits:
            raise faults.NotEmulated("the longest chain through a barrier that does not wait")
        elif isinstance(end, Barrier) or (
            isinstance(end, ClusterArrive) and not isinstance(end, ClusterWait)
        ):
            self._arrival[here] = _longer(self._lane[here], self._stored[here])

    def met(self, groups: Sequence[Lanes], lanes_of_unit: int) -> None:
        """Learn that lanes go on together, of a block or a cluster, once all of it had arrived."""
        for lanes in groups:
            here = indices(lanes, len(self._lane))
            for unit in np.unique(here // lanes_of_unit):
                mine = here[here // lanes_of_unit == unit]
                others = slice(unit * lanes_of_unit, (unit + 1) * lanes_of_unit)
                self._lane[mine] = _and(_longest(self._arrival[others])[None], BARRIERS)

    def _take(self, chains: Array, lanes: Lanes) -> Array:
        return chains if len(chains) == 1 or lanes is None else chains[lanes]

    def _needed(self, op: Op, lanes: Lanes) -> Array:
        """Return the longest chain of what an operation reads."""
        chains = self._take(self._lane, lanes)
        for slot in (*op.sources, *((op.guard,) if op.guard >= 0 else ())):
            chains = _longer(chains, self._take(self._registers[slot], lanes))
        return chains

    def _after(self, op: Op, chains: Array, *kinds: int) -> Array:
        """Return chains with an operation, which is free or a part of the one before maybe."""
        part, self._statement = op.statement is self._statement, op.statement
        if part or op.statement.opcode.startswith(FREE):
            return chains
        return _and(chains, *kinds)

    def _put(self, slot: int, chains: Array, lanes: Lanes) -> None:
        if lanes is None:
            self._registers[slot] = chains
        else:
            new = np.broadcast_to(self._registers[slot], self._lane.shape).copy()
            new[lanes] = chains
            self._registers[slot] = new

    def _places(self, space: str, here: Array, addresses: Array, width: int) -> list[list[int]]:
        """Return the owner of the memory and the first and last place of each lane's access."""
        assert self._batch is not None
        at = np.broadcast_to(addresses.astype(np.int64), here.shape)
        owner = np.zeros(here.shape, np.int64)
        if space in ("shared", "cluster"):
            blocks = self._batch.shape.size
            owner = self._batch.first + here // self._batch.padded
            rank, at = at >> RANK_SHIFT, at & int(OFFSET)
            owner = np.where(rank > 0, owner // blocks * blocks + rank - 1, owner)
        elif space == "local":
            owner = self._batch.first * self._batch.padded + here
        first, last = at // GRANULE, (at + width - 1) // GRANULE
        places: list[list[int]] = np.stack([owner, first, last], axis=1).tolist()
        return places

    def _read(self, space: str, here: Array, addresses: Array, width: int) -> Array:
        space = "shared" if space == "cluster" else space
        found = np.zeros((here.size, len(KINDS)), np.int64)
        for lane, (owner, first, last) in enumerate(self._places(space, here, addresses, width)):
            for place in range(first, last + 1):
                there = self._memory.get((space, owner, place))
                if there is not None and there[WEIGHT] > found[lane, WEIGHT]:
                    found[lane] = there
        return found

    def _write(self, space: str, here: Array, addresses: Array, width: int, chains: Array) -> None:
        space = "shared" if space == "cluster" else space
        written: dict[tuple[str, int, int], Array] = {}
        for lane, (owner, first, last) in enumerate(self._places(space, here, addresses, width)):
            for place in range(first, last + 1):
                key = (space, owner, place)
                # Of a part of a place, or of one that several lanes write, the longest stays.
                there = written.get(key, self._memory.get(key) if width < GRANULE else None)
                if there is None or chains[lane, WEIGHT] > there[WEIGHT]:
                    there = chains[lane]
                written[key] = there
        self._memory |= written
