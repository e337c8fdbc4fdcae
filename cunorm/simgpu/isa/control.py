"""Branches, returns, barriers, fences and traps."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from .. import faults
from ..lanes import Array
from .table import form

if TYPE_CHECKING:
    from ..execution.decode import Decoder
    from ..execution.warps import Batch
    from ..ptx.operands import Site
    from ..ptx.program import Op


@form("bra [uni]", "branch", decodes=True)
def _bra(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.branch(site, site.operands[0])


@form("brx idx [uni]", "branch", decodes=True)
def _brx(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.indexed_branch(site, site.operands[0], site.operands[1])


@form("ret [uni]", "branch", decodes=True)
def _ret(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.leave(site)


@form("exit", "branch", decodes=True)
def _exit(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.exit(site)


@form("trap", "control", decodes=True)
def _trap(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    def trap(batch: Batch, op: Op, lanes: Array | None) -> tuple[Array, ...]:
        lane = 0 if lanes is None else int(lanes[0])
        raise faults.Trap("the program trapped", batch.place(op, lane))

    return decoder.effect(site, trap, [], [])


@form("membar gl|sys:level", "control", decodes=True)
@form("fence [sc|acq_rel|acquire|release:order] cluster|gpu|sys:scope", "control", decodes=True)
def _wide_fence(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    def fence(batch: Batch, op: Op, lanes: Array | None) -> tuple[Array, ...]:
        batch.clusters.synchronized(lanes)
        batch.checks.publish(lanes, beyond=True)
        return ()

    return decoder.effect(site, fence, [], [])


@form("nanosleep u32", "control", decodes=True)
def _nanosleep(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    def rest(batch: Batch, op: Op, lanes: Array | None, time: Array) -> tuple[Array, ...]:
        batch.yields = True
        return ()

    return decoder.effect(site, rest, [], [(site.operands[0], "u32")])


@form("membar cta:level", "control", decodes=True)
@form("fence [sc|acq_rel|acquire|release:order] cta:scope", "control", decodes=True)
def _narrow_fence(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    def fence(batch: Batch, op: Op, lanes: Array | None) -> tuple[Array, ...]:
        batch.checks.publish(lanes, beyond=False)
        return ()

    return decoder.effect(site, fence, [], [])


@form("fence proxy async [global|shared=cta:space]", "control", decodes=True, since=90)
@form("griddepcontrol launch_dependents|wait:action", "control", decodes=True, since=90)
@form("pmevent", "control", decodes=True)
def _fence(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    # Lanes run one after another on one memory, so every order a fence could ask for holds.
    return decoder.nothing(site)


@form("bar [cta] sync:action", "barrier", decodes=True)
@form("barrier [cta] sync:action aligned", "barrier", decodes=True)
def _barrier(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.barrier(site, site.operands, aligned=True)


@form("barrier [cta] sync:action", "barrier", decodes=True)
def _unaligned(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.barrier(site, site.operands, aligned=False)


@form("bar [cta] arrive:action", "barrier", decodes=True)
@form("barrier [cta] arrive:action [aligned]", "barrier", decodes=True)
def _arrive(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.barrier(site, site.operands, aligned="aligned" in fields, waits=False)


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
def _reduction(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    target, *rest, vote = site.operands
    decoder.barrier(
        site,
        tuple(rest),
        aligned=True,
        vote=vote,
        result=(target, fields["type"]),
        reduce=REDUCTIONS[fields["reduction"]],
    )


@form("call [uni]", "branch", decodes=True)
def _call(decoder: Decoder, site: Site, fields: dict[str, str]) -> None:
    decoder.call(site)
