"""Moves: between registers, into and out of vectors, special registers, addresses of variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..lanes import Array
from ..memory.segment import WINDOW_BITS, WINDOWS
from ..ptx.types import TYPES, UNSIGNED
from .cluster import absolute, within
from .table import form

if TYPE_CHECKING:
    from ..ptx.builder import Builder
    from ..ptx.op import Op
    from ..ptx.operands import Site

TYPE = "pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f16|bf16|f32|f64"


@form(f"mov {TYPE}:type", "move", decodes=True)
def _mov(builder: Builder, site: Site, fields: dict[str, str]) -> Op | None:
    kind = fields["type"]
    target, source = site.operands
    if target.startswith("{"):
        return _unpack(builder, site, kind, target, source)
    if source.startswith("{"):
        return _pack(builder, site, kind, target, source)
    return builder.pure(site, _same, [(target, kind)], (kind,))


def _same(a: Array) -> Array:
    return a


def _pieces(builder: Builder, site: Site, vector: str, kind: str) -> tuple[list[str], str]:
    names = [name.strip() for name in vector.strip("{} ").split(",")]
    return names, f"b{TYPES[kind].bits // len(names)}"


def _unpack(builder: Builder, site: Site, kind: str, target: str, source: str) -> Op:
    names, part = _pieces(builder, site, target, kind)
    dtype = UNSIGNED[TYPES[kind].bits // len(names)]

    def unpack(a: Array) -> tuple[Array, ...]:
        return tuple(
            np.ascontiguousarray(a.view(dtype)[at :: len(names)]) for at in range(len(names))
        )

    return builder.pure(site, unpack, [(name, part) for name in names], (kind,), [source])


def _pack(builder: Builder, site: Site, kind: str, target: str, source: str) -> Op:
    names, part = _pieces(builder, site, source, kind)
    whole, dtype = UNSIGNED[TYPES[kind].bits], UNSIGNED[TYPES[kind].bits // len(names)]

    def pack(*parts: Array) -> Array:
        joined = np.empty((max(map(len, parts)), len(parts)), dtype)
        for at, piece in enumerate(parts):
            joined[:, at] = piece
        return joined.view(whole).reshape(-1)

    return builder.pure(site, pack, [(target, kind)], (part,) * len(names), names)


@form("cvta [to] shared|local|global|param|const:space u32|u64:type", "move", decodes=True)
@form("cvta [to] shared=cta|shared=cluster|param=entry:space u32|u64:type", "move", decodes=True)
def _cvta(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = fields["space"].partition("::")[0]
    base = np.uint64(WINDOWS[space])
    if space == "shared" and not fields["to"] and builder.kernel.explicit_cluster:
        return absolute(builder, site, base)

    def move(a: Array) -> Array:
        if not base:
            return a
        return a - base if fields["to"] else a + base

    return builder.pure(site, move, [(site.operands[0], "u64")], ("u64",), [site.operands[1]])


@form("isspacep shared|local|global|param|const:space", "move", decodes=True)
@form("isspacep shared=cta|shared=cluster|param=entry:space", "move", decodes=True)
def _isspacep(builder: Builder, site: Site, fields: dict[str, str]) -> Op:
    space = fields["space"].partition("::")[0]
    top = WINDOWS[space] >> WINDOW_BITS
    if fields["space"] in ("shared", "shared::cta") and builder.kernel.explicit_cluster:
        return within(builder, site, np.uint64(top))

    def test(a: Array) -> Array:
        # Constants live in global memory here, and no address is known to be one.
        result: Array = a >> np.uint64(WINDOW_BITS) == np.uint64(top if space != "const" else 0xFF)
        return result

    return builder.pure(site, test, [(site.operands[0], "pred")], ("u64",), [site.operands[1]])
