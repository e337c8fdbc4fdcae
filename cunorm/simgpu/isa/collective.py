"""Warp collectives: shuffles, votes, matches, reductions across the lanes of a warp."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..lanes import WARP, Array, Lanes, indices
from .bits import highest
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context

# A lane that does not take part has no value to give: a NaN in float32, absurd as an integer.
NOBODY = np.uint32(0xFFFFDEAD)


def _everywhere(batch: Context, lanes: Lanes, value: Array, other: object) -> Array:
    """Return compact values spread over the lanes of the batch."""
    if lanes is None and value.size == batch.lanes:
        return value
    full = np.full(batch.lanes, other, value.dtype)
    full[slice(None) if lanes is None else lanes] = value
    return full


@form("shfl sync up|down|bfly|idx:mode b32", "collective", decodes=True)
def _shfl(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    mode = fields["mode"]
    target, value, by, clamp, mask = site.operands
    targets = target.split("|")

    def shuffle(
        batch: Context, op: Op, lanes: Lanes, a: Array, b: Array, c: Array, members: Array
    ) -> tuple[Array, ...]:
        here = indices(lanes, batch.lanes)
        lane = here % WARP
        b, c = b.astype(np.int64) & 31, c.astype(np.int64)
        segment, last = c >> 8 & 31, c & 31
        limit = (lane & segment) | (last & ~segment)
        if mode == "up":
            source = lane - b
            inside = source >= limit
        elif mode == "idx":
            source = (lane & segment) | (b & ~segment)
            inside = source <= limit
        else:
            source = lane + b if mode == "down" else lane ^ b
            inside = source <= limit
        source = here - lane + np.where(inside, source, lane)
        result = _everywhere(batch, lanes, a, NOBODY)[source]
        return (result, inside)[: len(targets)]

    builder.meeting(
        site,
        shuffle,
        list(zip(targets, ("b32", "pred"), strict=False)),
        [(value, "b32"), (by, "u32"), (clamp, "u32"), (mask, "u32")],
    )


def _votes(batch: Context, lanes: Lanes, vote: Array) -> tuple[Array, Array, Array]:
    """Return for each lane here: its warp, the bits of those that vote yes, of those that vote."""
    here = indices(lanes, batch.lanes)
    yes = batch.ballot(here[np.broadcast_to(vote, here.shape)])
    return here // WARP, yes, batch.ballot(here)


@form("vote sync all|any|uni:mode pred", "collective", decodes=True)
@form("vote sync ballot:mode b32", "collective", decodes=True)
def _vote(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    mode = fields["mode"]
    target, vote, mask = site.operands

    def count(batch: Context, op: Op, lanes: Lanes, a: Array, members: Array) -> tuple[Array, ...]:
        warp, yes, voted = _votes(batch, lanes, a)
        yes, voted = yes[warp] & members, voted[warp] & members
        result = {
            "ballot": yes,
            "all": yes == voted,
            "any": yes != 0,
            "uni": (yes == voted) | (yes == 0),
        }[mode]
        return (result,)

    kind = "b32" if mode == "ballot" else "pred"
    builder.meeting(site, count, [(target, kind)], [(vote, "pred"), (mask, "u32")])


@form("activemask b32", "collective_free", decodes=True)
def _activemask(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def active(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        here = indices(lanes, batch.lanes)
        return (batch.ballot(here)[here // WARP],)

    return builder.effect(site, active, [(site.operands[0], "b32")], [])


@form("match any|all:mode sync b32|b64:type", "collective", decodes=True)
def _match(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    mode = fields["mode"]
    targets = site.operands[0].split("|")
    _, value, mask = site.operands

    def match(batch: Context, op: Op, lanes: Lanes, a: Array, members: Array) -> tuple[Array, ...]:
        here = indices(lanes, batch.lanes)
        a, members = np.broadcast_to(a, here.shape), np.broadcast_to(members, here.shape)
        result = np.zeros(here.size, np.uint32)
        warp = here // WARP
        for other in range(WARP):
            # Compare everybody's value with that of one lane of their warp.
            at = np.full(batch.lanes // WARP, -1)
            chosen = np.flatnonzero(here % WARP == other)
            at[warp[chosen]] = chosen
            there = at[warp]
            same = (there >= 0) & (a[there] == a) & (members >> np.uint32(other) & 1 != 0)
            result |= same.astype(np.uint32) << np.uint32(other)
        if mode == "any":
            return (result,)
        agreed = result == members & batch.ballot(here)[warp]
        return (np.where(agreed, members, np.uint32(0)), agreed)[: len(targets)]

    builder.meeting(
        site,
        match,
        list(zip(targets, ("b32", "pred"), strict=False)),
        [(value, fields["type"]), (mask, "u32")],
    )


REDUCTIONS = {
    "add": np.add,
    "min": np.minimum,
    "max": np.maximum,
    "and": np.bitwise_and,
    "or": np.bitwise_or,
    "xor": np.bitwise_xor,
}


@form("redux sync add|min|max:operation u32|s32:type", "collective", decodes=True, since=80)
@form("redux sync and|or|xor:operation b32:type", "collective", decodes=True, since=80)
def _redux(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    target, value, mask = site.operands
    reduce = REDUCTIONS[fields["operation"]]

    def reduction(
        batch: Context, op: Op, lanes: Lanes, a: Array, members: Array
    ) -> tuple[Array, ...]:
        here = indices(lanes, batch.lanes)
        a, members = np.broadcast_to(a, here.shape), np.broadcast_to(members, here.shape)
        # Lanes that share a mask reduce among themselves: sort them together, reduce each run.
        keys = (here // WARP).astype(np.uint64) << np.uint64(32) | members
        _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
        order = np.argsort(inverse, kind="stable")
        starts = np.searchsorted(inverse[order], np.arange(first.size))
        return (reduce.reduceat(a[order], starts)[inverse].astype(a.dtype),)

    builder.meeting(
        site, reduction, [(target, fields["type"])], [(value, fields["type"]), (mask, "u32")]
    )


@form("elect sync", "collective", decodes=True, since=90)
def _elect(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    target, mask = site.operands

    def elect(batch: Context, op: Op, lanes: Lanes, members: Array) -> tuple[Array, ...]:
        here = indices(lanes, batch.lanes)
        members = np.broadcast_to(members, here.shape) & batch.ballot(here)[here // WARP]
        leader = highest(members & (~members + np.uint32(1))).astype(np.uint32)
        return leader, leader == here % WARP

    names = target.split("|")
    builder.meeting(site, elect, list(zip(names, ("b32", "pred"), strict=True)), [(mask, "u32")])


@form("bar warp sync", "collective", decodes=True)
def _warp_barrier(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    def pass_on(batch: Context, op: Op, lanes: Lanes, members: Array) -> tuple[Array, ...]:
        batch.checks.warp_barrier(lanes, members)
        return ()

    builder.meeting(site, pass_on, [], [(site.operands[0], "u32")])
