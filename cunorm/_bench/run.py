"""What `python -m cunorm bench` does: it measures cases one by one, and shows what came of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from .. import simgpu
from .._progress import Progress, counted
from . import report
from .cases import COUNTED_BYTES, TIMED_BYTES, Case, grid

if TYPE_CHECKING:
    from .report import Measurement


@dataclass(frozen=True)
class Options:
    """What to measure and where to write it; None is the default or nowhere.

    Attributes
    ----------
    ops, dtypes : sequence of str
        Which ones.
    cols : sequence of int or None
        Which N.
    rows : int or None
        Rows of x.
    odd : bool
        Whether rows that do not start on 16 bytes follow.
    csv, png : Path or None
        Files to write.
    """

    ops: Sequence[str]
    dtypes: Sequence[str]
    cols: Sequence[int] | None
    rows: int | None
    odd: bool
    csv: Path | None
    png: Path | None


def obstacle(options: Options) -> str | None:
    """Return why the files could not be written, before anything is measured; None if they can."""
    for file in (options.csv, options.png):
        if file is not None and not file.absolute().parent.is_dir():
            return f"{file} cannot be written: there is no folder {file.absolute().parent}"
        if file is not None and file.is_dir():
            return f"{file} cannot be written: it is a folder"
        if file is not None and (reason := _unwritable(file)):
            return f"{file} cannot be written: {reason}"
    if options.png is not None:
        if options.png.suffix != ".png":
            return f"--png must name a file that ends in .png, not {options.png}"
        if importlib.util.find_spec("matplotlib") is None:
            return "--png needs matplotlib: pip install 'cunorm[bench]'"
    return None


def _unwritable(file: Path) -> str | None:
    """Return why a file cannot be opened to write; what it holds stays as it is."""
    new = not file.exists()
    try:
        file.open("ab").close()
    except OSError as error:
        return error.strerror
    if new:
        file.unlink()
    return None


def run(options: Options, device: str) -> None:
    """Measure on the current device, print a table of each op, and write the files.

    Where the user interrupts it, what is measured is printed and no file is written.
    """
    counting = simgpu.installed()
    if counting:
        print(f"cunorm on {device}: no hardware, a software GPU that counts and takes no times")
    else:
        print(f"cunorm on {device}")
    measured = _measure_and_print(options, counting)
    if options.csv is not None:
        report.save_csv(measured, options.csv)
    if options.png is not None:
        from . import chart

        chart.save(measured, options.png, device)


def _measure_and_print(options: Options, counting: bool) -> list[Measurement]:
    """Print the table of each op when its last case is measured; return all measurements."""
    columns, legend = report.COUNTED if counting else report.TIMED
    launch_bytes = COUNTED_BYTES if counting else TIMED_BYTES
    cases = list(
        grid(options.ops, options.dtypes, options.cols, options.rows, options.odd, launch_bytes)
    )
    progress = Progress(len(cases))
    results = _results(cases, counting)
    measured: list[Measurement] = []
    try:
        for op, of_op in groupby(cases, attrgetter("op")):
            before = len(measured)
            try:
                for case in of_op:
                    progress.show(str(case))
                    measured.append(next(results))
            finally:
                progress.clear()
                if measured[before:]:
                    print(f"\n{op}\n{report.table(measured[before:], columns)}", flush=True)
    except KeyboardInterrupt:
        print(f"\nstopped after {len(measured)} of {_said(cases, progress)}")
        raise
    print(f"\n{legend}\n\n{_said(cases, progress)}")
    return measured


def _said(cases: Sequence[Case], progress: Progress) -> str:
    return f"{counted(len(cases), 'case')} in {progress.seconds():.0f} s"


def _results(cases: Sequence[Case], counting: bool) -> Iterator[Measurement]:
    """Yield what is measured of each case."""
    if counting:
        from .counters import count_all

        return count_all(cases)
    from .times import time

    return map(time, cases)
