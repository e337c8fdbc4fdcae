"""How far the plans are from the best: python -m hardware.plans [--budget SECONDS] [--only TEXT]

For each kind of row, other ways to share it out (lanes, packets in registers and in shared memory,
rows of a block, blocks of a cluster; for backward kernels also resident threads) are compiled by
all cores at once, compared with what cunorm gives, and timed in turn with the plan that it takes.
What spills, fails or is wrong says so. Times are taken as in times.py, in fewer turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from cunorm._bench import cases

from . import graphs
from .cases import Case, few_rows, sized
from .compiling import in_processes
from .given import Given
from .graphs import Graph
from .session import DRY, Budget, Lines, guard, log, nvidia_smi, start_device
from .times import TOLERANCE
from .ways import Way, compile_way, fewer, noting, ways

cupy = start_device()

from cunorm._call import remembered  # noqa: E402

ROUNDS = 3
AT_ONCE = 6  # kinds of rows that are compiled before they are timed: a budget that ends has some
KINDS = (
    ("rms_norm", "bfloat16", (4096, 1024, 8192, 128, 256, 512, 768, 2048, 5120, 16384)),
    ("rms_norm", "bfloat16", (32768, 65536, 131072, 262144)),
    ("rms_norm_bwd", "bfloat16", (4096, 1024, 8192, 256, 16384)),
    ("add_rms_norm", "bfloat16", (4096, 8192, 1024)),
    ("rms_norm", "float32", (4096, 1024, 16384, 65536)),
    ("layer_norm", "bfloat16", (4096, 1024, 16384)),
    ("layer_norm_bwd", "bfloat16", (4096, 1024)),
    ("rms_norm_bwd", "float32", (4096, 1024)),
    ("rms_norm", "bfloat16", (4097, 769)),
)


def kinds() -> list[Case]:
    """Return the kinds of rows, the most telling first.

    A dry run has one of a forward kernel and one of a backward one.
    """
    found = [sized(op, dtype, cols, "plan", mib=96) for op, dtype, sizes in KINDS for cols in sizes]
    # Few rows: with one block a row, how many lanes a row has decides.
    found += [
        Case("rms_norm", "bfloat16", cols, rows, group="few rows", warm=True)
        for rows in (1, 16, 132)
        for cols in (4096, 16384)
    ]
    if not DRY:
        return found
    # Rows that start on 16 bytes: the others' kernels compile in a second each.
    small = (few_rows(case) for case in found if case.cols <= 1024 and case.cols % 64 == 0)
    return list({case.is_backward: case for case in small}.values())


def distance(outputs: Any, wanted: Sequence[Any]) -> float:
    """Return the largest error over the largest number, compared on the device in float32."""
    worst = 0.0
    for one, other in zip(as_tuple(outputs), wanted, strict=True):
        a, b = one.astype("float32"), other.astype("float32")
        worst = max(worst, float(abs(a - b).max() / cupy.maximum(abs(b).max(), 1e-30)))
    return worst


def as_tuple(result: Any) -> tuple[Any, ...]:
    """Return the outputs of a call as a tuple."""
    return result if isinstance(result, tuple) else (result,)


def captured(
    case: Case, way: Way, given: Sequence[Given], wanted: Sequence[Any]
) -> tuple[Graph, dict[str, int]]:
    """Return the graph of a call that takes a way, and what its kernel takes."""

    def call(g: Given) -> Any:
        return cases.call(case, g.arrays)

    with remembered.by(way), noting() as noted:
        off = distance(call(given[0]), wanted)
        _, kernel = noted[0]
        takes = {"registers": kernel.num_regs, "spilled": kernel.local_size_bytes}
        if not off <= TOLERANCE[case.dtype]:
            raise ArithmeticError(f"off by {off:.2g}")
        return Graph(call, given, graphs.estimated_us(case)), takes


def measure(case: Case, chosen: Sequence[Way], lines: Lines) -> str:
    """Time the ways of a case in turns; return a row of the table."""
    given = [Given(case, seed) for seed in range(graphs.sets_of(case))]
    wanted = [output.copy() for output in as_tuple(cases.call(case, given[0].arrays))]
    taken: dict[Way, Graph] = {}
    notes: dict[str, object] = {}
    for way in chosen:
        found, problem = guard(captured, case, way, given, wanted)
        if found is not None:
            taken[way], notes[str(way)] = found
        elif way == chosen[0]:
            raise RuntimeError(f"the plan itself: {problem}")
        else:
            notes[str(way)] = problem
    times = graphs.in_turns(taken, ROUNDS)
    graphs.free(taken.values())
    median = {way: found["median"] for way, found in times.items()}
    ranking = sorted(median, key=median.__getitem__)
    own, best = median[chosen[0]], median[ranking[0]]
    lines.add(
        case=str(case),
        op=case.op,
        dtype=case.dtype,
        rows=case.rows,
        cols=case.cols,
        floor_bytes=case.floor_bytes,
        plan=str(chosen[0]),
        us=own,
        best=str(ranking[0]),
        best_us=best,
        ways={str(way): times[way] for way in ranking},
        takes=notes,
        smi=nvidia_smi("clocks.sm,temperature.gpu"),
    )
    runners = ", ".join(f"{way} {median[way]:.2f}" for way in ranking[:3])
    return (
        f"{case!s:<34} {chosen[0]!s:<14} {own:8.2f}us {case.floor_bytes / own / 1e3:5.0f}GB/s "
        f"best ×{own / best:.3f}: {runners} ({len(times)} of {len(chosen)})"
    )


def compiled(
    plans: dict[Case, list[Way]], workers: int, timeout: float, lines: Lines
) -> dict[Case, list[Way]]:
    """Compile all ways; return those that are to be timed.

    What fails in a process of its own, a fault that would end this one included, is left out; the
    plan's own way is timed in any case.
    """
    work = [partial(compile_way, case, way) for case, found in plans.items() for way in found]
    left = {case: list(found) for case, found in plans.items()}
    problems = []
    for function, _, why in in_processes(work, workers, timeout):
        case, way = function.args  # type: ignore[attr-defined]
        if why is not None:
            problems.append(why)
            lines.add(case=str(case), way=str(way), failed=why)
            if way != plans[case][0]:
                left[case].remove(way)
    log(f"{len(work) - len(problems)} compiled, {len(problems)} not", *problems[:2])
    return left


def main() -> None:
    """Time the kinds of rows that the budget reaches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=330, help="seconds")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--only", default="", help="kinds of rows that have this text")
    options = parser.parse_args()
    budget, lines = Budget(options.budget), Lines("plans.jsonl")
    chosen = [case for case in kinds() if options.only in f"{case} {case.group}"]
    plans = {case: ways(case) for case in chosen}
    if DRY:
        plans = {case: fewer(found, 3) for case, found in plans.items()}
    log(f"{len(chosen)} kinds of rows, {sum(map(len, plans.values()))} ways")
    done = 0
    for first in range(0, len(chosen), AT_ONCE):
        part = {case: plans[case] for case in chosen[first : first + AT_ONCE]}
        if budget.over(20):
            break
        part = compiled(part, options.workers, min(100, budget.left() / 2), lines)
        graphs.warm_up()
        for case, found in part.items():
            if budget.over(4):
                break
            row, problem = guard(measure, case, found, lines)
            log(row or f"{case!s:<34} {problem}")
            done += 1
    log(f"{done} of {len(chosen)} kinds of rows")


if __name__ == "__main__":
    main()
