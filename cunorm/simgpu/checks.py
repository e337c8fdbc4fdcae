"""What every access to shared and global memory is checked for, beyond its address."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .isa import Array
from .races import Access
from .shared_races import SharedRaces
from .terminators import Lanes

if TYPE_CHECKING:
    from .memory import Part, Segment
    from .program import Op
    from .warps import Batch


class Checks:
    """The checks of a batch of blocks, and what they must know of barriers and fences."""

    def __init__(self, batch: Batch) -> None:
        self.races = SharedRaces(batch)

    def shared(
        self,
        kind: Access,
        op: Op,
        lanes: Lanes,
        segment: Segment,
        part: Part,
        width: int,
        written: Array | None,
    ) -> None:
        """Check accesses to shared memory; `written` is what plain stores put there."""
        if kind.strong:
            self.acquire(lanes)
        view, index, _ = part
        store = None if written is None else (view, written)
        self.races.access(kind, op, lanes, segment, index, width, store)

    def elsewhere(self, kind: Access, lanes: Lanes) -> None:
        """Take note of accesses to global memory."""
        if kind.strong:
            self.acquire(lanes)

    def publish(self, lanes: Lanes) -> None:
        """Let others know what these lanes did: a fence, or a release."""
        self.races.publish(lanes)

    def acquire(self, lanes: Lanes) -> None:
        """Let these lanes know what others published."""
        self.races.acquire(lanes)

    def barrier_of_all(self) -> None:
        """Take note that the lanes of each block met at its barrier."""
        self.races.barrier_of_all()

    def barrier(self, lanes: Array, *, arrivals: bool) -> None:
        """Take note that these lanes of one block met, perhaps with others that did not wait."""
        self.races.barrier(lanes)
        if arrivals:
            self.races.acquire(lanes)
