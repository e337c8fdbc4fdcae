"""Measures what docs/benchmarks.md and test_kernel_counters.py say, and writes it there.

    PYTHONPATH=tests python tests/benchmarks/publish.py

On the software GPU: counters.csv, counters_backward.csv, counters_fused.csv, chains.csv and
counters.png beside this file, and the tables between the two marks in docs/benchmarks.md. It takes
some minutes.
"""

import csv
import dataclasses
import subprocess
import sys
from pathlib import Path

import chains
import fused
import fused_calls

from cunorm._bench.cases import BACKWARD_OPS
from cunorm._bench.counters import Counters
from cunorm._bench.report import is_aligned

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSV, PNG, PAGE = HERE / "counters.csv", HERE / "counters.png", ROOT / "docs" / "benchmarks.md"
BACKWARD_CSV, FUSED_CSV = HERE / "counters_backward.csv", HERE / "counters_fused.csv"
CHAINS_CSV = HERE / "chains.csv"
BEGIN, END = "<!-- tests/benchmarks/publish.py: begin -->\n", "<!-- end -->\n"

OPS = ("rms_norm", "add_rms_norm", "layer_norm", "add_layer_norm")
DTYPES = ("float16", "bfloat16", "float32")
# What is measured of the backward ops.
BACKWARD_DTYPES = (*DTYPES, "float64")
BACKWARD_COLS = (128, 1024, 4096, 16384)
BACKWARD_COMMAND = (
    *("bench", "--op", *BACKWARD_OPS, "--dtype", *BACKWARD_DTYPES),
    *("--cols", *map(str, BACKWARD_COLS)),
)
COSTS = ("barriers / row", "registers", "spilled bytes", "occupancy")
SYSTEMS = ("TransformerEngine", "PyTorch", "OneFlow", "FlashInfer", "vLLM")
# Instructions for each packet of the kernels that these systems run, in the order of SYSTEMS. They
# were counted on the software GPU as those of cunorm are, over whole launches of about 2 MB.
OTHERS = {
    ("rms_norm", "float16", 128): (275, None, 284, 460, 614),
    ("rms_norm", "float16", 769): (None, None, 106, None, None),
    ("rms_norm", "float16", 1024): (123, None, 150, None, 211),
    ("rms_norm", "float16", 4096): (136, 132, 161, 228, 187),
    ("rms_norm", "float16", 8192): (None, 116, None, None, None),
    ("rms_norm", "float16", 32768): (None, None, None, None, 101),
    ("rms_norm", "float32", 4096): (52, 47, None, None, None),
    ("add_rms_norm", "float16", 4096): (None, None, None, None, 267),
    ("layer_norm", "float16", 4096): (151, 225, None, None, None),
}

SECTION = """\
RMSNorm, counted by the software GPU as an sm_{arch}. Where a cell has three numbers, they are those
of float16, bfloat16 and float32. "N + 1" is a view whose rows begin one element past a boundary of
16 bytes.

{rms_norm}
```bash
python -m cunorm bench --op rms_norm --odd
```

Every op: the requested sectors of the array that asks for most, over the floor, and the
instructions for each packet.

{every_op}
![Share of the byte floor, and instructions for each packet, by N](../{png})

```bash
python -m cunorm bench --odd --csv {csv} --png {png}
```

Instructions for each packet beside those of other systems' kernels, which were counted once in
the same way, over whole launches of about 2 MB; what they take now was not looked at again. A blank
was not counted.

{others}
The backward pass, with a gradient of the residual: x, dy and dresidual are read, dx is written.
Where a cell has four numbers, the last is float64's.

{backward}
The kernel holds x, dy and the sums of its columns, and so keeps fewer packets than the forward
kernels, which have a row of 16,384 float64 mostly in shared memory; of such a row it reads again
what is left, 26 % or 39 %. Each block writes a row of N sums for each parameter, and a second
kernel adds those up: there are as many blocks as the device holds at once, however many rows there
are. *Sums* are their bytes, written and read, over those of 2 MiB of x; over 64 MiB, 8,192 rows of
4,096 in float16, they are a 16th of that. Registers set the occupancy: a multiprocessor has 512
threads of 16-bit rows or 384 of wider ones, each with 96 or 192 bytes of x, dy and dresidual in
flight. LayerNorm's rows of 4,096 float32 have 256 of those. Rows that start off 16 bytes have fewer
in flight: they wait for x before they ask for dy.

```bash
python -m cunorm {backward_command}
```

What is fused with a norm, of float16: `scale`, `shift` and `gate` are one row for each of four
samples, what is called `_of_rows` has a row for each of x's. The floor is of arrays of rows; heads
are rotated by float16 tables. Instructions are those of all launches, over the packets of x. Off 16
bytes means N = 769. Of a backward kernel the counted one is the first that would be built; where
that has not registers enough, a GPU's is built anew with fewer threads.

{fused}
```bash
PYTHONPATH=tests python tests/benchmarks/publish.py --fused
```

What a launch of few rows takes is its [longest chain](software-gpu.md#count-what-a-launch-does) of
instructions each of which needs the one before. Its weight, of one row, by the kernel of many rows
and by that of few where they differ: a load from memory weighs 120, one from shared memory, a
collective or a barrier 6, any other instruction 1. It is a model of latencies, and no time.

{chains}
```bash
PYTHONPATH=tests python -m cunorm.simgpu tests/benchmarks/chains.py tests/benchmarks/chains.csv
```
"""


def stored(file=CSV):
    """Return the counters of a CSV file."""
    types = {field.name: field.type for field in dataclasses.fields(Counters)}

    def value(name, text):
        if text == "":
            return None
        return text if types[name] == "str" else int(text) if "int" in types[name] else float(text)

    with file.open(newline="", encoding="utf-8") as stream:
        return [
            Counters(**{name: value(name, text) for name, text in line.items()})
            for line in csv.DictReader(stream)
        ]


def worst_ratio(counters):
    """Return the sectors requested of the array that asks for most, over the floor."""
    return max(counters.ratios)


def table(head, lines):
    cells = [head, ["---"] * len(head), *lines]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in cells)


def section(measured, backward, of_fused, of_chains):
    """Return what stands between the marks of the page."""
    return SECTION.format(
        arch=measured[0].arch,
        rms_norm=_of_rms_norm([m for m in measured if m.op == "rms_norm"]),
        every_op=_of_every_op(measured),
        others=_beside_others(measured),
        backward=_of_backward(backward),
        fused=_of_fused(of_fused),
        chains=_of_chains(of_chains),
        backward_command=" ".join(BACKWARD_COMMAND),
        csv=CSV.relative_to(ROOT),
        png=PNG.relative_to(ROOT),
    )


def _of_rms_norm(measured):
    lines = []
    for cols, offset in dict.fromkeys((m.cols, m.offset) for m in measured):
        of = [m for m in measured if (m.cols, m.offset) == (cols, offset)]
        assert [m.dtype for m in of] == list(DTYPES)
        lines.append(
            (
                f"{cols:,}" + (f" + {offset}" if offset else ""),
                f"{max(map(worst_ratio, of)):.3f}",
                f"{max(m.reads for m in of):.2f}",
                " · ".join(f"{m.sectors_per_request:.1f}" for m in of),
                " · ".join(f"{m.instructions_per_packet:.1f}" for m in of),
                *_costs(of),
            )
        )
    head = (
        *("N", "sectors of x, y over the floor", "x read", "sectors / request"),
        *("instructions / packet", *COSTS),
    )
    return table(head, lines)


def _of_every_op(measured):
    sizes = (128, 1024, 4096, 8192, 32768, 262144)
    lines = []
    for op, dtype in dict.fromkeys((m.op, m.dtype) for m in measured):
        of = [m for m in measured if (m.op, m.dtype) == (op, dtype)]
        by_size = {m.cols: m.instructions_per_packet for m in of if m.offset == 0}
        lines.append(
            (
                f"`{op}`",
                dtype,
                f"{max(worst_ratio(m) for m in of if is_aligned(m)):.3f}",
                f"{max(worst_ratio(m) for m in of if not is_aligned(m)):.3f}",
                *(f"{by_size[cols]:.1f}" for cols in sizes),
            )
        )
    head = (
        "op",
        "dtype",
        "sectors, aligned rows",
        "sectors, other rows",
        *(f"N = {n:,}" for n in sizes),
    )
    return table(head, lines)


def _beside_others(measured):
    lines = []
    for (op, dtype, cols), figures in OTHERS.items():
        (own,) = (m for m in measured if (m.op, m.dtype, m.cols, m.offset) == (op, dtype, cols, 0))
        cells = ["" if figure is None else str(figure) for figure in figures]
        lines.append(
            (f"`{op}`", dtype, f"{cols:,}", f"**{own.instructions_per_packet:.1f}**", *cells)
        )
    return table(("op", "dtype", "N", "cunorm", *SYSTEMS), lines)


def _costs(of):
    """Return the cells under `COSTS`, each with a figure of every dtype."""
    return (
        " · ".join(f"{m.barriers_per_row:.0f}" for m in of),
        " · ".join(f"{m.registers}" for m in of),
        " · ".join(f"{m.spill_bytes}" for m in of),
        " · ".join(f"{m.occupancy:.0%}".replace("%", " %") for m in of),
    )


def _of_backward(measured):
    lines = []
    for op, cols in dict.fromkeys((m.op, m.cols) for m in measured):
        of = [m for m in measured if (m.op, m.cols) == (op, cols)]
        assert [m.dtype for m in of] == list(BACKWARD_DTYPES)
        lines.append(
            (
                f"`{op}`",
                f"{cols:,}",
                " · ".join(f"{worst_ratio(m):.2f}" for m in of),
                " · ".join(f"{m.sums:.2f}" for m in of),
                " · ".join(f"{m.instructions_per_packet:.0f}" for m in of),
                *_costs(of),
            )
        )
    head = (
        *("op", "N", "sectors of x, dy, dresidual, dx over the floor", "sums"),
        *("instructions / packet", *COSTS),
    )
    return table(head, lines)


def _of_fused(counted):
    sizes = (128, 1024, 3072, 4096, 8192)
    lines = []
    for name in dict.fromkeys(c.call for c in counted):
        by_size = {c.cols: c for c in counted if c.call == name}
        aligned = [c for c in by_size.values() if c.cols != fused_calls.OFF_16_BYTES]
        off = by_size.get(fused_calls.OFF_16_BYTES)
        lines.append(
            (
                f"`{name}`",
                f"{max(c.sectors for c in aligned):.3f}",
                "" if off is None else f"{off.sectors:.3f}",
                "" if off is None else f"{off.instructions_per_packet:.0f}",
                *(
                    f"{by_size[cols].instructions_per_packet:.0f}" if cols in by_size else ""
                    for cols in sizes
                ),
            )
        )
    head = (
        *("call", "sectors, aligned rows", "sectors, off 16 bytes", "instructions, off 16 bytes"),
        *(f"N = {n:,}" for n in sizes),
    )
    return table(head, lines)


def _of_chains(counted):
    weights = {(c.op, c.dtype, c.offset, c.cols, c.built): c.weight for c in counted}
    lines = []
    for row in dict.fromkeys((c.op, c.dtype, c.offset) for c in counted):
        op, dtype, offset = row
        cells = []
        for cols in chains.COLS:
            many, few = (weights[(*row, cols, built)] for built in ("many", "few"))
            cells.append(f"{many}" if many == few else f"{many} → **{few}**")
        lines.append((f"`{op}`", dtype, "off 16 bytes" if offset else "aligned", *cells))
    return table(("op", "dtype", "rows", *(f"N = {n:,}" for n in chains.COLS)), lines)


def split(page, begin=BEGIN):
    """Return the page before a section, the section, and what follows it, with the marks."""
    before, found, rest = page.partition(begin)
    old, end, after = rest.partition(END)
    if not found or not end:
        raise SystemExit(f"{PAGE} has not both marks, {begin!r} and {END!r}")
    return before + begin, old, end + after


def main():
    plain = [
        ("cunorm", "bench", "--op", *OPS, "--odd", "--csv", str(CSV), "--png", str(PNG)),
        ("cunorm", *BACKWARD_COMMAND, "--csv", str(BACKWARD_CSV)),
    ]
    of_fused = ("cunorm.simgpu", str(HERE / "fused.py"), str(FUSED_CSV))
    of_chains = ("cunorm.simgpu", str(HERE / "chains.py"), str(CHAINS_CSV))
    for command in (*([] if "--fused" in sys.argv else plain), of_fused, of_chains):
        subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=True)
    before, _, after = split(PAGE.read_text("utf-8"))
    read = (stored(), stored(BACKWARD_CSV), fused.read(FUSED_CSV), chains.read(CHAINS_CSV))
    shown = section(*read)
    PAGE.write_text(before + shown + after, "utf-8")


if __name__ == "__main__":
    main()
