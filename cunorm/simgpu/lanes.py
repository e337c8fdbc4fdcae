"""Lanes: the threads of some blocks side by side, whose registers are arrays over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

WARP = 32  # lanes that are a warp
WARP_BITS = 5

Array = np.ndarray[Any, Any]
Lanes = Array | None  # indices of lanes, None for every lane of the batch
Groups = Sequence[tuple[int, Lanes]]  # lanes that go on together, and at which block of the program


def indices(lanes: Lanes, count: int) -> Array:
    """Return lanes as indices, of a batch of `count`."""
    return np.arange(count) if lanes is None else lanes


def joined(groups: list[Lanes]) -> Array:
    """Merge groups that met, none of them every lane, in the order of lanes."""
    return np.sort(np.concatenate([group for group in groups if group is not None]))
