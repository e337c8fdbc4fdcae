"""What is counted of ops that do more than a norm: calls, and their counters.

    PYTHONPATH=tests python -m cunorm.simgpu tests/benchmarks/fused.py counters_fused.csv

The floor is every array of rows once, as it lies in memory. What all rows of a sample share, like
gamma, is asked for by each row and answered by caches; it is left out, as are scales of codes.
"""

import csv
import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

from fused_calls import GRID, Arrays

from cunorm import simgpu
from cunorm._bench.counters import PACKETS_OF_WARP, SECTOR
from cunorm._call import remembered


@dataclass(frozen=True)
class Counters:
    """The counters of a call.

    Attributes
    ----------
    call, cols
        What was counted.
    arch : int
        The architecture, like 90.
    sectors : float
        Sectors requested of the array of rows that asks for most, over the least.
    instructions_per_packet : float
        As in `cunorm._bench.counters`, of all launches.
    launches, registers, spill_bytes : int
        The kernels, and what a thread of the first one takes.
    """

    call: str
    cols: int
    arch: int
    sectors: float
    instructions_per_packet: float
    launches: int
    registers: int
    spill_bytes: int


def count(call, cols):
    """Make the call once and return what was counted."""
    given = Arrays(cols)
    with remembered.by(None):
        call.function(given)  # what it reads is made, and what it launches compiled
        with simgpu.profile() as profile:
            made = call.function(given)
    made = made if isinstance(made, tuple) else (made,)
    of_rows = [given.x, *(getattr(given, name) for name in call.rows)]
    of_rows += [a for a in made if a.size >= given.x.size // 2]
    first, *_ = profile.launches
    return Counters(
        call.name,
        cols,
        first.arch,
        max(_sectors(profile.launches, a) * SECTOR / a.nbytes for a in of_rows),
        sum(launch.instructions_unfolded for launch in profile.launches)
        / (given.x.nbytes / PACKETS_OF_WARP),
        len(profile.launches),
        first.resources.registers,
        first.resources.spill_stores,
    )


def _sectors(launches, array):
    return sum(
        traffic.loads.sectors + traffic.stores.sectors
        for launch in launches
        for traffic in launch.arrays
        if traffic.address == array.data.ptr
    )


def write(file, counted):
    """Write counters to a CSV file."""
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(field.name for field in dataclasses.fields(Counters))
        writer.writerows(
            [f"{value:.6g}" if isinstance(value, float) else value for value in row]
            for row in map(dataclasses.astuple, counted)
        )


def read(file):
    """Return the counters of a CSV file."""
    types = {field.name: field.type for field in dataclasses.fields(Counters)}
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Counters(**{name: types[name](text) for name, text in line.items()})
            for line in csv.DictReader(stream)
        ]


if __name__ == "__main__":
    write(Path(sys.argv[1]), [count(call, cols) for (_, cols), call in GRID.items()])
