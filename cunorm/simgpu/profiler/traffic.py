"""Counting global and shared memory accesses: sectors, by request and by launch, and banks."""

from __future__ import annotations

import numpy as np

from ..lanes import WARP_BITS, Array
from ..memory.allocation import Allocation
from ..memory.space import GlobalMemory
from .counters import ArrayTraffic, SharedTraffic, Traffic

KINDS = ("load", "store", "atomic")
READS = {"load": 1, "store": 0, "atomic": 1}
FLAGS = {"load": 1, "store": 2, "atomic": 4}
SHIFT = 5  # log2 of a sector's bytes
LATEST = (1 << 31) - 1  # beyond the number of any block, and its code fits 32 bits
_SECTOR_BITS = 43  # addresses stay below 2^48
_SECTOR_MASK = (1 << _SECTOR_BITS) - 1


def runs(ordered: Array) -> Array:
    """Return where a new value begins in an ordered array."""
    new = np.empty(ordered.size, bool)
    new[:1] = True
    np.not_equal(ordered[1:], ordered[:-1], out=new[1:])
    return new


def distinct(keys: Array) -> Array:
    """Return the distinct values in order; most accesses of a warp are in order already."""
    if (keys[1:] < keys[:-1]).any():
        keys = np.sort(keys)
    return keys[runs(keys)]


class _Counts:
    """The sums of one kind of access."""

    def __init__(self) -> None:
        self.requests = self.bytes = self.sectors = 0

    def add(self, requests: int, nbytes: int, sectors: int) -> None:
        self.requests += requests
        self.bytes += nbytes
        self.sectors += sectors

    def traffic(self, distinct: int) -> Traffic:
        return Traffic(self.requests, self.bytes, self.sectors, distinct)


class Touched:
    """The sectors of one allocation that a launch touched, and how it touched each first.

    Attributes
    ----------
    flags : ndarray of uint8
        For each sector the kinds of access it saw, as bits.
    first : ndarray of uint32
        ``(LATEST - block) << 1 | reads`` of the lowest block that accessed it, and whether that
        block's first access read it; 0 for none. Later blocks are smaller, so that the greatest
        value is the one that stays.
    """

    def __init__(self, allocation: Allocation) -> None:
        self.allocation = allocation
        self.base = allocation.base >> SHIFT
        self.end = (allocation.end - 1 >> SHIFT) + 1
        sectors = self.end - self.base
        # np.zeros maps pages as they are touched: a large sparse allocation costs little.
        self.flags = np.zeros(sectors, np.uint8)
        self.first = np.zeros(sectors, np.uint32)
        self.low, self.high = sectors, 0
        self.counts = {kind: _Counts() for kind in KINDS}

    def holds(self, sectors: Array) -> Array:
        """Return which of these sectors are the allocation's."""
        inside: Array = (sectors >= self.base) & (sectors < self.end)
        return inside

    def add(self, kind: str, nbytes: int, sectors: Array, warps: Array, blocks: Array) -> None:
        """Count requests for sectors, each with its warp and block, in their order."""
        self.counts[kind].add(int(np.count_nonzero(runs(warps))), nbytes, sectors.size)
        sectors = sectors - self.base
        self.low = min(self.low, int(sectors.min()))
        self.high = max(self.high, int(sectors.max()) + 1)
        self.flags[sectors] |= np.uint8(FLAGS[kind])
        code = (LATEST - blocks << 1 | READS[kind]).astype(np.uint32)
        newer = self.first[sectors] >> 1 < code >> 1
        # Of several blocks the lowest is assigned last, and stays.
        self.first[sectors[newer][::-1]] = code[newer][::-1]

    def distinct(self, kinds: int) -> int:
        """Return how many sectors saw an access of one of these kinds."""
        return int(np.count_nonzero(self.flags[self.low : self.high] & kinds))

    def read_first(self) -> int:
        """Return how many sectors were read before the launch wrote to them."""
        return int(np.count_nonzero(self.first[self.low : self.high] & 1))


class GlobalCounter:
    """All global memory accesses of one launch."""

    def __init__(self, memory: GlobalMemory, warps_per_block: int) -> None:
        self.memory = memory
        self.warps_per_block = warps_per_block
        self.touched: dict[int, Touched] = {}
        self.counts = {kind: _Counts() for kind in KINDS}

    def add(
        self, kind: str, first: int, lanes: Array, addresses: Array, widths: int | Array
    ) -> None:
        """Count what one instruction accessed.

        Parameters
        ----------
        kind : str
            One of `KINDS`.
        first : int
            The block that lane 0 belongs to.
        lanes : ndarray
            The lanes in order, each as often as it makes accesses.
        addresses : ndarray of uint64
            One for each, or one for all of them.
        widths : int or ndarray
            Bytes: a power of two up to 32. Addresses are multiples of it, so that each access lies
            in one sector.
        """
        warps = lanes >> WARP_BITS
        sectors = (addresses >> np.uint64(SHIFT)).view(np.int64)
        # Ordered by warp, then by sector: what is left is what each request asks for.
        keys = distinct((warps << _SECTOR_BITS) | sectors)
        warp, sector = keys >> _SECTOR_BITS, keys & _SECTOR_MASK
        requests = int(np.count_nonzero(runs(warp)))
        wide = np.broadcast_to(widths, lanes.shape)
        nbytes = int(wide.sum()) if wide.strides[0] else wide.size * int(wide[0])
        self.counts[kind].add(requests, nbytes, keys.size)
        blocks = warp // self.warps_per_block + first
        while True:
            touched = self._touched(int(sector[0]))
            inside = touched.holds(sector)
            if inside.all():
                touched.add(kind, nbytes, sector, warp, blocks)
                return
            asked = int(wide[touched.holds(sectors)].sum())
            nbytes -= asked
            touched.add(kind, asked, sector[inside], warp[inside], blocks[inside])
            sector, warp, blocks = sector[~inside], warp[~inside], blocks[~inside]

    def _touched(self, sector: int) -> Touched:
        for touched in self.touched.values():
            if touched.base <= sector < touched.end:
                return touched
        # The memory that a program registers may begin or end anywhere in a sector.
        last = (sector + 1 << SHIFT) - 1
        allocation = self.memory.find(sector << SHIFT) or self.memory.nearest(last)
        assert allocation is not None, "an access that memory allowed lies in no allocation"
        touched = self.touched[allocation.address] = Touched(allocation)
        return touched

    def traffic(self, kind: str) -> Traffic:
        """Return the sums of one kind of access."""
        sectors = sum(touched.distinct(FLAGS[kind]) for touched in self.touched.values())
        return self.counts[kind].traffic(sectors)

    def read_first(self) -> int:
        """Return how many sectors were read before the launch wrote to them."""
        return sum(touched.read_first() for touched in self.touched.values())

    def written(self) -> int:
        """Return how many sectors were written."""
        kinds = FLAGS["store"] | FLAGS["atomic"]
        return sum(touched.distinct(kinds) for touched in self.touched.values())

    def arrays(
        self, pointers: list[tuple[int, int]], symbols: dict[str, int]
    ) -> list[ArrayTraffic]:
        """Return the traffic by allocation; `pointers` are (argument, address) pairs."""
        found = []
        for address, touched in self.touched.items():
            own = touched.allocation
            inside = {at for at, pointer in pointers if own.address <= pointer < own.end}
            arguments = tuple(sorted(inside))
            if arguments:
                name = f"arg{'s' * (len(arguments) > 1)} {', '.join(map(str, arguments))}"
            else:
                named = [name for name, place in symbols.items() if place == address]
                name = named[0] if named else f"{address:#x}"
            kinds = [touched.counts[kind].traffic(touched.distinct(FLAGS[kind])) for kind in KINDS]
            found.append(ArrayTraffic(name, arguments, address, own.nbytes, *kinds))
        return sorted(found, key=lambda array: (not array.arguments, array.arguments, array.name))


class SharedCounter:
    """All shared memory accesses of one launch."""

    def __init__(self) -> None:
        self.sums = {kind: [0, 0, 0, 0] for kind in KINDS}

    def add(self, kind: str, first: int, lanes: Array, offsets: Array, widths: int | Array) -> None:
        """Count what one instruction accessed; the arguments are those of `GlobalCounter.add`."""
        width = int(np.max(widths))
        # Narrower accesses share the words of 4 bytes that banks are made of.
        unit = max(width, 4)
        together = 128 // unit  # lanes served together, and banks of this unit
        groups = lanes // together
        words = np.broadcast_to((offsets // np.uint64(unit)).view(np.int64), lanes.shape)
        if kind != "atomic":
            keys = distinct((groups << _SECTOR_BITS) | words)
            groups, words = keys >> _SECTOR_BITS, keys & _SECTOR_MASK
        new = runs(groups)
        count = int(np.count_nonzero(new))
        passes = np.bincount((np.cumsum(new) - 1) * together + words % together)
        passes = np.pad(passes, (0, count * together - passes.size)).reshape(count, together)
        wavefronts = int(passes.max(axis=1).sum())
        requests = int(np.count_nonzero(runs(lanes >> WARP_BITS)))
        added = (requests, lanes.size * width, wavefronts, wavefronts - count)
        self.sums[kind] = [a + b for a, b in zip(self.sums[kind], added, strict=True)]

    def traffic(self, kind: str) -> SharedTraffic:
        """Return the sums of one kind of access."""
        return SharedTraffic(*self.sums[kind])
