"""A batch of blocks that is counted as it runs, and the sums over all batches of a launch."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np

from . import isa
from .isa import Array
from .isa.types import TYPES
from .operands import Operands
from .program import Block, Op, Program
from .statements import Statement
from .terminators import Barrier, Branch, Lanes, Meeting
from .traffic import GlobalCounter, SharedCounter
from .warps import WARP, Batch

if TYPE_CHECKING:
    from .launch import Launch

_WINDOW = np.uint64((1 << Operands.WINDOW_BITS) - 1)


@dataclass(frozen=True)
class Footprint:
    """A memory operation: of what kind, how wide, and where its address comes from."""

    kind: str
    space: str
    width: int
    offset: int
    bits: int

    def addresses(self, base: Array) -> Array:
        """Return the addresses, given the first operand as the register file holds it."""
        held = base.view(f"u{base.dtype.itemsize}")
        if self.offset:
            held = held + np.array([self.offset & ((1 << self.bits) - 1)], held.dtype)
        return held.astype(np.uint64)


def footprint_of(op: Op, program: Program) -> Footprint | None:
    """Describe an operation's access to global or shared memory; None where it makes none."""
    found = isa.find(op.statement.opcode)
    if found is None or found[0].family not in ("load", "store", "atomic"):
        return None
    kind, fields = found[0].family, found[1]
    space = (fields.get("space") or "generic").partition("::")[0]
    if space not in ("global", "shared", "generic"):
        return None
    word = op.statement.opcode.partition(".")[0]
    address = op.statement.operands[0 if word in ("st", "red") else 1]
    _, _, offset = address.strip("[] ").partition("+")
    size = TYPES[str(fields["type"])].dtype.itemsize
    lanes = int((fields.get("vector") or "v1")[1:])
    bits = 8 * program.initial[op.sources[0]].dtype.itemsize
    return Footprint(kind, space, size * lanes, int(offset.strip() or "0", 0), bits)


class Listing:
    """What the profiler needs to know of a program: opcodes by block, and memory operations."""

    def __init__(self, program: Program) -> None:
        self.opcodes = [_opcodes(block) for block in program.blocks]
        self.meetings = {
            block.terminator.op
            for block in program.blocks
            if isinstance(block.terminator, Meeting) and block.terminator.op.statement.guard is None
        }
        self.accesses: dict[Op, Footprint] = {}
        for block in program.blocks:
            for op in block.ops:
                access = footprint_of(op, program)
                if access is not None:
                    self.accesses[op] = access


_listings: WeakKeyDictionary[Program, Listing] = WeakKeyDictionary()


def listing_of(program: Program) -> Listing:
    """Return a program's listing, which is made once."""
    listing = _listings.get(program)
    if listing is None:
        listing = _listings[program] = Listing(program)
    return listing


def _opcodes(block: Block) -> Counter[str]:
    """Return what a group of lanes executes by passing through a block."""
    statements = {id(op.statement): op.statement for op in block.ops}
    counts = Counter(statement.opcode for statement in statements.values())
    terminator = block.terminator
    statement: Statement | None = terminator.statement
    if statement is None and terminator.ops:
        statement = terminator.ops[0].statement
    # What is guarded and ends a block was made a branch around it, which counts in its place.
    # Collectives count as their lanes go through, since lanes may come to them more than once.
    if statement is None or isinstance(terminator, Meeting):
        return counts
    if statement.guard is None or isinstance(terminator, Branch):
        counts[statement.opcode] += 1
    return counts


class Tally:
    """The counts of one launch, over all its batches."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.listing = listing_of(launch.program)
        self.passes = [0] * len(launch.program.blocks)  # of warps through each block
        self.lanes = [0] * len(launch.program.blocks)
        self.met: Counter[str] = Counter()
        self.met_lanes = 0
        self.arrivals: Counter[int] = Counter()  # of threads at barriers for this many threads
        self.memory = GlobalCounter(launch.memory, launch.padded // WARP)
        self.shared = SharedCounter()

    def opcodes(self) -> dict[str, int]:
        """Return the warp instructions by opcode."""
        total = Counter(self.met)
        for passes, opcodes in zip(self.passes, self.listing.opcodes, strict=True):
            for opcode, count in opcodes.items():
                if passes:
                    total[opcode] += passes * count
        return dict(sorted(total.items()))

    def lane_instructions(self) -> int:
        """Return the lanes that were there, summed over the warp instructions."""
        through = zip(self.lanes, self.listing.opcodes, strict=True)
        return self.met_lanes + sum(lanes * opcodes.total() for lanes, opcodes in through)

    def barriers(self) -> int:
        """Return the barriers that blocks went through."""
        return sum(count // expected for expected, count in self.arrivals.items())


class CountedBatch(Batch):
    """A batch that is counted."""

    counted = True

    def __init__(self, launch: Launch, first: int, blocks: int, tally: Tally) -> None:
        super().__init__(launch, first, blocks)
        self.tally = tally
        self._last: Array | None = None
        self._last_warps = 0

    def entered(self, index: int, lanes: Lanes) -> None:
        """Count the lanes that pass through a block."""
        tally = self.tally
        count = self.lanes if lanes is None else lanes.size
        tally.passes[index] += self._warps(lanes)
        tally.lanes[index] += count
        terminator = self.program.blocks[index].terminator
        if isinstance(terminator, Barrier):
            if terminator.numbers < 2:
                tally.arrivals[self.launch.threads] += count
                return
            here = np.arange(self.lanes) if lanes is None else lanes
            expected = np.minimum(terminator.operand(self, 1, here), self.launch.threads)
            for value, arrived in zip(*np.unique(expected, return_counts=True), strict=True):
                tally.arrivals[int(value)] += int(arrived)

    def effect(self, op: Op, lanes: Lanes, kept: int) -> None:
        """Run an operation with effects for a group, and count it."""
        tally = self.tally
        access = tally.listing.accesses.get(op)
        if access is None:
            super().effect(op, lanes, kept)
            if op in tally.listing.meetings:
                tally.met[op.statement.opcode] += self._warps(lanes)
                tally.met_lanes += self.lanes if lanes is None else lanes.size
            return
        # A load may overwrite the register of its own address.
        base = self.registers[op.sources[0]]
        super().effect(op, lanes, kept)
        if lanes is not None and base.size > 1:
            base = base[lanes]
        here = np.arange(self.lanes) if lanes is None else lanes
        self._count(access, access.space, here, access.addresses(base))

    def _count(self, access: Footprint, space: str, lanes: Array, addresses: Array) -> None:
        if space == "global":
            self.tally.memory.add(access.kind, self.first, lanes, addresses, access.width)
        elif space == "shared":
            self.tally.shared.add(access.kind, lanes, addresses & _WINDOW, access.width)
        elif space == "generic":
            tops = addresses >> np.uint64(self.WINDOW_BITS)
            for top in np.unique(tops):
                chosen = np.flatnonzero(tops == top)
                some = lanes if addresses.size == 1 else lanes[chosen]
                self._count(access, str(self.space_at(int(top))), some, addresses[chosen])

    def _warps(self, lanes: Lanes) -> int:
        """Return how many warps these lanes, which are in order, belong to."""
        if lanes is None:
            return self.lanes // WARP
        if lanes is not self._last:
            warps = lanes // WARP
            self._last = lanes
            self._last_warps = 1 + int(np.count_nonzero(warps[1:] != warps[:-1]))
        return self._last_warps
