"""What ends a basic block: jumps, branches, exits, barriers and warp collectives, as records.

What lanes do there is `execution.warps`' to say.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from ..lanes import Array
from .op import Op
from .statements import Statement
from .types import Reading


@dataclass(eq=False)
class Jump:
    """On to one block: the next one, or a label's.

    Attributes
    ----------
    statement : Statement or None
        None where only the text ends the block: at a label.
    slots, ops : tuple
        What it reads by itself, and the operations that are part of it.
    follower, target : int
        The next block, and that of the label.
    """

    statement: Statement | None = None
    slots: tuple[int, ...] = ()
    ops: tuple[Op, ...] = ()
    follower: int = -1
    target: int | None = None

    def resolve(self, label: str, block: int) -> None:
        """Learn where a label is."""
        self.target = block

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return [self.follower if self.target is None else self.target]


@dataclass(eq=False)
class Branch(Jump):
    """To a label where a predicate holds, else to the next block."""

    negated: bool = False

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        assert self.target is not None
        return [self.target, self.follower]


@dataclass(eq=False)
class IndexedBranch(Jump):
    """Through a table of labels."""

    convert: Reading | None = None
    labels: Sequence[str] = ()
    places: dict[str, int] = field(default_factory=dict)

    def resolve(self, label: str, block: int) -> None:
        """Learn where a label is."""
        self.places[label] = block

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return [self.places[label] for label in self.labels]


@dataclass(eq=False)
class Exit(Jump):
    """The end of the program for these lanes."""

    def followers(self) -> list[int]:
        """Return the blocks that lanes may go to."""
        return []


@dataclass(eq=False)
class Rendezvous(Jump):
    """Where lanes wait for others."""

    @property
    def op(self) -> Op:
        """The one operation."""
        return self.ops[0]


@dataclass(eq=False)
class Meeting(Rendezvous):
    """A warp collective: lanes go on together once every lane that their mask names is here."""


@dataclass(eq=False)
class Barrier(Rendezvous):
    """bar.sync, bar.arrive and bar.red.

    Attributes
    ----------
    reads : sequence
        The slots of its operands, and how each is read.
    numbers : int
        How many of them are its number and its count of threads; a vote may follow.
    result, reduce :
        Where the result of bar.red goes, and what makes it of the votes.
    """

    reads: Sequence[tuple[int, Reading | None]] = ()
    numbers: int = 0
    aligned: bool = True
    waits: bool = True
    votes: bool = False
    result: tuple[int, Reading | None] | None = None
    reduce: Callable[[Array], int] | None = None


@dataclass(eq=False)
class ClusterArrive(Rendezvous):
    """barrier.cluster.arrive: counted in, the lanes go on. `orders` says that memory follows."""

    aligned: bool = True
    orders: bool = True


@dataclass(eq=False)
class ClusterWait(ClusterArrive):
    """barrier.cluster.wait: the lanes go on once every live thread of the cluster arrived."""
