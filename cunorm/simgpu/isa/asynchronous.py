"""cp.async: copies from global to shared memory that are waited for later."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array, Lanes, indices
from ..memory.access import UNITS, Access
from .access import gather, resolve, state_space
from .mbarrier import objects
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context

SHARED = "shared|shared=cta:space"
BULK = 16  # bulk copies come in units of this many bytes, at addresses that are multiples of it


@form(
    f"cp async ca|cg:cop {SHARED} global [L2=64B|L2=128B|L2=256B:prefetch]",
    "asynchronous",
    decodes=True,
    since=80,
)
def _copy(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    target, source, size, *rest = site.operands
    width = int(size, 0)
    if width not in (4, 8, 16) or (fields["cop"] == "cg" and width != 16) or len(rest) > 1:
        return None
    ignores = bool(rest) and builder.register_type(site, rest[0].lstrip("!")) == "pred"
    sources = [(text, "pred" if ignores else "u32") for text in rest]

    def issue(
        batch: Context, op: Op, lanes: Lanes, to: Array, given: Array, *how: Array
    ) -> tuple[Array, ...]:
        n = batch.lanes if lanes is None else lanes.size
        sizes = np.full(n, width)
        if how and ignores:
            sizes = np.where(how[0], 0, sizes)
        elif how:
            sizes = np.minimum(np.broadcast_to(how[0], n), np.uint32(width)).astype(np.int64)
        values = _read(batch, op, lanes, np.broadcast_to(given, n), sizes, width)
        (part,) = resolve(
            batch, op, lanes, "shared", np.broadcast_to(to, n), width, Access.WRITE, values
        )
        batch.copies.issue(op, lanes, part, values, grouped=True)
        return ()

    return builder.access(site, issue, target, [], sources, also=(source,))


def _read(
    batch: Context, op: Op, lanes: Lanes, addresses: Array, sizes: Array, width: int
) -> Array:
    """Read the first bytes of each lane's source; the rest of the unit is zeros."""
    every = indices(lanes, batch.lanes)
    if (sizes == width).all():
        parts = resolve(batch, op, lanes, "global", addresses, width, Access.READ)
        return np.broadcast_to(gather(parts, sizes.size), sizes.shape)
    values = np.zeros((sizes.size, width), np.uint8)
    for size in np.unique(sizes[sizes > 0]).tolist():
        chosen = np.flatnonzero(sizes == size)
        step = size & -size  # the widest unit that divides the size
        for at in range(0, size, step):
            places = addresses[chosen] + np.uint64(at)
            parts = resolve(batch, op, every[chosen], "global", places, step, Access.READ)
            read = np.ascontiguousarray(gather(parts, chosen.size))
            values[chosen, at : at + step] = read.view(np.uint8).reshape(-1, step)
    return values.view(UNITS[width]).reshape(-1)


@form("cp async commit_group", "asynchronous", decodes=True, since=80)
def _commit(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def commit(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        batch.copies.commit(lanes)
        return ()

    return builder.effect(site, commit, [], [])


@form("cp async wait_group|wait_all:which", "asynchronous", decodes=True, since=80)
def _wait(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    pending = int(site.operands[0], 0) if fields["which"] == "wait_group" else None

    def wait(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        batch.copies.wait(lanes, pending)
        return ()

    return builder.effect(site, wait, [], [])


@form(f"cp async mbarrier arrive [noinc] [{SHARED}] b64", "asynchronous", decodes=True, since=80)
def _arrive(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = state_space(fields["space"])

    def arrive(batch: Context, op: Op, lanes: Lanes, at: Array) -> tuple[Array, ...]:
        here, index = objects(batch, op, lanes, space, at, Access.ATOMIC)
        for place, copy in batch.copies.hand_over(here, index):
            batch.mbarriers.attach(op, int(copy.lanes[0]), place, copy)
        if fields["noinc"]:
            batch.mbarriers.arrive(op, here, index, np.ones(here.size, np.int64))
        # Without .noinc the arrival is first added to what the phase awaits: nothing changes.
        return ()

    return builder.access(site, arrive, site.operands[0], [], [])


@form(
    "cp async bulk shared=cluster|shared=cta:to global mbarrier=complete_tx=bytes",
    "asynchronous",
    decodes=True,
    since=90,
)
@form(
    "cp async bulk shared=cluster:to shared=cta:from mbarrier=complete_tx=bytes",
    "asynchronous",
    decodes=True,
    since=90,
)
def _bulk(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    target, source, size, barrier = site.operands
    origin = "shared" if "from" in fields else "global"

    def issue(
        batch: Context, op: Op, lanes: Lanes, to: Array, given: Array, at: Array, many: Array
    ) -> tuple[Array, ...]:
        every, index = objects(batch, op, lanes, "cluster", at, Access.ATOMIC)
        ends = [np.broadcast_to(address, every.shape) for address in (to, given)]
        sizes = np.broadcast_to(many, every.shape).astype(np.int64)
        if (sizes % BULK).any():
            lane = int(every[(sizes % BULK != 0).argmax()])
            what = f"a bulk copy of bytes that are no multiple of {BULK}"
            raise faults.Misaligned(what, batch.place(op, lane))
        for turn in np.flatnonzero(sizes).tolist():
            units = int(sizes[turn]) // BULK
            here = np.repeat(every[turn], units)
            steps = np.arange(units, dtype=np.uint64) * np.uint64(BULK)
            writes, reads = (address[turn] + steps for address in ends)
            values = gather(resolve(batch, op, here, origin, reads, BULK, Access.READ), units)
            space = state_space(fields["to"])
            (part,) = resolve(batch, op, here, space, writes, BULK, Access.WRITE, values)
            copy = batch.copies.issue(op, here, part, values, grouped=False)
            batch.mbarriers.attach(op, int(every[turn]), int(index[turn]), copy)
        batch.mbarriers.expect(op, every, index, -sizes)
        return ()

    return builder.access(site, issue, target, [], [(size, "u32")], also=(source, barrier))
