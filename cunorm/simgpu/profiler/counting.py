"""The counting of a launch as it runs."""

from __future__ import annotations

from collections import Counter
from weakref import WeakKeyDictionary

import numpy as np

from ..device.geometry import Geometry
from ..execution.setup import Launch
from ..lanes import WARP, Array, Lanes, indices
from ..memory.access import Access
from ..ptx.op import Op
from ..ptx.program import Block, Program
from ..ptx.statements import Statement
from ..ptx.terminators import Branch, Meeting
from .chain import Chains
from .traffic import KINDS, GlobalCounter, SharedCounter


class Listing:
    """What the profiler needs to know of a program.

    Attributes
    ----------
    opcodes : list of Counter
        What a group of lanes executes by passing through each block.
    meetings : set of Op
        The warp collectives, which count as lanes go through.
    engines : set of Op
        Operations whose shared memory accesses are made by no lane: those of mbarriers and of bulk
        copies. Banks say nothing about them.
    """

    def __init__(self, program: Program) -> None:
        self.opcodes = [_opcodes(block) for block in program.blocks]
        self.meetings = {
            block.terminator.op
            for block in program.blocks
            if isinstance(block.terminator, Meeting) and block.terminator.op.statement.guard is None
        }
        self.engines = {
            op
            for block in program.blocks
            for op in block.ops
            if op.statement.opcode.startswith(("mbarrier", "cp.async.mbarrier", "cp.async.bulk"))
        }


_listings: WeakKeyDictionary[Program, Listing] = WeakKeyDictionary()


def listing_of(program: Program) -> Listing:
    """Return a program's listing, which is made once."""
    listing = _listings.get(program)
    if listing is None:
        listing = _listings[program] = Listing(program)
    return listing


def _opcodes(block: Block) -> Counter[str]:
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
    """The counts of one launch: the watch of all its batches.

    An operation may access memory several times. Its accesses are kept until it is done.

    Parameters
    ----------
    follower : Chains, optional
        Who learns of each operation by itself.
    """

    def __init__(self, launch: Launch, follower: Chains | None = None) -> None:
        self.follower = follower
        self.listing = listing_of(launch.program)
        self.passes = [0] * len(launch.program.blocks)  # of warps through each block
        self.lanes = [0] * len(launch.program.blocks)
        self.met: Counter[str] = Counter()
        self.met_lanes = 0
        self.barriers = 0
        self.memory = GlobalCounter(launch.memory, launch.padded // WARP)
        self.shared = SharedCounter()
        self._pieces: list[tuple[bool, str, Array, Array, int]] = []
        self._last: Array | None = None
        self._last_warps = 0

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

    def entered(self, batch: Geometry, index: int, lanes: Lanes) -> None:
        """Count the lanes that pass through a block."""
        if self.follower is not None:
            self.follower.begin(batch)
        self.passes[index] += self._warps(batch, lanes)
        self.lanes[index] += batch.lanes if lanes is None else lanes.size

    def reached(
        self,
        batch: Geometry,
        lanes: Lanes,
        space: str,
        addresses: Array,
        width: int,
        access: Access,
    ) -> None:
        """Keep an access of the operation under way."""
        if self.follower is not None:
            self.follower.accessed(space, addresses, width, access)
        if space in ("global", "shared", "cluster"):
            here = indices(lanes, batch.lanes)
            kind = "atomic" if access is Access.ATOMIC else "load" if access.reads else "store"
            self._pieces.append((space == "global", kind, here, addresses, width))

    def performed(self, batch: Geometry, op: Op, lanes: Lanes) -> None:
        """Count what one instruction accessed: a request for each warp, state space and kind."""
        if self.follower is not None:
            self.follower.performed(op, lanes)
        if not self._pieces:
            if op in self.listing.meetings:
                self.met[op.statement.opcode] += self._warps(batch, lanes)
                self.met_lanes += batch.lanes if lanes is None else lanes.size
            return
        for counter in (self.memory, self.shared):
            everywhere = counter is self.memory
            if not everywhere and op in self.listing.engines:
                continue
            for kind in KINDS:
                pieces = [piece[2:] for piece in self._pieces if piece[:2] == (everywhere, kind)]
                if len(pieces) == 1:
                    counter.add(kind, batch.first, *pieces[0])
                elif pieces:
                    counter.add(kind, batch.first, *_joined(pieces))
        self._pieces.clear()

    def finished(self, barriers: int) -> None:
        """Count the barriers of a batch."""
        self.barriers += barriers

    def _warps(self, batch: Geometry, lanes: Lanes) -> int:
        """Return how many warps these lanes, which are in order, belong to."""
        if lanes is None:
            return batch.lanes // WARP
        if lanes is not self._last:
            warps = lanes // WARP
            self._last = lanes
            self._last_warps = 1 + int(np.count_nonzero(warps[1:] != warps[:-1]))
        return self._last_warps


def _joined(pieces: list[tuple[Array, Array, int]]) -> tuple[Array, Array, Array]:
    """Return several accesses as one: its lanes in order, their addresses and widths."""
    lanes = np.concatenate([here for here, _, _ in pieces])
    addresses = [np.broadcast_to(each, here.shape) for here, each, _ in pieces]
    widths = [np.full(here.shape, width) for here, _, width in pieces]
    order = np.argsort(lanes, kind="stable")
    return lanes[order], np.concatenate(addresses)[order], np.concatenate(widths)[order]
