"""Which of the ways that may serve a launch does: one that was measured, or what its plan says.

Whichever it is, results have the same bits (split.py): a line of these files can be slow, but not
wrong. Lines of the user's own file, which `cunorm tune` writes for a device, come before those of
tuned.csv beside this one.
"""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

from .devices import Device
from .plan import Plan
from .split import Split
from .ways import Way, by, ways

SHIPPED = Path(__file__).with_name("tuned.csv")
Kind = tuple[str, str, str, int, int]
NO_LIMIT = 10**18  # of rows


class Line(NamedTuple):
    """What serves rows of one kind, where there are so many of them.

    Attributes
    ----------
    kernel, dtype, parameters : str
        The kernel, the dtype of the row that is normalised, and the parameters that there are, with
        spaces between.
    cols : int
        N.
    aligned : int
        1 where every array is reached in whole packets, else 0.
    fewest, most : int
        Rows.
    lanes, cluster, packets, shared, rows : int
        As of `Split`.
    resident, few : int
        As of `Way`.
    source : str
        Where this was found out.
    """

    kernel: str
    dtype: str
    parameters: str
    cols: int
    aligned: int
    fewest: int
    most: int
    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int
    resident: int
    few: int
    source: str

    @property
    def kind(self) -> Kind:
        """What it is of."""
        return self[:5]

    def way(self, depth: int) -> Way:
        """Return its way, with the leaf of the row's tree."""
        return Way(Split(*self[7:12], depth), self.resident, bool(self.few))


NUMBERS = Line._fields[3:-1]


class Served(NamedTuple):
    """What was asked of `served`: the plan of a launch, and of which launch."""

    plan: Plan
    rows: int
    aligned: bool


_forced: list[tuple[Way | None, list[Served]]] = []


def kind_of(plan: Plan, *, aligned: bool) -> Kind:
    """Return the kind of a launch, as lines have it."""
    return (plan.kernel, plan.row, " ".join(plan.parameters), plan.cols, int(aligned))


def served(plan: Plan, device: Device, rows: int, *, aligned: bool) -> Plan:
    """Return the plan of a launch of so many rows: it has the same bits."""
    way = None
    if _forced:
        way, asked = _forced[-1]
        asked.append(Served(plan, rows, aligned))
        rows = NO_LIMIT
    if way is None:
        way = _measured(plan, device, rows, aligned=aligned)
    if way is None and rows <= device.multiprocessors and plan.if_few is not None:
        way = Way(plan.if_few, few=True)
    if way is None and aligned and plan.if_aligned is not None:
        way = Way(plan.if_aligned)
    return plan if way is None else by(plan, way)


def _measured(plan: Plan, device: Device, rows: int, *, aligned: bool) -> Way | None:
    """Return the way that the first line of this kind says."""
    kind = kind_of(plan, aligned=aligned)
    for file in (file_of(device), SHIPPED):
        for line in lines(file).get(kind, ()):
            if not line.fewest <= rows <= line.most:
                continue
            way = line.way(plan.split.depth)
            if plan.is_free and way in ways(plan, few=True):
                return way
            warnings.warn(
                f"cunorm does without {line} of {file}: no kernel of this version goes that way",
                RuntimeWarning,
                stacklevel=2,
            )
    return None


def choices(asked: Served, device: Device) -> list[Way]:
    """Return the way that serves a launch, and then the others that may."""
    plan = served(asked.plan, device, asked.rows, aligned=asked.aligned)
    planned = Way(plan.split, plan.resident or 0, plan.few)
    few = asked.rows <= device.multiprocessors
    return list(dict.fromkeys((planned, *ways(asked.plan, few=few))))


@contextmanager
def forced(way: Way | None) -> Iterator[list[Served]]:
    """Have launches that are worked out meanwhile go one way, and list them.

    None is what serves many rows.
    """
    asked: list[Served] = []
    _forced.append((way, asked))
    try:
        yield asked
    finally:
        _forced.pop()


def file_of(device: Device) -> Path:
    """Return the user's file for a device; there may be none."""
    folder = os.environ.get("CUNORM_CACHE_DIR")
    name = re.sub(r"\W+", "-", device.name)
    return (Path(folder) if folder else Path.home() / ".cunorm") / f"tuned-{name}.csv"


@cache
def lines(file: Path) -> dict[Kind, list[Line]]:
    """Return the lines of a file by their kind; none where it is missing or, it warns, broken."""
    found: dict[Kind, list[Line]] = {}
    try:
        for line in read(file):
            found.setdefault(line.kind, []).append(line)
    except FileNotFoundError:
        pass
    except (OSError, ValueError) as error:
        warnings.warn(f"cunorm does without what was tuned: {error}", RuntimeWarning, stacklevel=2)
        return {}
    return found


def read(file: Path) -> Iterator[Line]:
    """Yield the lines of a file.

    Raises
    ------
    OSError
        Where it cannot be read.
    ValueError
        Where it is none of ours: has other fields, or one that must be a number and is not.
    """
    header = ",".join(Line._fields)
    with file.open(encoding="utf-8", newline="") as text:
        rows = csv.reader(text)
        if next(rows, None) != [*Line._fields]:
            raise ValueError(f"{file}: its first line must be {header}")
        for row in rows:
            if len(row) != len(Line._fields):
                raise ValueError(f"{file}, line {rows.line_num}: it must have {header}")
            named = zip(Line._fields, row, strict=True)
            try:
                fields = [int(value) if name in NUMBERS else value for name, value in named]
            except ValueError as error:
                raise ValueError(f"{file}, line {rows.line_num}: {error}") from error
            yield Line(*fields)  # type: ignore[arg-type]


def write(file: Path, found: Iterable[Line]) -> None:
    """Write lines to a file, in place of all that it has, or leave it as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    new = file.with_suffix(f".{os.getpid()}")
    with new.open("w", encoding="utf-8", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows((Line._fields, *found))
    new.replace(file)  # whole or not at all, whoever else writes or reads it
    lines.cache_clear()
