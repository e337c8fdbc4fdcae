"""What a kernel does with heads that are normalised and rotated."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

from . import split
from .devices import shared_bytes
from .dtypes import C_TYPE, ITEMSIZE, accumulator, promoted
from .parts import STAGES, Dtypes, epilogue, then, word
from .rope_plan import HEADER, HeadsPlan
from .split import PACKET_BYTES, WARP, Split, whole_packets
from .unit import Stage

# The arrays of a kernel, in its order.
ARRAYS = ("y", "x", "gamma", "cos", "sin", "positions")
STATISTIC = "rstd"
BANKS_BYTES = 128  # of shared memory, that an access reaches at once


class TooLong(ValueError):
    """A row that no block keeps in registers, or passes through shared memory."""


@dataclass(frozen=True)
class Rotary:
    """How heads are rotated.

    Attributes
    ----------
    head : int
        The columns of a head.
    rotated : int
        How many of them are rotated, the first ones.
    interleaved : bool
        Whether pairs are neighbours.
    norm_first : bool
        Whether the norm comes before the rotation.
    norm : bool
        Whether there is one.
    back : bool
        Whether pairs are turned back, as gradients are.
    """

    head: int
    rotated: int
    interleaved: bool
    norm_first: bool
    norm: bool = True
    back: bool = False

    def in_lanes(self, share: Split, cols: int, vec: int) -> bool:
        """Return whether each lane has the partners of its packets."""
        if self.head % vec or self.rotated % vec:
            return False
        if self.interleaved:
            return True
        turn = share.lanes * vec
        return share.lanes <= WARP and cols == self.head and self.rotated // 2 % turn == 0


def cast_of_norm(cast: str) -> str:
    """Return the norm's own cast: of "between" it is "after", and the rotation rounds each step."""
    return "before" if cast == "before" else "after"


@cache
def heads(
    cols: int,
    rotary: Rotary,
    dtypes: tuple[tuple[str, str], ...],
    arch: int,
    block: tuple[int, int] | None = None,
    *,
    gamma_offset: bool,
    cast: str,
) -> HeadsPlan:
    """Plan what is done with rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N: a head's columns, or those of all heads of a token.
    rotary : Rotary
        How they are rotated.
    dtypes : tuple of (str, str)
        Of y, x, gamma, cos, sin and positions, as far as they are there, by name.
    arch : int
        The architecture, like 90.
    block : tuple of (int, int), optional
        Lanes of a row and rows of a block, where another array's say so.
    gamma_offset : bool
        Whether gamma has one.
    cast : str
        Where 16-bit results are rounded.

    Returns
    -------
    HeadsPlan

    Raises
    ------
    TooLong
        Where registers, or shared memory beside them, do not keep a row.
    """
    of = dict(dtypes)
    x, rounds = of["x"], cast != "after"
    wide = accumulator(x)
    product = promoted(x, of["cos"]) if rounds else wide
    row = x if rotary.norm_first else product
    share = split.forward(cols, row, arch, residual=False)
    if block is not None and block != (share.lanes, share.rows):
        share = _in_block(share, cols, row, *block)
    kept = wide if rotary.norm_first and not rounds else x
    row_bytes = _row_bytes(rotary, cols, row, kept, share, arch)
    rotation = _rotation(rotary, of, product, kept, row_bytes)
    chosen = {"gamma_offset": gamma_offset, "cast": cast_of_norm(cast)}
    normed = {"x": row} | {name: of[name] for name in ("y", "gamma") if name in of}
    ending = epilogue("Scale", normed, chosen)
    if rotary.norm_first:
        if not rounds:
            ending = then(STAGES["Scale"](normed, chosen), "S::Acc")
        source = Stage("Loaded<S, X>", "{$x}")
        sink = Stage(f"RotatedTo<S, {rotation.type}, Y>", f"{{{{$y}}, {rotation.arrays}}}")
    else:
        source = Stage(f"Rotated<S, X, {rotation.type}>", f"{{$x, {rotation.arrays}}}")
        sink = Stage("Stored<S, Y>", "{$y}")
    statistic, kept_of_row = ("MeanSquare", (STATISTIC,)) if rotary.norm else ("Unnormalised", ())
    return HeadsPlan(
        "heads",
        HEADER,
        row,
        cols,
        share,
        arrays={name: of[name] for name in ARRAYS if name in of} | dict.fromkeys(kept_of_row, wide),
        of_rows=("y", "x"),
        statistics=kept_of_row,
        parameters=tuple(name for name in ("gamma", "cos", "sin") if name in of),
        written=("y", *kept_of_row),
        scalars=("eps", "gamma_offset"),
        body=f"normalise_heads<{source.type}, {statistic}<S>, {ending.type},\n"
        f"                  {sink.type}>(\n"
        f"      {source.arrays}, {ending.arrays}, {sink.arrays}, {{{', '.join(kept_of_row)}}}, "
        "n.rows, n.eps, group);",
        arch=arch,
        row_bytes=row_bytes,
    )


def turned_back(
    rotary: Rotary, of: Dtypes, share: Split, cols: int, arch: int
) -> tuple[Stage, int]:
    """Return what a backward kernel reads its rows by, and the bytes that one of dy passes through.

    Raises
    ------
    TooLong
        As `heads`.
    """
    x = of["x"]
    row_bytes = _row_bytes(rotary, cols, x, x, share, arch)
    rotation = _rotation(rotary, of, accumulator(x), x, row_bytes)
    source = Stage(f"TurnedBackPairs<S, X, Dy, {rotation.type}>", f"{{$x, $dy, {rotation.arrays}}}")
    return source, row_bytes


def _row_bytes(rotary: Rotary, cols: int, row: str, kept: str, share: Split, arch: int) -> int:
    """Return the bytes of shared memory that a row of dtype `kept` passes through, 0 for none."""
    row_bytes = 0
    if not rotary.in_lanes(share, cols, PACKET_BYTES // ITEMSIZE[row]):
        row_bytes = _pitch(cols * ITEMSIZE[kept], share.lanes)
    in_registers = share.cluster == 1 and whole_packets(cols, row) <= share.in_registers
    if not in_registers or row_bytes * share.rows > shared_bytes(arch):
        raise TooLong(f"{cols} columns of {row} are more than a block keeps")
    return row_bytes


def _rotation(rotary: Rotary, of: Dtypes, product: str, kept: str, row_bytes: int) -> Stage:
    """Return what a source and a sink that rotate have in common."""
    heads = f"Heads<S, {rotary.head}, {rotary.rotated}, {word(rotary.interleaved)}, "
    heads += f"{C_TYPE[product]}>"
    by, positions = "ByToken<S>", "{}"
    if "positions" in of:
        by, positions = "ByPosition<S, Positions>", "{$positions}"
    back = ", true" * rotary.back
    return Stage(
        f"{heads}, Kept<S, {heads}, {C_TYPE[kept]}, {row_bytes}>, "
        f"Angles<S, {heads}, Cos, Sin, {by}{back}>",
        f"{{$cos, $sin, {positions}}}",
    )


def _in_block(share: Split, cols: int, dtype: str, lanes: int, rows: int) -> Split:
    """Return how as many lanes as another row has share a row: no bit of it changes."""
    packets = -(-whole_packets(cols, dtype) // lanes)
    if lanes > WARP:
        packets = -(-packets // share.depth) * share.depth
    return replace(share, lanes=lanes, rows=rows, packets=packets, shared=0)


def _pitch(nbytes: int, lanes: int) -> int:
    """Return from one row in shared memory to the next, in bytes: whole packets.

    Rows of 4 lanes are an odd number of 64 bytes apart, which brings those of two into other banks.
    """
    if lanes * PACKET_BYTES == BANKS_BYTES // 2:
        half = BANKS_BYTES // 2
        return (nbytes + half - 1) // BANKS_BYTES * BANKS_BYTES + half
    return -(-nbytes // PACKET_BYTES) * PACKET_BYTES
