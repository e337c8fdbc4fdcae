"""How the blocks of a launch lie: in clusters and a grid, and some in the lanes of a batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from ..faults import Place
from ..lanes import WARP, Array
from ..ptx.op import Op
from ..ptx.program import Program
from ..ptx.statements import Statement
from . import sources

Extent = tuple[int, int, int]
PORTABLE_SIZE = 8  # blocks that every device with clusters can hold together


class Shape:
    """A grid of blocks in clusters.

    Blocks are numbered cluster by cluster, so that those of one cluster are neighbours; without
    clusters that is the order of ``%ctaid``.
    """

    def __init__(self, grid: Extent, cluster: Extent) -> None:
        self.grid, self.cluster = grid, cluster
        self.size = cluster[0] * cluster[1] * cluster[2]
        self.clusters: Extent = (
            grid[0] // cluster[0], grid[1] // cluster[1], grid[2] // cluster[2],
        )  # fmt: skip

    def problem(self, arch: int, largest: int = PORTABLE_SIZE) -> str | None:
        """Return why a device cannot launch this grid, or None."""
        if self.size == 1:
            return None
        if arch < 90:
            return f"clusters of {self.cluster} blocks, which begin with sm_90, on sm_{arch}"
        if self.size > largest:
            return f"a cluster of {self.size} blocks, where {largest} are allowed"
        if any(blocks % each for blocks, each in zip(self.grid, self.cluster, strict=True)):
            return f"a grid of {self.grid}, which is no multiple of its cluster of {self.cluster}"
        return None

    def coordinate(self, name: str, axis: int, numbers: Array) -> Array:
        """Return a coordinate of blocks: ``ctaid``, or ``clusterid`` or ``cluster_ctaid``."""
        cluster = numbers // (self.size * math.prod(self.clusters[:axis])) % self.clusters[axis]
        if name == "clusterid":
            return cluster
        within = numbers % self.size // math.prod(self.cluster[:axis]) % self.cluster[axis]
        return within if name == "cluster_ctaid" else cluster * self.cluster[axis] + within

    def block(self, number: int) -> Extent:
        """Return the coordinates of one block."""
        x, y, z = (int(self.coordinate("ctaid", axis, np.array([number]))[0]) for axis in range(3))
        return x, y, z


@dataclass(frozen=True, eq=False)
class Geometry:
    """Some neighbouring blocks of a launch, side by side in the lanes of a batch.

    Attributes
    ----------
    program : Program
        What they run.
    shape : Shape
        The grid that they are of.
    block : tuple of int
        The extent of each, in threads.
    first, blocks : int
        The number of the first of them, and how many there are.
    """

    program: Program
    shape: Shape
    block: Extent
    first: int
    blocks: int

    @cached_property
    def threads(self) -> int:
        """The threads of a block."""
        return math.prod(self.block)

    @cached_property
    def padded(self) -> int:
        """The same, padded to whole warps; the padding never lives."""
        return -(-self.threads // WARP) * WARP

    @cached_property
    def lanes(self) -> int:
        """Those of all blocks, with the padding."""
        return self.blocks * self.padded

    @cached_property
    def clustered(self) -> bool:
        """Whether blocks may reach into each other's shared memory."""
        return self.shape.size > 1

    def place(self, at: Op | Statement | None, lane: int) -> Place:
        """Return where a lane is, in the words of faults."""
        block, thread = divmod(lane, self.padded)
        x, y, _ = self.block
        place = Place(
            kernel=self.program.kernel.name,
            block=self.shape.block(self.first + block),
            thread=(thread % x, thread // x % y, thread // (x * y)),
        )
        statement = at.statement if isinstance(at, Op) else at
        return place if statement is None else sources.placed(place, statement, self.program.kernel)
