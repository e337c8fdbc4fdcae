"""Thread-block clusters: the barrier, and addresses in a neighbour's shared memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..lanes import Array
from ..memory.segment import WINDOW_BITS
from ..sync.clusters import RANK_SHIFT
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site

SHIFT = np.uint64(RANK_SHIFT)
RANKS = np.uint64(0xFF)
ONE = np.uint64(1)


@form("barrier cluster arrive [release|relaxed:order] [aligned]", "barrier", decodes=True, since=90)
def _arrive(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    orders = fields["order"] != "relaxed"
    builder.cluster_barrier(site, waits=False, aligned=bool(fields["aligned"]), orders=orders)


@form("barrier cluster wait [acquire:order] [aligned]", "barrier", decodes=True, since=90)
def _wait(builder: Builder, site: Site, fields: dict[str, str]) -> None:
    builder.cluster_barrier(site, waits=True, aligned=bool(fields["aligned"]), orders=True)


@form("mapa [shared=cluster:space] u32|u64:type", "move", decodes=True, since=90)
def _mapa(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    target, address, rank = site.operands
    kind = fields["type"]
    above = ~(RANKS << SHIFT)

    def mapped(a: Array, b: Array) -> Array:
        # A rank that no cluster has stays one: the access through it is refused.
        named = np.minimum(b, np.uint32(254)).astype(np.uint64) + ONE
        wide = (a.astype(np.uint64) & above) | named << SHIFT
        return wide.astype(a.dtype)

    return builder.pure(site, mapped, [(target, kind)], (kind, "u32"), [address, rank])


@form("getctarank [shared=cluster:space] u32|u64:type", "move", decodes=True, since=90)
def _getctarank(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    target, address = site.operands

    def rank(a: Array, own: Array) -> Array:
        named = a.astype(np.uint64) >> SHIFT & RANKS
        return np.where(named, (named - ONE).astype(np.uint32), own)

    sources = [address, "%cluster_ctarank"]
    return builder.pure(site, rank, [(target, "u32")], (fields["type"], "u32"), sources)


def absolute(builder: Builder, site: Site, base: np.uint64) -> Op:
    """Build cvta.shared in a cluster: a generic address means the same block to all neighbours."""

    def move(a: Array, own: Array) -> Array:
        named = a >> SHIFT & RANKS != 0
        return np.where(named, a, a | (own.astype(np.uint64) + ONE) << SHIFT) + base

    target, source = site.operands
    return builder.pure(site, move, [(target, "u64")], ("u64", "u32"), [source, "%cluster_ctarank"])


def within(builder: Builder, site: Site, top: np.uint64) -> Op:
    """Build isspacep.shared::cta in a cluster: the block's own shared memory alone."""

    def test(a: Array, own: Array) -> Array:
        named = a >> SHIFT & RANKS
        mine = (named == 0) | (named == own.astype(np.uint64) + ONE)
        result: Array = (a >> np.uint64(WINDOW_BITS) == top) & mine
        return result

    target, source = site.operands
    return builder.pure(
        site, test, [(target, "pred")], ("u64", "u32"), [source, "%cluster_ctarank"]
    )
