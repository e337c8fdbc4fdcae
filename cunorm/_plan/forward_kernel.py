"""Which forward kernel serves a row."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from .._families import COUNT
from . import split
from .dtypes import accumulator
from .parts import SOURCES, between, epilogue
from .plan import Plan
from .split import PACKETS_IN_FLIGHT, WARP, whole_packets

if TYPE_CHECKING:
    from .._families import Op


@cache
def forward(
    op: Op, cols: int, dtypes: tuple[tuple[str, str], ...], arch: int, **chosen: object
) -> Plan:
    """Plan a forward op for rows of `cols` elements.

    Parameters
    ----------
    op : Op
        The op.
    cols : int
        N, at least 1.
    dtypes : tuple of (str, str)
        The arrays that are there, of rows and of parameters, by their names in the kernel, and
        their dtypes.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    **chosen
        What the kernel is compiled for: of each `Option.compiled`, what it made of the value.

    Returns
    -------
    Plan
    """
    of = dict(dtypes)
    family = op.family
    row, source = SOURCES[op.source.name](of, chosen)
    ending = epilogue(family.epilogue, of, chosen)
    written = tuple(output.name for output in op.writes)
    parameters = tuple(name for name in (*op.parameters, *op.operands) if name in of)
    with_residual = len(op.source.writes) > 0
    share = split.forward(cols, row, arch, residual=with_residual)
    # 1024 lanes have 64 registers each, which hold three packets and gamma's.
    is_plain = family.statistic == "MeanSquare" and op.reads == ("x",)
    has_room = is_plain and set(parameters) <= {"gamma"} and share.shared > 0
    if_aligned = split.most_lanes(share, cols, row, 1024, 3) if has_room else None
    if_few = split.most_lanes(share, cols, row, split.MOST_LANES, PACKETS_IN_FLIGHT)
    keeps_all = share.cluster == 1 and whole_packets(cols, row) <= share.in_registers
    # A warp with one parameter, which it asks for with x, has nothing to gain.
    if keeps_all and share.lanes >= WARP + (len(parameters) < 2):
        if_few = if_few or replace(share, rows=1)
    header, numbers = "norm.cuh", f"{{{', '.join(family.saves)}}}, n.rows, n.eps"
    body = f"normalise<{source.type}, {family.statistic}<S>, {ending.type}, Stored<S, Y>>("
    made_of = f"{source.arrays}, {ending.arrays}"
    if op.source.name == "Normed":
        header, numbers = "post_norm.cuh", "{rstd}, {rstd2}, n.rows, n.eps, n.eps2"
        sum_ = between(of, chosen)
        body = (
            f"normalise_twice<{source.type}, {family.statistic}<S>, {sum_.type}, ResidualOut, "
            f"{ending.type}, Stored<S, Y>>("
        )
        made_of = f"{source.arrays}, {sum_.arrays}, $residual_out, {ending.arrays}"
    given = tuple(name for name in op.sums if name in of)
    for sums in given:
        header = "given_sums.cuh"
        by = f"Given{sums.capitalize()}<S>"
        body = f"normalise_by<{source.type}, {by}, {ending.type}, Stored<S, Y>>("
        numbers = f"{numbers}, {{{sums}, n.count}}"
    return Plan(
        op.norm,
        header,
        row,
        cols,
        share,
        arrays={name: of[name] for name in written}
        | dict.fromkeys((*family.saves, *given), accumulator(row))
        | {name: of[name] for name in (*op.reads, *parameters)},
        of_rows=(*written, *op.reads),
        statistics=(*family.saves, *given),
        parameters=parameters,
        written=(*written, *family.saves),
        scalars=tuple(o.name for o in op.options if o.number and (given or o is not COUNT)),
        body=f"{body}\n      {made_of}, {{$y}}, {numbers});",
        arch=arch,
        at_once_past_registers=2 if with_residual else PACKETS_IN_FLIGHT,
        if_aligned=if_aligned,
        if_few=if_few,
    )


@cache
def row_sums(kind: str, cols: int, dtype: str, arch: int) -> Plan:
    """Plan the sums over rows of `cols` elements: "squares" or "moments"."""
    share = split.forward(cols, dtype, arch, residual=False)
    part = {"squares": "Squares", "moments": "MeanAndSquares"}[kind]
    return Plan(
        "row_sums",
        "given_sums.cuh",
        dtype,
        cols,
        share,
        arrays={"sums": accumulator(dtype), "x": dtype},
        of_rows=("x",),
        statistics=("sums",),
        parameters=(),
        written=("sums",),
        scalars=(),
        body=f"sum_rows<Loaded<S, X>, {part}<S>>({{$x}}, sums, n.rows);",
        arch=arch,
    )
