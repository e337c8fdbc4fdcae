"""KINDS, one list of kernels that the ops' tests ask every question of; and grids in pairs.

To compile a kernel takes nearly all of a test's time, and there is one for each op, N, pair of
dtypes, set of options and way to reach the arrays. Each pair of two of those values occurs in
KINDS; a question that is asked of all of them compiles nothing that another has not. A commit runs
a third of the kinds, each of them with all of its questions.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pytest

from cunorm._plan import ITEMSIZE

FORWARD = ("rms_norm_fwd", "add_rms_norm_fwd", "layer_norm_fwd", "add_layer_norm_fwd")
BACKWARD = ("rms_norm_bwd", "layer_norm_bwd")
# How a row is kept, by columns of 16 bits: less than a packet; 4 lanes; 8, with a tail; a warp;
# warps, of rows that start anywhere; a block; shared memory; a cluster, or read again by a
# backward pass; read again on any device, of rows that start anywhere. Where long rows do that, a
# kernel compiles in up to 7 s: those in shared memory do where a layout has them do it.
COLS = (7, 96, 211, 768, 1025, 4096, 20_000, 150_000, 1_300_005)
DTYPES = (
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "float32"),
    ("float32", "float16"),
    ("float64", "float64"),
)
LAYOUTS = ("contiguous", "base + 1 element", "row-strided", "strided heads")
OPTIONS = ("plain", "bare", "all")
LONG = 5000  # columns: rows past it are few


@dataclass(frozen=True)
class KindOfKernel:
    """What a kernel is compiled for.

    Attributes
    ----------
    op : str
        With its statistics, as the op is named.
    cols : int
        N.
    dtype, parameter : str
        Of the rows, and of gamma and beta.
    layout : str
        How every array lies, as `layouts.place` has it.
    options : str
        "bare" has no parameters, and "all" what is not usual: an offset, a cast after gamma, no
        beta, a residual of another width, a second gradient of x.
    """

    op: str
    cols: int
    dtype: str
    parameter: str
    layout: str
    options: str

    @property
    def is_long(self) -> bool:
        """Whether a row is a cluster's, or is read again."""
        return self.cols * ITEMSIZE[self.dtype] >= 300_000

    def __str__(self) -> str:
        return f"{self.op} {self.cols} {self.dtype} {self.parameter} {self.layout} {self.options}"

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows on two axes, more than one block's where they share one."""
        return (2, 3, self.cols) if self.cols < LONG else (1, 2, self.cols)


def covering(axes: Sequence[Sequence[Any]], seed: str) -> Iterator[tuple[Any, ...]]:
    """Yield points of a product so that each pair of values of two axes occurs, in some of them.

    Of some drawn points the one that brings most new pairs is taken each time; always the same.
    """
    draw = random.Random(seed)

    def pairs_of(point: tuple[int, ...]) -> set[Any]:
        return set(combinations(enumerate(point), 2))

    places = [range(len(axis)) for axis in axes]
    missing = {
        ((i, a), (j, b))
        for (i, of_i), (j, of_j) in combinations(enumerate(places), 2)
        for a, b in product(of_i, of_j)
    }
    while missing:
        (i, a), (j, b) = min(missing)
        drawn = [[draw.choice(place) for place in places] for _ in range(60)]
        for point in drawn:
            point[i], point[j] = a, b
        best = max((tuple(point) for point in drawn), key=lambda p: len(pairs_of(p) & missing))
        missing -= pairs_of(best)
        yield tuple(axis[at] for axis, at in zip(axes, best, strict=True))


# Points whose kernels no other test compiles: NVRTC has two thirds of the time of tests/ops, 0.2 s
# to 7 s a kernel.
IN_TURNS = pytest.mark.slow("each compiles kernels of its own, for a second or two", shares=20)


def in_pairs(**axes: Sequence[Any]) -> pytest.MarkDecorator:
    """Parametrise a test by a product of which each pair of values always runs.

    The other points of it are slow: a run takes a tenth of them, another one for each commit.
    """
    values = [list(axis) for axis in axes.values()]
    places = covering([range(len(axis)) for axis in values], " ".join(axes))
    pairs = [tuple(axis[at] for axis, at in zip(values, place, strict=True)) for place in places]
    return some_of(pairs, "another point of a product, each pair of whose values is run", **axes)


def some_of(
    always: Sequence[tuple[Any, ...]], why: str, **axes: Sequence[Any]
) -> pytest.MarkDecorator:
    """Parametrise a test by a product of which some points always run.

    The others are slow, for the reason that is given.
    """
    slow = pytest.mark.slow(why)
    points = list(product(*axes.values()))
    assert all(point in points for point in always)
    return pytest.mark.parametrize(
        ",".join(axes),
        [pytest.param(*point, marks=() if point in always else slow) for point in points],
    )


def these(
    names: str, often: Sequence[tuple[Any, ...]], slow: Sequence[tuple[Any, ...]], why: str
) -> pytest.MarkDecorator:
    """Parametrise a test by points of which a run takes a twentieth, and of more a sixtieth.

    Those are many and take longest.
    """
    mark = pytest.mark.slow(why, shares=60)
    more = (pytest.param(*point, marks=mark) for point in slow if point not in often)
    in_turns = (pytest.param(*point, marks=IN_TURNS) for point in often)
    return pytest.mark.parametrize(names, [*in_turns, *more])


def kinds() -> Iterator[KindOfKernel]:
    """Yield the kinds; of wide dtypes rows have fewer columns, and are kept alike."""
    axes = (FORWARD + BACKWARD, COLS, DTYPES, LAYOUTS, OPTIONS)
    for op, cols, (dtype, parameter), layout, options in covering(axes, "kinds"):
        narrower = {"float32": 2, "float64": 4}.get(dtype, 1)
        if op in BACKWARD:
            cols = min(cols, 65536 | cols & 1)
        yield KindOfKernel(
            op, max(5, cols // narrower | cols & 1), dtype, parameter, layout, options
        )


KINDS = tuple(kinds())


def of_each_kind(ops: Sequence[str], *, long: bool = True) -> pytest.MarkDecorator:
    """Parametrise a test by the kinds of some ops; without `long`, those of long rows are slow.

    Of the others a run takes a third, and of a kind all tests or none: its kernel is compiled for
    all.
    """
    why = "rows of 300 kB and more take seconds; they are held to the definition"
    slow = pytest.mark.slow(why, shares=30)
    chosen = []
    for kind in KINDS:
        third = pytest.mark.slow("a kernel each", shares=3, together=str(kind))
        mark = third if long or not kind.is_long else slow
        if kind.op in ops:
            chosen.append(pytest.param(kind, marks=mark, id=str(kind)))
    return pytest.mark.parametrize("kind", chosen)
