"""Two accesses to one place that nothing orders: the record of who touched what.

A record keeps a stamp for every granule of a memory: who wrote it last, and which two parties read
it or used an atomic on it last. A granule is as small as the narrowest access so far, so that
neighbours in one sector, or in one word, are told apart. Accesses of one party are in order; what
orders two parties is the caller's to say, so that the same record serves the warps of a block in
shared memory and the blocks of a launch in global memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .._access import ordered as ordered_at_all
from .._access import put, shift
from ..lanes import Array, Lanes
from ..memory.access import Access
from ..ptx.op import Op

OP_BITS = 12  # operations that a stamp can name; more of them remain without a name
# (earlier stamps, later stamps, whether the earlier are atomics) -> whether they are in order
Ordered = Callable[[Array, Array, bool], Array]


class Touch(NamedTuple):
    """An access by some lanes, each to one unit of memory.

    Attributes
    ----------
    kind, op : Access, Op
        What it does, and the operation that it is of.
    lanes : ndarray or None
        Who makes it, None for every lane of the batch.
    width : int
        The bytes of a unit.
    written : ndarray or None
        The bits that a plain store puts there; None for every other kind. One that leaves memory as
        another party's write made it is no race with that: programs set one flag from many threads.
    """

    kind: Access
    op: Op
    lanes: Lanes
    width: int
    written: Array | None = None

    def __str__(self) -> str:
        return f"{self.width}-byte {self.kind.value}"


# Which earlier accesses, by the list they are kept in, may be a race with each kind of access.
_AGAINST = {
    Access.READ: ("written", "atomic"),
    Access.STRONG_READ: ("written",),
    Access.WRITE: ("written", "read", "atomic"),
    Access.STRONG_WRITE: ("written", "read"),
    Access.ATOMIC: ("written", "read"),
}
# Where each kind is kept. A strong read races with plain writes alone, which look at `read`; kept
# there it would race with atomics too, so it is not kept, and such a race is seen from one side.
_KEPT_IN = {
    Access.READ: "read",
    Access.WRITE: "written",
    Access.STRONG_WRITE: "atomic",
    Access.ATOMIC: "atomic",
}
VERBS = {"written": "wrote", "read": "read", "atomic": "used an atomic or volatile access on"}


class Stamps:
    """Who, with which operation, when: in the bits of an integer, the time uppermost.

    Who that is has a number, in whose lower bits neighbours differ that are one party.

    Parameters
    ----------
    count : int
        How many there are who may access.
    together : int
        How many neighbours are one party: 32 for the lanes of a warp.
    timed : bool
        Whether the time matters. Stamps without it are half as large, where that is enough.
    """

    def __init__(self, count: int, together: int = 1, *, timed: bool = True) -> None:
        self._together = together
        self._within = (together - 1).bit_length()
        bits = max((-(-count // together) << self._within) - 1, 1).bit_length()
        self._who = (1 << bits) - 1
        self.party = self._who & ~((1 << self._within) - 1)
        self._op_shift = bits
        self.time_shift = bits + OP_BITS
        self.timed = timed
        self.dtype = np.dtype(np.int64 if timed or self.time_shift > 31 else np.int32)
        self.last_time = (1 << 63 - self.time_shift) - 1
        self._ops: list[Op | None] = [None]
        self._numbers: dict[int, int] = {}

    def numbers(self, who: Array) -> Array:
        """Return the numbers of these, for stamps to have in them."""
        numbers: Array = who // self._together << self._within | who % self._together
        return numbers.astype(self.dtype)

    def who(self, stamps: Array) -> Array:
        """Return who made these stamps."""
        number = stamps & self._who
        who: Array = (number >> self._within) * self._together
        who += number & ((1 << self._within) - 1)
        return who

    def base(self, op: Op, time: int) -> int:
        """Return the stamp of an operation now, without who."""
        number = self._numbers.get(id(op))
        if number is None:
            number = min(len(self._ops), (1 << OP_BITS) - 1)
            if number == len(self._ops):
                self._ops.append(op)
            self._numbers[id(op)] = number
        return ((time << OP_BITS if self.timed else 0) | number) << self._op_shift

    def op(self, stamp: int) -> Op | None:
        """Return the operation of a stamp."""
        number = stamp >> self._op_shift & ((1 << OP_BITS) - 1)
        return self._ops[number] if number < (1 << OP_BITS) - 1 else None


@dataclass(frozen=True)
class Race:
    """Two accesses without an order: which of the present ones, and the stamp of the earlier."""

    position: int
    verb: str
    stamp: int


class Record:
    """The latest accesses to every granule of one memory.

    Parameters
    ----------
    nbytes : int
        The size of the memory.
    stamps : Stamps
        How its stamps are made; times start at 1, so that 0 is nobody.
    """

    def __init__(self, nbytes: int, stamps: Stamps) -> None:
        self.nbytes = nbytes
        self.stamps = stamps
        self.granule = 0
        # For each list the last stamp, and the last one of another party than that.
        self.last: dict[str, Array] = {}
        self.other: dict[str, Array] = {}

    def access(
        self,
        touch: Touch,
        memory: Array,
        index: Array,
        stamps: Array,
        floor: int,
        ordered: Ordered,
    ) -> Race | None:
        """Look for a race with earlier accesses, and among these; keep them.

        Parameters
        ----------
        memory, index : ndarray
            Where, in units of the access.
        stamps : ndarray
            One for each.
        floor : int
            Everything stamped up to here is known to be in order with these.
        ordered : callable
            Whether pairs of an earlier and a present stamp, above the floor, are in order.
        """
        copies, written = self._copies(touch.width), touch.written
        changes = None if written is None else _Changes(memory, written, index, copies)
        if copies > 1:
            index = (index[:, None] * copies + np.arange(copies)).reshape(-1)
            stamps = np.repeat(stamps, copies)
        race = self._conflict(touch.kind, index, stamps, floor, ordered, changes)
        race = race or self._keep(touch.kind, index, stamps, changes)
        if race is None or copies == 1:
            return race
        return Race(race.position // copies, race.verb, race.stamp)

    def _copies(self, width: int) -> int:
        """Make granules small enough for an access; return how many it touches."""
        if not self.granule:
            self.granule = width
        while width < self.granule:
            self.granule //= 2
            for pair in (self.last, self.other):
                for name, stamps in pair.items():
                    # Where nothing was touched no page of either array is real.
                    kept = np.flatnonzero(stamps)
                    finer = pair[name] = np.zeros(2 * stamps.size, stamps.dtype)
                    finer[2 * kept] = finer[2 * kept + 1] = stamps[kept]
        return width // self.granule

    def _conflict(
        self,
        kind: Access,
        index: Array,
        stamps: Array,
        floor: int,
        ordered: Ordered,
        changes: _Changes | None,
    ) -> Race | None:
        for name in _AGAINST[kind]:
            for pair in (self.last, self.other):
                if name not in pair:
                    continue
                if ordered_at_all(pair[name], index, stamps, self.stamps.party, floor):
                    continue
                earlier = pair[name][index]
                suspect = ((earlier ^ stamps) & self.stamps.party != 0) & (earlier > floor)
                at = np.flatnonzero(suspect)
                if at.size:
                    at = at[~ordered(earlier[at], stamps[at], name == "atomic")]
                if at.size and name == "written" and changes is not None:
                    at = at[changes.memory(at)]
                if at.size:
                    return Race(int(at[0]), VERBS[name], int(earlier[at[0]]))
        return None

    def _keep(
        self, kind: Access, index: Array, stamps: Array, changes: _Changes | None
    ) -> Race | None:
        name = _KEPT_IN.get(kind)
        if name is None:
            return None
        last = self.last.get(name)
        if last is None:
            last = self.last[name] = np.zeros(-(-self.nbytes // self.granule), self.stamps.dtype)
        party = self.stamps.party
        if name != "written":
            if not shift(last, self.other.get(name), index, stamps, party):
                other = self.other[name] = np.zeros_like(last)
                shift(last, other, index, stamps, party)
            return None
        if put(last, index, stamps, party):
            return None
        # Of several at one place only one was kept.
        kept = last[index]
        at = np.flatnonzero((kept ^ stamps) & party)
        if changes is not None:
            at = at[changes.each_other(index, at)]
        return Race(int(at[0]), VERBS[name], int(kept[at[0]])) if at.size else None


class _Changes:
    """Which writes of a store change what is there; positions count granules, `copies` a write."""

    def __init__(self, memory: Array, written: Array, index: Array, copies: int) -> None:
        self._memory, self._index, self._copies = memory, index, copies
        self._written = written

    def _of(self, at: Array) -> Array:
        """Return what the writes at these positions write, of which all lanes may share one."""
        return self._written[at // self._copies if self._written.size > 1 else np.zeros_like(at)]

    def memory(self, at: Array) -> Array:
        """Whether the writes at these positions change what memory holds."""
        return _differ(self._memory[self._index[at // self._copies]], self._of(at))

    def each_other(self, granules: Array, at: Array) -> Array:
        """Whether the writes at these positions change what the last at the same place writes."""
        places, last = np.unique(granules[::-1], return_index=True)
        winner = granules.size - 1 - last[np.searchsorted(places, granules[at])]
        return _differ(self._of(at), self._of(winner))


def _differ(a: Array, b: Array) -> Array:
    # As bytes: wide units are complex numbers, for which a NaN would differ from itself.
    pairs = [np.ascontiguousarray(side).view(np.uint8).reshape(a.size, -1) for side in (a, b)]
    differ: Array = (pairs[0] != pairs[1]).any(axis=1)
    return differ
