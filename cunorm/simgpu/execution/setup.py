"""What a launch starts from: its checks, its parameters and its special registers."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from .. import faults
from ..device.geometry import Extent, Geometry, Shape
from ..lanes import WARP, Array
from ..memory.segment import Segment
from ..memory.space import GlobalMemory
from ..ptx.module import Function
from ..ptx.program import Program
from ..sanitizer.exemptions import Exemption
from ..sanitizer.races import between_blocks
from .decode import Decoder


def program_of(function: Function) -> Program:
    """Return the function decoded, which is done once."""
    program: Program | None = function.program
    if program is None:
        program = function.program = Decoder(function).decode()
    return program


class Launch:
    """What all batches of one launch share."""

    def __init__(
        self,
        function: Function,
        grid: Extent,
        block: Extent,
        shared_bytes: int,
        arguments: list[bytes],
        memory: GlobalMemory,
        device: Any,
        symbols: dict[str, int],
    ) -> None:
        self.function = function
        self.grid, self.block = grid, block
        self.threads, self.blocks = math.prod(block), math.prod(grid)
        self.memory, self.device, self.symbols = memory, device, symbols
        self.printed: list[tuple[int, bytes]] = []  # by thread, in the order of its calls
        self.dynamic_bytes = shared_bytes
        self.workspace = 0  # the address of a cooperative launch's barrier
        self.shared_bytes = function.shared_bytes + shared_bytes
        self.shape = Shape(grid, function.cluster or (1, 1, 1))
        self._check(arguments)
        self.program = program_of(function)
        self.padded = -(-self.threads // WARP) * WARP
        several = self.blocks > self.shape.size and not Exemption.RACES.of(function.name)
        self.races = between_blocks(self.shape, self.program.orders) if several else None
        self.exists = np.arange(self.padded) < self.threads
        self.parameters = self._pack(arguments)

    def geometry(self, first: int, blocks: int) -> Geometry:
        """Return how some of the blocks lie in lanes."""
        return Geometry(self.program, self.shape, self.block, first, blocks)

    def cooperate(self) -> None:
        """Give all blocks, which run in one batch, a barrier.

        It is a word after that of its size, in memory that the driver provides; the code that
        counts blocks in it is cooperative groups' own.
        """
        self.workspace = self.memory.allocate(8, "pinned").address

    def _check(self, arguments: list[bytes]) -> None:
        function = self.function
        place = faults.Place(kernel=function.name)
        if min(*self.grid, *self.block) < 1:
            raise faults.LaunchError(f"grid {self.grid} of blocks {self.block}", place)
        if self.threads > function.max_threads:
            what = f"{self.threads} threads a block, of {function.max_threads} allowed"
            raise faults.LaunchError(what, place)
        problem = self.shape.problem(self.device.arch)
        if function.cluster is None:
            problem = "a cluster of a size that the launch must give, which no launch here can"
        if problem is not None:
            raise faults.LaunchError(f"the launch asks for {problem}", place)
        wanted = [parameter.size for parameter in function.parameters]
        given = [len(argument) for argument in arguments]
        if wanted != given:
            what = f"arguments of {given} bytes for parameters of {wanted}"
            raise faults.LaunchError(what, place)

    def _pack(self, arguments: list[bytes]) -> Segment:
        nbytes = self.program.parameter_bytes
        segment = Segment("param", 1, nbytes, faults.OutOfBounds)
        data = segment.data.data
        for offset, argument in zip(self.program.parameters.values(), arguments, strict=True):
            data[offset : offset + len(argument)] = argument
        return segment

    def pointers(self) -> list[tuple[int, int]]:
        """Return every word of the arguments that may be a pointer, with its argument's number."""
        data = self.parameters.data
        places = zip(self.program.parameters.values(), self.function.parameters, strict=True)
        return [
            (number, int.from_bytes(data[at : at + 8].tobytes(), "little"))
            for number, (offset, parameter) in enumerate(places)
            for at in range(offset, offset + parameter.size - 7, 8)
        ]

    def fill(self, registers: list[Array], batch: Geometry) -> None:
        """Give a batch its special registers and the addresses of variables."""
        for name, slot in self.program.special.items():
            registers[slot] = self._special(name, batch)
        for slot, (name, offset) in self.program.symbols.items():
            if name not in self.symbols:
                raise faults.LaunchError(
                    f"variable {name} has no address", faults.Place(kernel=self.function.name)
                )
            dtype = registers[slot].dtype
            registers[slot] = np.array([self.symbols[name] + offset], np.uint64).astype(dtype)

    def _special(self, name: str, batch: Geometry) -> Array:
        kind, _, axis = name.lstrip("%").partition(".")
        at = "xyz".find(axis) if axis else 0
        if kind == "tid":
            if self.block[at] == 1:
                return _one(0)
            return _threads(at, self.block, self.padded, batch.blocks)
        if kind in ("ctaid", "clusterid", "cluster_ctaid"):
            if (self.grid[at], self.shape.size) == (1, 1):
                return _one(0)
            blocks = np.arange(batch.first, batch.first + batch.blocks)
            return self._per_block(self.shape.coordinate(kind, at, blocks))
        blocks = np.arange(batch.first, batch.first + batch.blocks)
        if kind == "cluster_ctarank":
            return self._per_block(blocks % self.shape.size)
        if kind in ("laneid", "warpid") or kind.startswith("lanemask"):
            return repeated(_within(kind, self.padded), batch.blocks)
        if kind == "smid":
            processors = int(self.device.multiprocessors)
            return np.repeat((blocks % processors).astype(np.uint32), self.padded)
        if kind == "is_explicit_cluster":
            return np.array([self.function.explicit_cluster])
        if kind == "gridid":
            return np.zeros(1, np.uint64)
        return _one(
            {
                "ntid": self.block[at],
                "nctaid": self.grid[at],
                "cluster_nctaid": self.shape.cluster[at],
                "nclusterid": self.shape.clusters[at],
                "cluster_nctarank": self.shape.size,
                "nwarpid": self.padded // WARP,
                "nsmid": int(self.device.multiprocessors),
                "dynamic_smem_size": self.dynamic_bytes,
                "total_smem_size": self.shared_bytes,
                "WARP_SZ": WARP,
                "envreg1": self.workspace >> 32,
                "envreg2": self.workspace & 0xFFFFFFFF,
            }[kind]
        )

    def _per_block(self, values: Array) -> Array:
        if (values == values[0]).all():
            return _one(int(values[0]))
        return np.repeat(values.astype(np.uint32), self.padded)


def repeated(threads: Array, blocks: int) -> Array:
    """Return what a block's threads have for each of some blocks, as an array of its own."""
    return threads.reshape(1, -1).repeat(blocks, axis=0).reshape(-1)


# Programs have few shapes of blocks. Of a whole batch an array is 64 KiB.
@functools.lru_cache(maxsize=64)
def _threads(at: int, block: Extent, padded: int, blocks: int) -> Array:
    """Return each thread's index along an axis, for some blocks."""
    below = math.prod(block[:at])
    return repeated((np.arange(padded) // below % block[at]).astype(np.uint32), blocks)


@functools.lru_cache(maxsize=256)
def _within(kind: str, padded: int) -> Array:
    """Return what tells a thread its place in its warp, or its warp's."""
    thread = np.arange(padded)
    lane = thread % WARP
    value = {
        "laneid": lane,
        "warpid": thread // WARP,
        "lanemask_eq": 1 << lane,
        "lanemask_le": (2 << lane) - 1,
        "lanemask_lt": (1 << lane) - 1,
        "lanemask_ge": (1 << 32) - (1 << lane),
        "lanemask_gt": (1 << 32) - (2 << lane),
    }[kind]
    return value.astype(np.uint32)


def _one(value: int) -> Array:
    return np.array([value], np.uint32)
