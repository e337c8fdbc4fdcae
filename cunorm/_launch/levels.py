"""Where rows lie: an array's leading axes as at most three strided levels. Pure, without CuPy.

Strides are in elements here, and extents of 1 are dropped, since nobody steps along them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

LEVELS = 3  # that the kernels can step through


@dataclass(frozen=True)
class Layout:
    """Rows of several arrays of one shape, in levels that all of them share.

    Attributes
    ----------
    extents : tuple of int
        Rows of each level, outermost first: 1 to 3 numbers.
    strides : tuple of tuple of int
        For each array its stride per level, in elements.
    """

    extents: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]

    @property
    def count(self) -> int:
        """The number of rows."""
        return prod(self.extents)


def merge(shape: Sequence[int], *strides: Sequence[int]) -> Layout:
    """Merge neighbouring axes wherever every array steps evenly across both.

    Parameters
    ----------
    shape : sequence of int
        The extents of the axes.
    *strides : sequence of int
        For each array the strides of those axes.

    Returns
    -------
    Layout
        As few levels as the strides allow, at least one.
    """
    extents: list[int] = []
    steps: list[tuple[int, ...]] = []
    for extent, step in zip(shape, zip(*strides, strict=True), strict=True):
        if extent == 1:
            continue
        if extents and all(
            outer == inner * extent for outer, inner in zip(steps[-1], step, strict=True)
        ):
            extents[-1] *= extent
            steps[-1] = step
        else:
            extents.append(extent)
            steps.append(step)
    if not extents:
        return Layout((1,), tuple((0,) for _ in strides))
    return Layout(tuple(extents), tuple(zip(*steps, strict=True)))


def is_row(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether the axes together are one run of elements at unit stride."""
    step = 1
    for extent, stride in zip(reversed(shape), reversed(strides), strict=True):
        if extent != 1 and stride != step:
            return False
        step *= extent
    return True


def steps_on_itself(shape: Sequence[int], strides: Sequence[int]) -> bool:
    """Return whether two indices may be the same element, as in a broadcast array.

    Axes are taken from the smallest stride up: each must step over all that the smaller ones cover.
    An array without elements has no such indices, whatever its strides.
    """
    if 0 in shape:
        return False
    covered = 1
    for stride, extent in sorted(
        (abs(stride), extent) for extent, stride in zip(shape, strides, strict=True)
    ):
        if extent > 1:
            if stride < covered:
                return True
            covered += (extent - 1) * stride
    return False
