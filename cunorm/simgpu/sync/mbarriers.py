"""mbarrier objects: counts of arrivals and of bytes, in phases.

The 64 bits that a program sees of one are opaque, so the state lives here, by the place of the
object in shared memory. A token (the result of an arrival) holds the number of its phase above bit
32 and the arrivals still awaited below.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import Array, Lanes
from ..memory.segment import Spaces
from ..ptx.op import Op
from ..sanitizer.checks import Checks
from .clusters import Clusters
from .copies_in_flight import CopiesInFlight, Copy

MOST = (1 << 20) - 1  # arrivals, and bytes, that one phase can await
PHASE_SHIFT = 32


@dataclass(eq=False)
class Mbarrier:
    """One object: what each phase expects, and what the current one still awaits."""

    expected: int
    pending: int
    bytes: int = 0
    phase: int = 0
    copies: list[Copy] = field(default_factory=list)

    @property
    def token(self) -> int:
        """The state as an arrival returns it."""
        return self.phase << PHASE_SHIFT | self.pending


class Mbarriers:
    """The objects of a batch of blocks, by the index of their 8 bytes in all shared memory."""

    def __init__(
        self,
        batch: Geometry,
        spaces: Spaces,
        checks: Checks,
        clusters: Clusters,
        copies: CopiesInFlight,
    ) -> None:
        self.batch, self.spaces = batch, spaces
        self.checks, self.clusters, self.copies = checks, clusters, copies
        self.objects: dict[int, Mbarrier] = {}

    def begin(self, op: Op, lanes: Array, index: Array, counts: Array) -> None:
        """mbarrier.init."""
        wrong = (counts < 1) | (counts > MOST)
        if wrong.any():
            at = int(wrong.argmax())
            self._refuse(op, int(lanes[at]), f"an mbarrier for {counts[at]} arrivals")
        for at, count in zip(index.tolist(), counts.tolist(), strict=True):
            self.objects[at] = Mbarrier(count, count)

    def end(self, op: Op, lanes: Array, index: Array) -> None:
        """mbarrier.inval."""
        for lane, at in zip(lanes.tolist(), index.tolist(), strict=True):
            self._find(op, lane, at)
            del self.objects[at]

    def arrive(
        self,
        op: Op,
        lanes: Array,
        index: Array,
        counts: Array,
        expects: Array | None = None,
        *,
        drops: bool = False,
        completes: bool = True,
    ) -> Array:
        """Count arrivals in, lane after lane, and return each lane's token.

        Parameters
        ----------
        counts : ndarray
            How many arrivals each lane stands for.
        expects : ndarray or None
            Bytes that each lane adds to what the phase awaits.
        drops : bool
            Whether later phases await as many fewer.
        completes : bool
            Whether an arrival may complete the phase; for .noComplete it may not.
        """
        tokens = np.empty(lanes.size, np.uint64)
        if expects is None and not drops and (counts == 1).all():
            for at in dict.fromkeys(index.tolist()):
                chosen = np.flatnonzero(index == at)
                tokens[chosen] = self._crowd(op, int(lanes[chosen[0]]), at, chosen.size, completes)
            return tokens
        for turn, (lane, at, count) in enumerate(
            zip(lanes.tolist(), index.tolist(), counts.tolist(), strict=True)
        ):
            found = self._find(op, lane, at)
            tokens[turn] = found.token
            if expects is not None:
                self._add_bytes(op, lane, found, int(expects[turn]))
            if drops:
                found.expected -= count
            self._count(op, lane, found, count, completes)
        return tokens

    def _crowd(self, op: Op, lane: int, at: int, many: int, completes: bool) -> Array:
        """Count in many single arrivals at one object."""
        found = self._find(op, lane, at)
        tokens = []
        while many:
            now = min(many, found.pending) or 1
            tokens.append(found.token - np.arange(now, dtype=np.uint64))
            self._count(op, lane, found, now, completes)
            many -= now
        return np.concatenate(tokens)

    def _count(self, op: Op, lane: int, found: Mbarrier, count: int, completes: bool) -> None:
        if count < 1 or count > found.pending:
            what = f"{count} arrivals at an mbarrier that awaits {found.pending}"
            self._refuse(op, lane, what)
        found.pending -= count
        if not completes and not found.pending:
            self._refuse(op, lane, "an arrival with .noComplete completes the phase")
        self._complete(found)

    def expect(self, op: Op, lanes: Array, index: Array, counts: Array) -> None:
        """mbarrier.expect_tx, and with negative counts mbarrier.complete_tx."""
        for lane, at, count in zip(lanes.tolist(), index.tolist(), counts.tolist(), strict=True):
            found = self._find(op, lane, at)
            self._add_bytes(op, lane, found, count)
            self._complete(found)

    def _add_bytes(self, op: Op, lane: int, found: Mbarrier, count: int) -> None:
        found.bytes += count
        if abs(found.bytes) > MOST:
            self._refuse(op, lane, f"{found.bytes} bytes awaited by an mbarrier, of {MOST}")

    def attach(self, op: Op, lane: int, at: int, copy: Copy) -> None:
        """Let a copy land at the latest when the current phase completes."""
        self._find(op, lane, at).copies.append(copy)

    def _complete(self, found: Mbarrier) -> None:
        if found.pending or found.bytes:
            return
        found.phase += 1
        found.pending = found.expected
        copies, found.copies = found.copies, []
        for copy in copies:
            self.copies.arrive(copy)
            self.checks.publish(copy.lanes)

    def test(self, op: Op, lanes: Array, index: Array, tokens: Array, *, parity: bool) -> Array:
        """Return for each lane whether the phase of its token (or of its parity) is over."""
        over = np.zeros(lanes.size, bool)
        for turn, (lane, at) in enumerate(zip(lanes.tolist(), index.tolist(), strict=True)):
            phase = self._find(op, lane, at).phase
            if parity:
                over[turn] = phase & 1 != int(tokens[turn]) & 1
                continue
            asked = int(tokens[turn]) >> PHASE_SHIFT
            if not phase - 1 <= asked <= phase:
                self._refuse(op, lane, f"a token of phase {asked}, in phase {phase}")
            over[turn] = asked != phase
        return over

    def _find(self, op: Op, lane: int, at: int) -> Mbarrier:
        found = self.objects.get(at)
        if found is None:
            offset = at * 8 % self.spaces.shared.stride
            self._refuse(op, lane, f"no mbarrier is initialised at offset {offset:#x}")
        assert found is not None
        return found

    def _refuse(self, op: Op, lane: int, what: str) -> None:
        raise faults.BarrierMisuse(what, self.batch.place(op, lane))

    def waited(self, lanes: Lanes) -> None:
        """Let lanes that saw a phase end know what was done before it."""
        self.checks.acquire(lanes)
        self.clusters.synchronized(lanes)
