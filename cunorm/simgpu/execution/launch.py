"""A launch: its blocks, run in batches of lanes."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from ..device.geometry import Extent
from ..memory.space import GlobalMemory
from ..options import DEFAULT
from ..ptx.module import Function
from ..sync.context import Watch
from . import system
from .progress import Progress
from .setup import Launch
from .warps import Batch

LANES = 16384  # per batch: registers of 64 KiB, several of which fit in a core's L2 cache


class Observer(Protocol):
    """Who counts a launch."""

    def begin(self, launch: Launch) -> Watch:
        """Return who is told what its lanes do."""

    def end(self) -> None:
        """Learn that it ran to its end."""


def run(
    function: Function,
    grid: Extent,
    block: Extent,
    shared_bytes: int,
    arguments: list[bytes],
    *,
    memory: GlobalMemory,
    device: Any,
    symbols: dict[str, int],
    budget: int = DEFAULT.budget,
    cooperative: bool = False,
    observer: Observer | None = None,
) -> None:
    """Execute a kernel over its whole grid.

    Parameters
    ----------
    function : Function
        The kernel.
    grid, block : tuple of int
        Extents (x, y, z) in blocks and in threads.
    shared_bytes : int
        Dynamic shared memory.
    arguments : list of bytes
        One per parameter, as it lies in memory.
    memory : GlobalMemory
        What its pointers point into.
    device : object
        The device; `arch`, `multiprocessors` and `ordinal` are used.
    symbols : dict
        Address of every module-scope variable.
    budget : int
        Instructions that a batch of blocks may take.
    cooperative : bool
        Whether all blocks run at once, and may wait for each other at a barrier of the grid.
    observer : Observer or None
        Who counts it.

    Raises
    ------
    faults.Fault
        What the program did wrong, with its place. Memory keeps what was written before.
    """
    launch = Launch(function, grid, block, shared_bytes, arguments, memory, device, symbols)
    # Blocks of a cluster wait for each other, so that they run in one batch.
    several = launch.shape.size
    per_batch = max(1, LANES // (launch.padded * several)) * several
    if cooperative:
        per_batch = launch.blocks
        launch.cooperate()
    progress = Progress(function.name, launch.blocks, budget)
    watch = None if observer is None else observer.begin(launch)
    try:
        with np.errstate(all="ignore"):
            for first in range(0, launch.blocks, per_batch):
                blocks = min(per_batch, launch.blocks - first)
                batch = Batch(launch, launch.geometry(first, blocks), progress, watch)
                batch.run()
                progress.finished(blocks, batch.steps)
                batch.release()
    finally:
        system.show(launch.printed)
        if launch.workspace:
            memory.free(launch.workspace)
    if observer is not None:
        observer.end()
