"""Which backward kernel serves a row, its grid, and the kernel that adds up its sums."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from . import split
from .dtypes import C_TYPE, ITEMSIZE, accumulator
from .parts import ADDEND, gate_of, weight_of, word
from .plan import Plan
from .rope_kernel import Rotary, turned_back
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT
from .unit import Reach, Stage, Try, type_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._families import Op

# A persistent backward kernel keeps x, dy, dresidual, what is made of them, and sums of columns: 2
# packets of 16 bits for each lane, or 4 wider ones. On an SM stay 512 threads, whose 128 registers
# hold that of 16-bit rows, and 48 KiB of x, dy and dresidual are in flight. Wider rows have 384
# threads of 168 registers, and 72 KiB in flight; 256 with the assembler of sm_120, which takes more
# registers. By architecture: threads that an SM holds of 16-bit rows, and of others, which are also
# the most that share a row, but for 16-bit rows where all arrays are aligned. Of a sum by a gate a
# thread keeps what was scaled too, and one more sum.
RESIDENT_THREADS = {120: (384, 256), 121: (384, 256)}
RESIDENT_THREADS_ELSEWHERE = (512, 384)
RESIDENT_THREADS_OF_GATE = (384, 256)
# Each block writes and reads again a row of sums, so it should have more rows of data than that.
# There are blocks for 128 multiprocessors; for two on each, or more of shorter rows, while every
# block has eight groups of rows; and up to 1024, so that some rounds of them end alike, while it
# has 32. That is so on every device, for sums to have the same bits on all of them.
FEWEST_BLOCKS, FEWEST_AT_ONCE, MOST_BLOCKS = 128, 256, 1024
BYTES_AT_ONCE = FEWEST_AT_ONCE * 8192  # of rows
GROUPS_OF_BLOCK, GROUPS_OF_ROUND = 8, 32
# 32 lanes read 128 bytes of sums at once; 16 warps share out up to some hundred rows of them.
SUM_COLUMNS, SUM_SLICES = 32, 16


@dataclass(frozen=True)
class BackwardPlan(Plan):
    """One backward kernel, specialised for one kind of row.

    Attributes
    ----------
    shared_packet_bytes : int
        Bytes of shared memory for each packet of x kept there: dy's and the sums' are beside it.
    row_bytes : int
        Bytes of shared memory that a row of dy passes through, of heads that are turned back.
    """

    shared_packet_bytes: int
    row_bytes: int = field(default=0, kw_only=True)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return self.split.shared_bytes(self.shared_packet_bytes) + self.row_bytes * self.split.rows

    @property
    def pitch(self) -> int:
        """From one row of the blocks' sums to the next: PITCH of kernels/column_sums.cuh."""
        return -(-self.cols // 4) * 4

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid of a launch, whose block b takes groups b, b + blocks, ...

        A group is `split.rows` neighbouring rows. Never are there more blocks than groups.
        """
        groups = -(-rows // self.split.rows)
        fit = max(FEWEST_AT_ONCE, BYTES_AT_ONCE // (self.cols * ITEMSIZE[self.row]))
        at_once = min(groups // GROUPS_OF_BLOCK, fit, MOST_BLOCKS)
        in_rounds = min(groups // GROUPS_OF_ROUND, MOST_BLOCKS)
        return (min(groups, max(FEWEST_BLOCKS, at_once, in_rounds)),)

    def blocks_of_segment(self, segments: int, rows: int) -> int:
        """Return how many blocks share the rows of each of so many segments of `rows` rows.

        All together they are as many as of rows without segments, where a segment has more groups.
        """
        (blocks,) = self.grid(segments * rows)
        return min(-(-rows // self.split.rows), -(-blocks // segments))


@dataclass(frozen=True)
class ColumnSums:
    """The kernel that adds up what the blocks of a backward kernel leave.

    Attributes
    ----------
    gamma, sums : str
        The dtypes of the results and of what is added up.
    """

    gamma: str
    sums: str
    kernel = "column_sums"
    block = (SUM_COLUMNS, SUM_SLICES)
    shared_bytes = 0

    def summary(self, reach: Reach, attempt: Try) -> str:
        """Return what it is for in a line, for the log."""
        return f"dgamma={self.gamma} partial={self.sums}"

    def grid(self, cols: int, parameters: int) -> tuple[int, int]:
        """Return the grid that covers `cols` columns of each parameter."""
        return (-(-cols // SUM_COLUMNS), parameters)

    def tries(self, reach: Reach) -> Iterator[Try]:
        """Yield what the kernel is to be built with."""
        yield Try(1, 1)

    def unit(self, reach: Reach, attempt: Try) -> str:
        """Return the translation unit."""
        columns, slices = self.block
        gamma, sums = C_TYPE[self.gamma], C_TYPE[self.sums]
        return (
            '#include "column_sums.cuh"\n\n'
            f'extern "C" __global__ void __launch_bounds__({columns * slices})\n'
            f"column_sums({gamma}* dgamma, {gamma}* dbeta, const {sums}* partial, "
            "const Extent extent) {\n"
            f"  add_up_blocks<{columns}, {slices}>(dgamma, dbeta, partial, extent);\n}}\n"
        )


@dataclass(frozen=True)
class SegmentSums:
    """The kernel that adds up what the blocks of each segment of rows leave.

    Attributes
    ----------
    sums : str
        The dtype of what is added up.
    kinds : int
        How many sums of a column there are, beside those of a gate.
    dtypes : tuple of (str, str)
        The dtypes of dscale, dshift, dgate, gamma, beta and scale, those that are there.
    """

    sums: str
    kinds: int
    dtypes: tuple[tuple[str, str], ...]
    kernel = "segment_sums"
    block = (SUM_COLUMNS, SUM_SLICES)
    shared_bytes = 0

    def summary(self, reach: Reach, attempt: Try) -> str:
        """Return what it is for in a line, for the log."""
        return " ".join(f"{name}={dtype}" for name, dtype in (*self.dtypes, ("partial", self.sums)))

    def grid(self, cols: int, segments: int) -> tuple[int]:
        """Return the grid that covers `cols` columns of each segment."""
        return (-(-cols // SUM_COLUMNS) * segments,)

    def tries(self, reach: Reach) -> Iterator[Try]:
        """Yield what the kernel is to be built with."""
        yield Try(1, 1)

    def unit(self, reach: Reach, attempt: Try) -> str:
        """Return the translation unit."""
        columns, slices = self.block
        acc, of = C_TYPE[self.sums], dict(self.dtypes)
        dscale, dshift, dgate, gamma, beta, scale = (
            C_TYPE[of.get(name, self.sums)]
            for name in ("dscale", "dshift", "dgate", "gamma", "beta", "scale")
        )
        of_gate = word("dgate" in of)
        return (
            '#include "segment_sums.cuh"\n\n'
            "struct Numbers {\n  Extent extent;\n  long long scale_pitch;\n"
            f"  {acc} gamma_offset, scale_offset;\n}};\n\n"
            f'extern "C" __global__ void __launch_bounds__({columns * slices})\n'
            f"segment_sums({dscale}* dscale, {dshift}* dshift, {dgate}* dgate, {acc}* shares, "
            f"const {acc}* partial, const {gamma}* gamma, const {beta}* beta, "
            f"const {scale}* scale, const Numbers n) {{\n"
            f"  add_up_segments<{columns}, {slices}, {self.kinds}, {of_gate}>(\n"
            f"      OfSegments<{dscale}, {dshift}, {dgate}, {acc}>"
            "{dscale, dshift, dgate, shares}, partial,\n"
            f"      Factors<{gamma}, {beta}, {scale}, {acc}>{{gamma, beta, scale, n.scale_pitch, "
            "n.gamma_offset, n.scale_offset}, n.extent);\n}\n"
        )


def kinds_of_sums(op: Op, of: Mapping[str, str], *, sums: bool) -> int:
    """Return how many sums of each column are wanted: of dy * n, and of dy beside."""
    of_parameters = sums and "gamma" in of
    if (of_parameters and len(op.totals) > 1) or "shift" in of or {"scale", "beta"} <= of.keys():
        return 2
    return int(of_parameters or "scale" in of)


@cache
def backward(
    op: Op,
    cols: int,
    dtypes: tuple[tuple[str, str], ...],
    arch: int,
    *,
    sums: bool = True,
    rotary: Rotary | None = None,
    **chosen: object,
) -> BackwardPlan:
    """Plan a backward op for rows of `cols` elements.

    Parameters
    ----------
    op : Op
        The op.
    cols : int
        N, at least 1.
    dtypes : tuple of (str, str)
        The arrays that are there, of rows and of parameters, by their names in the kernel, and
        their dtypes. Those of rows have x's.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    sums : bool
        Whether the sums over all rows are wanted; there are none without a gamma. With a scale or a
        shift there are sums of each segment of rows that have one row of those.
    rotary : Rotary or None
        How heads were rotated after their norm.
    **chosen
        What the kernel is compiled for beside: as of `forward`.

    Returns
    -------
    BackwardPlan

    Raises
    ------
    TooLong
        Of heads, where registers, or shared memory beside them, do not keep a row.
    """
    of = dict(dtypes)
    # A gate is one of a gated norm, whose row it goes along, or one of what was added.
    x, family = of[op.leader], op.family
    is_gated, of_gate = "gate" in op.reads, "gate" in op.operands
    segmented = of_gate or not {"scale", "shift"}.isdisjoint(of)
    # The gradient of a gate that follows takes y without it.
    bias = ("beta",) if is_gated and "beta" in of and not chosen["gate_first"] else ()
    by_segment = (*(("scale",) if "scale" in of else ()), *bias, *(("gate",) if of_gate else ()))
    angles = tuple(name for name in ("cos", "sin") if name in of)
    parameters = (*(name for name in op.parameters if name in of), *by_segment, *angles)
    kinds = kinds_of_sums(op, of, sums=sums)
    of_narrow, of_wide = RESIDENT_THREADS.get(arch, RESIDENT_THREADS_ELSEWHERE)
    if of_gate:
        of_narrow, of_wide = RESIDENT_THREADS_OF_GATE
    resident = of_narrow if ITEMSIZE[x] == 2 else of_wide
    # Longer rows of heads come in parts, which have other bits: where, no device is to decide.
    fewest = of_wide if rotary is None else RESIDENT_THREADS_ELSEWHERE[1]
    packet_sums = PACKET_BYTES // ITEMSIZE[x] * ITEMSIZE[accumulator(x)]
    packet_bytes = 2 * PACKET_BYTES + (kinds + of_gate) * packet_sums
    most_packets = 2 if ITEMSIZE[x] == 2 else PACKETS_IN_FLIGHT
    # Rows that are shifted into place take the registers of the fewer lanes.
    share, aligned = (
        split.backward(
            cols,
            x,
            arch,
            most_packets=most_packets,
            most_lanes=most_lanes,
            lanes_of_leaf=RESIDENT_THREADS_ELSEWHERE[ITEMSIZE[x] != 2],
            packet_bytes=packet_bytes,
        )
        for most_lanes in (fewest, resident)
    )
    read = tuple(name for name in op.reads if name in of)
    weight = weight_of(of, chosen)
    other, beside = "NoResidual<S>", "{}"
    if "dresidual" in of:
        other, beside = "ResidualGradient<S, Dresidual>", "{$dresidual}"
    acc = accumulator(x)
    rows, dx = op.leader, f"d{op.leader}"
    source = Stage(f"Pairs<S, {type_name(rows)}, Dy>", f"{{${rows}, $dy}}")
    gate = Stage("NoGate<S>", "{}")
    header, row_bytes = "gradient.cuh", 0
    if of_gate:
        header, gate = "addend_gradient.cuh", ADDEND
    if is_gated:
        header = "gate_gradient.cuh"
        source, gate = gate_of(of, chosen)
    if rotary is not None:
        # Who has the partners of a packet follows from the lanes of a row, which are always these.
        header, aligned = "rope_gradient.cuh", share
        source, row_bytes = turned_back(rotary, of, share, cols, arch)
    groups = "groups_of_segment(n.segments)" if segmented else "all_groups(n.rows)"
    return BackwardPlan(
        op.name,
        header,
        x,
        cols,
        share,
        arrays={name: of[name.removeprefix("d")] for name in op.gradients}
        | {"partial": acc}
        | {name: of[name] for name in (*read, *parameters, "positions") if name in of}
        | dict.fromkeys(family.saves, acc),
        of_rows=(*op.gradients, *read),
        statistics=family.saves,
        parameters=parameters,
        written=(*op.gradients, "partial"),
        scalars=("gamma_offset", "scale_offset") if segmented else ("gamma_offset",),
        body=f"backward<S, {source.type}, {family.statistic}<S>, {weight.type}, {other}, "
        f"{type_name(dx)}, ColumnSums<S, Partial, {kinds}, {word(of_gate)}>, {gate.type}>(\n"
        f"      {source.arrays}, {weight.arrays}, {beside}, ${dx}, partial, "
        f"{{{', '.join(family.saves)}}}, n.rows, {groups}, {gate.arrays});",
        arch=arch,
        shared_packet_bytes=packet_bytes,
        resident=resident,
        row_bytes=row_bytes,
        if_aligned=aligned if aligned != share else None,
        is_free=rotary is None,
        by_segment=by_segment if segmented else None,
    )


@cache
def column_sums(x: str, gamma: str) -> ColumnSums:
    """Plan the sums of what blocks left of dgamma and dbeta, by the dtypes of x and gamma."""
    return ColumnSums(gamma, accumulator(x))
