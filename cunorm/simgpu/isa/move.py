"""Moves: between registers, into and out of vectors, special registers, addresses of variables."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from ..lanes import Array
from ..ptx.types import TYPES, UNSIGNED
from .cluster import absolute, within
from .table import form

if TYPE_CHECKING:
    from ..execution.decode import Decoder
    from ..ptx.operands import Site
    from ..ptx.program import Op

TYPE = "pred|b16|b32|b64|u16|u32|u64|s16|s32|s64|f16|bf16|f32|f64"


@form(f"mov {TYPE}:type", "move", decodes=True)
def _mov(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op | None:
    kind = fields["type"]
    target, source = site.operands
    if target.startswith("{"):
        return _unpack(decoder, site, kind, target, source)
    if source.startswith("{"):
        return _pack(decoder, site, kind, target, source)
    return decoder.pure(site, lambda a: a, [(target, kind)], (kind,))


def _pieces(decoder: Decoder, site: Site, vector: str, kind: str) -> tuple[list[str], str]:
    names = [name.strip() for name in vector.strip("{} ").split(",")]
    return names, f"b{TYPES[kind].bits // len(names)}"


def _unpack(decoder: Decoder, site: Site, kind: str, target: str, source: str) -> Op:
    names, part = _pieces(decoder, site, target, kind)
    dtype = UNSIGNED[TYPES[kind].bits // len(names)]

    def unpack(a: Array) -> tuple[Array, ...]:
        return tuple(
            np.ascontiguousarray(a.view(dtype)[at :: len(names)]) for at in range(len(names))
        )

    return decoder.pure(site, unpack, [(name, part) for name in names], (kind,), [source])


def _pack(decoder: Decoder, site: Site, kind: str, target: str, source: str) -> Op:
    names, part = _pieces(decoder, site, source, kind)
    whole, dtype = UNSIGNED[TYPES[kind].bits], UNSIGNED[TYPES[kind].bits // len(names)]

    def pack(*parts: Array) -> Array:
        joined = np.empty((max(map(len, parts)), len(parts)), dtype)
        for at, piece in enumerate(parts):
            joined[:, at] = piece
        return joined.view(whole).reshape(-1)

    return decoder.pure(site, pack, [(target, kind)], (part,) * len(names), names)


@form("cvta [to] shared|local|global|param|const:space u32|u64:type", "move", decodes=True)
@form("cvta [to] shared=cta|shared=cluster|param=entry:space u32|u64:type", "move", decodes=True)
def _cvta(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    space = fields["space"].partition("::")[0]
    base = np.uint64(decoder.windows[space])
    if space == "shared" and not fields["to"] and decoder.kernel.explicit_cluster:
        return absolute(decoder, site, base)

    def move(a: Array) -> Array:
        if not base:
            return a
        return a - base if fields["to"] else a + base

    return decoder.pure(site, move, [(site.operands[0], "u64")], ("u64",), [site.operands[1]])


@form("isspacep shared|local|global|param|const:space", "move", decodes=True)
@form("isspacep shared=cta|shared=cluster|param=entry:space", "move", decodes=True)
def _isspacep(decoder: Decoder, site: Site, fields: dict[str, str]) -> Op:
    space = fields["space"].partition("::")[0]
    top = decoder.windows[space] >> decoder.WINDOW_BITS
    if fields["space"] in ("shared", "shared::cta") and decoder.kernel.explicit_cluster:
        return within(decoder, site, np.uint64(top))

    def test(a: Array) -> Array:
        # Constants live in global memory here, and no address is known to be one.
        result: Array = a >> np.uint64(decoder.WINDOW_BITS) == np.uint64(
            top if space != "const" else 0xFF
        )
        return result

    return decoder.pure(site, test, [(site.operands[0], "pred")], ("u64",), [site.operands[1]])
