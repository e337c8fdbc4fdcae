"""One kernel, specialised for one kind of row."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from . import unit
from .devices import half_of_shared_bytes
from .dtypes import ITEMSIZE, accumulator
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT, Split, whole_packets
from .unit import Try

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .unit import Reach


@dataclass(frozen=True)
class Plan:
    """One kernel, specialised for one kind of row.

    Attributes
    ----------
    kernel : str
        The entry point.
    header : str
        The file in kernels/ that has its parts.
    row : str
        The dtype of the row that is normalised.
    cols : int
        N, the number of columns of a row.
    split : Split
        How the columns are shared out.
    arrays : mapping of str to str
        The kernel's arguments but the last, in their order, and their dtypes.
    of_rows, statistics, parameters, written : tuple of str
        Which of them are arrays of rows, which have one number a row, which are the same for all
        rows, and which are written.
    scalars : tuple of str
        The numbers that follow the strides in the kernel's last argument.
    body : str
        What the entry point calls, of arrays by ``$name``: see `Stage`.
    arch : int
        The architecture, like 90.
    at_once_past_registers : int
        Packets that a lane asks for before it needs the first, where registers do not keep all.
    resident : int or None
        Threads that a multiprocessor should hold, at first; None for those of `resident_threads`.
    if_aligned, if_few : Split or None
        How the columns are shared out instead where every array is reached in whole packets, and
        where each row has a multiprocessor to itself.
    few : bool
        Whether each row has a multiprocessor to itself.
    is_free : bool
        Whether other splits than these may serve, too.
    by_segment : tuple of str or None
        The parameters that have a row for each segment of rows; None where rows have no segments.
    """

    kernel: str
    header: str
    row: str
    cols: int
    split: Split
    arrays: Mapping[str, str] = field(hash=False)
    of_rows: tuple[str, ...]
    statistics: tuple[str, ...]
    parameters: tuple[str, ...]
    written: tuple[str, ...]
    scalars: tuple[str, ...]
    body: str
    arch: int
    at_once_past_registers: int = field(default=PACKETS_IN_FLIGHT, kw_only=True)
    resident: int | None = field(default=None, kw_only=True)
    if_aligned: Split | None = field(default=None, kw_only=True)
    if_few: Split | None = field(default=None, kw_only=True)
    few: bool = field(default=False, kw_only=True)
    is_free: bool = field(default=True, kw_only=True)
    by_segment: tuple[str, ...] | None = field(default=None, kw_only=True)

    @property
    def vec(self) -> int:
        """Columns of a packet."""
        return PACKET_BYTES // ITEMSIZE[self.row]

    @property
    def accumulator(self) -> str:
        """The dtype of sums and statistics."""
        return accumulator(self.row)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return self.split.shared_bytes()

    @property
    def alone(self) -> bool:
        """Whether a multiprocessor's shared memory has no room for two blocks."""
        return self.split.shared_bytes() > half_of_shared_bytes(self.arch)

    @property
    def at_once(self) -> int:
        """Packets that a lane asks for before it needs the first, at first."""
        in_registers = whole_packets(self.cols, self.row) <= self.split.in_registers
        return PACKETS_IN_FLIGHT if in_registers else self.at_once_past_registers

    @property
    def block(self) -> tuple[int, int]:
        """The block's shape: lanes of a row, then rows."""
        return (self.split.lanes, self.split.rows)

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid that covers `rows` rows."""
        return (-(-rows // self.split.rows) * self.split.cluster,)

    def resident_threads(self, reach: Reach) -> int:
        """Return the threads that a multiprocessor should hold, at first: 65536 registers' worth.

        512 have 128 each, which hold four packets, converted, beside what sums and shifts take.
        1024 have 64, enough for three converted packets of an aligned row (`CONVERTED` in row.cuh).
        """
        if self.resident is not None:
            return self.resident
        if self.few:
            return self.split.lanes * self.split.rows
        streamed = (*self.of_rows, *self.parameters)
        # Codes, a byte or less, are none of the four dtypes.
        wide = any(ITEMSIZE.get(self.arrays[n], 1) > ITEMSIZE[self.row] for n in streamed)
        by_element = any(access != "ALIGNED" for n, access in reach.access if n in self.parameters)
        if self.alone:
            return self.split.lanes
        if self.split.packets > 3 or by_element or wide or not reach.all_aligned:
            return 512
        return 1024

    def tries(self, reach: Reach) -> Iterator[Try]:
        """Yield what the kernel is to be built with until nothing of it is left in local memory.

        Registers are the assembler's to count. With one block fewer each time a thread may have
        more of them, then it asks for fewer packets at once. Neither changes a bit.
        """
        blocks = max(1, self.resident_threads(reach) // (self.split.lanes * self.split.rows))
        for fewer in range(blocks, 0, -1):
            yield Try(fewer, self.at_once)
        for at_once in range(self.at_once - 1, 0, -1):
            yield Try(1, at_once)

    def unit(self, reach: Reach, attempt: Try) -> str:
        """Return the translation unit."""
        return unit.write(self, reach, attempt)

    def summary(self, reach: Reach, attempt: Try) -> str:
        """Return the unit's choices in a line, for the log."""
        choices = {"T": self.row} | unit.chosen(self, reach, attempt) | unit.arrays(self, reach)
        return " ".join(f"{name}={value}" for name, value in choices.items())
