"""What hardware takes for a call, beside copies of the same bytes and what other systems take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from types import SimpleNamespace
from typing import Any

import cupy

from . import floors, timing
from .cases import SYSTEMS, Case, arrays
from .definition import Definition
from .peers import CUNORM
from .systems import System, said
from .timing import Launch, Sample

WARM_UP_SECONDS = 1.5  # of copies, until the clocks are up


class DeviceLost(RuntimeError):
    """An error after which CUDA refuses all that this process asks for.

    Attributes
    ----------
    system : str
        Whose call it was.
    case : Case
        On what.
    """

    def __init__(self, system: str, case: Case, error: BaseException) -> None:
        super().__init__(f"{system} on {case}: {said(error)}")
        self.system, self.case = system, case


@dataclass(frozen=True, kw_only=True)
class Times(Case):
    """A case, and what was timed of it.

    Attributes
    ----------
    sets : int
        Sets of arrays that took turns.
    systems : dict of str to Sample
        cunorm, and every other system that was right.
    copies : dict of str to Sample
        Of as many bytes.
    failed : dict of str to str
        Why a system was not timed: what it raised, or how far its result was off.
    """

    sets: int
    systems: dict[str, Sample]
    copies: dict[str, Sample]
    failed: dict[str, str]

    @property
    def own(self) -> Sample | None:
        """What cunorm takes."""
        return self.systems.get(CUNORM.name)

    @property
    def copy(self) -> float | None:
        """What the faster of the copies takes, in microseconds."""
        return min((sample.median for sample in self.copies.values()), default=None)

    @property
    def share(self) -> float | None:
        """The speed of a copy that was reached: 1 where the call takes no longer."""
        return self.copy / self.own.median if self.own and self.copy else None

    @property
    def gb_per_s(self) -> float | None:
        """The bytes that must move, over the time."""
        return self.floor_bytes / self.own.median / 1e3 if self.own else None

    def line(self) -> SimpleNamespace:
        """Return what a line of a table or of a CSV file has: microseconds are medians."""
        others: dict[str, float | str | None] = {
            name: self.systems[name].median if name in self.systems else None for name in SYSTEMS
        }
        return SimpleNamespace(
            **_of_case(self),
            bytes=self.floor_bytes,
            sets=self.sets,
            us=self.own.median if self.own else None,
            spread=self.own.spread if self.own else None,
            gb_per_s=self.gb_per_s,
            share=self.share,
            copy=self.copy,
            **others | dict.fromkeys(others.keys() & self.failed.keys(), "failed"),
        )


def _of_case(case: Case) -> dict[str, Any]:
    return {field.name: getattr(case, field.name) for field in fields(Case)}


def time(case: Case, others: Sequence[System]) -> Times:
    """Measure one case on the current device, by cunorm and by others.

    Raises
    ------
    DeviceLost
        Where a call has left the device unusable to this process.
    """
    count = 1 if case.warm else timing.sets(case.floor_bytes)
    sets = [arrays(case) for _ in range(count)]
    right = Definition(case, sets[0])
    launches: dict[str, Sequence[Launch]] = {}
    failed: dict[str, Exception] = {}
    for system in (CUNORM, *others):
        found = _launches(system, case, sets, right)
        if isinstance(found, Exception):
            failed[system.name] = found.with_traceback(None)  # whose frames would keep arrays
            _raise_if_lost(system.name, case, found)
        elif found is not None:
            launches[system.name] = found
    copies = floors.copies(case.floor_bytes, count)
    try:
        samples = timing.compare(launches | copies, failed)
    except Exception as error:  # of a replay, by whichever
        _raise_if_lost(f"one of {', '.join(launches)}", case, error)
        raise
    for name, problem in failed.items():
        _raise_if_lost(name, case, problem)
    return Times(
        **_of_case(case),
        sets=count,
        systems={name: sample for name, sample in samples.items() if name not in copies},
        copies={name: sample for name, sample in samples.items() if name in copies},
        failed={name: said(problem) for name, problem in failed.items()},
    )


def empty_kernel() -> Sample:
    """Return what a kernel that does nothing takes in a graph: the least of any launch."""
    return timing.compare({"nothing": [floors.nothing]})["nothing"]


def warm_up() -> None:
    """Bring the clocks up."""
    (call,) = floors.copies(1 << 28, 1)["memcpy"]
    start, now = cupy.cuda.Event(), cupy.cuda.Event()
    start.record()
    while True:
        call()
        now.record()
        now.synchronize()
        if timing.microseconds(start, now) > 1e6 * WARM_UP_SECONDS:
            return


def _launches(
    system: System, case: Case, sets: Sequence[dict[str, cupy.ndarray]], right: Definition
) -> list[Launch] | Exception | None:
    """Return launches that are right, why there are none, or None where there is no such op."""
    try:
        launches = system.launches(case, sets)
        if launches is not None:
            cupy.cuda.Device().synchronize()
            with cupy.cuda.Stream(non_blocking=True) as stream:  # as it is timed on one
                outputs = launches[0]()
                stream.synchronize()
            right.hold(outputs)
    except Exception as error:
        return error
    return launches


def _raise_if_lost(system: str, case: Case, error: BaseException) -> None:
    """Raise where a transfer fails: an illegal access, say, fails all that follows."""
    try:
        whole = float(cupy.ones(8).sum()) == 8
    except Exception as broken:
        raise DeviceLost(system, case, broken) from error
    if not whole:
        raise DeviceLost(system, case, error)
