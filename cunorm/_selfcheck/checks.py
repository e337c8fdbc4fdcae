"""What `python -m cunorm check` runs: every op, over dtypes, sizes and layouts.

Results are held against the definitions of `_reference`, which also derives the tolerance, element
by element. Every array lies between guard elements, which must come back as they were.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import cupy
import numpy as np

import cunorm

from .. import _reference
from .._call import remembered
from .._families import LAYER_NORM, LOADED, OPS, PLAIN, RMS_NORM, Op
from .._progress import counted
from .._reference import DTYPES, Expected
from .layouts import Array, around, place

# Each side of every boundary that a kernel may draw: one packet, a warp, a block, registers.
SIZES = [1, 7, 64, 128, 769, 1024, 4096, 5125, 20000, 70000]
LAYOUTS = [
    "row-strided",
    "base + 1 element",
    "in place",
    "in place, row-strided",
    "strided heads",
    "transposed",
    "2-D gamma",
    "no gamma",
    "no beta",
    "float32 gamma",
    "float32 residual",
    "gamma offset 1",
    "cast after",
    "gate first",
    "groups of 154 columns",
    "as of many rows",
    "zero rows",
]
# Sizes of sums with a residual, and of gradients.
SUM_SIZES, BACKWARD_SIZES = [7, 128, 1025, 20000], [7, 128, 769, 4096, 20000]
OF_EVERY_NORM = ("base + 1 element", "in place, row-strided", "as of many rows")
# What an op must take for a layout to be one of its own.
TAKES = {
    "no beta": "beta",
    "gamma offset 1": "gamma_offset",
    "cast after": "cast",
    "gate first": "gate_first",
    "groups of 154 columns": "group",
    "float32 residual": "residual",
}
OPTIONS: dict[str, dict[str, Any]] = {
    "gamma offset 1": {"gamma_offset": 1.0},
    "cast after": {"cast": "after"},
    "gate first": {"gate_first": True},
    "groups of 154 columns": {"group": 154},
}


@dataclass(frozen=True)
class Outcome:
    """What came of a check.

    Attributes
    ----------
    worst, allowed : float
        The error, in ulps, of the element that comes nearest to its tolerance or is farthest past
        it, and how far that element may be off.
    faults : list of str
        What is wrong, if anything.
    note : str
        A remark.
    """

    worst: float
    allowed: float
    faults: list[str] = field(default_factory=list)
    note: str = ""

    @property
    def share(self) -> float:
        """How much of the tolerance was taken: 1 at most where all is right."""
        return float(share_of(np.asarray(self.worst), np.asarray(self.allowed)))


@dataclass(frozen=True)
class Check:
    """One call of a public op; `where` is its layout, or the tensors of a file that it runs on."""

    op: str
    dtype: str
    shape: tuple[int, ...]
    where: str
    measure: Callable[[Check], Outcome]

    def __str__(self) -> str:
        return f"{self.op} {self.dtype} {self.shape} {self.where}"

    def run(self) -> Outcome:
        """Measure; an exception, a fault of the software GPU included, is an outcome too."""
        try:
            return self.measure(self)
        except Exception as error:
            return Outcome(math.inf, math.nan, [f"{type(error).__name__}: {error}"])


def grid() -> Iterator[Check]:
    """Yield the grid: sizes on the ops that return statistics, layouts on those that do not."""
    from . import rope  # which imports this module

    for dtype in DTYPES:
        for op in OPS.values():
            if op.keeps:
                for cols in SIZES if op.source is LOADED else SUM_SIZES:
                    many = op.source is LOADED and cols <= 128
                    rows = 37 if many else 3 if cols <= 20000 else 1
                    yield Check(op.name, dtype, (rows, cols), "contiguous", measure)
            elif op.is_backward:
                for cols in BACKWARD_SIZES:
                    yield Check(op.name, dtype, (3, cols), "contiguous", measure)
        for op in PLAIN:
            for layout in LAYOUTS:
                if _has(op, layout, dtype):
                    yield Check(op.name, dtype, _shape(layout), layout, measure)
    yield from rope.grid()


def in_one_dtype(checks: Sequence[Check]) -> list[Check]:
    """Return each call of the grid in one dtype, those in turn, so that an op meets all of them."""
    alike: dict[tuple[object, ...], list[Check]] = {}
    for check in checks:
        alike.setdefault((check.op, check.shape, check.where), []).append(check)
    chosen = {of[number % len(of)] for number, of in enumerate(alike.values())}
    return [check for check in checks if check in chosen]


def _has(op: Op, layout: str, dtype: str) -> bool:
    """Return whether a layout is one of an op's, and another one for data of `dtype`.

    What follows the normalised value is the same whatever is normalised, and asked of x alone;
    where rows lie is the same to every norm, and asked of the first ones in all its ways.
    """
    if op.family not in (RMS_NORM, LAYER_NORM) and layout not in (*TAKES, *OF_EVERY_NORM):
        return False
    takes = TAKES.get(layout)
    if takes is not None and takes not in (op.reads if op.source.writes else op.names):
        return False
    if layout == "float32 residual":
        return dtype not in ("float32", "float64")
    return (layout, dtype) != ("float32 gamma", "float32")


def _shape(layout: str) -> tuple[int, ...]:
    """Return a shape that brings out what the layout tests; 769 is odd and past one warp."""
    return {
        "strided heads": (3, 4, 128),
        "2-D gamma": (3, 5, 154),
        "groups of 154 columns": (3, 770),
        "as of many rows": (3, 4096),  # of which few have another kernel
        "zero rows": (0, 769),
    }.get(layout, (3, 769))


def measure(check: Check) -> Outcome:
    """Run an op on random data and compare every output with its definition."""
    return (_backward if OPS[check.op].is_backward else _forward)(OPS[check.op], check)


def _forward(op: Op, check: Check) -> Outcome:
    rng = np.random.default_rng(zlib.crc32(str(check).encode()))
    rows, parameters = _arguments(rng, op, check)
    options = OPTIONS.get(check.where, {})
    written = {output.like: output.argument for output in op.writes}
    placed = {name: place(values, check.where) for name, values in rows.items()}
    before = {name: cupy.asnumpy(whole) for name, (whole, _) in placed.items()}
    on_device = {name: view for name, (_, view) in placed.items()} | {
        name: None if values is None else place(values, check.where)[1]
        for name, values in parameters.items()
    }
    outs = {}
    if check.where.startswith("in place"):
        outs = {argument: placed[name][1] for name, argument in written.items()}
    with remembered.by(None) if check.where == "as of many rows" else nullcontext():
        result = getattr(cunorm, check.op)(**on_device, **options, **outs)
    outputs = result if isinstance(result, tuple) else (result,)

    expected = getattr(_reference, check.op)(**rows, **parameters, **options)
    expected = expected if isinstance(expected, tuple) else (expected,)
    faults: list[str] = []
    errors = [
        compare(name, actual, want, faults)
        for name, actual, want in zip(op.returns, outputs, expected, strict=True)
    ]
    for name, (whole, _) in placed.items():
        after = cupy.asnumpy(whole)
        is_written = bool(outs) and name in written
        if is_written:
            after = around(whole, check.shape, check.where)
            before[name] = np.full(after.shape, before[name][0])
        if before[name].tobytes() != after.tobytes():
            faults.append(f"wrote outside {written[name]}" if is_written else f"changed {name}")
    if outs and any(a is not b for a, b in zip(outputs, outs.values(), strict=True)):
        faults.append("out was not returned")
    return outcome_of(errors, faults)


def _backward(op: Op, check: Check) -> Outcome:
    """Run a backward op on random data and the forward op's statistics."""
    rng = np.random.default_rng(zlib.crc32(str(check).encode()))
    rows = 2 + ("gate" in op.reads)  # dy, x and a gate
    given = [
        (rng.standard_normal(shape) * 2 + 0.25).astype(DTYPES[check.dtype])
        for shape in (*[check.shape] * rows, check.shape[-1:])
    ]
    # Of a sum that was normalised, what was added, and what that was multiplied with.
    extents = {"x": check.shape, "gate": check.shape[-1:]} if "gate" in op.operands else {}
    beside = {
        name: rng.standard_normal(shape).astype(DTYPES[check.dtype])
        for name, shape in extents.items()
    }
    on_device = [cupy.asarray(a) for a in given]
    forward = getattr(cunorm, f"{op.family.name}_fwd")
    statistics = forward(*on_device[1:])[1:]
    own = {name: cupy.asarray(a) for name, a in beside.items()}
    outputs = getattr(cunorm, check.op)(*on_device, *statistics, **own)
    expected = getattr(_reference, check.op)(*given, *map(cupy.asnumpy, statistics), **beside)
    returned = op.returned(dict.fromkeys(op.operands) | beside)
    faults: list[str] = []
    errors = [
        compare(name, actual, want, faults)
        for name, actual, want in zip(returned, outputs, expected, strict=True)
    ]
    return outcome_of(errors, faults)


def _arguments(
    rng: np.random.Generator, op: Op, check: Check
) -> tuple[dict[str, Array], dict[str, Array | None]]:
    """Return the arrays of rows and the parameters that the layout asks for."""

    def random(shape: tuple[int, ...], dtype: str) -> Array:
        return (rng.standard_normal(shape) * 2 + 0.25).astype(DTYPES[dtype])

    wide = "float32" if check.where == "float32 residual" else check.dtype
    rows = {name: random(check.shape, check.dtype if name == "x" else wide) for name in op.reads}
    shape = check.shape[-2:] if check.where == "2-D gamma" else check.shape[-1:]
    dtype = "float32" if check.where == "float32 gamma" else check.dtype
    weight, *biases = op.parameters
    parameters = {weight: None if check.where == "no gamma" else random(shape, dtype)}
    without = check.where in ("no gamma", "no beta")
    return rows, parameters | {n: None if without else random(shape, dtype) for n in biases}


def outcome_of(errors: list[tuple[float, float]], faults: list[str]) -> Outcome:
    """Return the outcome of an op, which is that of the output with the worst error."""
    return max((Outcome(*error, faults) for error in errors), key=lambda outcome: outcome.share)


def compare(name: str, actual: Any, want: Expected, faults: list[str]) -> tuple[float, float]:
    """Return an output's worst error and what is allowed there; add to `faults` what is off."""
    if actual.shape != want.value.shape or actual.dtype != want.dtype:
        faults.append(f"{name} is {actual.dtype} {actual.shape}")
        return math.inf, 1.0
    host = cupy.asnumpy(actual)
    off = ~want.accepts(host)
    if off.any():
        first = tuple(int(i) for i in np.argwhere(off)[0])
        faults.append(f"{name}: {counted(int(off.sum()), 'element')} off, first {first}")
    return worst_of(want.ulps(host), want.allowed)


def share_of(distance: Array, allowed: Array) -> Array:
    """Return the error past half an ulp, which rounding may take, over what is allowed past it."""
    past = np.maximum(distance - 0.5, 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(past == 0, 0, past / (allowed - 0.5))


def worst_of(distance: Array, allowed: Array) -> tuple[float, float]:
    """Return the distance that takes most of what is allowed there, and that."""
    if distance.size == 0:
        return 0.0, 0.5
    worst = np.unravel_index(share_of(distance, allowed).argmax(), distance.shape)
    return float(distance[worst]), float(allowed[worst])
