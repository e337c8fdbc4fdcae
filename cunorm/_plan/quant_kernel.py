"""Which kernel serves a row that is quantised."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from . import split
from .dtypes import C_TYPE, ITEMSIZE
from .parts import SOURCES, epilogue
from .plan import Plan
from .split import PACKET_BYTES, PACKETS_IN_FLIGHT, THREADS_OF_SHARED_BLOCK, WARP, Split
from .unit import Try

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .._families import Op
    from .._quant import Quant
    from .unit import Reach

# What the kernels call them.
FORMATS = {"e4m3": "E4m3", "e5m2": "E5m2", "e2m1": "E2m1", "int8": "Int8"}
SCALES = {"float32": "Float32Scale", "e8m0": "E8m0Scale", "e4m3": "E4m3Scale"}
# Numbers of a scheme: Bounds of kernels/scale.cuh.
BOUNDS = ("floor", "minimum", "ceiling", "given")


@cache
def quantised(
    op: Op,
    cols: int,
    dtypes: tuple[tuple[str, str], ...],
    arch: int,
    *,
    quant: Quant,
    **chosen: object,
) -> Plan:
    """Plan an op that returns codes, for rows of `cols` elements.

    Parameters
    ----------
    op, cols, dtypes, arch, **chosen
        As of `forward`; of what is written, codes, h where there is one, and y where it is asked
        for are among the dtypes.
    quant : Quant
        The scheme; its numbers are the kernel's arguments.

    Returns
    -------
    Plan
    """
    of = dict(dtypes)
    row, source = SOURCES[op.source.name](of, chosen)
    ending = epilogue(op.family.epilogue, of | {"y": of["x"]}, chosen, "X::E")
    of_rows = tuple(output.name for output in op.writes if output.name in of)
    parameters = tuple(name for name in (*op.parameters, *op.operands) if name in of)
    with_residual = len(op.source.writes) > 0
    share = in_whole_groups(
        split.forward(cols, row, arch, residual=with_residual), cols, row, quant.group
    )
    beside, y = ("Stored<S, YOut>", "{$y_out}") if "y_out" in of else ("Dropped<S, X::E>", "{}")
    sink = (
        f"Quantised<S, {FORMATS[quant.format]}, {scale_type(quant)}, "
        f"{quant.layout.upper()}, {quant.group or 0}, {str(quant.static is not None).lower()}, "
        f"Q, X::E, {beside}>"
    )
    numbers = tuple(option.name for option in op.options if option.number)
    return Plan(
        op.norm,
        "quantise.cuh",
        row,
        cols,
        share,
        arrays={name: of[name] for name in of_rows}
        | {"scales": "float32"}
        | {name: of[name] for name in (*op.reads, *parameters)},
        of_rows=(*of_rows, *op.reads),
        statistics=("scales",),
        parameters=parameters,
        written=(*of_rows, "scales"),
        scalars=(*numbers, *BOUNDS),
        body=f"quantise<{source.type}, {op.family.statistic}<S>, {ending.type},\n"
        f"           {sink}>(\n"
        f"      {source.arrays}, {ending.arrays},\n"
        f"      {{$q, scales, {y}, {{{', '.join(f'n.{name}' for name in BOUNDS)}}}}}, "
        f"n.rows, {'n.eps' if 'eps' in numbers else '0'});",
        arch=arch,
        is_free=False,  # lanes of a turn must have whole groups
        at_once_past_registers=2 if with_residual else PACKETS_IN_FLIGHT,
    )


def scale_type(quant: Quant) -> str:
    """Return the type of scales, which says whether rows may have more than they are made for."""
    may_exceed = quant.static is not None or quant.ceiling is not None
    return f"{SCALES[quant.scale]}<{FORMATS[quant.format]}, {str(may_exceed).lower()}>"


def in_whole_groups(share: Split, cols: int, dtype: str, group: int | None) -> Split:
    """Return how a row is shared out so that a group of columns lies in one turn of its lanes.

    Lanes that are too few keep rows of up to 32 packets: a warp has those in one turn. Who adds up
    a row changes no bit of it.
    """
    if group is None or share.lanes * PACKET_BYTES // ITEMSIZE[dtype] % group == 0:
        return share
    return Split(WARP, 1, 1, 0, THREADS_OF_SHARED_BLOCK // WARP, share.depth)


@dataclass(frozen=True)
class Dequantised:
    """The kernel that makes numbers of codes.

    Attributes
    ----------
    quant : Quant
        The scheme of the codes.
    cols : int
        N, the columns of a row.
    y : str
        The dtype of the numbers.
    """

    quant: Quant
    cols: int
    y: str
    kernel = "dequantize"
    block = (256,)
    shared_bytes = 0

    def summary(self, reach: Reach, attempt: Try) -> str:
        """Return what it is for in a line, for the log."""
        return f"cols={self.cols} y={self.y} {self.quant}"

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid that covers `rows` rows."""
        return (min(rows, 2**31 - 1),)

    def tries(self, reach: Reach) -> Iterator[Try]:
        """Yield what the kernel is to be built with."""
        yield Try(1, 1)

    def unit(self, reach: Reach, attempt: Try) -> str:
        """Return the translation unit."""
        quant, y = self.quant, C_TYPE[self.y]
        return (
            '#include "dequantise.cuh"\n\n'
            f'extern "C" __global__ void __launch_bounds__({self.block[0]})\n'
            f"dequantize({y}* y, const unsigned char* q, const void* scales, "
            "const ScaleStrides strides) {\n"
            f"  dequantise<{FORMATS[quant.format]}, {scale_type(quant)}, {quant.layout.upper()}, "
            f"{self.cols}, {quant.group or 0}>(y, q, scales, strides);\n}}\n"
        )
