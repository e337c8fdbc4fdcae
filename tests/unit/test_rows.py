"""Rows of strided arrays as levels, against NumPy's own idea of where elements lie."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from cunorm._launch import levels as layouts


def offsets(extents, strides):
    return [
        sum(i * s for i, s in zip(index, strides, strict=True))
        for index in itertools.product(*map(range, extents))
    ]


@pytest.mark.parametrize(
    ("shape", "strides", "levels"),
    [
        ((), (), 1),
        ((1,), (99,), 1),
        ((6,), (8,), 1),
        ((2, 3), (24, 8), 1),  # contiguous
        ((2, 3), (48, 8), 2),  # sliced
        ((3, 2), (8, 24), 2),  # transposed
        ((4, 3, 2), (0, 0, 0), 1),  # broadcast
        ((4, 3), (0, 8), 2),
        ((2, 1, 3), (24, 5, 8), 1),  # an extent of 1 has no stride that matters
        ((2, 3), (-24, -8), 1),  # reversed
        ((5, 2, 3, 2), (1000, 100, 16, 8), 3),
    ],
)
def test_merging_keeps_every_offset_in_order(shape, strides, levels):
    layout = layouts.merge(shape, strides)
    assert len(layout.extents) == levels
    assert offsets(layout.extents, layout.strides[0]) == offsets(shape, strides)
    assert layout.count == np.prod(shape, dtype=int)


def test_axes_merge_only_where_all_arrays_allow_it():
    layout = layouts.merge((2, 3), (24, 8), (48, 8))
    assert layout.extents == (2, 3)
    assert layout.strides == ((24, 8), (48, 8))


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((5,), (1,), True),
        ((5,), (2,), False),
        ((5,), (-1,), False),
        ((5,), (0,), False),
        ((1,), (7,), True),
        ((2, 5), (5, 1), True),
        ((2, 5), (6, 1), False),
        ((2, 1, 5), (5, 3, 1), True),
        ((5, 2), (1, 5), False),
    ],
)
def test_a_row_is_one_run_at_unit_stride(shape, strides, expected):
    assert layouts.is_row(shape, strides) is expected


@pytest.mark.parametrize(
    ("shape", "strides", "expected"),
    [
        ((4, 8), (8, 1), False),
        ((4, 8), (16, 1), False),
        ((8, 4), (1, 8), False),
        ((4, 8), (-8, 1), False),
        ((4, 8), (0, 1), True),
        ((4, 8), (4, 1), True),
        ((1, 8), (0, 1), False),
        ((0, 8), (0, 0), False),
        ((4, 0), (0, 1), False),
        ((5, 2, 4), (4, 16, 1), True),
        ((2, 4, 4), (16, 4, 1), False),
    ],
)
def test_overlap_of_an_array_with_itself_is_seen(shape, strides, expected):
    assert layouts.steps_on_itself(shape, strides) is expected
    distinct = len(set(offsets(shape, strides))) == np.prod(shape)
    assert distinct is not expected
