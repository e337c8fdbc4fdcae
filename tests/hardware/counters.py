"""Hardware counters of a few kernels, beside what the software GPU counts of them.

ncu ... python -m hardware.counters run       each case once, for ncu to look at
python -m hardware.counters show FILE.csv     a table of ncu's raw CSV, beside the counts of
                                              tests/benchmarks/counters.csv
python -m hardware.counters metrics           what ncu is asked for
python -m hardware.counters example           a CSV as ncu writes it, of made-up numbers
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cunorm._bench.cases import CODE_OPS
from cunorm._plan import WARP

from .cases import Case, few_rows, rows_of, sized
from .session import DRY, Lines, log, start_device

COUNTERS = Path(__file__).parents[1] / "benchmarks" / "counters.csv"
NAN = float("nan")
METRICS = (
    "gpu__time_duration.sum",
    "dram__bytes_read.sum",
    "dram__bytes_write.sum",
    "gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_ld.sum",
    "l1tex__t_sectors_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_requests_pipe_lsu_mem_global_op_st.sum",
    "l1tex__t_sectors_pipe_lsu_mem_local_op_ld.sum",
    "sm__warps_active.avg.pct_of_peak_sustained_active",
    "sm__maximum_warps_per_active_cycle_pct",
    "smsp__inst_executed.sum",
    "launch__registers_per_thread",
    "launch__grid_size",
    "launch__block_size",
    "launch__waves_per_multiprocessor",
    "launch__occupancy_limit_registers",
    "launch__occupancy_limit_shared_mem",
    "l1tex__data_bank_conflicts_pipe_lsu_mem_shared.sum",
)
# Of as many bytes as the software GPU counts them, to be compared with it.
COUNTED = (
    ("rms_norm", "bfloat16", 128),
    ("rms_norm", "bfloat16", 1024),
    ("rms_norm", "bfloat16", 4096),
    ("rms_norm", "float16", 4097),
    ("rms_norm", "float32", 4096),
    ("rms_norm", "bfloat16", 16384),
    ("rms_norm", "bfloat16", 65536),
    ("add_rms_norm", "bfloat16", 4096),
    ("layer_norm", "bfloat16", 4096),
    ("rms_norm", "bfloat16", 262144),
)
# Of 128 MiB, for the time.
TIMED = (
    ("rms_norm", "bfloat16", 128),
    ("rms_norm", "bfloat16", 1024),
    ("rms_norm", "bfloat16", 4096),
    ("rms_norm", "bfloat16", 4097),
    ("rms_norm", "bfloat16", 16384),
    ("rms_norm", "bfloat16", 65536),
    ("rms_norm", "bfloat16", 262144),
    ("add_rms_norm", "bfloat16", 4096),
    ("layer_norm", "bfloat16", 4096),
    ("rms_norm_bwd", "bfloat16", 4096),
    ("layer_norm_bwd", "bfloat16", 1024),
    ("qk_norm_rope", "bfloat16", 128),
    ("rms_norm_quant", "bfloat16", 4096),
)
# Base units of ncu's CSV, in bytes and nanoseconds.
SCALE = {
    **{"Kbyte": 1e3, "Mbyte": 1e6, "Gbyte": 1e9},
    **{"nsecond": 1, "usecond": 1e3, "msecond": 1e6, "second": 1e9},
    **{"ns": 1, "us": 1e3, "ms": 1e6, "s": 1e9},
}


def cases() -> list[Case]:
    """Return the cases in the order of their launches; a dry run has those of short rows."""
    counted = [
        Case(op, dtype, cols, rows_of(2, cols, dtype), group="counted")
        for op, dtype, cols in COUNTED
    ]
    found = counted + [
        sized(op, dtype, cols, "timed", quant="fp8_row" if op in CODE_OPS else None)
        for op, dtype, cols in TIMED
    ]
    if not DRY:
        return found
    few = {c.op: c for c in found if c.cols <= 4096}
    return [few_rows(case) for case in few.values()]


def kernels(case: Case) -> tuple[str, ...]:
    """Return the kernels of a call in the order of their launches."""
    return (case.op, "column_sums") if case.is_backward else (case.op,)


def run() -> None:
    """Call each case once."""
    cupy = start_device()
    from cunorm._bench.cases import arrays, call

    for each in cases():
        call(each, arrays(each))
        cupy.cuda.get_current_stream().synchronize()
    log("ran")


@dataclass(frozen=True)
class Counted:
    """What ncu says of a kernel; what it does not say is NaN."""

    kernel: str
    numbers: dict[str, float]

    def __getitem__(self, metric: str) -> float:
        return self.numbers.get(metric, NAN)

    def per_request(self, what: str) -> float:
        """Return sectors for each request of global loads ("ld") or stores ("st")."""
        sectors, requests = (
            self[f"l1tex__t_{unit}_pipe_lsu_mem_global_op_{what}.sum"]
            for unit in ("sectors", "requests")
        )
        return sectors / requests if requests else NAN


def read(path: Path) -> list[Counted]:
    """Return what ncu's raw CSV says of cunorm's kernels, in base units."""
    lines = path.read_text().splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    table: list[list[str]] = [*csv.reader(io.StringIO("\n".join(lines[start:]))), [], []]
    names, units, *table = table
    found = []
    for line in filter(None, table):
        row = dict(zip(names, line, strict=True))
        scale = {name: SCALE.get(unit, 1) for name, unit in zip(names, units, strict=True)}
        kernel = row["Kernel Name"]
        if "norm" in kernel or "column_sums" in kernel:
            numbers = {name: number(row[name]) * scale[name] for name in names if "__" in name}
            found.append(Counted(kernel, numbers))
    return found


def number(text: str) -> float:
    """Return a number of ncu's, which has commas; NaN for what is none."""
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return NAN


def example() -> None:
    """Print a CSV as ncu writes it, in which every number is 1,024."""
    writer = csv.writer(sys.stdout, quoting=csv.QUOTE_ALL)
    print("==PROF== Disconnected")
    writer.writerow(["ID", "Kernel Name", *METRICS])
    writer.writerow(["", "", *("us" if "time" in metric else "" for metric in METRICS)])
    names = [kernel for each in cases() for kernel in kernels(each)]
    for i, name in enumerate(names):
        writer.writerow([i, name, *["1,024"] * len(METRICS)])


def software() -> dict[tuple[str, ...], dict[str, str]]:
    """Return what the software GPU counts, by op, dtype, N and rows."""
    with COUNTERS.open() as file:
        return {
            tuple(line[name] for name in ("op", "dtype", "cols", "rows")): line
            for line in csv.DictReader(file)
            if line["offset"] == "0"
        }


HEAD = (
    f"{'case':<34}{'us':>8}{'GB/s':>6}{'dram%':>6}{'rd/fl':>6}{'wr/fl':>6}{'s/rq':>6}{'occ%':>6}"
    f"{'max%':>6}{'regs':>5}{'waves':>6}{'in/pk':>7}  software GPU"
)


def row(name: str, measured: Counted, case: Case | None, note: str) -> str:
    """Return a row of the table, with bytes over the least that must move where that is known."""
    ns = measured["gpu__time_duration.sum"]
    reads = writes = bytes_of_x = NAN
    if case:
        moved = {array: case.bytes_of(array) for array in case.names}
        reads = sum(moved[array] for array in case.names if array in case.kind.reads)
        writes = sum(moved.values()) - reads
        bytes_of_x = reads if case.is_of_heads else case.x_bytes
    packets = bytes_of_x / (16 * WARP)
    return (
        f"{name:<34}{ns / 1e3:8.2f}{(reads + writes) / ns:6.0f}"
        f"{measured['gpu__dram_throughput.avg.pct_of_peak_sustained_elapsed']:6.1f}"
        f"{measured['dram__bytes_read.sum'] / reads:6.2f}"
        f"{measured['dram__bytes_write.sum'] / writes:6.2f}{measured.per_request('ld'):6.1f}"
        f"{measured['sm__warps_active.avg.pct_of_peak_sustained_active']:6.1f}"
        f"{measured['sm__maximum_warps_per_active_cycle_pct']:6.1f}"
        f"{measured['launch__registers_per_thread']:5.0f}"
        f"{measured['launch__waves_per_multiprocessor']:6.1f}"
        f"{measured['smsp__inst_executed.sum'] / packets:7.1f}  {note}"
    )


def expected() -> Iterator[tuple[str, Case | None, str]]:
    """Yield the name of each launch, its case, and what the software GPU says of it."""
    counts = software()
    for each in cases():
        own = counts.get((each.op, each.dtype, str(each.cols), str(each.rows)))
        note = own and (
            f"s/rq {float(own['sectors_per_request']):.1f}, regs {own['registers']}, occ "
            f"{float(own['occupancy']):.0%}, PTX in/pk {float(own['instructions_per_packet']):.1f}"
        )
        yield str(each), each, note or ""
        for name in kernels(each)[1:]:
            yield f"  {name}", None, ""


def show(path: Path) -> None:
    """Print the table, and write what ncu said as JSON."""
    lines, measured = Lines("ncu.jsonl"), read(path)
    launches: list[tuple[str, Case | None, str]] = list(expected())
    if len(measured) != len(launches):
        log(f"{len(measured)} kernels, not {len(launches)}: names below are ncu's own")
        launches = [(found.kernel[:32], None, "") for found in measured]
    print(HEAD)
    for found, (name, each, note) in zip(measured, launches, strict=True):
        lines.add(case=name, kernel=found.kernel, counters=found.numbers)
        print(row(name, found, each, note))


def main(command: str, *paths: str) -> Any:
    """Do what the first word says."""
    if command == "metrics":
        print(",".join(METRICS))
    elif command == "show":
        show(*map(Path, paths))
    else:
        {"run": run, "example": example}[command]()


if __name__ == "__main__":
    main(*sys.argv[1:])
