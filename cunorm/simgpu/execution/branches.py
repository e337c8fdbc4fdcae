"""Which lanes go where at a jump or a branch."""

from __future__ import annotations

import numpy as np

from ..lanes import Groups, Lanes
from ..ptx.terminators import Branch, IndexedBranch, Jump
from .registers import Execution


def jump(batch: Execution, end: Jump, lanes: Lanes) -> Groups:
    """Take all to one block."""
    return ((end.follower if end.target is None else end.target, lanes),)


def branch(batch: Execution, end: Branch, lanes: Lanes) -> Groups:
    """Take some to the label, the others on."""
    assert end.target is not None
    taken = batch.registers[end.slots[0]]
    if taken.size == 1:
        return ((end.target if taken[0] != end.negated else end.follower, lanes),)
    if lanes is not None:
        taken = taken[lanes]
    count = int(np.count_nonzero(taken))
    if count == 0 or count == taken.size:
        return ((end.target if (count != 0) != end.negated else end.follower, lanes),)
    yes, no = taken.nonzero()[0], (~taken).nonzero()[0]
    if lanes is not None:
        yes, no = lanes[yes], lanes[no]
    if end.negated:
        yes, no = no, yes
    return ((end.target, yes), (end.follower, no))


def indexed_branch(batch: Execution, end: IndexedBranch, lanes: Lanes) -> Groups:
    """Take each to the label that its index names."""
    index = batch.registers[end.slots[0]]
    if end.convert is not None:
        index = end.convert(index)
    if index.size > 1 and lanes is not None:
        index = index[lanes]
    groups: list[tuple[int, Lanes]] = []
    # A value past the table is undefined in PTX; the last label is where hardware ends up too.
    for value in np.unique(index):
        target = end.places[end.labels[min(int(value), len(end.labels) - 1)]]
        if index.size == 1:
            return ((target, lanes),)
        chosen = np.flatnonzero(index == value)
        groups.append((target, chosen if lanes is None else lanes[chosen]))
    return groups
