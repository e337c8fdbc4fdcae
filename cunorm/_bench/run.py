"""What `python -m cunorm bench` does: it measures cases one by one, and shows what came of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from .. import simgpu
from .._progress import Progress, counted
from . import report
from .cases import (
    CODE_OPS,
    COUNTED_BYTES,
    SYSTEMS,
    TIMED_BYTES,
    Case,
    grid,
    misfit,
    timed,
)

if TYPE_CHECKING:
    from .report import Line, Measurement

M = TypeVar("M", bound="Measurement")


class Ended(Exception):
    """Why a run cannot go on, as the user is told."""


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
    warm : bool
        Whether each case is also timed on one set of arrays.
    beside : sequence of str or None
        Other systems that are timed; None for all that are installed.
    csv, png, json : Path or None
        Files to write.
    quants : sequence of str
        The schemes of ops that return codes.
    """

    ops: Sequence[str]
    dtypes: Sequence[str]
    cols: Sequence[int] | None
    rows: int | None
    odd: bool
    warm: bool
    beside: Sequence[str] | None
    csv: Path | None
    png: Path | None
    json: Path | None
    quants: Sequence[str]


def obstacle(options: Options) -> str | None:
    """Return why a case could not be, or a file not be written, before anything is measured."""
    for op in options.ops:
        for cols in options.cols or ():
            for quant in options.quants if op in CODE_OPS else (None,):
                if why := misfit(op, quant, cols):
                    return f"--cols {cols}: {why}"
    for file in (options.csv, options.png, options.json):
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


def obstacle_on_device(options: Options) -> str | None:
    """Return why what is asked for cannot be had on the device that there is; None if it can."""
    if simgpu.installed():
        asked = {"--json": options.json, "--warm": options.warm, "--beside": options.beside}
        times = [name for name, value in asked.items() if value not in (None, False)]
        return f"{times[0]} needs a CUDA device: a software GPU takes no times" if times else None
    if options.beside:
        from .peers import OTHERS
        from .systems import installed

        _, absent = installed(OTHERS[name] for name in options.beside)
        if absent:
            name, why = next(iter(absent.items()))
            return f"--beside {name}: it cannot be used: {why}"
    return None


def run(options: Options, device: str) -> bool:
    """Measure on the current device, print a table of each op, and write the files.

    Where the user interrupts it, what is measured is printed and no file is written.

    Returns
    -------
    bool
        Whether every result of cunorm's that was timed was right.
    """
    if not simgpu.installed():
        return _run_timed(options, device)
    print(f"cunorm on {device}: no hardware, a software GPU that counts and takes no times")
    from .counters import count_all

    cases = _cases(options, COUNTED_BYTES)
    measured = _print_tables(cases, count_all(cases), report.counted_table, report.COUNTED_LEGEND)
    _save(options, device, measured, measured)
    return True


def _run_timed(options: Options, device: str) -> bool:
    from . import results, systems, times
    from .peers import OTHERS

    asked = [OTHERS[name] for name in (SYSTEMS if options.beside is None else options.beside)]
    versions, absent = systems.installed(asked)
    others = [system for system in asked if system.name in versions]
    print(f"cunorm on {device}")
    for system in asked:
        name = system.name
        print(f"{name}: {versions.get(name) or f'absent: {absent[name]}'}")
    begun = results.Run.begin(versions, absent)
    times.warm_up()
    empty = times.empty_kernel()
    print(f"an empty kernel in a graph: {empty.median:.2f} us", flush=True)
    cases = list(timed(_cases(options, TIMED_BYTES), options.warm))

    def measure(case: Case) -> times.Times:
        measured = times.time(case, others)
        systems.free(others)
        return measured

    try:
        measured = _print_tables(
            cases, map(measure, cases), report.timed_table, report.TIMED_LEGEND
        )
    except times.DeviceLost as lost:
        raise Ended(f"the device is lost: {lost}; choose others with --beside") from lost
    _save(options, device, measured, [m.line() for m in measured])
    if options.json is not None:
        results.save(begun, empty, [*map(results.as_case, measured)], options.json)
    return all(m.own is not None for m in measured)


def _cases(options: Options, launch_bytes: int) -> list[Case]:
    of = (options.ops, options.dtypes, options.cols, options.rows, options.odd)
    return list(grid(*of, launch_bytes, options.quants))


def _save(
    options: Options, device: str, measured: Sequence[Measurement], lines: Sequence[Line]
) -> None:
    """Write the table and the chart that are asked for."""
    if options.csv is not None:
        report.save_csv(lines, options.csv)
    if options.png is not None:
        from . import chart

        chart.save(measured, options.png, device)


def _print_tables(
    cases: Sequence[Case], results: Iterator[M], table: Callable[[Sequence[M]], str], legend: str
) -> list[M]:
    """Print the table of each op when its last case is measured; return all measurements."""
    progress = Progress(len(cases))
    measured: list[M] = []
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
                    print(f"\n{op}\n{table(measured[before:])}", flush=True)
    except KeyboardInterrupt:
        print(f"\nstopped after {len(measured)} of {_said(cases, progress)}")
        raise
    print(f"\n{legend}\n\n{_said(cases, progress)}")
    return measured


def _said(cases: Sequence[Case], progress: Progress) -> str:
    return f"{counted(len(cases), 'case')} in {progress.seconds():.0f} s"
