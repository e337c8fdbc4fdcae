"""What has put two parties in order: barriers, and fences that an access of the other came after.

A party is what is in program order with itself: a warp, or a lane where a program asks for that
much. Its own accesses are no race, so that code written for warps in lockstep passes. Of the blocks
of a launch there are too many for each to know of each other: `GridClock` is for them.
"""

from __future__ import annotations

import numpy as np

from ..lanes import Array, Lanes


class Clock:
    """A vector clock of the parties in a batch, team by team.

    Parameters
    ----------
    lanes : int
        Those of the batch.
    together : int
        How many neighbouring lanes are one party.
    team : int
        How many neighbouring parties share memory: the warps of a block or of a cluster, or the
        lanes of a warp. What two parties of different teams do is for another clock to order.

    Attributes
    ----------
    known : ndarray
        `known[a, b]` is the time up to which everything that party `b` of the team did is in order
        with what party `a` does now.
    published : ndarray
        The same for what parties of each team made known with a fence.
    looked : ndarray
        The time of each party's last atomic or volatile access.
    settled : int
        Up to when everything is in order with everything from now on.
    in_use : bool
        Whether there is anything to keep in order yet.
    """

    def __init__(self, lanes: int, together: int, team: int) -> None:
        self.together, self.team = together, team
        parties = lanes // together
        self.time = 1
        self.settled = 0
        self.in_use = False
        self.known = np.zeros((parties, team), np.int64)
        self.published = np.zeros((parties // team, team), np.int64)
        self.looked = np.zeros(parties, np.int64)

    def tick(self) -> int:
        """Return the time of one more access."""
        self.in_use = True
        self.time += 1
        return self.time

    def ordered(self, before: Array, now: Array, time: Array, atomic: bool) -> Array:
        """Whether what lanes did at a time, with atomics or not, is in order with what others do.

        Atomics have an order of their own: one's own may stand behind all the others'.
        """
        before, now = before // self.together, now // self.together
        ordered: Array = time <= self.known[now, before % self.team]
        if atomic:
            ordered |= time <= self.looked[now]
        ordered |= before // self.team != now // self.team
        return ordered

    def _parties(self, lanes: Lanes) -> Array:
        if lanes is None:
            return np.arange(self.looked.size)
        return lanes if self.together == 1 else np.unique(lanes // self.together)

    def meet(self, lanes: Array) -> None:
        """Order what these lanes of one team did before what they do next."""
        if self.in_use:
            parties = self._parties(lanes)
            self.known[parties, parties % self.team] = self.time
            self.known[parties] = self.known[parties].max(axis=0)

    def meet_each(self, count: int) -> None:
        """Order what each `count` neighbouring parties did before what they do next."""
        if not self.in_use:
            return
        if count == self.team:
            self.known[:] = self.settled = self.time
            return
        parties = np.arange(self.looked.size)
        self.known[parties, parties % self.team] = self.time
        met = self.known.reshape(-1, count, self.team)
        met[:] = met.max(axis=1, keepdims=True)

    def catch_up(self, lanes: Array) -> None:
        """Order everything that these lanes' teams did before what they do next."""
        self.known[self._parties(lanes)] = self.time

    def publish(self, lanes: Lanes) -> None:
        """Let others of the team, once they acquire, know what these did and know."""
        if self.in_use:
            parties = self._parties(lanes)
            self.known[parties, parties % self.team] = self.time
            np.maximum.at(self.published, parties // self.team, self.known[parties])

    def acquire(self, lanes: Lanes) -> None:
        """Let these know what was published."""
        if self.in_use:
            parties = self._parties(lanes)
            self.looked[parties] = self.time + 1
            published = self.published[parties // self.team]
            self.known[parties] = np.maximum(self.known[parties], published)


class GridClock:
    """The same for the blocks of a launch: a fence is for all of them.

    Parameters
    ----------
    blocks : int
        How many there are; 0 where the program has nothing that could order them.
    last : int
        The last time there is.
    """

    settled = 0

    def __init__(self, blocks: int, last: int) -> None:
        self.time = 1
        self._last = last
        # The time of each block's last fence, and of its last access that may see another's.
        self.fenced = np.zeros(blocks, np.int64)
        self.looked = np.zeros(blocks, np.int64)

    def tick(self) -> int:
        """Return the time of one more access, which only fences and acquisitions move on."""
        return self.time

    def ordered(self, before: Array, now: Array, time: Array, atomic: bool) -> Array:
        """Whether what blocks did at a time is in order with what others do now."""
        if not self.fenced.size:
            return np.zeros(before.shape, bool)
        looked = self.looked[now]
        ordered: Array = (
            time <= looked if atomic else (time < self.fenced[before]) & (time < looked)
        )
        return ordered

    def publish(self, blocks: Array) -> None:
        """Take note of a fence."""
        self._note(self.fenced, blocks)

    def acquire(self, blocks: Array) -> None:
        """Take note of an access that may see what others did before their fences."""
        self._note(self.looked, blocks)

    def _note(self, times: Array, blocks: Array) -> None:
        if times.size:
            self.time = min(self.time + 1, self._last)
            times[blocks] = self.time
