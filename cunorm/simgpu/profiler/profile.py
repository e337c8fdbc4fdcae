"""Profiles: while one is open, every launch is counted into it."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from ..device.assembler import Resources, resources
from ..device.occupancy import occupancy
from . import report
from .classes import class_of
from .counters import LaunchCounters
from .counting import CountedBatch, Tally

if TYPE_CHECKING:
    from ..execution.launch import Launch
    from ..execution.warps import Batch

FORMATS = {".csv": report.as_csv, ".json": report.as_json}

_open: list[Profile] = []


class Profile:
    """What `cunorm.simgpu.profile` returns; `launches` grows while it is open.

    Parameters
    ----------
    registers : bool
        Whether each kernel is assembled to learn its registers, which costs a compilation.

    Attributes
    ----------
    launches : list of LaunchCounters
        One for each launch that ran to its end, in their order. A graph's launches run, and are
        counted, when it is launched.
    """

    def __init__(self, registers: bool = True) -> None:
        self.registers = registers
        self.launches: list[LaunchCounters] = []

    def __enter__(self) -> Profile:
        _open.append(self)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        _open.remove(self)

    def table(self) -> str:
        """Return the tables for people: launches, their arrays, their instructions by class."""
        return report.table(self.launches)

    def _repr_html_(self) -> str:
        return report.as_html(self.launches)

    def __repr__(self) -> str:
        count = len(self.launches)
        return f"<Profile of {count} launch{'' if count == 1 else 'es'}>"

    def save(self, file: str | os.PathLike[str]) -> None:
        """Write the launches to a file, whose name ends in .csv or .json."""
        file = Path(file)
        if file.suffix not in FORMATS:
            raise ValueError(f"{file} must end in {' or '.join(FORMATS)}")
        file.write_text(FORMATS[file.suffix](self.launches), "utf-8")


def begin(launch: Launch) -> Watch | None:
    """Return who counts this launch; None while no profile is open."""
    return Watch(launch) if _open else None


class Watch:
    """The counting of one launch."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.tally = Tally(launch)

    def batch(self, launch: Launch, first: int, blocks: int) -> Batch:
        """Return a batch that is counted."""
        return CountedBatch(launch, first, blocks, self.tally)

    def end(self) -> None:
        """Enter the launch into the open profiles."""
        assembled = Resources(unknown="registers were not asked for")
        if any(profile.registers for profile in _open):
            assembled = resources(self.launch.function, self.launch.device.arch)
        counters = counters_of(self.launch, self.tally, assembled)
        for profile in _open:
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
    )
