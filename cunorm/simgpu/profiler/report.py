"""Counters as tables for people, and as CSV and JSON for files."""

from __future__ import annotations

import csv
import html
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import NamedTuple

from .counters import LaunchCounters, StandInCall, Traffic

KINDS = ("loads", "stores", "atomics")
ABREAST = 8  # launches beside each other in the table of classes, which then fits a wide terminal


EMPTY = "no kernel was launched"
_STAND_INS = "calls of stand-ins for NVIDIA's libraries"


class Table(NamedTuple):
    """Headers and rows, and the headers of those columns that hold words."""

    headers: Sequence[str]
    rows: Sequence[Sequence[object]]
    words: Sequence[str] = ()


def table(launches: Sequence[LaunchCounters], stand_ins: Sequence[StandInCall] = ()) -> str:
    """Return three tables: the launches, their global memory by array, their instructions.

    Launches that counted the same are one row. A fourth is of the calls of stand-ins, if any.
    """
    if not launches:
        return f"{EMPTY}\n" + _stand_ins_below(stand_ins)
    rows = _folded(launches)
    parts = [_aligned(_launches(rows)), *_notes(rows)]
    parts += ["", "global memory, by array", _aligned(_arrays(rows))]
    parts += ["", "warp instructions, by class", "\n\n".join(map(_aligned, _classes(rows))), ""]
    return "\n".join(parts) + _stand_ins_below(stand_ins)


def _stand_ins_below(calls: Sequence[StandInCall]) -> str:
    return f"\n{_STAND_INS}\n{_aligned(_stand_ins(calls))}\n" if calls else ""


def _stand_ins(calls: Sequence[StandInCall]) -> Table:
    headers = ("times", "library", "function", "bytes read", "bytes written")
    lines = [
        (times, call.library, call.function, call.read_bytes, call.written_bytes)
        for call, times in Counter(calls).items()
    ]
    return Table(headers, lines, ("library", "function"))


def as_html(launches: Sequence[LaunchCounters], stand_ins: Sequence[StandInCall] = ()) -> str:
    """Return the same tables for a notebook."""
    below = _marked(_STAND_INS, _stand_ins(stand_ins)) if stand_ins else ""
    if not launches:
        return f"<p>{EMPTY}</p>{below}"
    rows = _folded(launches)
    parts = [_marked("launches", _launches(rows))]
    parts += [f"<p>{html.escape(note)}</p>" for note in _notes(rows)]
    parts.append(_marked("global memory, by array", _arrays(rows)))
    parts += [_marked("warp instructions, by class", each) for each in _classes(rows)]
    return "".join(parts) + below


def _folded(launches: Iterable[LaunchCounters]) -> list[tuple[int, LaunchCounters]]:
    """Return launches that differ in nothing but addresses once, with how many there were."""
    found: dict[str, tuple[int, LaunchCounters]] = {}
    for launch in launches:
        arrays = tuple(replace(array, address=0) for array in launch.arrays)
        key = repr(replace(launch, arrays=arrays))
        count, first = found.get(key, (0, launch))
        found[key] = count + 1, first
    return list(found.values())


def _launches(rows: list[tuple[int, LaunchCounters]]) -> Table:
    headers = (
        "#", "times", "kernel", "grid", "block", "regs", "spills", "shared", "occupancy",
        "instructions", "no mov/cvta", "conflicts", "barriers", "DRAM floor",
    )  # fmt: skip
    lines = [
        (
            number,
            times,
            _short(row.kernel),
            _extent(row.grid),
            _extent(row.block),
            _known(row.resources.registers),
            _spills(row),
            row.shared_static + row.shared_dynamic,
            f"{100 * row.occupancy.share:.0f} %",
            row.instructions,
            row.instructions_unfolded,
            row.bank_conflicts,
            row.barriers,
            row.dram_floor_bytes,
        )
        for number, (times, row) in enumerate(rows, 1)
    ]
    return Table(headers, lines, ("kernel", "grid", "block"))


def _notes(rows: list[tuple[int, LaunchCounters]]) -> list[str]:
    return [
        f"# {number}: registers are not known: {row.resources.unknown}"
        for number, (_, row) in enumerate(rows, 1)
        if row.resources.unknown
    ]


def _arrays(rows: list[tuple[int, LaunchCounters]]) -> Table:
    headers = (
        "#", "array", "access", "requests", "bytes", "sectors", "distinct",
        "sectors/request", "requested/distinct",
    )  # fmt: skip
    lines: list[tuple[object, ...]] = []
    for number, (_, row) in enumerate(rows, 1):
        named = [(array.name, getattr(array, kind), kind) for array in row.arrays for kind in KINDS]
        lines += [(number, name, *_traffic(each, kind)) for name, each, kind in named if each.bytes]
        if len(row.arrays) > 1:
            whole = [(getattr(row, kind), kind) for kind in KINDS]
            lines += [(number, "all", *_traffic(each, kind)) for each, kind in whole if each.bytes]
    return Table(headers, lines, ("array", "access"))


def _traffic(traffic: Traffic, kind: str) -> tuple[object, ...]:
    return (
        kind,
        traffic.requests,
        traffic.bytes,
        traffic.sectors,
        traffic.distinct,
        f"{traffic.sectors_per_request:.2f}",
        f"{traffic.requested_per_distinct:.2f}",
    )


def _classes(rows: list[tuple[int, LaunchCounters]]) -> list[Table]:
    tables = []
    for start in range(0, len(rows), ABREAST):
        some = [row for _, row in rows[start : start + ABREAST]]
        headers = ("class", *(f"# {start + at}" for at in range(1, len(some) + 1)))
        lines: list[tuple[object, ...]] = [
            (name, *(row.classes.get(name, 0) for row in some))
            for name in sorted({name for row in some for name in row.classes})
        ]
        lines.append(("all", *(row.instructions for row in some)))
        tables.append(Table(headers, lines, ("class",)))
    return tables


def _texts(table: Table) -> list[list[str]]:
    """Return the headers and the rows as text."""
    return [list(table.headers)] + [
        [f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in table.rows
    ]


def _aligned(table: Table) -> str:
    texts = _texts(table)
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)]
    lines = []
    for row in texts:
        cells = [
            cell.ljust(width) if header in table.words else cell.rjust(width)
            for cell, width, header in zip(row, widths, table.headers, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join(lines)


def _marked(caption: str, table: Table) -> str:
    styles = [f"text-align: {'left' if name in table.words else 'right'}" for name in table.headers]
    lines = []
    for tag, row in zip(["th", *["td"] * len(table.rows)], _texts(table), strict=True):
        cells = zip(styles, row, strict=True)
        marked = (f'<{tag} style="{style}">{html.escape(text)}</{tag}>' for style, text in cells)
        lines.append(f"<tr>{''.join(marked)}</tr>")
    return f"<table><caption>{caption}</caption>{''.join(lines)}</table>"


def _short(kernel: str, longest: int = 40) -> str:
    return kernel if len(kernel) <= longest else kernel[: longest - 3] + "..."


def _extent(extent: tuple[int, int, int]) -> str:
    x, y, z = extent
    return f"{x} x {y} x {z}" if z > 1 else f"{x} x {y}" if y > 1 else f"{x}"


def _known(value: int | None) -> object:
    return "-" if value is None else value


def _spills(row: LaunchCounters) -> object:
    stores, loads = row.resources.spill_stores, row.resources.spill_loads
    return "-" if stores is None or loads is None else stores + loads


def flat(launch: LaunchCounters) -> dict[str, object]:
    """Return a launch's counters as one row of names and values, without opcodes and arrays."""
    row: dict[str, object] = {"kernel": launch.kernel, "arch": launch.arch}
    for name in ("grid", "block"):
        row |= {f"{name}_{axis}": n for axis, n in zip("xyz", getattr(launch, name), strict=True)}
    row |= asdict(launch.resources)
    row |= {"shared_static": launch.shared_static, "shared_dynamic": launch.shared_dynamic}
    row |= {"resident_blocks": launch.occupancy.blocks, "occupancy": launch.occupancy.share}
    row["warps"] = launch.warps
    row["instructions"] = launch.instructions
    row["instructions_unfolded"] = launch.instructions_unfolded
    row["lane_instructions"] = launch.lane_instructions
    for prefix in ("", "shared_"):
        for kind in KINDS:
            counts = asdict(getattr(launch, prefix + kind))
            row |= {f"{prefix}{kind}_{name}": count for name, count in counts.items()}
    row["barriers"] = launch.barriers
    row["dram_read_sectors"] = launch.dram_read_sectors
    row["dram_written_sectors"] = launch.dram_written_sectors
    row["dram_floor_bytes"] = launch.dram_floor_bytes
    return row | {name.replace(" ", "_"): count for name, count in launch.classes.items()}


def as_csv(launches: Sequence[LaunchCounters], stand_ins: Sequence[StandInCall] = ()) -> str:
    """Return one line for each launch; classes that a launch lacks are 0 in it.

    Stand-ins have other counters and are left out.
    """
    rows = [flat(launch) for launch in launches]
    names = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, restval=0, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(launches: Sequence[LaunchCounters], stand_ins: Sequence[StandInCall] = ()) -> str:
    """Return everything that was counted: a list of launches, and after them calls of stand-ins."""
    counted = [asdict(launch) for launch in launches] + [asdict(call) for call in stand_ins]
    return json.dumps(counted, indent=1) + "\n"
