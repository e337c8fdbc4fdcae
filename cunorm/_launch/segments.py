"""Rows by segments: those that have one row of each operand of a backward op.

Along some of x's leading axes an operand differs, along the others it is the same. A segment is the
rows at one place of the former, which come first here: x's axes are transposed, and nothing moves.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

import cupy
import numpy as np
from cupy.cuda.function import CNumpyArray

from .. import _plan
from . import kernels
from .launches import Launch

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from .._plan import BackwardPlan, Plan
    from .._typing import Arrays


@dataclass(frozen=True)
class Segments:
    """How the rows of x are shared out.

    Attributes
    ----------
    shape : tuple of int
        That of x.
    axes : int
        How many trailing axes are a row.
    kept : tuple of int
        The leading axes along which an operand differs.
    blocks : int
        Blocks that share a segment.
    """

    shape: tuple[int, ...]
    axes: int
    kept: tuple[int, ...]
    blocks: int = 1

    @property
    def row(self) -> tuple[int, ...]:
        """The shape of a row."""
        return self.shape[len(self.shape) - self.axes :]

    @property
    def extents(self) -> tuple[int, ...]:
        """The extents of the axes along which an operand differs."""
        return tuple(self.shape[axis] for axis in self.kept)

    @property
    def count(self) -> int:
        """The number of segments."""
        return prod(self.extents)

    @property
    def rows(self) -> int:
        """The number of rows of each."""
        return prod(self.shape) // (prod(self.row) * self.count)

    @property
    def grid(self) -> tuple[int]:
        """The grid of the backward kernel."""
        return (self.count * self.blocks,)

    @property
    def order(self) -> tuple[int, ...]:
        """The axes of x, those of segments first."""
        lead = len(self.shape) - self.axes
        others = (axis for axis in range(len(self.shape)) if axis not in self.kept)
        return (
            *self.kept,
            *(axis for axis in others if axis < lead),
            *range(lead, len(self.shape)),
        )

    def of_rows(self, a: cupy.ndarray) -> cupy.ndarray:
        """Return an array of rows, or of one number a row, in the order of segments."""
        return a.transpose(self.order[: a.ndim])

    def of_operand(self, operand: cupy.ndarray) -> cupy.ndarray:
        """Return an operand as a row of elements for each segment, copied where it must be."""
        whole = cupy.broadcast_to(operand, self.shape)
        lead = len(self.shape) - self.axes
        own = whole[tuple(slice(None) if i in self.kept else 0 for i in range(lead))]
        rows = own.reshape(self.count, prod(self.row))
        return rows if rows.strides[1] == rows.itemsize else cupy.ascontiguousarray(rows)

    def is_whole(self, operand: cupy.ndarray) -> bool:
        """Return whether an operand has an element for each of each segment's row."""
        return bool(operand.size == self.count * prod(self.row))

    def sum_to(self, sums: cupy.ndarray, operand: cupy.ndarray) -> cupy.ndarray:
        """Return sums, one for each element of each segment's row, added up to an operand's."""
        ones = tuple(n if i in self.kept else 1 for i, n in enumerate(self.shape[: -self.axes]))
        whole = sums.reshape(*ones, *self.row)
        own = (1,) * (whole.ndim - operand.ndim) + operand.shape
        summed = tuple(i for i, n in enumerate(own) if n == 1 and whole.shape[i] != 1)
        return whole.sum(summed, keepdims=True).reshape(operand.shape).astype(operand.dtype)

    def numbers(self, plan: Plan, parameters: Mapping[str, cupy.ndarray | None]) -> tuple[int, ...]:
        """Return what a kernel is told of segments: Segments of its unit, and pitches in bytes."""
        operands = (parameters[name] for name in plan.by_segment or ())
        return (self.rows, self.blocks, *(a.strides[0] for a in operands if a is not None))


def of(shape: tuple[int, ...], axes: int, operands: Iterable[cupy.ndarray]) -> Segments:
    """Return the segments of rows of x's shape, so that each operand has one row in each."""
    lead = len(shape) - axes
    padded = [(1,) * (len(shape) - a.ndim) + a.shape for a in operands]
    kept = tuple(i for i in range(lead) if any(own[i] > 1 for own in padded))
    return Segments(shape, axes, kept)


def sums(
    plan: BackwardPlan,
    kinds: int,
    segments: Segments,
    arrays: Arrays,
    scalars: Mapping[str, float],
) -> Launch:
    """Return the launch that adds up what the blocks of each segment have left.

    Parameters
    ----------
    plan : BackwardPlan
        The kernel that left it.
    kinds : int
        Sums of a column, beside those of a gate.
    segments : Segments
        How it shared out the rows.
    arrays : mapping of str to cupy.ndarray or None
        partial; gamma, beta and scale as far as they take part, the last as `Segments.of_operand`
        returns it; dscale, dshift, dgate and shares as far as they are wanted.
    scalars : mapping of str to float
        gamma_offset and scale_offset.
    """
    names = ("dscale", "dshift", "dgate", "gamma", "beta", "scale")
    given = ((name, arrays[name]) for name in names)
    kernel = _plan.SegmentSums(
        plan.accumulator, kinds, tuple((name, a.dtype.name) for name, a in given if a is not None)
    )
    acc, scale = plan.accumulator, arrays["scale"]
    numbers = np.array(
        (
            (plan.cols, plan.pitch, segments.blocks),
            0 if scale is None else scale.strides[0],
            *(scalars[name] for name in ("gamma_offset", "scale_offset")),
        ),
        np.dtype(
            [("extent", "i8", 3), ("pitch", "i8"), ("gamma_offset", acc), ("scale_offset", acc)],
            align=True,
        ),
    )
    device = arrays["partial"].device.id
    return Launch(
        kernels.load(kernel, _plan.Reach(()), device).kernel,
        kernel.grid(plan.cols, segments.count),
        kernel.block,
        kernel.shared_bytes,
        CNumpyArray(numbers),
        device,
        ("dscale", "dshift", "dgate", "shares", "partial", "gamma", "beta", "scale"),
        {},
    )
