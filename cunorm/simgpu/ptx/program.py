"""A decoded kernel: operations, basic blocks, and which registers are still wanted where."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable

from ..lanes import Array
from .module import Function
from .op import Op
from .terminators import Jump

# What a program puts into a loop that waits for memory to change: without one of these the compiler
# reads the memory once, before the loop.
_ORDERING = re.compile(r"(membar|fence|atom)\b|(ld|st|red)\.(\w+\.)?(acquire|release|acq_rel)\b")
_POLLING = re.compile(
    r"(atom|red|membar|fence|nanosleep|bar\.warp)\b"
    r"|ld\.(?:volatile|relaxed|acquire|mmio)\b"
)


class Block:
    """A straight run of operations, and what decides where its lanes go next.

    Attributes
    ----------
    steps : list or None
        Execution's, of the operations; None until all lanes come here together.
    polls : bool
        Whether a loop through the block may be waiting for other lanes to write to memory.
    ends : bool
        Whether the block is the program's end and nothing else, in a program where lanes wait.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.steps: list[Callable[..., None]] | None = None
        self.terminator = Jump()
        self.polls = self.ends = False


class Program:
    """A decoded kernel.

    Attributes
    ----------
    initial : list of ndarray
        What each slot starts with: constants, and zeros for registers.
    special, symbols : dict
        Slots that a launch fills: special registers by name, addresses by slot.
    orders : bool
        Whether anything in it can order the memory accesses of two blocks.
    """

    def __init__(self, kernel: Function, parameters: dict[str, int], nbytes: int) -> None:
        self.kernel = kernel
        self.parameters = parameters
        self.parameter_bytes = nbytes
        self.local_bytes = 0
        self.initial: list[Array] = []
        self.special: dict[str, int] = {}
        self.symbols: dict[int, tuple[str, int]] = {}
        self.blocks: list[Block] = []
        self.orders = False

    def finish(self) -> None:
        """Learn what its blocks are, once all operations are known."""
        waits = any(block.terminator.ops for block in self.blocks)
        for block in self.blocks:
            ops = [*block.ops, *block.terminator.ops]
            block.ends = waits and not ops and not block.terminator.followers()
            opcodes = {op.statement.opcode for op in ops}
            self.orders |= any(map(_ORDERING.match, opcodes))
            block.polls = any(map(_POLLING.match, opcodes))

    @functools.cached_property
    def wanted(self) -> list[int]:
        """For each block the set of slots, as bits of an integer, that lanes entering it may read.

        What no waiting lane will read may be overwritten in every lane: most writes of a diverged
        group need no merging.
        """
        reads, writes, follow = [], [], []
        for block in self.blocks:
            read = written = 0
            for op in [*block.ops, *block.terminator.ops]:
                for slot in (*op.sources, *((op.guard,) if op.guard >= 0 else ())):
                    read |= (1 << slot) & ~written
                if op.guard < 0:
                    for slot in op.targets:
                        written |= 1 << slot
            for slot in block.terminator.slots:
                read |= (1 << slot) & ~written
            reads.append(read)
            writes.append(written)
            follow.append(block.terminator.followers())
        wanted = reads[:]
        changed = True
        while changed:
            changed = False
            for index in range(len(wanted) - 1, -1, -1):
                after = 0
                for follower in follow[index]:
                    after |= wanted[follower]
                now = reads[index] | (after & ~writes[index])
                if now != wanted[index]:
                    wanted[index], changed = now, True
        return wanted
