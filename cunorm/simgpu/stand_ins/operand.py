"""Operands of a library's function: arrays in device memory, checked as a kernel's accesses are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import faults
from ..lanes import Array
from ..memory.allocation import Allocation
from ..memory.space import GlobalMemory


@dataclass(frozen=True)
class Operand:
    """Where the elements of an argument lie.

    Attributes
    ----------
    name : str
        What the library calls the argument.
    address : int
        Of the element whose indices are all 0.
    shape, strides : tuple of int
        As NumPy has them; strides are in elements.
    dtype : numpy.dtype
        Of an element.
    """

    name: str
    address: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many elements there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def nbytes(self) -> int:
        """Bytes of the elements, without what lies between them."""
        return self.size * self.dtype.itemsize

    @property
    def steps(self) -> tuple[int, ...]:
        """Strides in bytes."""
        return tuple(stride * self.dtype.itemsize for stride in self.strides)

    def extent(self) -> tuple[int, int]:
        """Return the first address and the one past the last."""
        spans = [(n - 1) * step for n, step in zip(self.shape, self.steps, strict=True)]
        low = self.address + sum(span for span in spans if span < 0)
        high = self.address + sum(span for span in spans if span > 0)
        return low, high + self.dtype.itemsize


def matrix(
    name: str, address: int, rows: int, columns: int, ld: int, dtype: np.dtype[Any]
) -> Operand:
    """Return a matrix in the order of columns, as BLAS has it: `ld` from one to the next."""
    return Operand(name, address, (rows, columns), (1, ld), dtype)


def vector(name: str, address: int, n: int, increment: int, dtype: np.dtype[Any]) -> Operand:
    """Return a vector; with a negative increment it starts at its last element, as BLAS has it."""
    first = address + (max(n - 1, 0) * -increment * dtype.itemsize if increment < 0 else 0)
    return Operand(name, first, (n,), (increment,), dtype)


def row_major(name: str, address: int, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Operand:
    """Return an array in C order."""
    strides = tuple(int(np.prod(shape[at + 1 :], dtype=np.int64)) for at in range(len(shape)))
    return Operand(name, address, shape, strides, dtype)


def locate(memory: GlobalMemory, operand: Operand, function: str, verb: str) -> Allocation:
    """Return the one allocation that holds the elements, or raise what is wrong with them."""
    low, high = operand.extent()
    what = f"{function} {verb} {operand.name}: {high - low} bytes at {low:#x}"
    allocation = memory.find(low)
    if allocation is None:
        nearest = memory.nearest(low)
        near = f"; the nearest below is the {nearest}" if nearest is not None else ""
        raise faults.OutOfBounds(f"{what}, which no allocation holds{near}")
    if allocation.freed:
        raise faults.UseAfterFree(f"{what}, in the {allocation}")
    if allocation.kind == "device" and allocation.device in memory.unreachable:
        raise faults.NoPeerAccess(
            f"{what}, in the {allocation} of device {allocation.device}, "
            "to which there is no peer access"
        )
    if high > allocation.end:
        raise faults.OutOfBounds(
            f"{what}, {high - allocation.end} past the end of the {allocation}"
        )
    if operand.address % operand.dtype.itemsize:
        raise faults.Misaligned(f"{what}, where each element is {operand.dtype.itemsize} bytes")
    return allocation


def view(allocation: Allocation, operand: Operand) -> Array:
    """Return the elements where they lie."""
    offset = operand.address - allocation.base
    return np.ndarray(operand.shape, operand.dtype, allocation.data, offset, operand.steps)


def check_written(allocation: Allocation, operand: Operand, function: str) -> None:
    """Raise where an element has a byte that nothing has written."""
    if allocation.written is None:
        return
    start = operand.address - allocation.base
    at = allocation.written.unwritten_element(
        start, operand.shape, operand.steps, operand.dtype.itemsize
    )
    if at is None:
        return
    index = tuple(int(each) for each in np.unravel_index(at, operand.shape))
    offset = start + sum(i * step for i, step in zip(index, operand.steps, strict=True))
    raise faults.Uninitialised(
        f"{function} reads {operand.name}{list(index)}: {operand.dtype.itemsize} bytes at global "
        f"address {allocation.base + offset:#x}, {allocation.base + offset - allocation.address} "
        f"bytes into {allocation!r}, not all of which was ever written"
    )


def note_written(allocation: Allocation, operand: Operand) -> None:
    """Take note that the elements are written."""
    if allocation.written is not None:
        allocation.written.write_elements(
            operand.address - allocation.base, operand.shape, operand.steps, operand.dtype.itemsize
        )
        allocation.forget_if_written()


@dataclass(frozen=True)
class Column:
    """The part of a matrix's column that is in a triangle: its number, the rows, where it lies."""

    number: int
    rows: slice
    operand: Operand


def columns_of(a: Operand, uplo: int, *, strict: bool = False) -> list[Column]:
    """Return the columns of the lower (0) or upper triangle, without the diagonal if `strict`."""
    n = a.shape[0]
    found = []
    for number in range(n):
        rows = slice(0, number + 1 - strict) if uplo else slice(number + strict, n)
        first = rows.start * a.steps[0] + number * a.steps[1]
        name, count = f"{a.name}, column {number}", rows.stop - rows.start
        part = Operand(name, a.address + first, (count,), a.strides[:1], a.dtype)
        found.append(Column(number, rows, part))
    return found
