"""A decoded kernel: operations, basic blocks, and which registers are still wanted where."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..lanes import Array
from . import module as ptx
from .statements import Statement

if TYPE_CHECKING:
    from ..execution.registers import Registers
    from .types import Reading

Step = Callable[["Registers"], None]


class Op:
    """One operation: a function from source slots to target slots.

    Attributes
    ----------
    function : callable
        Of the operands' arrays; of (batch, op, lanes, operands...) where it is not pure.
    sources, targets : tuple of int
        Register slots.
    guard : int
        The slot of the predicate it stands under, -1 for none; `negated` as written.
    family : str
        Its class, for counters.
    """

    __slots__ = (
        "family",
        "function",
        "guard",
        "negated",
        "pure",
        "sources",
        "statement",
        "targets",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        sources: tuple[int, ...],
        targets: tuple[int, ...],
        guard: int,
        negated: bool,
        pure: bool,
        statement: Statement,
    ) -> None:
        self.function = function
        self.sources = sources
        self.targets = targets
        self.guard = guard
        self.negated = negated
        self.pure = pure
        self.statement = statement
        self.family = "unknown"

    def step(self) -> Step:
        """Return the operation for the case that every live lane takes part."""
        if self.guard >= 0:
            return lambda registers: registers.batch.step_guarded(self)
        if not self.pure:
            return lambda registers: registers.batch.step_effect(self)
        function, sources, targets = self.function, self.sources, self.targets
        if len(targets) != 1:
            return self._several
        target = targets[0]
        # Spelled out by arity: this is the inner loop of everything.
        if len(sources) == 1:
            (a,) = sources

            def one(registers: Registers) -> None:
                registers[target] = function(registers[a])

            return one
        if len(sources) == 2:
            a, b = sources

            def two(registers: Registers) -> None:
                registers[target] = function(registers[a], registers[b])

            return two
        if len(sources) == 3:
            a, b, c = sources

            def three(registers: Registers) -> None:
                registers[target] = function(registers[a], registers[b], registers[c])

            return three

        def many(registers: Registers) -> None:
            registers[target] = function(*[registers[slot] for slot in sources])

        return many

    def _several(self, registers: Registers) -> None:
        results = self.function(*[registers[slot] for slot in self.sources])
        for target, result in zip(self.targets, results, strict=True):
            registers[target] = result


def compose(
    function: Callable[..., Any],
    reads: Sequence[Reading | None],
    writes: Sequence[Reading | None],
    *,
    pure: bool,
) -> Callable[..., Any]:
    """Return `function` on registers as they are held, with its results as they are to be held."""
    if not any(reads) and not any(writes):
        return function
    if not pure:
        return _compose_effect(function, reads, writes)
    if len(writes) != 1:
        inner = function
        function = lambda *operands: _written(inner(*operands), writes)  # noqa: E731
    elif writes[0] is not None:
        function = _after(function, writes[0])
    if not any(reads):
        return function
    if len(reads) == 1 and reads[0] is not None:
        convert = reads[0]
        return lambda a: function(convert(a))
    if len(reads) == 2:
        first, second = reads
        if first is None and second is not None:
            return lambda a, b: function(a, second(b))
        if second is None and first is not None:
            return lambda a, b: function(first(a), b)
        if first is not None and second is not None:
            return lambda a, b: function(first(a), second(b))
    return lambda *operands: function(*_read(operands, reads))


def _after(function: Callable[..., Array], convert: Reading) -> Callable[..., Array]:
    return lambda *operands: convert(function(*operands))


def _read(operands: Sequence[Array], reads: Sequence[Reading | None]) -> list[Array]:
    return [
        operand if convert is None else convert(operand)
        for operand, convert in zip(operands, reads, strict=True)
    ]


def _written(results: Sequence[Array], writes: Sequence[Reading | None]) -> tuple[Array, ...]:
    return tuple(_read(results, writes))


def _compose_effect(
    function: Callable[..., Any], reads: Sequence[Reading | None], writes: Sequence[Reading | None]
) -> Callable[..., Any]:
    def effect(batch: Any, op: Op, lanes: Array | None, *operands: Array) -> tuple[Array, ...]:
        return _written(function(batch, op, lanes, *_read(operands, reads)), writes)

    return effect


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
    polls : bool
        Whether a loop through the block may be waiting for other lanes to write to memory.
    ends : bool
        Whether the block is the program's end and nothing else, in a program where lanes wait.
    """

    def __init__(self) -> None:
        self.ops: list[Op] = []
        self.steps: list[Step] = []
        self.terminator: Any = None
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

    def __init__(self, kernel: ptx.Function, parameters: dict[str, int], nbytes: int) -> None:
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
        """Prepare the steps, once all operations are known."""
        waits = any(block.terminator.ops for block in self.blocks)
        for block in self.blocks:
            block.steps = [op.step() for op in block.ops]
            ops = [*block.ops, *block.terminator.ops]
            block.ends = waits and not ops and not block.terminator.followers()
            self.orders |= any(_ORDERING.match(op.statement.opcode) for op in ops)
            block.polls = any(_POLLING.match(op.statement.opcode) for op in ops)

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
