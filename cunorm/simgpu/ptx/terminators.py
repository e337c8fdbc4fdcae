"""What ends a basic block: jumps, branches, exits, barriers and warp collectives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..lanes import Array
from .statements import Statement

if TYPE_CHECKING:
    from ..execution.warps import Batch
    from .program import Op
    from .types import Reading

Lanes = Array | None  # indices of lanes, None for every lane of the batch
Groups = Sequence[tuple[int, Lanes]]


class Jump:
    """On to one block: the next one, or a label's."""

    slots: tuple[int, ...] = ()
    ops: tuple[Op, ...] = ()
    statement: Statement | None = None  # None where only the text ends the block: at a label

    def __init__(self) -> None:
        self.follower = -1
        self.target: int | None = None

    def resolve(self, label: str, block: int) -> None:
        """Learn where a label is."""
        self.target = block

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return [self.follower if self.target is None else self.target]

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        return ((self.follower if self.target is None else self.target, lanes),)


class Branch(Jump):
    """To a label where a predicate holds, else to the next block."""

    def __init__(self, slot: int, negated: bool, statement: Statement) -> None:
        super().__init__()
        self.slots = (slot,)
        self.negated = negated
        self.statement = statement

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        assert self.target is not None
        return [self.target, self.follower]

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        assert self.target is not None
        taken = batch.registers[self.slots[0]]
        if taken.size == 1:
            return ((self.target if taken[0] != self.negated else self.follower, lanes),)
        if lanes is not None:
            taken = taken[lanes]
        count = int(np.count_nonzero(taken))
        if count == 0 or count == taken.size:
            return ((self.target if (count != 0) != self.negated else self.follower, lanes),)
        yes, no = np.flatnonzero(taken), np.flatnonzero(~taken)
        if lanes is not None:
            yes, no = lanes[yes], lanes[no]
        if self.negated:
            yes, no = no, yes
        return ((self.target, yes), (self.follower, no))


class IndexedBranch(Jump):
    """Through a table of labels."""

    def __init__(
        self, slot: int, convert: Reading | None, labels: Sequence[str], statement: Statement
    ) -> None:
        super().__init__()
        self.slots = (slot,)
        self.convert = convert
        self.labels = labels
        self.places: dict[str, int] = {}
        self.statement = statement

    def resolve(self, label: str, block: int) -> None:
        """Learn where a label is."""
        self.places[label] = block

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return [self.places[label] for label in self.labels]

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        index = batch.registers[self.slots[0]]
        if self.convert is not None:
            index = self.convert(index)
        if index.size > 1 and lanes is not None:
            index = index[lanes]
        groups: list[tuple[int, Lanes]] = []
        # A value past the table is undefined in PTX; the last label is where hardware ends up too.
        for value in np.unique(index):
            target = self.places[self.labels[min(int(value), len(self.labels) - 1)]]
            if index.size == 1:
                return ((target, lanes),)
            chosen = np.flatnonzero(index == value)
            groups.append((target, chosen if lanes is None else lanes[chosen]))
        return groups


class Exit(Jump):
    """The end of the program for these lanes."""

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return []

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        batch.retire(lanes)
        return ()


class Barrier(Jump):
    """bar.sync, bar.arrive and bar.red."""

    def __init__(
        self,
        op: Op,
        reads: Sequence[tuple[int, Reading | None]],
        numbers: int,
        aligned: bool,
        waits: bool,
        votes: bool,
        target: tuple[int, Reading | None] | None,
        reduce: Callable[[Array], int] | None,
    ) -> None:
        super().__init__()
        self.ops = (op,)
        self.op = op
        self.reads = reads
        self.numbers = numbers
        self.aligned = aligned
        self.waits = waits
        self.votes = votes
        self.target_slot = target
        self.reduce = reduce

    def operand(self, batch: Batch, at: int, lanes: Array) -> Array:
        """Return an operand for each of these lanes."""
        slot, convert = self.reads[at]
        value = batch.registers[slot]
        value = value if value.size == 1 else value[lanes]
        value = value if convert is None else convert(value)
        return np.broadcast_to(value, lanes.shape)

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        return batch.barriers.arrive(self, lanes)


class ClusterArrive(Jump):
    """barrier.cluster.arrive: counted in, the lanes go on. `orders` says that memory follows."""

    def __init__(self, op: Op, aligned: bool, orders: bool) -> None:
        super().__init__()
        self.ops = (op,)
        self.op = op
        self.aligned = aligned
        self.orders = orders

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        return batch.clusters.arrive(self, lanes)


class ClusterWait(ClusterArrive):
    """barrier.cluster.wait: the lanes go on once every live thread of the cluster arrived."""

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        return batch.clusters.wait(self, lanes)


class Meeting(Jump):
    """A warp collective: lanes go on together once every lane that their mask names is here."""

    def __init__(self, op: Op) -> None:
        super().__init__()
        self.ops = (op,)
        self.op = op

    def advance(self, batch: Batch, lanes: Lanes) -> Groups:
        """Return which lanes go where."""
        return batch.meet(self, lanes)
