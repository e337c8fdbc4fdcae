"""The file of results of a card: what was timed, on what, with which versions of whom.

An object with these members; every time is in microseconds.

schema
    1. It changes when a member changes its meaning, or goes.
card
    name, arch ("sm_90"), multiprocessors, memory_bytes, l2_bytes, driver (null where nvidia-smi
    does not say).
cuda
    driver and runtime: the versions of CUDA that those are for ("13.0").
python, cupy, numpy
    Versions.
cunorm
    version, commit (null where it is not known).
date
    When the run began, in UTC: "2026-01-31T12:00:00Z".
method
    graph_us, rounds, replays, caches and most_sets of `cunorm._bench.timing`.
systems
    By name: version of those that took part, absent (why) of the others that were asked for.
empty_kernel
    A sample: what a kernel that does nothing takes.
cases
    Of each: op, dtype, quant (of codes the scheme, else null), rows, cols, offset, dresidual, warm;
    bytes (the least that must move), sets (of arrays that took turns), gb_per_s and share_of_copy
    of cunorm (null where it failed), copies and systems by name. A copy has a sample; a system has
    a sample, or failed: why.

A sample has median, p10, p90, spread ((p90 - p10) / median), least, count, and launches: of a
graph.
"""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import cupy
import numpy as np

from .. import __version__
from . import timing
from .cases import SYSTEMS
from .peers import CUNORM
from .times import Times
from .timing import Sample

SCHEMA = 1
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Run:
    """What is the same for all cases of a run, taken when it begins.

    Attributes
    ----------
    versions, absent : mapping of str to str
        Of the systems that take part, and why others do not.
    commit : str or None
        cunorm's.
    date : str
        When it began.
    """

    versions: Mapping[str, str]
    absent: Mapping[str, str]
    commit: str | None
    date: str

    @staticmethod
    def begin(
        versions: Mapping[str, str], absent: Mapping[str, str], commit: str | None = None
    ) -> Run:
        """Return the run that begins now."""
        now = datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        return Run(versions, absent, commit or commit_of_checkout(), now)


def save(run: Run, empty_kernel: Sample, cases: Sequence[Mapping[str, Any]], file: Path) -> None:
    """Write the file of results; `cases` are those of `as_case`."""
    runtime = cupy.cuda.runtime
    told = {
        "schema": SCHEMA,
        "card": card(),
        "cuda": {
            "driver": _cuda_version(runtime.driverGetVersion()),
            "runtime": _cuda_version(runtime.runtimeGetVersion()),
        },
        "python": platform.python_version(),
        "cupy": cupy.__version__,
        "numpy": np.__version__,
        "cunorm": {"version": __version__, "commit": run.commit},
        "date": run.date,
        "method": {
            "graph_us": timing.GRAPH_US,
            "rounds": timing.ROUNDS,
            "replays": timing.REPLAYS,
            "caches": timing.CACHES,
            "most_sets": timing.MOST_SETS,
        },
        "systems": {
            **{name: {"version": version} for name, version in run.versions.items()},
            **{name: {"absent": why} for name, why in run.absent.items()},
        },
        "empty_kernel": as_sample(empty_kernel),
    }
    # A line for each case, so that a new run's differences can be read.
    lines = ",\n  ".join(map(json.dumps, cases))
    head = json.dumps(told, indent=1).removesuffix("\n}")
    file.write_text(f'{head},\n "cases": [\n  {lines}\n ]\n}}\n', encoding="utf-8")


def as_case(times: Times) -> dict[str, Any]:
    """Return what the file has of a case."""
    names = [name for name in (CUNORM.name, *SYSTEMS) if name in times.systems | times.failed]
    names += [name for name in times.failed if name not in names]
    return {
        "op": times.op,
        "dtype": times.dtype,
        "quant": times.quant,
        "rows": times.rows,
        "cols": times.cols,
        "offset": times.offset,
        "dresidual": times.dresidual and times.is_backward,
        "warm": times.warm,
        "bytes": times.floor_bytes,
        "sets": times.sets,
        "gb_per_s": _digits(times.gb_per_s),
        "share_of_copy": _digits(times.share),
        "copies": {name: as_sample(sample) for name, sample in times.copies.items()},
        "systems": {
            name: as_sample(times.systems[name])
            if name in times.systems
            else {"failed": times.failed[name]}
            for name in names
        },
    }


def as_sample(sample: Sample) -> dict[str, float | int | None]:
    """Return what the file has of a sample."""
    told = asdict(sample) | {"spread": sample.spread}
    return {
        name: _digits(value) if isinstance(value, float) else value for name, value in told.items()
    }


def card() -> dict[str, Any]:
    """Return what the file has of the current device."""
    device = cupy.cuda.Device()
    properties = cupy.cuda.runtime.getDeviceProperties(device.id)
    return {
        "name": properties["name"].decode(),
        "arch": f"sm_{device.compute_capability}",
        "multiprocessors": properties["multiProcessorCount"],
        "memory_bytes": properties["totalGlobalMem"],
        "l2_bytes": properties["l2CacheSize"],
        "driver": _driver(device),
    }


def commit_of_checkout() -> str | None:
    """Return the commit of the checkout that cunorm runs from, and whether files differ from it."""
    if not (ROOT / ".git").exists():
        return None
    commit = _output("git", "-C", str(ROOT), "rev-parse", "HEAD")
    changed = _output("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{commit} and changes" if commit and changed else commit


def _driver(device: cupy.cuda.Device) -> str | None:
    fields = ("--query-gpu=driver_version", "--format=csv,noheader", "--id", device.pci_bus_id)
    return _output("nvidia-smi", *fields)


def _output(*command: str) -> str | None:
    """Return what a command prints; None where it cannot be run, or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def _cuda_version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def _digits(value: float | None) -> float | None:
    """Return a value with as many digits as anyone reads."""
    return None if value is None else float(f"{value:.6g}")
