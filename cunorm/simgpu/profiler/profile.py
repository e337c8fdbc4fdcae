"""Profiles: while one is open, every launch is counted into it."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

from ..device.assembler import Resources, resources
from ..device.occupancy import occupancy
from ..execution.setup import Launch
from . import report
from .chain import Chains
from .classes import class_of
from .counters import LaunchCounters, StandInCall
from .counting import Tally

FORMATS = {".csv": report.as_csv, ".json": report.as_json}


class Profile:
    """What `cunorm.simgpu.profile` returns; `launches` grows while it is open.

    Parameters
    ----------
    registers : bool
        Whether each kernel is assembled to learn its registers, which costs a compilation.
    chains : bool
        Whether each launch's longest chain is followed, for which it runs some ten times as long.
    opened : list of Profile, optional
        Where it stands while it is open: the profiles of who launches.

    Attributes
    ----------
    launches : list of LaunchCounters
        One for each launch that ran to its end, in their order. A graph's launches run, and are
        counted, when it is launched.
    stand_ins : list of StandInCall
        The calls of stand-ins for NVIDIA's libraries that ran to their end, in their order.
    """

    def __init__(
        self, registers: bool = True, opened: list[Profile] | None = None, *, chains: bool = False
    ) -> None:
        self.registers, self.chains = registers, chains
        self._opened = [] if opened is None else opened
        self.launches: list[LaunchCounters] = []
        self.stand_ins: list[StandInCall] = []

    def __enter__(self) -> Profile:
        self._opened.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._opened.remove(self)

    def table(self) -> str:
        """Return the tables for people: launches, their arrays, their instructions by class."""
        return report.table(self.launches, self.stand_ins)

    def _repr_html_(self) -> str:
        return report.as_html(self.launches, self.stand_ins)

    def __repr__(self) -> str:
        count = len(self.launches)
        return f"<Profile of {count} launch{'' if count == 1 else 'es'}>"

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the launches to a file, whose name ends in .csv or .json."""
        file = Path(file)
        if file.suffix not in FORMATS:
            raise ValueError(f"{file} must end in {' or '.join(FORMATS)}")
        file.write_text(FORMATS[file.suffix](self.launches, self.stand_ins), "utf-8")


class Observer:
    """The counting of one launch, into the profiles that are open at its end."""

    def __init__(self, opened: list[Profile]) -> None:
        self._opened = opened

    def begin(self, launch: Launch) -> Tally:
        """Begin to count."""
        follower = Chains() if any(profile.chains for profile in self._opened) else None
        self._launch, self._tally = launch, Tally(launch, follower)
        return self._tally

    def end(self) -> None:
        """Enter the launch into the profiles."""
        assembled = Resources(unknown="registers were not asked for")
        if any(profile.registers for profile in self._opened):
            assembled = resources(self._launch.function, self._launch.device.arch)
        counters = counters_of(self._launch, self._tally, assembled)
        for profile in self._opened:
            profile.launches.append(counters)


def counters_of(launch: Launch, tally: Tally, assembled: Resources) -> LaunchCounters:
    """Return the counters of a finished launch."""
    opcodes = tally.opcodes()
    classes: dict[str, int] = {}
    for opcode, count in opcodes.items():
        name = class_of(opcode)
        classes[name] = classes.get(name, 0) + count
    memory, shared = tally.memory, tally.shared
    return LaunchCounters(
        kernel=launch.function.name,
        arch=launch.device.arch,
        grid=launch.grid,
        block=launch.block,
        resources=assembled,
        shared_static=launch.function.shared_bytes,
        shared_dynamic=launch.dynamic_bytes,
        occupancy=occupancy(
            launch.device, launch.threads, assembled.registers, launch.shared_bytes
        ),
        warps=launch.blocks * launch.padded // 32,
        opcodes=opcodes,
        classes=dict(sorted(classes.items())),
        lane_instructions=tally.lane_instructions(),
        loads=memory.traffic("load"),
        stores=memory.traffic("store"),
        atomics=memory.traffic("atomic"),
        shared_loads=shared.traffic("load"),
        shared_stores=shared.traffic("store"),
        shared_atomics=shared.traffic("atomic"),
        barriers=tally.barriers,
        dram_read_sectors=memory.read_first(),
        dram_written_sectors=memory.written(),
        arrays=tuple(memory.arrays(launch.pointers(), launch.symbols)),
        chain=None if tally.follower is None else tally.follower.chain,
    )
