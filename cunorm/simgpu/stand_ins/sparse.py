"""Sparse matrices where they lie, and the elements of which they are made."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..faults import OutOfBounds
from ..lanes import Array
from .host import Call
from .operand import Operand, vector


@dataclass
class Sparse:
    """A sparse matrix in COO, CSR or CSC.

    `major` and `minor` are the addresses of the rows and the columns; of CSC, the other way round.
    In COO both have an index for each element, else the major ones are offsets.
    """

    format: str
    rows: int
    cols: int
    nnz: int
    major: int
    minor: int
    values: int
    index: np.dtype[Any]
    dtype: np.dtype[Any]
    attributes: dict[int, int] = field(default_factory=dict)

    @property
    def extents(self) -> tuple[int, int]:
        """The extents of the major axis and the minor one."""
        return (self.cols, self.rows) if self.format == "csc" else (self.rows, self.cols)

    def offsets(self) -> Operand:
        """Return where the offsets of CSR or CSC lie, or the rows of COO."""
        n = self.nnz if self.format == "coo" else self.extents[0] + 1
        return vector(f"{self.format} offsets", self.major, n, 1, self.index)

    def indices(self) -> Operand:
        """Return where the indices on the minor axis lie."""
        return vector(f"{self.format} indices", self.minor, self.nnz, 1, self.index)

    def elements(self) -> Operand:
        """Return where the values lie."""
        return vector(f"{self.format} values", self.values, self.nnz, 1, self.dtype)

    def read(self, call: Call) -> tuple[Array, Array, Array]:
        """Return the row, the column and the value of each element."""
        major, minor = call.read(self.offsets()), call.read(self.indices())
        if self.format != "coo":
            major = expanded(call, major, self.nnz)
        for name, found, extent in zip(("offsets", "indices"), (major, minor), self.extents,
                                       strict=True):  # fmt: skip
            check_indices(call, name, found, extent)
        elements = call.read(self.elements())
        return (minor, major, elements) if self.format == "csc" else (major, minor, elements)

    def write(self, call: Call, rows: Array, cols: Array, values: Array) -> None:
        """Write elements, which are in the order of the format."""
        major, minor = (cols, rows) if self.format == "csc" else (rows, cols)
        if self.format != "coo":
            major = compressed(major, self.extents[0])
        call.write(self.offsets(), major)
        call.write(self.indices(), minor)
        call.write(self.elements(), values)


def expanded(call: Call, offsets: Array, nnz: int) -> Array:
    """Return the row of each element, of CSR offsets."""
    counts = np.diff(offsets)
    if offsets[0] != 0 or offsets[-1] != nnz or (counts < 0).any():
        raise OutOfBounds(f"{call.function} reads offsets that are not 0 to {nnz} in order")
    return np.repeat(np.arange(counts.size), counts)


def compressed(rows: Array, count: int) -> Array:
    """Return CSR offsets of the rows of elements."""
    return np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=count))])


def check_indices(call: Call, name: str, found: Array, extent: int) -> None:
    """Raise where an index lies outside of its axis."""
    if found.size and not 0 <= found.min() <= found.max() < extent:
        raise OutOfBounds(
            f"{call.function} reads {name} from {found.min()} to {found.max()}, "
            f"of an axis of {extent}"
        )


def summed(rows: Array, cols: Array, values: Array) -> tuple[Array, Array, Array]:
    """Return elements in the order of rows, those of one place added up."""
    order = np.lexsort((cols, rows))
    rows, cols, values = rows[order], cols[order], values[order]
    if not rows.size:
        return rows, cols, values
    first = np.concatenate([[True], (np.diff(rows) != 0) | (np.diff(cols) != 0)])
    totals = np.add.reduceat(values, np.flatnonzero(first))
    return rows[first], cols[first], totals
