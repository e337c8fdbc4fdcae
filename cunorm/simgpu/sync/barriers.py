"""Block barriers: who arrived, who goes on, and who is missed.

A thread that returned early counts as arrived, as on hardware since Volta: one that jumped to the
program's end from in front of the barrier. One that went on behind the barrier without having been
at it, and ended there, is missed, though hardware would let the others go.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Groups, Lanes, indices
from ..ptx.terminators import Barrier
from ..sanitizer.checks import Checks
from ..sanitizer.exemptions import Exemption

NAMED = 16  # barriers per block
_NOT_YET = 1 << 62
Result = tuple[int, Array, Array]  # a slot, what goes there, and for which lanes
Leaving = tuple[Groups, Sequence[Result]]


class Barriers:
    """The barriers of a batch of blocks.

    Lanes that arrived are kept as arrays over the lanes of the batch: which barrier they wait at,
    and where they go on.

    Parameters
    ----------
    registers : list of ndarray
        The registers, of which a barrier has its operands.
    live : ndarray of bool
        Which lanes have not exited.
    """

    def __init__(
        self, batch: Geometry, registers: list[Array], live: Array, checks: Checks
    ) -> None:
        self.batch, self.registers, self.live, self.checks = batch, registers, live, checks
        self.whole = batch.blocks * batch.threads
        self.completed = 0  # barriers, of all the blocks
        self.at: Array | None = None  # the number of the barrier each lane waits at, -1 for none
        self.resume: Array = np.zeros(0, np.int64)
        self.votes: Array = np.zeros(0, bool)
        self.arrived: Array = np.zeros(0, np.int64)  # arrivals that do not wait, block by number
        self.left: Array | None = None  # from which block of the program a lane went to its end
        self._breaks_out = Exemption.BREAKS_OUT_OF_BARRIERS.of(batch.program.kernel.name)

    def wanted(self) -> int:
        """Return which slots the waiting lanes will read."""
        if self.at is None:
            return 0
        wanted = self.batch.program.wanted
        kept = 0
        for index in np.unique(self.resume[self.at >= 0]):
            # The barrier's own block, so that its operands are kept as well.
            kept |= wanted[int(index) - 1]
        return kept

    def arrive(self, barrier: Barrier, lanes: Lanes) -> Leaving:
        """Count a group in; return all lanes that go on, and what registers they find changed."""
        batch = self.batch
        count = batch.lanes if lanes is None else lanes.size
        alone = self.at is None and count == self.whole
        if alone and barrier.numbers < 2 and not barrier.votes and barrier.waits:
            # Every thread of every block, at one barrier or each block at its own: straight on.
            self.checks.barrier_of_all()
            self.completed += batch.blocks
            return ((barrier.follower, lanes),), ()
        here = indices(lanes, batch.lanes)
        numbers = (
            self._operand(barrier, 0, here).astype(np.int64)
            if barrier.numbers
            else np.zeros(here.size, np.int64)
        )
        if int(numbers.max()) >= NAMED:
            self._refuse(barrier, int(here[0]), f"barrier {int(numbers.max())} of {NAMED}")
        if self.at is None:
            self.at = np.full(batch.lanes, -1)
            self.resume = np.zeros(batch.lanes, np.int64)
            self.votes = np.zeros(batch.lanes, bool)
        if not self.arrived.size:
            self.arrived = np.zeros(batch.blocks * NAMED, np.int64)
        keys = here // batch.padded * NAMED + numbers
        leaving: list[tuple[int, Lanes]] = []
        if barrier.waits:
            self.at[here] = keys
            self.resume[here] = barrier.follower
            if barrier.votes:
                self.votes[here] = self._operand(barrier, barrier.numbers, here)
        else:
            np.add.at(self.arrived, keys, 1)
            self.checks.publish(lanes, beyond=False)
            leaving.append((barrier.follower, lanes))
        released, results = self._release(barrier, here, keys)
        return [*leaving, *released], results

    def _operand(self, barrier: Barrier, at: int, lanes: Array) -> Array:
        """Return an operand for each of these lanes."""
        slot, convert = barrier.reads[at]
        value = self.registers[slot]
        value = value if value.size == 1 else value[lanes]
        value = value if convert is None else convert(value)
        return np.broadcast_to(value, lanes.shape)

    def leaves(self, index: int, lanes: Lanes) -> None:
        """Take note that lanes go from a block of the program to its end."""
        if self.left is None:
            self.left = np.full(self.batch.lanes, _NOT_YET)
        self.left[slice(None) if lanes is None else lanes] = -1 if self._breaks_out else index

    def after_exits(self) -> Leaving:
        """Return the lanes that waited for none but those that have ended now."""
        leaving: list[tuple[int, Lanes]] = []
        results: list[Result] = []
        if self.at is None or self.left is None:
            return leaving, results
        for place in np.unique(self.resume[self.at >= 0]).tolist():
            here = self._behind(place)
            if here.size:
                released, changed = self._release(self._barrier(place), here, self.at[here])
                leaving.extend(released)
                results.extend(changed)
        return leaving, results

    def _behind(self, place: int) -> Array:
        """Return the lanes that wait to go on at this block."""
        if self.at is None:
            return np.zeros(0, np.int64)
        return np.flatnonzero((self.at >= 0) & (self.resume == place))

    def _barrier(self, place: int) -> Barrier:
        """Return the barrier behind which lanes go on at this block."""
        barrier = self.batch.program.blocks[place - 1].terminator
        assert isinstance(barrier, Barrier)
        return barrier

    def _early(self, keys: Array) -> Array:
        """Return how many threads of the barriers' blocks returned before they came there."""
        if self.left is None:
            return np.zeros(keys.shape, np.int64)
        assert self.at is not None
        waiting = self.at >= 0
        first = np.full(self.arrived.size, _NOT_YET)
        np.minimum.at(first, self.at[waiting], self.resume[waiting] - 1)
        left = self.left.reshape(-1, self.batch.padded)[keys // NAMED]
        early: Array = np.count_nonzero(left < first[keys][:, None], axis=1)
        return early

    def _release(self, barrier: Barrier, here: Array, keys: Array) -> Leaving:
        batch = self.batch
        assert self.at is not None
        expected = np.full(keys.shape, batch.threads)
        if barrier.numbers == 2:
            expected = self._operand(barrier, 1, here).astype(np.int64)
            if (expected % WARP).any() or not expected.all():
                self._refuse(
                    barrier,
                    int(here[0]),
                    "a barrier for a number of threads that is no whole warps",
                )
        full = batch.padded
        present = np.bincount(self.at[self.at >= 0], minlength=self.arrived.size) + self.arrived
        unique, at = np.unique(keys, return_index=True)
        # Hardware counts warps: a last warp that is not full counts like one that is.
        need = np.where(expected[at] >= full, batch.threads, expected[at])
        early = np.where(need == batch.threads, self._early(unique), 0)
        done = unique[present[unique] + early >= need]
        self.completed += done.size
        leaving: list[tuple[int, Lanes]] = []
        results: list[Result] = []
        for key in done:
            lanes = np.flatnonzero(self.at == key)
            self._check_aligned(barrier, lanes)
            self._order(key, lanes)
            self.arrived[key] = 0
            for index in np.unique(self.resume[lanes]):
                group = lanes[self.resume[lanes] == index]
                results.extend(self._reduced(int(index), lanes, group))
                leaving.append((int(index), group))
        if done.size:
            self.at[np.isin(self.at, done)] = -1
            if not (self.at >= 0).any():
                self.at = None
        return _together(leaving, batch.lanes), results

    def _order(self, key: int, lanes: Array) -> None:
        """Tell the checks who met; threads that returned early did their last work before."""
        if self.left is not None:
            inside = np.arange(self.batch.padded) + key // NAMED * self.batch.padded
            returned = inside[self.left[inside] < self.resume[lanes].min() - 1]
            lanes = np.concatenate([lanes, returned])
        self.checks.barrier(lanes, arrivals=bool(self.arrived[key]))

    def _check_aligned(self, barrier: Barrier, lanes: Array) -> None:
        """Refuse an aligned barrier that lanes of one warp reached at different instructions."""
        if not barrier.aligned:
            return
        warps, resume = lanes // WARP, self.resume[lanes]
        apart = (warps[1:] == warps[:-1]) & (resume[1:] != resume[:-1])
        if apart.any():
            lane = int(lanes[1:][apart][0])
            self._refuse(barrier, lane, "lanes of one warp are at different aligned barriers")

    def _reduced(self, index: int, everyone: Array, group: Array) -> Sequence[Result]:
        """Return bar.red's result, for those who go on."""
        barrier = self._barrier(index)
        if barrier.reduce is None or barrier.result is None:
            return ()
        slot, convert = barrier.result
        value = barrier.reduce(self.votes[everyone])
        held = self.batch.program.initial[slot].dtype
        result = np.array([value]).astype(held if convert is None else np.uint32)
        return [(slot, result if convert is None else convert(result), group)]

    def _refuse(self, barrier: Barrier, lane: int, what: str) -> None:
        raise faults.DivergentBarrier(what, self.batch.place(barrier.op, lane))

    def stuck(self) -> None:
        """Name the threads that a barrier misses."""
        batch = self.batch
        assert self.at is not None
        lane = int(np.flatnonzero(self.at >= 0)[0])
        block = lane // batch.padded
        barrier = self._barrier(int(self.resume[lane]))
        inside = slice(block * batch.padded, block * batch.padded + batch.threads)
        absent = np.flatnonzero(self.at[inside] != self.at[lane])
        exited = np.flatnonzero(~self.live[inside])
        what = (
            f"{batch.threads - absent.size} of {batch.threads} threads wait at a"
            f" barrier that threads {_spans(absent)} do not reach"
        )
        if exited.size:
            what += f" (exited: {_spans(exited)})"
        self._refuse(barrier, lane, what)


def _together(groups: list[tuple[int, Lanes]], lanes: int) -> Groups:
    """Join the groups that go on at one block."""
    by_index: dict[int, list[Array]] = {}
    for index, group in groups:
        if group is not None:
            by_index.setdefault(index, []).append(group)
    joined: list[tuple[int, Lanes]] = []
    for index, some in by_index.items():
        together = np.sort(np.concatenate(some))
        joined.append((index, None if together.size == lanes else together))
    return joined


def _spans(threads: Array) -> str:
    """Write numbers as ranges: 0-3, 7."""
    breaks = np.flatnonzero(np.diff(threads) > 1) + 1
    runs = np.split(threads, breaks)
    return ", ".join(f"{run[0]}-{run[-1]}" if run.size > 1 else f"{run[0]}" for run in runs[:8]) + (
        ", ..." if len(runs) > 8 else ""
    )
