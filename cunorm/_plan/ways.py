"""The other ways to share out a row than a plan's: which there are. All have the same bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from .backward_kernel import BackwardPlan
from .devices import CLUSTER_ARCHS, shared_bytes
from .dtypes import ITEMSIZE
from .plan import Plan
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT, WARP, Split, whole_packets

LANES = (4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1024)
CLUSTERS = (1, 2, 4, 8)
# Of blocks whose rows share it, none of whose threads wait for another row's.
THREADS_OF_BLOCK = (32, 64, 128, 256, 512)
# That a multiprocessor should hold of a backward kernel.
RESIDENT = (256, 384, 512, 768, 1024)
# Rows of fewer packets are not worth a cluster.
FEWEST_OF_CLUSTER = 1024


class Way(NamedTuple):
    """How a kernel may be built.

    Attributes
    ----------
    split : Split
        How a row is shared out.
    resident : int
        Threads that a multiprocessor should hold; 0 for what the plan says of the split.
    few : bool
        Whether it is built for few rows.
    """

    split: Split
    resident: int = 0
    few: bool = False

    def __str__(self) -> str:
        split = self.split
        cluster = f" c{split.cluster}" if split.cluster > 1 else ""
        resident = f" r{self.resident}" if self.resident else ""
        few = " few" if self.few else ""
        return f"{split.lanes}x{split.rows}{cluster} {split.packets}+{split.shared}{resident}{few}"


def by(plan: Plan, way: Way) -> Plan:
    """Return the plan that goes another way."""
    resident = way.resident or plan.resident
    return replace(
        plan, split=way.split, resident=resident, few=way.few, if_aligned=None, if_few=None
    )


def ways(plan: Plan, *, few: bool = False) -> Iterator[Way]:
    """Yield the plan's own way, and then the others that make sense: few idle lanes, and room.

    `few` asks for those that are built for few rows, too.
    """
    own = Way(plan.split, plan.resident or 0)
    yield own
    if few and plan.if_few is not None:
        splits = dict.fromkeys((plan.if_few, *_splits(plan)))
        yield from (Way(split, few=True) for split in splits if _in_registers(split))
    for split in _splits(plan):
        for resident in RESIDENT if isinstance(plan, BackwardPlan) else (0,):
            way = Way(split, resident)
            if way != own and (not resident or resident >= split.lanes * split.rows):
                yield way


def _in_registers(split: Split) -> bool:
    """Return whether whole warps keep a row in no more registers than few rows are built for."""
    return split.lanes >= WARP and split.shared == 0 and split.packets <= PACKETS_IN_FLIGHT


def _splits(plan: Plan) -> Iterator[Split]:
    backward = isinstance(plan, BackwardPlan)
    packets, leaf = whole_packets(plan.cols, plan.row), plan.split.depth
    room = shared_bytes(plan.arch)
    beside = plan.shared_packet_bytes if isinstance(plan, BackwardPlan) else PACKET_BYTES
    most = (2 if ITEMSIZE[plan.row] == 2 else 4) if backward else 8
    has_clusters = not backward and packets >= FEWEST_OF_CLUSTER and plan.arch in CLUSTER_ARCHS
    for lanes in LANES:
        for cluster in CLUSTERS if has_clusters else (1,):
            of_row = lanes * cluster
            turns = -(-packets // of_row)
            if of_row > WARP:
                turns = -(-turns // leaf) * leaf
            # A lane has whole leaves of the tree, and a block of a cluster is a subtree.
            no_leaves = lanes < WARP < packets
            no_subtree = cluster > 1 and (lanes * turns // leaf).bit_count() > 1
            # What lies in shared memory, and sums over a cluster, are one row's.
            alone = lanes > WARP
            idle = turns == 1 and packets < of_row // 2 and of_row > WARP
            too_long = turns > most and lanes < 256
            if no_leaves or no_subtree or idle or too_long or (cluster > 1 and not alone):
                continue
            for kept in _kept(turns, most, alone, backward):
                if (turns - kept) * lanes * beside > room:
                    continue
                for rows in _rows(plan, lanes):
                    yield Split(lanes, cluster, kept, turns - kept, rows, leaf)


def _kept(turns: int, most: int, alone: bool, backward: bool) -> list[int]:
    """Return how many of a lane's packets registers may keep; shared memory has the others."""
    keeps = {turns} if turns <= most else set()
    if alone and turns > 4:
        keeps |= {4, 6}
    if alone and turns > 1 and backward:
        keeps |= {1, 2}
    return sorted(keep for keep in keeps if keep <= min(turns, most))


def _rows(plan: Plan, lanes: int) -> list[int]:
    """Return how many rows may share a block. Of a backward pass, sums depend on it."""
    if isinstance(plan, BackwardPlan):
        own = plan.split.rows
        return [own] if lanes <= WARP or own == 1 else []
    return [1] if lanes > WARP else [threads // lanes for threads in THREADS_OF_BLOCK]
