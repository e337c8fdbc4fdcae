"""Branches, returns, barriers, fences and traps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array, Lanes
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site
    from ..sync.context import Context


@form("bra [uni]", "branch", decodes=True)
def _bra(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.branch(site, site.operands[0])


@form("brx idx [uni]", "branch", decodes=True)
def _brx(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.indexed_branch(site, site.operands[0], site.operands[1])


@form("ret [uni]", "branch", decodes=True)
def _ret(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.leave(site)


@form("exit", "branch", decodes=True)
def _exit(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.exit(site)


@form("trap", "control", decodes=True)
def _trap(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def trap(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        lane = 0 if lanes is None else int(lanes[0])
        raise faults.Trap("the program trapped", batch.place(op, lane))

    return builder.effect(site, trap, [], [])


@form("membar gl|sys:level", "control", decodes=True)
@form("fence [sc|acq_rel|acquire|release:order] cluster|gpu|sys:scope", "control", decodes=True)
def _wide_fence(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def fence(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        batch.clusters.synchronized(lanes)
        batch.checks.publish(lanes, beyond=True)
        return ()

    return builder.effect(site, fence, [], [])


@form("nanosleep u32", "control", decodes=True)
def _nanosleep(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def rest(batch: Context, op: Op, lanes: Lanes, time: Array) -> tuple[Array, ...]:
        batch.yields = True
        return ()

    return builder.effect(site, rest, [], [(site.operands[0], "u32")])


@form("membar cta:level", "control", decodes=True)
@form("fence [sc|acq_rel|acquire|release:order] cta:scope", "control", decodes=True)
def _narrow_fence(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    def fence(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        batch.checks.publish(lanes, beyond=False)
        return ()

    return builder.effect(site, fence, [], [])


@form("fence proxy async [global|shared=cta:space]", "control", decodes=True, since=90)
@form("griddepcontrol launch_dependents|wait:action", "control", decodes=True, since=90)
@form("pmevent", "control", decodes=True)
def _fence(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    # Lanes run one after another on one memory, so every order a fence could ask for holds.
    return builder.nothing(site)


@form("bar [cta] sync:action", "barrier", decodes=True)
@form("barrier [cta] sync:action aligned", "barrier", decodes=True)
def _barrier(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.barrier(site, site.operands, aligned=True)


@form("barrier [cta] sync:action", "barrier", decodes=True)
def _unaligned(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.barrier(site, site.operands, aligned=False)


@form("bar [cta] arrive:action", "barrier", decodes=True)
@form("barrier [cta] arrive:action [aligned]", "barrier", decodes=True)
def _arrive(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.barrier(site, site.operands, aligned="aligned" in fields, waits=False)


def _count(votes: Array) -> int:
    return int(np.count_nonzero(votes))


REDUCTIONS = {
    "popc": _count,
    "and": lambda votes: int(votes.all()),
    "or": lambda votes: int(votes.any()),
}


@form("bar [cta] red:action popc|and|or:reduction u32|pred:type", "barrier", decodes=True)
@form(
    "barrier [cta] red:action popc|and|or:reduction [aligned] u32|pred:type",
    "barrier",
    decodes=True,
)
def _reduction(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    target, *rest, vote = site.operands
    builder.barrier(
        site,
        tuple(rest),
        aligned=True,
        vote=vote,
        result=(target, fields["type"]),
        reduce=REDUCTIONS[fields["reduction"]],
    )


@form("call [uni]", "branch", decodes=True)
def _call(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.call(site)
