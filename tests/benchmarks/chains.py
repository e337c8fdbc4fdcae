"""The longest chains of one row: of the kernel that few rows have, and of that of many.

    PYTHONPATH=tests python -m cunorm.simgpu tests/benchmarks/chains.py chains.csv

A chain is what `cunorm.simgpu.profile(chains=True)` follows: instructions each of which needs the
one before, from the launch's start to its last store, with their weight, a model of latencies.
"""

import csv
import dataclasses
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from cunorm import simgpu
from cunorm._bench.cases import Case, arrays, call
from cunorm._call import remembered

OPS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
DTYPES = ("float16", "float32")
COLS = (1024, 2048, 4096, 8192, 16384)
GRID = tuple(product(OPS, DTYPES, COLS, (0, 1), ("few", "many")))


@dataclass(frozen=True)
class Counted:
    """The chain of a call on one row.

    Attributes
    ----------
    op, dtype, cols, offset
        As of a `Case`.
    built : str
        For how many rows its kernel is built: "few" or "many".
    lanes : int
        Threads that share the row.
    weight, instructions, loads, shared_loads, collectives, barriers : int
        As of `cunorm.simgpu.profiler.chain.Chain`.
    """

    op: str
    dtype: str
    cols: int
    offset: int
    built: str
    lanes: int
    weight: int
    instructions: int
    loads: int
    shared_loads: int
    collectives: int
    barriers: int


def count(op, dtype, cols, offset, built):
    """Call an op on one row, and return its chain."""
    case = Case(op, dtype, cols, 1, offset, few=True)
    given = arrays(case)
    with (
        nullcontext() if built == "few" else remembered.by(None),
        simgpu.profile(registers=False, chains=True) as profile,
    ):
        call(case, given)
    (launch,) = profile.launches
    chain = dataclasses.astuple(launch.chain)
    return Counted(op, dtype, cols, offset, built, launch.block[0], *chain)


def read(file):
    """Return the chains of a CSV file."""
    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Counted(**{n: v if n in ("op", "dtype", "built") else int(v) for n, v in line.items()})
            for line in csv.DictReader(stream)
        ]


def main():
    simgpu.install()
    names = [field.name for field in dataclasses.fields(Counted)]
    with Path(sys.argv[1]).open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(dataclasses.asdict(count(*point)) for point in GRID)


if __name__ == "__main__":
    main()
