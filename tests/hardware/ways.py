"""Other ways to share out a row than the plan's: which there are, and how a call takes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest.mock import patch

from cunorm import _plan
from cunorm._plan import ITEMSIZE, PACKET_BYTES, Split, backward_kernel
from cunorm._plan.devices import SHARED_BYTES, SUMS_BYTES
from cunorm._plan.split import WARP

from .cases import Case, few_rows
from .session import start_device

LANES = (4, 8, 16, 32, 64, 96, 128, 192, 256, 320, 384, 512, 768, 1024)
RESIDENT = (256, 384, 512, 768, 1024)


@dataclass(frozen=True)
class Way:
    """A way to share out a row.

    Attributes
    ----------
    split : Split
        As a plan has it.
    resident : int
        Threads that a multiprocessor holds of a backward kernel; 0 of a forward one.
    """

    split: Split
    resident: int = 0

    def __str__(self) -> str:
        split = self.split
        cluster = f" c{split.cluster}" if split.cluster > 1 else ""
        resident = f" r{self.resident}" if self.resident else ""
        return f"{split.lanes}x{split.rows}{cluster} {split.packets}+{split.shared}{resident}"


@contextmanager
def noting() -> Iterator[list[tuple[Any, Any]]]:
    """Note the plan and the kernel of each launch that is worked out meanwhile."""
    from cunorm._call import remembered
    from cunorm._launch import kernels

    noted = []
    load = kernels.load

    def note(plan: Any, *which: Any) -> Any:
        noted.append((plan, load(plan, *which)))
        return noted[-1][1]

    remembered.clear()  # a repeated call would not work it out again
    try:
        with patch.object(kernels, "load", note):
            yield noted
    finally:
        remembered.clear()


@contextmanager
def in_force(way: Way) -> Iterator[None]:
    """Have every plan made meanwhile take a way."""

    def split(*_: Any, **__: Any) -> Split:
        return way.split

    def no_other(*_: Any, **__: Any) -> None:
        return None

    resident = (way.resident, way.resident)
    forget_plans()
    try:
        with (
            patch.object(_plan.split, "forward", split),
            patch.object(_plan.split, "backward", split),
            patch.object(_plan.split, "in_registers", no_other),
            patch.object(backward_kernel, "RESIDENT_THREADS", {}),
            patch.object(backward_kernel, "RESIDENT_THREADS_ELSEWHERE", resident),
        ):
            yield
    finally:
        forget_plans()


def forget_plans() -> None:
    """Empty the caches of all that plans."""
    for function in (_plan.forward, _plan.backward, _plan.column_sums):
        function.cache_clear()


def kernel_of(case: Case) -> tuple[Any, Any]:
    """Return the plan and the kernel of a call, which runs on few rows."""
    cupy = start_device()
    from cunorm._bench import cases

    few = few_rows(case)
    with noting() as noted:
        cases.call(few, cases.arrays(few))
    cupy.cuda.get_current_stream().synchronize()
    first: tuple[Any, Any] = noted[0]  # before the kernel that adds up sums of columns
    return first


def compile_way(case: Case, way: Way) -> None:
    """Compile a way, by a call on few rows."""
    with in_force(way):
        kernel_of(case)


def ways(case: Case) -> list[Way]:
    """Return the plan's own way of a case, and then the others."""
    plan, _ = kernel_of(case)
    own = Way(plan.split, plan.resident if case.is_backward else 0)
    others = (
        Way(split, resident)
        for split in splits(case, plan)
        for resident in (RESIDENT if case.is_backward else (0,))
        if not resident or resident >= split.lanes * split.rows
    )
    return list(dict.fromkeys((own, *others)))


def splits(case: Case, plan: Any) -> Iterator[Split]:
    """Yield the splits that make sense of a row of a case: few idle lanes, and room for it."""
    from cunorm._launch import kernels

    whole = max(1, case.cols * ITEMSIZE[case.dtype] // PACKET_BYTES)
    room = SHARED_BYTES[kernels.arch(0)] - SUMS_BYTES
    beside = plan.shared_packet_bytes if case.is_backward else PACKET_BYTES
    most = (2 if ITEMSIZE[case.dtype] == 2 else 4) if case.is_backward else 8
    clusters = (1,) if case.is_backward or whole < 1024 else (1, 2, 4, 8)
    for lanes in LANES:
        for cluster in clusters:
            turns, depth = -(-whole // (lanes * cluster)), plan.split.depth
            if lanes * cluster > WARP:
                turns = -(-turns // depth) * depth
            # A lane has whole leaves of the tree, and a block of a cluster is a subtree.
            no_leaves = lanes < WARP < whole
            no_subtree = cluster > 1 and (lanes * turns // depth).bit_count() > 1
            # What lies in shared memory, and sums over a cluster, are one row's.
            alone = lanes >= 64
            idle = turns == 1 and whole < lanes * cluster // 2 and lanes * cluster > 32
            too_long = turns > most and lanes < 256
            if no_leaves or no_subtree or idle or too_long or (cluster > 1 and not alone):
                continue
            for packets in _packets(turns, most, alone, case.is_backward):
                shared = turns - packets
                if shared * lanes * beside > room:
                    continue
                for threads in (lanes,) if lanes > 32 else (32, 64, 128, 256, 512):
                    yield Split(
                        lanes=lanes,
                        cluster=cluster,
                        packets=packets,
                        shared=shared,
                        rows=threads // lanes,
                        depth=depth,
                    )


def _packets(turns: int, most: int, alone: bool, backward: bool) -> list[int]:
    """Return how many of a lane's packets registers may keep; shared memory has the others."""
    keeps = {turns} if turns <= most else set()
    if alone and turns > 4:
        keeps |= {4, 6}
    if alone and turns > 1 and backward:
        keeps |= {1, 2}
    return sorted(keep for keep in keeps if keep <= min(turns, most))


def fewer(found: list[Way], count: int) -> list[Way]:
    """Return the first of the ways, the plan's, and some of the others."""
    return found[:: max(1, len(found) // count)]
