"""Memory in pieces that all lie in one array: shared, local, parameters."""

from __future__ import annotations

import numpy as np

from .. import faults
from .._access import place
from ..lanes import Array
from .access import UNITS, BadAccess, Part, misaligned
from .initialised import Written

# Host addresses stay below 2^47, and other spaces get windows of generic addresses above.
WINDOW_BITS = 48
WINDOWS = {
    "global": 0,
    "const": 0,
    "shared": 1 << WINDOW_BITS,
    "local": 2 << WINDOW_BITS,
    "param": 3 << WINDOW_BITS,
}


class Segment:
    """Memory in equal pieces, one per block (shared) or per thread (local), or one (parameters).

    Parameters
    ----------
    space : str
        Its name in messages.
    pieces, nbytes : int
        How many pieces, and the bytes of each.
    fault : type
        What an access outside a piece raises.
    """

    def __init__(self, space: str, pieces: int, nbytes: int, fault: type[faults.Fault]) -> None:
        self.space = space
        self.nbytes = nbytes
        self.fault = fault
        self.stride = -(-nbytes // 16) * 16
        self.data = np.zeros(max(pieces * self.stride, 16), np.uint8)
        self._views: dict[int, Array] = {}
        self.written = Written(self.data.size)

    def parts(self, addresses: Array, width: int, piece: Array) -> list[Part]:
        """Return the one array and the indices where accesses to these pieces lie."""
        index = np.empty(max(addresses.size, piece.size), np.int64)
        at = np.ascontiguousarray(addresses)
        if not place(index, at, piece, self.stride, 0, 0, self.nbytes, width):
            raise self._refusal(addresses, width)
        view = self._views.get(width)
        if view is None:
            view = self._views[width] = self.data.view(UNITS[width])
        return [(view, index, None)]

    def _refusal(self, addresses: Array, width: int) -> BadAccess:
        """Return why an access outside of a piece, or at no multiple of its width, is refused."""
        if int(addresses.max()) + width > self.nbytes:
            position = int((addresses > np.uint64(max(self.nbytes - width, 0))).argmax())
            if width > self.nbytes:
                position = 0
            what = (
                f"{width}-byte access at offset {int(addresses[position]):#x} of"
                f" {self.nbytes} bytes of {self.space} memory"
            )
            return BadAccess(self.fault, what, position)
        refusal = misaligned(addresses, width, self.space)
        assert refusal is not None
        return refusal


class Spaces:
    """The memory spaces of some blocks but for the global one, each made as it is first used.

    Parameters
    ----------
    blocks, padded : int
        How many blocks, and the lanes of each.
    shared_bytes, local_bytes : int
        Bytes of shared memory a block, and of the stack frame a lane.
    parameters : Segment
        The arguments, which all launched blocks share.
    clustered : bool
        Whether a shared address may be a neighbour's.
    """

    def __init__(
        self,
        blocks: int,
        padded: int,
        shared_bytes: int,
        local_bytes: int,
        parameters: Segment,
        *,
        clustered: bool,
    ) -> None:
        self.blocks, self.padded = blocks, padded
        self.shared_bytes, self.local_bytes = shared_bytes, local_bytes
        self.parameters = parameters
        self._names = {0: "global", 1: "cluster" if clustered else "shared", 2: "local", 3: "param"}
        self._segments: dict[str, tuple[Segment, Array]] = {}

    def segment(self, space: str) -> tuple[Segment, Array]:
        """Return the memory of a space, and which piece of it each lane owns."""
        found = self._segments.get(space)
        if found is None:
            found = self._segments[space] = self._make(space)
        return found

    @property
    def shared(self) -> Segment:
        """The shared memory of all the blocks."""
        return self.segment("shared")[0]

    def _make(self, space: str) -> tuple[Segment, Array]:
        lanes = self.blocks * self.padded
        if space == "shared":
            owners = np.arange(lanes) // self.padded if self.blocks > 1 else np.zeros(1, int)
            segment = Segment(space, self.blocks, self.shared_bytes, faults.SharedOutOfBounds)
            return segment, owners
        if space == "local":
            segment = Segment(space, lanes, self.local_bytes, faults.LocalOutOfBounds)
            return segment, np.arange(lanes)
        return self.parameters, np.zeros(1, int)

    def named(self, top: int) -> str | None:
        """Return which space a generic address with these bits above its window points into."""
        return self._names.get(top)
