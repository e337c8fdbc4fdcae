"""atom and red: lanes at one address one after another, in the order of lanes."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from ..lanes import Array, Lanes
from ..memory.access import Access
from ..ptx.types import TYPES
from .access import resolve, state_space
from .half import lanes_of
from .rounding import apply, exact_sum, narrow, widen
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context

ORDER = "[relaxed|acquire|release|acq_rel:order] [cta|cluster|gpu|sys:scope]"
SPACE = "[global|shared|shared=cta|shared=cluster:space]"
TYPE = "b32|b64|u32|u64|s32|s64|f16|f16x2|bf16|bf16x2|f32|f64"
OPERATIONS = "and|or|xor|add|inc|dec|min|max"


def _wrapped_up(old: Array, value: Array) -> Array:
    result: Array = np.where(old >= value, old.dtype.type(0), old + old.dtype.type(1))
    return result


def _wrapped_down(old: Array, value: Array) -> Array:
    past = (old == 0) | (old > value)
    return np.where(past, value, old - old.dtype.type(1))


def _swapped(old: Array, seen: Array, value: Array) -> Array:
    return np.where(old == seen, value, old)


INTEGER: dict[str, tuple[str, Callable[..., Array]]] = {
    "add": ("u32 u64 s32 s64", np.add),
    "min": ("u32 u64 s32 s64", np.minimum),
    "max": ("u32 u64 s32 s64", np.maximum),
    "and": ("b32 b64", np.bitwise_and),
    "or": ("b32 b64", np.bitwise_or),
    "xor": ("b32 b64", np.bitwise_xor),
    "exch": ("b32 b64", lambda old, value: value),
    "cas": ("b16 b32 b64", _swapped),
    "inc": ("u32", _wrapped_up),
    "dec": ("u32", _wrapped_down),
}
# What NumPy's unbuffered `at` does in one call, for results that nobody reads.
AT = {"add": np.add, "min": np.minimum, "max": np.maximum} | {
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


def _sum(kind: str, space: str) -> Callable[[Array, Array], Array] | None:
    """Return the float addition of an atomic."""
    if kind == "f64":
        return np.add
    if kind == "f32":
        # Global memory flushes subnormals, shared memory does not, says the ISA.
        return lambda old, value: apply(
            "add", 0 if space in ("shared", "cluster") else 1, old, value
        )
    if kind in ("f16", "f16x2", "bf16", "bf16x2"):
        single, unpack, pack = lanes_of(kind)
        return lambda old, value: pack(
            narrow(exact_sum(widen(unpack(old), single), widen(unpack(value), single)), single)
        )
    return None


@form(
    f"atom {ORDER} {SPACE} {OPERATIONS}|exch|cas:operation [noftz] b16|{TYPE}:type",
    "atomic",
    decodes=True,
)
def _atom(builder: Builder, site: Site, fields: dict[str, str]) -> Any:
    return _build(builder, site, fields, site.operands[0], site.operands[1:])


@form(f"red {ORDER} {SPACE} {OPERATIONS}:operation [noftz] {TYPE}:type", "atomic", decodes=True)
def _red(builder: Builder, site: Site, fields: dict[str, str]) -> Any:
    return _build(builder, site, fields, None, site.operands)


# Cooperative groups spell the order after the operation, which the assembler takes too.
AFTER = "relaxed|acquire|release|acq_rel:order cta|cluster|gpu|sys:scope"
WHOLE = "b32|b64|u32|u64|s32|s64:type"


@form(f"atom {OPERATIONS}:operation {AFTER} {SPACE} {WHOLE}", "atomic", decodes=True)
def _atom_reordered(builder: Builder, site: Site, fields: dict[str, str]) -> Any:
    return _atom(builder, site, fields)


@form(f"red {OPERATIONS}:operation {AFTER} {SPACE} {WHOLE}", "atomic", decodes=True)
def _red_reordered(builder: Builder, site: Site, fields: dict[str, str]) -> Any:
    return _red(builder, site, fields)


def _build(
    builder: Builder,
    site: Site,
    fields: dict[str, str],
    target: str | None,
    operands: tuple[str, ...],
) -> Op | None:
    name, kind = fields["operation"], fields["type"]
    space = state_space(fields["space"])
    kinds, function = INTEGER[name]
    if kind not in kinds.split():
        summed = _sum(kind, space) if name == "add" else None
        if summed is None:
            return None
        function = summed
    dtype = TYPES[kind].dtype
    address, *values = operands
    if len(values) != (2 if name == "cas" else 1):
        return None
    quick = AT.get(name) if target in (None, "_") and dtype.kind in "ui" else None
    quick = None if kind in ("f16x2", "bf16", "bf16x2") else quick

    # An exchange asks for nothing of what was there: it may come first.
    access = Access.STRONG_WRITE if name == "exch" else Access.ATOMIC

    def update(
        batch: Context, op: Op, lanes: Lanes, addresses: Array, *given: Array
    ) -> tuple[Array, ...]:
        n = batch.live_count if lanes is None else lanes.size
        addresses = np.broadcast_to(addresses, n)
        given = tuple(np.broadcast_to(value, n) for value in given)
        if fields.get("order") in ("release", "acq_rel"):
            batch.checks.publish(lanes, beyond=fields["scope"] != "cta")
        parts = resolve(batch, op, lanes, space, addresses, dtype.itemsize, access)
        old = np.empty(n, dtype)
        for view, index, which in parts:
            chosen = slice(None) if which is None else which
            held = view.view(dtype)
            taken = [value[chosen] for value in given]
            if quick is not None:
                quick.at(held, index, taken[0])
            else:
                old[chosen] = in_turn(held, index, function, taken)
        return (old,) if target is not None else ()

    targets = [(target, kind)] if target is not None else []
    return builder.access(site, update, address, targets, [(value, kind) for value in values])


def in_turn(
    held: Array, index: Array, function: Callable[..., Array], values: list[Array]
) -> Array:
    """Apply `function` to memory lane by lane, and return what each lane found.

    All lanes that are first at their address go at once, then all that are second, and so on.
    """
    order = np.argsort(index, kind="stable")
    ordered = index[order]
    new = np.concatenate(([True], ordered[1:] != ordered[:-1]))
    starts = np.flatnonzero(new)
    turn = np.arange(index.size) - np.repeat(starts, np.diff(np.append(starts, index.size)))
    old = np.empty(index.size, held.dtype)
    by_turn = order[np.argsort(turn, kind="stable")]
    sizes = np.bincount(turn)
    at = 0
    for size in sizes:
        now = by_turn[at : at + size]
        at += size
        found = held[index[now]]
        old[now] = found
        held[index[now]] = function(found, *(value[now] for value in values))
    return old
