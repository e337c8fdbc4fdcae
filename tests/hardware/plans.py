"""How far the plans are from the best: python -m hardware.plans [--budget SECONDS] [--only TEXT]

For each kind of row, other ways to share it out (lanes, packets in registers and in shared memory,
rows of a block, blocks of a cluster; for backward kernels also resident threads) are compiled by
all cores at once, compared with what cunorm gives, and timed in turn with the plan that it takes.
What spills, fails or is wrong says so. Times are taken as in times.py, in fewer turns.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any

from .cases import Case, few_rows, sized
from .compiling import in_processes
from .session import DRY, Budget, Lines, guard, log, nvidia_smi, short, start_device
from .ways import Way, compile_way, fewer, noting, ways

cupy = start_device()
from cunorm._bench import cases, times, timing  # noqa: E402
from cunorm._bench.definition import TOLERANCE  # noqa: E402
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


class Switch:
    """Has calls take a way, and changes what is in force only where another way's calls follow."""

    def __init__(self) -> None:
        self._way: Way | None = None
        self._stack = ExitStack()

    def call(self, way: Way, case: Case, arrays: dict[str, Any]) -> Any:
        """Call the op of a case by a way."""
        if way != self._way:
            self.close()
            self._stack.enter_context(remembered.by(way))
            self._way = way
        return cases.call(case, arrays)

    def close(self) -> None:
        """Have calls take their plans' ways again."""
        self._stack.close()
        self._way = None


def takes(case: Case, way: Way, arrays: dict[str, Any], wanted: Sequence[Any]) -> dict[str, int]:
    """Return what the kernel of a way takes; raise where its results are off."""
    with remembered.by(way), noting() as noted:
        off = distance(cases.call(case, arrays), wanted)
        _, kernel = noted[0]
    if not off <= TOLERANCE[case.dtype]:
        raise ArithmeticError(f"off by {off:.2g}")
    return {"registers": kernel.num_regs, "spilled": kernel.local_size_bytes}


def measure(case: Case, chosen: Sequence[Way], lines: Lines) -> str:
    """Time the ways of a case in turns; return a row of the table."""
    count = 1 if case.warm else timing.sets(case.floor_bytes)
    sets = [cases.arrays(case) for _ in range(count)]
    wanted = [output.copy() for output in as_tuple(cases.call(case, sets[0]))]
    notes: dict[str, object] = {}
    right = []
    for way in chosen:
        found, problem = guard(takes, case, way, sets[0], wanted)
        notes[str(way)] = found or problem
        if found is not None:
            right.append(way)
    switch = Switch()
    failed: dict[Way, Exception] = {}
    launches = {way: [partial(switch.call, way, case, each) for each in sets] for way in right}
    try:
        timed = timing.compare(launches, failed, ROUNDS)
    finally:
        switch.close()
    notes |= {str(way): short(error) for way, error in failed.items()}
    if DRY and failed:
        raise RuntimeError(f"failed: {notes}")
    if chosen[0] not in timed:
        raise RuntimeError(f"the plan itself: {notes[str(chosen[0])]}")
    del launches, sets
    cupy.get_default_memory_pool().free_all_blocks()
    median = {way: sample.median for way, sample in timed.items()}
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
        ways={str(way): asdict(timed[way]) for way in ranking},
        takes=notes,
        smi=nvidia_smi("clocks.sm,temperature.gpu"),
    )
    runners = ", ".join(f"{way} {median[way]:.2f}" for way in ranking[:3])
    return (
        f"{case!s:<34} {chosen[0]!s:<14} {own:8.2f}us {case.floor_bytes / own / 1e3:5.0f}GB/s "
        f"best ×{own / best:.3f}: {runners} ({len(timed)} of {len(chosen)})"
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
        from .dry import stand_in

        stand_in()
        plans = {case: fewer(found, 3) for case, found in plans.items()}
    log(f"{len(chosen)} kinds of rows, {sum(map(len, plans.values()))} ways")
    done = 0
    for first in range(0, len(chosen), AT_ONCE):
        part = {case: plans[case] for case in chosen[first : first + AT_ONCE]}
        if budget.over(20):
            break
        part = compiled(part, options.workers, min(100, budget.left() / 2), lines)
        times.warm_up()
        for case, found in part.items():
            if budget.over(4):
                break
            row, problem = guard(measure, case, found, lines)
            log(row or f"{case!s:<34} {problem}")
            done += 1
    log(f"{done} of {len(chosen)} kinds of rows")


if __name__ == "__main__":
    main()
