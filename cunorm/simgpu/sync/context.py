"""What an instruction may ask of the batch of blocks that it is executed for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from ..device.geometry import Geometry
from ..device.tables import Device
from ..faults import Place
from ..lanes import Array, Lanes
from ..memory.access import Access, BadAccess
from ..memory.segment import Spaces
from ..memory.space import GlobalMemory
from ..ptx.op import Op
from ..ptx.terminators import Jump
from ..sanitizer.checks import Checks
from .clusters import Clusters
from .copies_in_flight import CopiesInFlight
from .mbarriers import Mbarriers


class Follower(Protocol):
    """Who is told of each operation by itself, to know what depends on what."""

    def computed(self, op: Op, lanes: Lanes) -> None:
        """Learn that lanes ran an operation on registers."""

    def passed_over(self, op: Op, lanes: Array) -> None:
        """Learn that an operation left lanes alone, since its predicate is false there."""

    def ends(self, end: Jump, lanes: Lanes) -> None:
        """Learn that lanes came to the end of a block of the program."""

    def met(self, groups: Sequence[Lanes], lanes_of_unit: int) -> None:
        """Learn that lanes go on together, of a block or a cluster, once all of it had arrived."""


class Watch(Protocol):
    """Who is told what lanes do, to count it."""

    @property
    def follower(self) -> Follower | None:
        """Who is told more."""

    def entered(self, batch: Geometry, index: int, lanes: Lanes) -> None:
        """Learn that a group runs a block of the program."""

    def reached(
        self,
        batch: Geometry,
        lanes: Lanes,
        space: str,
        addresses: Array,
        width: int,
        access: Access,
    ) -> None:
        """Learn that the operation under way accesses memory."""

    def performed(self, batch: Geometry, op: Op, lanes: Lanes) -> None:
        """Learn that an operation with effects is done."""

    def finished(self, barriers: int) -> None:
        """Learn that a batch is done, and how many barriers its blocks met at."""


class Context(Protocol):
    """A batch of blocks, as instructions see it.

    Attributes
    ----------
    geometry : Geometry
        Where the blocks are; `lanes` is how many lanes that makes.
    live_count : int
        The lanes that have not exited.
    steps : int
        Instructions so far.
    yields : bool
        Set by an instruction whose lanes would rather wait.
    memory, spaces :
        Global memory, and the other spaces.
    checks, clusters, copies, mbarriers :
        What is kept of accesses, and of those who wait.
    device : Device
        The device that the launch is on.
    printed : list
        What threads print, by their numbers in the launch.
    watch : Watch or None
        Who counts.
    """

    geometry: Geometry
    lanes: int
    live_count: int
    steps: int
    yields: bool
    memory: GlobalMemory
    spaces: Spaces
    checks: Checks
    clusters: Clusters
    copies: CopiesInFlight
    mbarriers: Mbarriers
    device: Device
    printed: list[tuple[int, bytes]]
    watch: Watch | None

    def place(self, at: Op, lane: int) -> Place:
        """Return where a lane is, in the words of faults."""

    def ballot(self, chosen: Array) -> Array:
        """Return each warp's bits of the chosen lanes, given as a mask or as indices."""

    def explained(self, refusal: BadAccess, op: Op, lane: int) -> BadAccess:
        """Return a refusal of a global access, with the array that it is of where that is known."""
