"""Loads and stores in every state space. Each access goes through `resolve`, whatever it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array, Lanes, indices
from ..memory.access import UNITS, Access, BadAccess, Part, misaligned
from ..memory.segment import WINDOW_BITS
from ..ptx.types import TYPES
from ..sanitizer.record import Touch
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context

SCOPE = "[cta|cluster|gpu|sys:scope]"
SHARED = "shared|shared=cta|shared=cluster"
EVICT = (
    "[L1=evict_normal|L1=evict_unchanged|L1=evict_first|L1=evict_last|L1=no_allocate:l1]"
    " [L2=evict_normal|L2=evict_first|L2=evict_last:l2]"
)
LOAD = (
    f"[weak|volatile|relaxed|acquire|mmio:order] {SCOPE}"
    f" [global|{SHARED}|local|const|param|param=entry|param=func:space]"
    f" [ca|cg|cs|cv|lu:cop] [nc] {EVICT} [L2=64B|L2=128B|L2=256B:prefetch]"
)
STORE = (
    f"[weak|volatile|relaxed|release|mmio:order] {SCOPE}"
    f" [global|{SHARED}|local|param|param=func:space] [wb|cg|cs|wt:cop] {EVICT}"
)
VALUE = "[v2|v4:vector] b8|b16|b32|b64|u8|u16|u32|u64|s8|s16|s32|s64|f16|bf16|f16x2|f32|f64:type"
WIDE = (
    "v8:vector b32|u32|s32|f32:type",
    "v4:vector b64|u64|s64|f64:type",
)


def resolve(
    batch: Context,
    op: Op,
    lanes: Lanes,
    space: str,
    addresses: Array,
    width: int,
    access: Access,
    written: Array | None = None,
) -> list[Part]:
    """Return where the accesses of these lanes lie; the place of every check and counter.

    Parameters
    ----------
    lanes : ndarray or None
        The lanes that access, None for all of the batch.
    addresses : ndarray of uint64
        One per lane, or one for all of them.
    access : Access
        What the instruction does there.
    written : ndarray
        The bits that a plain store puts there, in units of `width`.
    """
    if batch.watch is not None:
        batch.watch.reached(batch.geometry, lanes, space, addresses, width, access)
    try:
        if space == "global" or space == "const":
            parts = batch.memory.parts(addresses, width)
            touch = Touch(access, op, lanes, width, written)
            batch.checks.outside(touch, addresses, parts)
            return parts
        if space == "generic":
            return _generic(batch, op, lanes, addresses, width, access, written)
        segment, piece = batch.spaces.segment("shared" if space == "cluster" else space)
        if piece.size > 1 and lanes is not None:
            piece = piece[lanes]
        if space in ("shared", "cluster") and batch.geometry.clustered:
            far = space == "cluster"
            addresses, piece = batch.clusters.owners(op, lanes, addresses, piece, far=far)
        parts = segment.parts(addresses, width, piece)
        if segment.space == "shared":
            if batch.copies.flying:
                batch.copies.check(parts[0][1], width)
            touch = Touch(access, op, lanes, width, written)
            batch.checks.shared(touch, segment, parts[0])
        return parts
    except BadAccess as refusal:
        # An address that all lanes share is blamed on the first of them.
        lane = int(indices(lanes, batch.lanes)[refusal.position if addresses.size > 1 else 0])
        if refusal.width:
            refusal = batch.explained(refusal, op, lane)
        raise refusal.fault(refusal.what, batch.place(op, lane)) from None


def _generic(
    batch: Context,
    op: Op,
    lanes: Lanes,
    addresses: Array,
    width: int,
    access: Access,
    written: Array | None,
) -> list[Part]:
    tops = addresses >> np.uint64(WINDOW_BITS)
    if not tops.any():
        return resolve(batch, op, lanes, "global", addresses, width, access, written)
    every = indices(lanes, batch.lanes)
    parts: list[Part] = []
    for top in np.unique(tops):
        space = batch.spaces.named(int(top))
        if space is None:
            raise BadAccess(
                faults.OutOfBounds,
                f"generic address {int(addresses[tops == top][0]):#x} is in no space",
                int((tops == top).argmax()),
            )
        offsets = addresses & np.uint64((1 << WINDOW_BITS) - 1)
        if addresses.size == 1:
            return resolve(batch, op, lanes, space, offsets, width, access, written)
        chosen = np.flatnonzero(tops == top)
        some = written if written is None or written.size == 1 else written[chosen]
        for view, index, which in resolve(
            batch, op, every[chosen], space, offsets[chosen], width, access, some
        ):
            parts.append((view, index, chosen if which is None else chosen[which]))
    return parts


def gather(parts: list[Part], lanes: int) -> Array:
    """Read every access; one value where all lanes share one address."""
    view, index, which = parts[0]
    if which is None:
        return view[index]
    values = np.empty(lanes, view.dtype)
    for view, index, which in parts:
        values[which] = view[index]
    return values


def scatter(parts: list[Part], values: Array, lanes: int) -> None:
    """Write every access; of two lanes at one address the higher one is last."""
    for view, index, which in parts:
        if which is None:
            if index.size == 1 and values.size > 1:
                values = values[-1:]
            view[index] = values
        else:
            view[index] = values if values.size == 1 else values[which]


def _layout(fields: dict[str, str]) -> tuple[np.dtype, int, int]:
    dtype = TYPES[fields["type"]].dtype
    count = int((fields["vector"] or "v1")[1:])
    return dtype, count, dtype.itemsize * count


def names_of(text: str) -> list[str]:
    """Return the registers of a scalar or vector operand."""
    return [name.strip() for name in text.strip("{} ").split(",")]


def state_space(written: str | None) -> str:
    """Return the name of a state space here, from how an opcode writes it."""
    if written == "shared::cluster":
        return "cluster"
    return (written or "generic").partition("::")[0]


def _space(builder: Builder, site: Site, text: str, space: str | None) -> str:
    space = state_space(space)
    # A device function's parameters live in its caller's frame.
    if space == "param" and builder.in_frame(site, text):
        return "local"
    return space


def _aligned(batch: Context, op: Op, lanes: Lanes, addresses: Array, width: int) -> None:
    """Refuse the first address that is no multiple of the whole access."""
    refusal = misaligned(addresses, width, "global")
    if refusal is not None:
        here = indices(lanes, batch.lanes)
        lane = int(here[refusal.position if addresses.size > 1 else 0])
        raise refusal.fault(refusal.what, batch.place(op, lane))


def _load(builder: Builder, site: Site, fields: dict[str, str], most: int) -> Op | None:
    target, text = site.operands
    dtype, count, width = _layout(fields)
    space = _space(builder, site, text, fields["space"])
    names = names_of(target)
    if len(names) != count or width > most:
        return None
    if space == "param":
        at = builder.parameter(site, text, width)
        if at is not None:
            return _argument(builder, site, at, dtype, [(name, fields["type"]) for name in names])
    # A wider access than 16 bytes is two, at one address and the next.
    halves = 2 if width > 16 else 1
    step = width // halves
    weak = fields.get("order") in (None, "weak") and not builder.swaps(site, text)
    access = Access.READ if weak else Access.STRONG_READ
    shape = (-1, count // halves)

    def load(batch: Context, op: Op, lanes: Lanes, addresses: Array) -> tuple[Array, ...]:
        n = batch.lanes if lanes is None else lanes.size
        columns: list[Array] = []
        if halves == 2:
            _aligned(batch, op, lanes, addresses, width)
        for half in range(halves):
            at = addresses + np.uint64(half * step) if half else addresses
            values = gather(resolve(batch, op, lanes, space, at, step, access), n).view(dtype)
            if count == 1:
                return (values,)
            columns.extend(np.ascontiguousarray(values.reshape(shape).T))
        return tuple(columns)

    return builder.access(site, load, text, [(name, fields["type"]) for name in names], [])


def _argument(
    builder: Builder, site: Site, at: int, dtype: np.dtype, targets: list[tuple[str, str]]
) -> Op:
    """Build a load of a kernel's argument, which lies inside of them whatever a thread does."""
    places = [at + number * dtype.itemsize for number in range(len(targets))]

    def load(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        data = batch.spaces.parameters.data
        return tuple([data[place : place + dtype.itemsize].view(dtype) for place in places])

    return builder.effect(site, load, targets, [])


def _store(builder: Builder, site: Site, fields: dict[str, str], most: int) -> Op | None:
    text, source = site.operands
    dtype, count, width = _layout(fields)
    space = _space(builder, site, text, fields["space"])
    names = names_of(source)
    if len(names) != count or width > most:
        return None
    halves = 2 if width > 16 else 1
    step, part = width // halves, count // halves
    access = Access.WRITE if fields.get("order") in (None, "weak") else Access.STRONG_WRITE

    def store(
        batch: Context, op: Op, lanes: Lanes, addresses: Array, *values: Array
    ) -> tuple[Array, ...]:
        n = batch.lanes if lanes is None else lanes.size
        if fields.get("order") == "release":
            batch.checks.publish(lanes, beyond=fields.get("scope") != "cta")
        if halves == 2:
            _aligned(batch, op, lanes, addresses, width)
        for half in range(halves):
            at = addresses + np.uint64(half * step) if half else addresses
            chosen = values[half * part : (half + 1) * part]
            if part == 1:
                joined = chosen[0]
            else:
                joined = np.empty((max(map(len, chosen)), part), dtype)
                for column, value in enumerate(chosen):
                    joined[:, column] = value
            bits = joined.view(UNITS[step]).reshape(-1)
            scatter(resolve(batch, op, lanes, space, at, step, access, bits), bits, n)
        return ()

    return builder.access(site, store, text, [], [(name, fields["type"]) for name in names])


# Accesses of 32 bytes are new in sm_100. They stand before the others: some spell the same opcode.
@form(f"ld global:space [nc] {EVICT} {WIDE[0]}", "load", decodes=True, since=100)
@form(f"ld global:space [nc] {EVICT} {WIDE[1]}", "load", decodes=True, since=100)
def _ld_wide(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    return _load(builder, site, fields, 32)


@form(f"st global:space {EVICT} {WIDE[0]}", "store", decodes=True, since=100)
@form(f"st global:space {EVICT} {WIDE[1]}", "store", decodes=True, since=100)
def _st_wide(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    return _store(builder, site, fields, 32)


@form(f"ld {LOAD} {VALUE}", "load", decodes=True)
@form("ldu [global:space] [v2|v4:vector] b8|b16|b32|b64|u32|f32|f64:type", "load", decodes=True)
def _ld(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    return _load(builder, site, fields, 16)


@form(f"st {STORE} {VALUE}", "store", decodes=True)
def _st(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    return _store(builder, site, fields, 16)


@form("prefetch [global|local:space] L1|L2:level", "control", decodes=True)
@form("prefetchu L1:level", "control", decodes=True)
def _prefetch(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    return builder.nothing(site)
