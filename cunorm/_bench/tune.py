"""What `python -m cunorm tune` does: it times every way that may serve a call, and keeps the best.

All ways have the same bits, which is seen to here once more, so that a device may be tuned while
others like it are not. What is kept is a line of the user's file for the device: see
`cunorm._plan.tuning`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cupy

from .. import __version__
from .._call import remembered
from .._launch import kernels
from .._plan import Device, Way, tuning
from .._plan.tuning import NO_LIMIT, Line, Served
from .._progress import Progress, counted
from . import timing
from .cases import Case, arrays, call
from .systems import said

if TYPE_CHECKING:
    from .timing import Launch, Sample

MANY = 32  # from so many rows for each multiprocessor on, all numbers of rows are alike
LEGEND = """\
us: median of a launch as it was planned, and its spread, (p90 - p10) / median. Then the way that
took least, and how much less, or "as planned" where that is not more than both spreads. A way is
lanes x rows of a block, c blocks of a cluster, packets in registers + in shared memory, r resident
threads, few where it is built for few rows."""


@dataclass(frozen=True)
class Tuned:
    """What came of a case.

    Attributes
    ----------
    case : Case
        The case.
    served : Served
        Its launch.
    planned : Way
        How it goes without this.
    samples : mapping of Way to Sample
        What each way took.
    trouble : mapping of Way to str
        Why others were not timed.
    """

    case: Case
    served: Served
    planned: Way
    samples: Mapping[Way, Sample]
    trouble: Mapping[Way, str]

    @property
    def best(self) -> Way:
        """The way that took least; the planned one if none took less by more than the spreads."""
        planned = self.samples[self.planned]
        least = min(self.samples, key=lambda way: self.samples[way].median)
        gain = 1 - self.samples[least].median / planned.median
        return least if gain > max(planned.spread, self.samples[least].spread) else self.planned

    def __str__(self) -> str:
        planned, best = self.samples[self.planned], self.samples[self.best]
        said = "as planned"
        if self.best != self.planned:
            said = f"{1 - best.median / planned.median:.1%} less than {self.planned}"
        return (
            f"{self.case!s:<38} {planned.median:8.2f} us ± {planned.spread:.0%}  "
            f"{self.best}: {said}, of {counted(len(self.samples), 'way')}"
        )


def run(cases: Sequence[Case], device: str) -> None:
    """Tune cases on the current device, one after the other, and keep each as it is done."""
    here = kernels.device(cupy.cuda.Device().id)
    file = tuning.file_of(here)
    if file.exists():
        list(tuning.read(file))  # one that is none of ours is refused before anything is timed
    print(f"cunorm on {device}\n")
    progress = Progress(len(cases))
    for case in cases:
        progress.show(str(case))
        tuned = tune(case, here)
        keep(file, line_of(tuned, here))
        progress.clear()
        print(tuned)
        for way, why in tuned.trouble.items():
            print(f"  {way} was left out: {why}")
    print(f"\n{LEGEND}\n\n{counted(len(cases), 'case')} kept in {file}")


def tune(case: Case, device: Device) -> Tuned:
    """Time every way that may serve a case.

    Raises
    ------
    RuntimeError
        Where the planned way itself cannot be timed.
    """
    sets = [arrays(case) for _ in range(timing.sets(case.floor_bytes))]
    with remembered.by(None) as asked:
        wanted = _bits(call(case, sets[0]))
    served = asked[0]
    planned, *others = tuning.choices(served, device)
    launches: dict[Way, list[Launch]] = {}
    trouble: dict[Way, str] = {}
    for way in (planned, *others):
        obstacle = _obstacle(case, way, sets[0], wanted)
        if obstacle is None:
            launches[way] = [partial(_go, case, way, given) for given in sets]
        else:
            trouble[way] = obstacle
    if planned in trouble:
        raise RuntimeError(f"{case} as it is planned: {trouble[planned]}")
    return Tuned(case, served, planned, timing.compare(launches), trouble)


def _obstacle(
    case: Case, way: Way, given: dict[str, cupy.ndarray], wanted: list[bytes]
) -> str | None:
    """Return why a way cannot be timed, whatever a compiler or a driver says of it."""
    try:
        right = _bits(_go(case, way, given)) == wanted
    except Exception as error:
        return said(error)
    return None if right else "it has other bits, which is a fault of cunorm's"


def _go(case: Case, way: Way, given: dict[str, cupy.ndarray]) -> Any:
    """Call an op that goes one way."""
    with remembered.by(way):
        return call(case, given)


def _bits(results: Any) -> list[bytes]:
    several = results if isinstance(results, tuple) else (results,)
    return [result.get().tobytes() for result in several]


def line_of(tuned: Tuned, device: Device) -> Line:
    """Return the line of a case's best way, for about as many rows."""
    plan, rows, aligned = tuned.served
    fewest = 1 << rows.bit_length() - 1
    most = NO_LIMIT if fewest >= MANY * device.multiprocessors else 2 * fewest - 1
    split, resident, few = tuned.best
    source = f"cunorm {__version__} tune, {date.today()}: {tuned}"
    return Line(
        *tuning.kind_of(plan, aligned=aligned),
        *(fewest, most),
        *(split.lanes, split.cluster, split.packets, split.shared, split.rows),
        *(resident, int(few)),
        source,
    )


def keep(file: Path, line: Line) -> None:
    """Put a line into a file, in place of the one that it had of such rows."""
    before = list(tuning.read(file)) if file.exists() else []
    others = [other for other in before if (*other.kind, other.fewest) != line[:6]]
    tuning.write(file, (*others, line))
