"""The checks of the ops on heads: how heads are rotated, and how they lie."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Any

import cupy
import numpy as np

import cunorm

from .. import _reference
from .._families import ROPE_BWD, ROPE_OPS
from .._plan import accumulator
from .._reference import DTYPES
from .checks import Check, Outcome, compare, outcome_of
from .layouts import Array, around, place

# What is given, by the name of a way; of the others only the layout matters.
OPTIONS: dict[str, dict[str, Any]] = {
    "interleaved": {"interleaved": True},
    "rotated first": {"norm_first": False},
    "across heads": {"across_heads": True},
    "gamma offset 1": {"gamma_offset": 1.0},
    "cast after": {"cast": "after"},
    "cast between": {"cast": "between"},
}
WAYS = [
    *("contiguous", "row-strided", "base + 1 element", "strided heads"),
    *("in place", "in place, row-strided", "half of the columns", *OPTIONS),
]
TOKENS, HEADS, K_HEADS, POSITIONS = 3, 4, 2, 8
# Of gradients, of which each dtype has every other one.
OF_GRADIENTS = [
    *("contiguous", "row-strided", "half of the columns", "interleaved", "rotated first"),
    *("across heads", "gamma offset 1"),
]
# Of a head, whose partners a lane has itself, and which other lanes hand over.
COLS = (128, 96)


def grid() -> Iterator[Check]:
    """Yield each way of one op, and of one length of heads: both take turns."""
    plain, of_statistics = (
        [name for name, op in ROPE_OPS.items() if op.keeps == keeps and not op.is_backward]
        for keeps in (False, True)
    )
    for turn, dtype in enumerate(DTYPES):
        for index, where in enumerate(WAYS):
            op, cols = plain[index % 2], COLS[index // 2 % 2]
            yield Check(op, dtype, (TOKENS, HEADS, cols), where, measure)
        for op, where in zip(of_statistics, ("contiguous", "across heads"), strict=True):
            yield Check(op, dtype, (TOKENS, HEADS, COLS[turn % 2]), where, measure)
        for index, where in enumerate(OF_GRADIENTS[turn % 2 :: 2]):
            cols = COLS[(index + turn // 2) % 2]
            yield Check(ROPE_BWD.name, dtype, (TOKENS, HEADS, cols), where, measure)


def measure(check: Check) -> Outcome:
    """Run an op on random data and compare every output with its definition."""
    op = ROPE_OPS[check.op]
    rng = np.random.default_rng(zlib.crc32(str(check).encode()))
    options = OPTIONS.get(check.where, {})
    tokens, heads, cols = check.shape

    def random(*shape: int) -> Array:
        return (rng.standard_normal(shape) * 2 + 0.25).astype(DTYPES[check.dtype])

    shapes = [(tokens, K_HEADS if name == "k" else heads, cols) for name in op.reads]
    rows = {name: random(*shape) for name, shape in zip(op.reads, shapes, strict=True)}
    across = check.where == "across heads"
    weights = {
        name: random(shape[1] * cols if across else cols)
        for name, shape in zip(op.parameters, shapes, strict=False)
    }
    pairs = cols // 4 if check.where == "half of the columns" else cols // 2
    angles = rng.uniform(-4, 4, (POSITIONS, pairs))
    beside = weights | {
        "cos": np.cos(angles).astype(DTYPES[check.dtype]),
        "sin": np.sin(angles).astype(DTYPES[check.dtype]),
        "positions": rng.integers(0, POSITIONS, tokens),
    }
    if op.is_backward:
        given: dict[str, Any] = {n: a for n, a in (rows | beside).items() if n != "dy"}
        _, rstd = _reference.rms_norm_rope_fwd(**given, **options)
        beside["rstd"] = rstd.value.astype(accumulator(check.dtype))
    placed = {name: place(values, check.where) for name, values in rows.items()}
    before = {name: cupy.asnumpy(whole) for name, (whole, _) in placed.items()}
    views = {name: view for name, (_, view) in placed.items()}
    in_place = check.where.startswith("in place")
    outs = {o.argument: views[o.like] for o in op.writes} if in_place else {}
    on_device = {name: cupy.asarray(values) for name, values in beside.items()}
    result = getattr(cunorm, check.op)(**views, **on_device, **options, **outs)
    expected = getattr(_reference, check.op)(**rows, **beside, **options)
    results, wanted = (a if isinstance(a, tuple) else (a,) for a in (result, expected))
    faults: list[str] = []
    errors = [
        compare(name, actual, want, faults)
        for name, actual, want in zip(op.returns, results, wanted, strict=True)
    ]
    for name, (whole, view) in placed.items():
        was, after = before[name], cupy.asnumpy(whole)
        if in_place:
            was, after = (around(a, view.shape, check.where) for a in (was, after))
        if was.tobytes() != after.tobytes():
            faults.append(f"wrote outside {name}" if in_place else f"changed {name}")
    return outcome_of(errors, faults)
