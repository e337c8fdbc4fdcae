"""mbarrier: barriers in shared memory that count arrivals and bytes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array, Lanes, indices
from ..memory.access import Access
from ..sync.mbarriers import PHASE_SHIFT
from .access import resolve, state_space
from .table import Pure, form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context

OWN = "[shared|shared=cta:space] b64"
ANY = "[shared|shared=cta|shared=cluster:space] b64"
SCOPE = "[cta|cluster:scope]"
LOW = np.uint64((1 << PHASE_SHIFT) - 1)
# An atomic, but one that may come first: the mbarriers say it better where none was initialised.
USE = Access.STRONG_WRITE


def objects(
    batch: Context, op: Op, lanes: Lanes, space: str, addresses: Array, access: Access
) -> tuple[Array, Array]:
    """Return the lanes, and for each the index of its mbarrier in all shared memory."""
    here = indices(lanes, batch.lanes)
    parts = resolve(batch, op, here, space, np.broadcast_to(addresses, here.shape), 8, access)
    segment = batch.spaces.shared
    index = np.empty(here.size, np.int64)
    for view, at, which in parts:
        if not np.may_share_memory(view, segment.data):
            lane = int(here[0 if which is None else which[0]])
            raise faults.BarrierMisuse("no address in shared memory", batch.place(op, lane))
        index[slice(None) if which is None else which] = at
    return here, index


def _counts(lanes: Array, given: tuple[Array, ...]) -> Array:
    count = given[0].astype(np.int64) if given else np.ones(1, np.int64)
    return np.broadcast_to(count, lanes.shape)


@form(f"mbarrier init {OWN}", "mbarrier", decodes=True, since=80)
def _init(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = state_space(fields["space"])

    def init(batch: Context, op: Op, lanes: Lanes, at: Array, count: Array) -> tuple[Array, ...]:
        here, index = objects(batch, op, lanes, space, at, Access.WRITE)
        batch.mbarriers.begin(op, here, index, _counts(here, (count,)))
        return ()

    address, count = site.operands
    return builder.access(site, init, address, [], [(count, "u32")])


@form(f"mbarrier inval {OWN}", "mbarrier", decodes=True, since=80)
def _inval(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = state_space(fields["space"])

    def inval(batch: Context, op: Op, lanes: Lanes, at: Array) -> tuple[Array, ...]:
        batch.mbarriers.end(op, *objects(batch, op, lanes, space, at, Access.WRITE))
        return ()

    return builder.access(site, inval, site.operands[0], [], [])


ORDERED = f"[release|relaxed:order] {SCOPE}"
ARRIVE = "mbarrier arrive|arrive_drop:action"


# The table is searched from the last of these on: what sm_80 has comes before what sm_90 added.
@form(f"{ARRIVE} [expect_tx:how] {ORDERED} {ANY}", "mbarrier", decodes=True, since=90)
@form(
    f"{ARRIVE} noComplete:how [release:order] [cta:scope] {OWN}",
    "mbarrier",
    decodes=True,
    since=80,
)
@form(f"{ARRIVE} {OWN}", "mbarrier", decodes=True, since=80)
def _arrive(builder: Builder, site: Site, fields: dict[str, str | None]) -> Op | None:
    space, how = state_space(fields["space"]), fields.get("how")
    drops = fields["action"] == "arrive_drop"
    # Without a result, the token goes nowhere: `_`, or no operand at all.
    texts = list(site.operands)
    target = "_" if texts[0].startswith("[") else texts.pop(0)
    address, *given = texts
    if len(given) > 1 or (how is not None and not given):
        return None
    releases = fields.get("order") != "relaxed"

    def arrive(
        batch: Context, op: Op, lanes: Lanes, at: Array, *numbers: Array
    ) -> tuple[Array, ...]:
        if releases:
            batch.checks.publish(lanes)
        here, index = objects(batch, op, lanes, space, at, USE)
        numbers_ = _counts(here, numbers)
        expects = numbers_ if how == "expect_tx" else None
        counts = numbers_ if expects is None else np.ones(here.size, np.int64)
        completes = how != "noComplete"
        tokens = batch.mbarriers.arrive(
            op, here, index, counts, expects, drops=drops, completes=completes
        )
        return (tokens,)

    return builder.access(site, arrive, address, [(target, "b64")], [(n, "u32") for n in given])


@form(f"mbarrier expect_tx|complete_tx:action [relaxed:order] {SCOPE} {ANY}", "mbarrier",
      decodes=True, since=90)  # fmt: skip
def _expect(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = state_space(fields["space"])
    sign = 1 if fields["action"] == "expect_tx" else -1

    def expect(batch: Context, op: Op, lanes: Lanes, at: Array, count: Array) -> tuple[Array, ...]:
        here, index = objects(batch, op, lanes, space, at, USE)
        batch.mbarriers.expect(op, here, index, sign * _counts(here, (count,)))
        return ()

    address, count = site.operands
    return builder.access(site, expect, address, [], [(count, "u32")])


WAIT = f"[acquire|relaxed:order] {SCOPE} {OWN}"


@form(f"mbarrier test_wait:action [parity] {WAIT}", "mbarrier", decodes=True, since=80)
@form(f"mbarrier try_wait:action [parity] {WAIT}", "mbarrier", decodes=True, since=90)
def _wait(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = state_space(fields["space"])
    target, address, token, *_ = site.operands  # after them stands how long to wait, as a hint
    parity, kind = bool(fields["parity"]), "u32" if fields["parity"] else "u64"

    def wait(batch: Context, op: Op, lanes: Lanes, at: Array, asked: Array) -> tuple[Array, ...]:
        here, index = objects(batch, op, lanes, space, at, USE)
        tokens = np.broadcast_to(asked, here.shape)
        over = batch.mbarriers.test(op, here, index, tokens, parity=parity)
        if fields["order"] != "relaxed" and over.any():
            batch.mbarriers.waited(here[over])
        if not over.all():
            batch.yields = True
        return (over,)

    return builder.access(site, wait, address, [(target, "pred")], [(token, kind)])


@form("mbarrier pending_count b64", "mbarrier", since=80)
def _pending_count(pending_count: str, b64: str) -> Pure:
    return Pure(lambda token: (token & LOW).astype(np.uint32), ("u32",), ("b64",))


@form("fence mbarrier_init release cluster", "control", decodes=True, since=90)
def _fence(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    # What follows it is a cluster barrier, whose arrival may be relaxed: the fence publishes.
    def fence(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        batch.checks.publish(lanes)
        return ()

    return builder.effect(site, fence, [], [])
