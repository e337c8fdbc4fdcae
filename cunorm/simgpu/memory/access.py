"""Accesses to memory: their kinds and units, where they lie, and what refuses one."""

from __future__ import annotations

from enum import Enum

import numpy as np

from .. import faults
from ..lanes import Array

# Accesses are gathered in units of their whole width; NumPy moves 16-byte complex numbers as bits.
UNITS: dict[int, np.dtype] = {
    np.dtype(code).itemsize: np.dtype(code) for code in ("u1", "u2", "u4", "u8", "c16")
}
# Accesses in one array: it, the indices, and which of the accesses they are, None for all.
Part = tuple[Array, Array, Array | None]


class Access(Enum):
    """What an instruction does to memory.

    Strong accesses (volatile, relaxed, acquire, release) are made to be used by several parties at
    once: among each other and with atomics they are no race. A strong store counts as an atomic.
    """

    READ = "read"
    STRONG_READ = "strong read"
    WRITE = "write"
    STRONG_WRITE = "strong write"
    ATOMIC = "atomic"

    @property
    def reads(self) -> bool:
        """Whether the result depends on what memory held."""
        return self in (Access.READ, Access.STRONG_READ, Access.ATOMIC)

    @property
    def writes(self) -> bool:
        """Whether memory changes."""
        return self in (Access.WRITE, Access.STRONG_WRITE, Access.ATOMIC)

    @property
    def strong(self) -> bool:
        """Whether it may be used to hand something over to another party."""
        return self in (Access.STRONG_READ, Access.STRONG_WRITE, Access.ATOMIC)


class BadAccess(Exception):
    """An access that memory refuses: the fault, its words, and which of the addresses it was.

    Of an access to no live allocation, `address` and `width` are kept, for better words.
    """

    def __init__(
        self, fault: type[faults.Fault], what: str, position: int, address: int = 0, width: int = 0
    ) -> None:
        super().__init__(what)
        self.fault = fault
        self.what = what
        self.position = position
        self.address = address
        self.width = width

    @property
    def access(self) -> str:
        """The access, in words."""
        return f"{self.width}-byte access to global address {self.address:#x}"


def misaligned(addresses: Array, width: int, space: str) -> BadAccess | None:
    """Return the refusal of the first address that is no multiple of `width`, if there is one."""
    wrong = addresses & np.uint64(width - 1) != 0
    if not wrong.any():
        return None
    position = int(wrong.argmax())
    what = f"{width}-byte access to {space} address {int(addresses[position]):#x}"
    return BadAccess(faults.Misaligned, what, position)
