"""Thread-block clusters: which blocks form one, their barrier, and each other's shared memory.

A shared address of 32 bits (or the low part of a generic one) names a block of the cluster in the
byte above bit 24, as rank + 1; without one it is the accessing block's own. A block's shared memory
is 228 KiB at most, so that the two never meet.
"""

from __future__ import annotations

import numpy as np

from .. import faults
from ..device.geometry import Geometry
from ..lanes import WARP, Array, Groups, Lanes, indices
from ..memory.access import BadAccess
from ..ptx.op import Op
from ..ptx.terminators import ClusterArrive, ClusterWait
from ..sanitizer.checks import Checks

RANK_SHIFT = 24
OFFSET = np.uint64((1 << RANK_SHIFT) - 1)
AWAY, ARRIVED, PASSED = 0, 1, 2  # a lane's place at the cluster barrier


class Clusters:
    """The clusters of a batch: who stands where at the barrier, and who reads whose memory.

    Parameters
    ----------
    live : ndarray of bool
        Which lanes have not exited.
    """

    def __init__(self, batch: Geometry, live: Array, checks: Checks) -> None:
        self.batch, self.live, self.checks = batch, live, checks
        self.size = batch.shape.size
        self.state = np.zeros(0, np.int8)  # of each lane, once there is an arrival
        self.since = self.resume = np.zeros(0, np.int64)
        self.waiting = 0
        self.phases = np.zeros(batch.blocks // self.size, np.int64)
        # For each block the last access from outside that no barrier followed: where it stood.
        self.visitors: dict[int, tuple[Op, int]] = {}

    # The barrier.

    def wanted(self) -> int:
        """Return which slots the waiting lanes will read."""
        kept = 0
        if self.waiting:
            for index in np.unique(self.resume[self.resume >= 0]):
                kept |= self.batch.program.wanted[int(index)]
        return kept

    def arrive(self, barrier: ClusterArrive, lanes: Lanes) -> Groups:
        """Count a group in; it goes on, and so do those who waited for it alone."""
        if not self.state.size:
            self.state = np.zeros(self.batch.lanes, np.int8)
            self.since = np.zeros(self.batch.lanes, np.int64)  # the block after the arrival
            self.resume = np.full(self.batch.lanes, -1)  # where a waiting lane goes on, else -1
        here: Array | slice = slice(None) if lanes is None else lanes
        again = self.state[here] != AWAY
        if again.any():
            lane = int(np.arange(self.batch.lanes)[here][again][0])
            self._refuse(barrier.op, lane, "a second arrival at a cluster barrier with no wait")
        if barrier.orders:
            self.checks.publish(lanes, beyond=False)
        self.state[here] = ARRIVED
        self.since[here] = barrier.follower
        return [(barrier.follower, lanes), *self.release(barrier.op if barrier.aligned else None)]

    def wait(self, barrier: ClusterWait, lanes: Lanes) -> Groups:
        """Let lanes of complete clusters through; others wait."""
        here = indices(lanes, self.batch.lanes)
        here = here[self.live[here]]
        state = self.state[here] if self.state.size else np.full(here.shape, AWAY)
        absent = state == AWAY
        if absent.any():
            lane = int(here[absent][0])
            self._refuse(barrier.op, lane, "a wait at a cluster barrier with no arrival before")
        through, held = here[state == PASSED], here[state == ARRIVED]
        self.state[through] = AWAY
        self.checks.acquire(through)
        self.resume[held] = barrier.follower
        self.waiting += held.size
        if not held.size:
            return ((barrier.follower, lanes),)
        return ((barrier.follower, through),) if through.size else ()

    def release(self, aligned: Op | None = None) -> Groups:
        """Complete the barrier of each cluster all of whose live lanes arrived."""
        live = self.live.reshape(self.phases.size, -1)
        arrived = self.state.reshape(live.shape) == ARRIVED
        complete = (arrived | ~live).all(axis=1) & (arrived & live).any(axis=1)
        if not complete.any():
            return ()
        lanes = np.flatnonzero((complete[:, None] & live).reshape(-1))
        if aligned is not None:
            self._check_aligned(aligned, lanes)
        self.state[lanes] = PASSED
        self.phases += complete
        for block in list(self.visitors):
            if complete[block // self.size]:
                del self.visitors[block]
        if not self.waiting:
            return ()
        free = lanes[self.resume[lanes] >= 0]
        resume = self.resume[free]
        self.checks.acquire(free)
        self.state[free] = AWAY
        self.resume[free] = -1
        self.waiting -= free.size
        every = self.batch.lanes
        groups = [(int(index), free[resume == index]) for index in np.unique(resume)]
        return [(index, None if group.size == every else group) for index, group in groups]

    def _check_aligned(self, op: Op, lanes: Array) -> None:
        """Refuse an aligned arrival that lanes of one warp made at different instructions."""
        warps, since = lanes // WARP, self.since[lanes]
        apart = (warps[1:] == warps[:-1]) & (since[1:] != since[:-1])
        if apart.any():
            lane = int(lanes[1:][apart][0])
            self._refuse(op, lane, "lanes of one warp are at different aligned cluster barriers")

    def stuck(self) -> None:
        """Name the threads that a cluster barrier misses, where lanes wait at one."""
        if not self.waiting:
            return
        batch = self.batch
        lane = int(np.flatnonzero(self.resume >= 0)[0])
        cluster = lane // (self.size * batch.padded)
        inside = slice(cluster * self.size * batch.padded, (cluster + 1) * self.size * batch.padded)
        missed = np.flatnonzero(self.live[inside] & (self.state[inside] != ARRIVED)) + inside.start
        barrier = batch.program.blocks[int(self.resume[lane]) - 1].terminator
        where = batch.place(None, int(missed[0]))
        self._refuse(
            barrier.ops[0],
            lane,
            f"a cluster barrier waits for {missed.size} threads that do not reach it, the first of "
            f"them thread {where.thread} of block {where.block}",
        )

    def _refuse(self, op: Op, lane: int, what: str) -> None:
        raise faults.DivergentBarrier(what, self.batch.place(op, lane))

    # Each other's shared memory.

    def owners(
        self, op: Op, lanes: Lanes, addresses: Array, own: Array, *, far: bool
    ) -> tuple[Array, Array]:
        """Return the offsets and the blocks of the batch that shared addresses name.

        `far` says that a neighbour's will do, as it does for shared::cluster and generic addresses.
        """
        rank = (addresses >> np.uint64(RANK_SHIFT)).astype(np.int64) - 1
        offsets = addresses & OFFSET
        if (rank < 0).all():
            return offsets, own
        if int(rank.max()) >= self.size:
            position = int((rank >= self.size).argmax())
            what = f"shared address {int(addresses[position]):#x} is in no block of the cluster"
            raise BadAccess(faults.SharedOutOfBounds, what, position)
        block = np.where(rank < 0, own, own // self.size * self.size + rank)
        outside: Array = np.not_equal(block, own)
        if outside.any():
            if not far:
                position = int(outside.argmax())
                what = f"shared::cta access to {int(addresses[position % addresses.size]):#x}, an"
                what += f" address of block {int(rank[position % rank.size])} of the cluster"
                raise BadAccess(faults.SharedOutOfBounds, what, position)
            self._visit(op, lanes, np.broadcast_to(block, (block.size,)), own)
        return offsets, block

    def _visit(self, op: Op, lanes: Lanes, block: Array, own: Array) -> None:
        """Refuse a visit to a block that may be gone, or not there yet; remember it otherwise."""
        batch = self.batch
        here = indices(lanes, batch.lanes)
        own = np.broadcast_to(own, block.shape)
        there = self._present()
        outside: Array = np.not_equal(block, own)
        for other in np.unique(block[outside]):
            position = int(((block == other) & outside).argmax())
            what = f"shared memory of block {batch.shape.block(batch.first + int(other))}"
            if not there[other]:
                raise BadAccess(faults.AbsentBlock, f"{what}, which has exited", position)
            if not self.phases[other // self.size]:
                what += ", which may not have started: no cluster barrier came before"
                raise BadAccess(faults.AbsentBlock, what, position)
            self.visitors[int(other)] = (op, int(here[position]))

    def _present(self) -> Array:
        """Return which blocks of the batch have a live thread."""
        present: Array = np.logical_or.reduce(self.live.reshape(self.batch.blocks, -1), 1)
        return present

    def synchronized(self, lanes: Lanes) -> None:
        """Forget the visits to blocks that have just waited for others in another way."""
        if self.visitors:
            here = indices(lanes, self.batch.lanes)
            for block in np.unique(here // self.batch.padded):
                self.visitors.pop(int(block), None)

    def leave(self) -> Groups:
        """Follow lanes that ended: their arrival is no longer needed, and nobody may visit them."""
        batch = self.batch
        if not self.state.size:
            return ()
        groups = self.release()
        if self.visitors:
            there = self._present()
            for block, (op, lane) in self.visitors.items():
                if not there[block]:
                    coordinates = batch.shape.block(batch.first + block)
                    raise faults.AbsentBlock(
                        f"shared memory of block {coordinates}, which may exit before this access: "
                        "no cluster barrier stands between",
                        batch.place(op, lane),
                    )
        return groups
