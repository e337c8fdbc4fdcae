"""PTX's types as NumPy's, and how a register of one is read or written as another."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from ..lanes import Array, Lanes
from .op import Op


class Type(NamedTuple):
    """A PTX type: the dtype of its lanes, its width in bits, and its kind letter."""

    dtype: np.dtype
    bits: int
    kind: str  # u, s, b, f or p (predicate)


TYPES: dict[str, Type] = {
    f"{kind}{bits}": Type(np.dtype(f"{letter}{bits // 8}"), bits, kind)
    for kind, letter in (("u", "u"), ("s", "i"), ("b", "u"))
    for bits in (8, 16, 32, 64)
} | {
    "f16": Type(np.dtype("f2"), 16, "f"),
    "f32": Type(np.dtype("f4"), 32, "f"),
    "f64": Type(np.dtype("f8"), 64, "f"),
    # NumPy has no bfloat16 of its own: these lanes are bits, converted by shifts.
    "bf16": Type(np.dtype("u2"), 16, "b"),
    "f16x2": Type(np.dtype("u4"), 32, "b"),
    "bf16x2": Type(np.dtype("u4"), 32, "b"),
    "tf32": Type(np.dtype("u4"), 32, "b"),
    "pred": Type(np.dtype("?"), 8, "p"),
}
UNSIGNED = {bits: np.dtype(f"u{bits // 8}") for bits in (8, 16, 32, 64)}
SIGNED = {bits: np.dtype(f"i{bits // 8}") for bits in (8, 16, 32, 64)}

Reading = Callable[[Array], Array]


@functools.cache
def reading(held: np.dtype, wanted: np.dtype) -> Reading | None:
    """Return how a register held as `held` is read as `wanted` (its low bits); None for as is."""
    if held == wanted:
        return None
    if held.itemsize == wanted.itemsize:
        return lambda array: array.view(wanted)
    if held.itemsize < wanted.itemsize or "b" in (held.kind, wanted.kind):
        raise ValueError(f"a register of {8 * held.itemsize} bits read as {8 * wanted.itemsize}")
    whole, low = UNSIGNED[8 * held.itemsize], UNSIGNED[8 * wanted.itemsize]
    if held == whole and low == wanted:
        return lambda array: array.astype(low)
    return lambda array: array.view(whole).astype(low).view(wanted)


@functools.cache
def writing(given: np.dtype, held: np.dtype) -> Reading | None:
    """Return how a result goes into a wider register: extended as its own type says."""
    if given == held:
        return None
    if given.itemsize == held.itemsize:
        return lambda array: array.view(held)
    if given.itemsize > held.itemsize or "b" in (held.kind, given.kind):
        raise ValueError(f"{8 * given.itemsize} bits written to a register of {8 * held.itemsize}")
    source = given if given.kind == "i" else UNSIGNED[8 * given.itemsize]
    wide = (SIGNED if given.kind == "i" else UNSIGNED)[8 * held.itemsize]
    if given == source and wide == held:
        return lambda array: array.astype(wide)
    return lambda array: array.view(source).astype(wide).view(held)


def compose(
    function: Callable[..., Any],
    reads: Sequence[Reading | None],
    writes: Sequence[Reading | None],
    *,
    pure: bool,
) -> Callable[..., Any]:
    """Return `function` on registers as they are held, with its results as they are to be held."""
    if not any(reads) and not any(writes):
        return function
    if not pure:
        return _compose_effect(function, reads, writes)
    if len(writes) != 1:
        inner = function
        function = lambda *operands: _written(inner(*operands), writes)  # noqa: E731
    elif writes[0] is not None:
        function = _after(function, writes[0])
    if not any(reads):
        return function
    if len(reads) == 1 and reads[0] is not None:
        convert = reads[0]
        return lambda a: function(convert(a))
    if len(reads) == 2:
        first, second = reads
        if first is None and second is not None:
            return lambda a, b: function(a, second(b))
        if second is None and first is not None:
            return lambda a, b: function(first(a), b)
        if first is not None and second is not None:
            return lambda a, b: function(first(a), second(b))
    return lambda *operands: function(*_read(operands, reads))


def _after(function: Callable[..., Array], convert: Reading) -> Callable[..., Array]:
    return lambda *operands: convert(function(*operands))


def _read(operands: Sequence[Array], reads: Sequence[Reading | None]) -> list[Array]:
    return [
        operand if convert is None else convert(operand)
        for operand, convert in zip(operands, reads, strict=True)
    ]


def _written(results: Sequence[Array], writes: Sequence[Reading | None]) -> tuple[Array, ...]:
    return tuple(_read(results, writes))


def _compose_effect(
    function: Callable[..., Any], reads: Sequence[Reading | None], writes: Sequence[Reading | None]
) -> Callable[..., Any]:
    def effect(batch: Any, op: Op, lanes: Lanes, *operands: Array) -> tuple[Array, ...]:
        return _written(function(batch, op, lanes, *_read(operands, reads)), writes)

    return effect
