"""Which bytes were written since their memory was allocated."""

from __future__ import annotations

import numpy as np

from .._access import mark, written
from ..lanes import Array

WRITTEN = 255


class Written:
    """A map of bytes, in which a written one is 255, so that it can be read in units of any width.

    Parameters
    ----------
    nbytes : int
        The size of the memory.
    """

    def __init__(self, nbytes: int) -> None:
        self.nbytes = nbytes
        self._map: Array | None = None  # made by the first write of less than everything
        self._views: dict[np.dtype, Array] = {}
        # A lower bound of the bytes missing, from the last count and the writes since.
        self._missing = nbytes

    @property
    def map(self) -> Array:
        """The map itself."""
        if self._map is None:
            self._map = np.zeros(self.nbytes, np.uint8)
        return self._map

    def _view(self, unit: np.dtype) -> Array:
        view = self._views.get(unit)
        if view is None:
            whole = self.nbytes // unit.itemsize * unit.itemsize
            view = self._views[unit] = self.map[:whole].view(unit)
        return view

    def write(self, index: Array, unit: np.dtype) -> None:
        """Mark units at these indices."""
        mark(self.map, index, unit.itemsize)
        self._missing -= index.size * unit.itemsize

    def forget(self, index: Array, unit: np.dtype) -> None:
        """Count units as not written any more."""
        if index.size:
            self._view(unit)[index] = 0

    def known(self, index: Array, unit: np.dtype) -> Array:
        """Return of each unit whether all its bytes were written."""
        found = np.ascontiguousarray(self._view(unit)[index]).view(np.uint8)
        known: Array = (found.reshape(index.size, -1) == WRITTEN).all(axis=1)
        return known

    def write_range(self, start: int, stop: int) -> None:
        """Mark the bytes from `start` to `stop`."""
        if self._map is None and stop - start == self.nbytes:
            self._missing = 0
            return
        self.map[start:stop] = WRITTEN
        self._missing -= stop - start

    def copy(self, start: int, other: Array) -> None:
        """Take over a part of another map."""
        self.map[start : start + other.size] = other
        self._missing -= other.size

    @property
    def complete(self) -> bool:
        """Whether every byte was written; they are counted once enough writes came for that."""
        if self._missing > 0:
            return False
        if self._map is not None:
            self._missing = self.nbytes - int(np.count_nonzero(self._map))
        return self._missing <= 0

    def unwritten(self, index: Array, unit: np.dtype) -> int | None:
        """Return the position of the first unit with a byte that was not written, if any."""
        if self._map is None:
            return 0
        if written(self._map, index, unit.itemsize):
            return None
        return int(self.known(index, unit).argmin())

    def _elements(
        self, start: int, shape: tuple[int, ...], steps: tuple[int, ...], itemsize: int
    ) -> Array:
        """Return the part of the map for elements of an array that begins at byte `start`."""
        return np.ndarray((*shape, itemsize), np.uint8, self.map, start, (*steps, 1))

    def write_elements(
        self, start: int, shape: tuple[int, ...], steps: tuple[int, ...], itemsize: int
    ) -> None:
        """Mark the elements of an array that begins at byte `start`; `steps` are in bytes."""
        elements = self._elements(start, shape, steps, itemsize)
        elements[...] = WRITTEN
        self._missing -= elements.size

    def unwritten_element(
        self, start: int, shape: tuple[int, ...], steps: tuple[int, ...], itemsize: int
    ) -> int | None:
        """Return which element of an array has a byte that was not written, if any, in C order."""
        if self._map is None:
            return 0
        elements = self._elements(start, shape, steps, itemsize)
        if int(elements.min()) == WRITTEN:
            return None
        return int((elements != WRITTEN).any(axis=-1).argmax())
