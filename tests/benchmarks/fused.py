"""What is counted of ops that do more than a norm: calls, and their counters.

    python -m cunorm.simgpu tests/benchmarks/fused.py counters_fused.csv

The floor is every array of rows once, as it lies in memory. What all rows of a sample share, like
gamma, is asked for by each row and answered by caches; it is left out, as are scales of codes.
"""

import csv
import dataclasses
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cupy
import numpy as np

import cunorm
from cunorm import Quant, simgpu
from cunorm._bench.cases import COUNTED_BYTES, VALUES
from cunorm._bench.counters import PACKETS_OF_WARP, SECTOR

DTYPE = "float16"
OFF_16_BYTES = 769
COLS = (128, OFF_16_BYTES, 1024, 3072, 4096, 8192)
IN_GROUPS = (128, 1024, 3072, 4096, 8192)
HEADS = (64, 80, 128, 256)
SAMPLES = 4


@dataclass(frozen=True)
class Call:
    """A call, the names of its arrays of rows after x, and the N that it is counted of."""

    name: str
    function: Callable
    rows: tuple[str, ...] = ()
    cols: tuple[int, ...] = COLS


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


def _rope(a):
    return cunorm.rms_norm_rope(a.x, a.gamma, a.cos, a.sin, a.positions)


def _rms_norm_bwd(a):
    return cunorm.rms_norm_bwd(a.dy, a.x, a.gamma, a.rstd)


def _modulated_bwd(a):
    return cunorm.rms_norm_bwd(a.dy, a.x, a.gamma, a.rstd, scale=a.scale, shift=a.shift)


def _quantised(quant):
    return lambda a: cunorm.rms_norm_quant(a.x, a.gamma, quant=quant)


CALLS = (
    Call("rms_norm(x, gamma)", lambda a: cunorm.rms_norm(a.x, a.gamma)),
    Call(
        "rms_norm(x, gamma, scale=scale, shift=shift)",
        lambda a: cunorm.rms_norm(a.x, a.gamma, scale=a.scale, shift=a.shift),
    ),
    Call("layer_norm(x)", lambda a: cunorm.layer_norm(a.x)),
    Call(
        "layer_norm(x, scale=scale, shift=shift)",
        lambda a: cunorm.layer_norm(a.x, scale=a.scale, shift=a.shift),
    ),
    Call(
        "layer_norm(x, scale=scale_of_rows, shift=shift_of_rows)",
        lambda a: cunorm.layer_norm(a.x, scale=a.scale_of_rows, shift=a.shift_of_rows),
        ("scale_of_rows", "shift_of_rows"),
    ),
    Call(
        "add_layer_norm(x, residual, gate=gate, scale=scale, shift=shift)",
        lambda a: cunorm.add_layer_norm(a.x, a.residual, gate=a.gate, scale=a.scale, shift=a.shift),
        ("residual",),
    ),
    Call(
        "rms_norm_gated(x, gate_of_rows, gamma)",
        lambda a: cunorm.rms_norm_gated(a.x, a.gate_of_rows, a.gamma),
        ("gate_of_rows",),
    ),
    Call(
        "rms_norm_gated(x, gate_of_rows, gamma, gate_first=True)",
        lambda a: cunorm.rms_norm_gated(a.x, a.gate_of_rows, a.gamma, gate_first=True),
        ("gate_of_rows",),
    ),
    Call(
        "layer_norm_gated(x, gate_of_rows, gamma, beta)",
        lambda a: cunorm.layer_norm_gated(a.x, a.gate_of_rows, a.gamma, a.beta),
        ("gate_of_rows",),
    ),
    Call(
        "rms_norm_add(x, residual, gamma)",
        lambda a: cunorm.rms_norm_add(a.x, a.residual, a.gamma),
        ("residual",),
    ),
    Call(
        "layer_norm_add(x, residual, gamma, beta)",
        lambda a: cunorm.layer_norm_add(a.x, a.residual, a.gamma, a.beta),
        ("residual",),
    ),
    Call(
        "rms_norm_add_rms_norm(x, residual, gamma, gamma)",
        lambda a: cunorm.rms_norm_add_rms_norm(a.x, a.residual, a.gamma, a.gamma),
        ("residual",),
    ),
    Call("rms_norm_bwd(dy, x, gamma, rstd)", _rms_norm_bwd, ("dy",)),
    Call("rms_norm_bwd(dy, x, gamma, rstd, scale=scale, shift=shift)", _modulated_bwd, ("dy",)),
    Call(
        "rms_norm_gated_bwd(dy, x, gate_of_rows, gamma, rstd)",
        lambda a: cunorm.rms_norm_gated_bwd(a.dy, a.x, a.gate_of_rows, a.gamma, a.rstd),
        ("dy", "gate_of_rows"),
    ),
    Call("rms_norm_rope(x, gamma, cos, sin, positions)", _rope, cols=HEADS),
    Call("rms_norm_quant(x, gamma, quant=fp8_row)", _quantised(Quant.fp8_row())),
    Call("rms_norm_quant(x, gamma, quant=int8_row)", _quantised(Quant.int8_row())),
    Call("rms_norm_quant(x, gamma, quant=deepseek)", _quantised(Quant.deepseek()), cols=IN_GROUPS),
    Call("rms_norm_quant(x, gamma, quant=mxfp8)", _quantised(Quant.mxfp8()), cols=IN_GROUPS),
    Call("rms_norm_quant(x, gamma, quant=nvfp4)", _quantised(Quant.nvfp4(1.0)), cols=IN_GROUPS),
)
GRID = {(call.name, cols): call for call in CALLS for cols in call.cols}


class Arrays:
    """The arrays of a call, made as they are asked for: 2 MiB of x, of several samples."""

    def __init__(self, cols):
        rows = COUNTED_BYTES // (cols * np.dtype(DTYPE).itemsize) // SAMPLES
        whole, sample = (SAMPLES, rows, cols), (SAMPLES, 1, cols)
        self._shapes = dict.fromkeys(("gamma", "beta"), (cols,))
        self._shapes |= dict.fromkeys(("scale", "shift", "gate"), sample)
        self._shapes |= dict.fromkeys(("cos", "sin"), (rows, cols // 2))
        self._whole = whole

    def __getattr__(self, name):
        if name == "rstd":
            made = cupy.ones(self._whole[:-1], "float32")
        elif name == "positions":
            made = cupy.arange(self._whole[0])
        else:
            shape = self._shapes.get(name, self._whole)
            values = np.random.default_rng(len(name)).standard_normal(VALUES)
            made = cupy.asarray(np.resize(values.astype(DTYPE), shape))
        setattr(self, name, made)
        return made


def count(call, cols):
    """Make the call once and return what was counted."""
    given = Arrays(cols)
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
