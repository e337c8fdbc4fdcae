"""What `python -m cunorm check` does: it runs checks one by one, and prints what came of them."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from .._progress import Progress, counted, percent
from .checks import Check, Outcome

HEADS = ("op", "dtype", "shape", "layout")
# What a row of the table says after its check.
SAID = re.compile(r" (\d+ %|-)( (ok|OFF).*)?$")
LEGEND = "of tolerance: the worst error past correct rounding, over what is allowed there"


def chosen(checks: Sequence[Check], only: str) -> list[Check]:
    """Return the checks that a text means: a row of the table, a part of one, or of a `Check`."""
    wanted = " ".join(only.split())
    row = SAID.sub("", wanted)
    if row != wanted:
        exact = [check for check in checks if " ".join(_cells(check)) == row]
        if exact:
            return exact
    return [check for check in checks if row in str(check) or row in " ".join(_cells(check))]


def run(checks: Sequence[Check], device: str) -> bool:
    """Run the checks, print a row for each and a last line; return whether all are right.

    Where the user interrupts it, the last line says how far it came.
    """
    print(f"cunorm on {device}: {counted(len(checks), 'check')}")
    print(f"{LEGEND}\n")
    rows = [HEADS, *map(_cells, checks)]
    widths = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    print(_row(HEADS, widths, "of tolerance", "verdict"), flush=True)
    progress = Progress(len(checks))
    done = off = 0
    try:
        for check, cells in zip(checks, rows[1:], strict=True):
            progress.show(str(check))
            outcome = check.run()
            progress.clear()
            print(_row(cells, widths, _share(outcome), _verdict(outcome)), flush=True)
            done += 1
            off += bool(outcome.faults)
    except KeyboardInterrupt:
        progress.clear()
        print(f"\nstopped after {done} of {_said(len(checks), progress, off)}")
        raise
    print(f"\n{_said(len(checks), progress, off)}")
    return off == 0


def _said(number: int, progress: Progress, off: int) -> str:
    verdict = f"{off} OFF" if off else "all within tolerance"
    return f"{counted(number, 'check')} in {progress.seconds():.0f} s: {verdict}"


def _cells(check: Check) -> tuple[str, ...]:
    """Return what a row says of the check itself."""
    return check.op, check.dtype, str(check.shape).replace(" ", ""), check.where


def _row(cells: Sequence[str], widths: Sequence[int], share: str, verdict: str) -> str:
    """Return a row of the table."""
    of_check = "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"{of_check}  {share:>12}  {verdict}"


def _share(outcome: Outcome) -> str:
    return percent(outcome.share) if math.isfinite(outcome.share) else "-"


def _verdict(outcome: Outcome) -> str:
    verdict = f"OFF: {'; '.join(outcome.faults)}" if outcome.faults else "ok"
    return f"{verdict} ({outcome.note})" if outcome.note else verdict
