"""How measurements of `python -m cunorm bench` are shown: as a table, and as CSV."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._plan import ITEMSIZE, PACKET_BYTES
from .._progress import counted, percent
from .cases import SYSTEMS

if TYPE_CHECKING:
    from types import SimpleNamespace

    from .counters import Counters
    from .times import Times

    Measurement = Counters | Times
    Line = Counters | SimpleNamespace

# Heading, attribute and format of each column; the format of a share is "%".
Column = tuple[str, str, str]
_CASE: tuple[Column, ...] = (
    ("dtype", "dtype", ""),
    ("quant", "quant", ""),
    ("N", "cols", ","),
    ("rows", "rows", ","),
)
COUNTED: tuple[Column, ...] = (
    *_CASE,
    ("x", "x", ".3f"),
    ("residual", "residual", ".3f"),
    ("gate", "gate", ".3f"),
    ("y", "y", ".3f"),
    ("q", "q", ".3f"),
    ("k", "k", ".3f"),
    ("q_out", "q_out", ".3f"),
    ("k_out", "k_out", ".3f"),
    ("h", "residual_out", ".3f"),
    ("dy", "dy", ".3f"),
    ("dresidual", "dresidual", ".3f"),
    ("dx", "dx", ".3f"),
    ("gamma", "gamma", ".3f"),
    ("sectors/request", "sectors_per_request", ".2f"),
    ("instructions/packet", "instructions_per_packet", ".1f"),
    ("barriers/row", "barriers_per_row", ".0f"),
    ("registers", "registers", ""),
    ("spills", "spill_bytes", ""),
    ("occupancy", "occupancy", "%"),
    ("row read", "reads", ".2f"),
    ("sums", "sums", ".3f"),
    ("sums' instructions", "sums_instructions", ".1f"),
)
TIMED: tuple[Column, ...] = (
    *_CASE,
    ("us", "us", ".2f"),
    ("±", "spread", "%"),
    ("GB/s", "gb_per_s", ",.0f"),
    ("of a copy", "share", "%"),
    ("copy us", "copy", ".2f"),
    *((f"{name} us", name, ".2f") for name in SYSTEMS),
)
COUNTED_LEGEND = """\
x, residual, y, h, q, dy, ...: 32-byte sectors that are requested, over the least: bytes / 32.
gamma: the same over x's least, from a cache. sectors/request: of x; 16 is 16 bytes for each of 32
lanes. instructions/packet: PTX warp instructions without mov and cvta, for each 32 x 16 bytes of x,
or of queries and keys. q is those, or codes.
row read: how often. sums: of a backward pass, bytes of its blocks' sums of columns, written and
read again, over x's; sums' instructions are those of the kernel that adds them up. Rows "N + 1" lie
one element past a boundary of 16 bytes. Nothing here is a time: a software GPU has none to tell."""
TIMED_LEGEND = """\
us: the median of 56 replays of a graph of launches, over sets of arrays that take turns and are
four times the L2 cache together, but 512 at most; "warm" is one set. ±: p90 - p10 over the median.
GB/s: of the bytes that must move. copy: the faster of cudaMemcpyAsync and a kernel that copies as
many. cupy: CuPy's operators; compile: PyTorch's compiler. Each result was held against the
definition before it was timed. Rows "N + 1" lie one element past a boundary of 16 bytes."""


def is_aligned(measurement: Measurement) -> bool:
    """Return whether every row starts on a boundary of 16 bytes."""
    row_bytes = measurement.cols * ITEMSIZE[measurement.dtype]
    return measurement.offset == 0 and row_bytes % PACKET_BYTES == 0


def counted_table(measured: Sequence[Counters]) -> str:
    """Return the table of one op's counters."""
    return table(measured, COUNTED)


def timed_table(timed: Sequence[Times]) -> str:
    """Return the table of one op's times, and of each system that failed why, and how often."""
    why = Counter(f"{name} failed: {why}" for times in timed for name, why in times.failed.items())
    notes = [f"{text} ({counted(often, 'case')})" for text, often in why.items()]
    return "\n".join([table([times.line() for times in timed], TIMED), *notes])


def table(measured: Sequence[Line], columns: Sequence[Column]) -> str:
    """Return the table of one op, without the columns that have no value in it."""
    present = [
        column for column in columns if any(getattr(m, column[1]) is not None for m in measured)
    ]
    lines = [[heading for heading, _, _ in present]]
    lines += [[cell(m, name, form) for _, name, form in present] for m in measured]
    widths = [max(map(len, texts)) for texts in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            text.ljust(width) if at == 0 else text.rjust(width)
            for at, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def cell(measurement: Line, name: str, form: str) -> str:
    """Return one value as the table shows it; "-" for none, and a word for what has none."""
    value = getattr(measurement, name)
    if value is None:
        return "-"
    if isinstance(value, str):
        return value
    if form == "%":
        return percent(value)
    if name != "cols":
        return format(value, form)
    shifted = f" + {measurement.offset}" if measurement.offset else ""
    warm = " warm" if getattr(measurement, "warm", False) else ""
    return format(value, form) + shifted + warm


def save_csv(measured: Sequence[Line], file: Path) -> None:
    """Write every value of every case, a line each; what is None is empty."""
    names = list(vars(measured[0]))
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(names)
        writer.writerows([_number(getattr(m, name)) for name in names] for m in measured)


def _number(value: object) -> object:
    """Return a value with as many digits as anyone reads."""
    return f"{value:.6g}" if isinstance(value, float) else value
