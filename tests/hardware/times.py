"""Times of cunorm and its peers: python -m hardware.times [--budget SECONDS] [--only TEXT]

As `python -m cunorm bench` takes them (cunorm/_bench/timing.py says how), but the most telling
cases first, as many as the budget reaches, each beside the systems that are of interest for it; and
in a new process where a call has broken one.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from statistics import median
from typing import Any

from .cases import Case, cases
from .compiling import compile_cases
from .session import (
    DRY,
    OUT,
    WORK,
    Budget,
    Lines,
    commit,
    guard,
    log,
    nvidia_smi,
    start_device,
)

start_device()
from cunorm._bench import results, systems, times  # noqa: E402
from cunorm._bench.peers import OTHERS  # noqa: E402

START_AGAIN = 75  # the exit status of a process that a call has broken
BANNED = WORK / "banned.txt"

Result = dict[str, Any]


def banned() -> list[str]:
    """Return what broke an earlier process."""
    return BANNED.read_text().splitlines() if BANNED.exists() else []


def end_broken(what: str, why: object) -> None:
    """End this process, which a call has broken, and note which: another one leaves that out."""
    log("this process is broken:", why)
    with BANNED.open("a") as file:
        file.write(what + "\n")
    os._exit(START_AGAIN)


def measure(case: Case, installed: Sequence[str]) -> Result:
    """Time a case by every system that takes part; return its line of results."""
    left_out = banned()
    if f"cunorm {case.op}" in left_out:
        raise RuntimeError("cunorm broke an earlier process")
    others = [
        OTHERS[name]
        for name in case.peers
        if name in installed and f"{name} {case.op}" not in left_out
    ]
    try:
        found = times.time(case, others)
    except times.DeviceLost as lost:
        # Where it is not known which, the op is left out.
        end_broken(f"{lost.system if lost.system in OTHERS else 'cunorm'} {case.op}", lost)
    systems.free(others)
    for name, why in found.failed.items():
        log(f"{case} {name}: {why}")
    if DRY:
        from .dry import failures

        if failures(case.op, list(found.failed)):
            raise RuntimeError(f"failed: {found.failed}")
    return results.as_case(found)


def row(line: Result) -> str:
    """Return a row of the table: microseconds, GB/s of cunorm, its share of a copy, and ratios."""
    timed = {name: sample for name, sample in line["systems"].items() if "median" in sample}
    failed = [name for name in line["systems"] if name not in timed]
    if "cunorm" in failed:
        return f"{line['case']:<34} FAILED {line['systems']['cunorm']['failed']}"
    own = timed.pop("cunorm")
    others = [f"{name}×{sample['median'] / own['median']:.2f}" for name, sample in timed.items()]
    share = line["share_of_copy"]
    return (
        f"{line['case']:<34}{own['median']:9.2f}us ±{own['spread']:4.0%} "
        f"{line['gb_per_s']:6.0f}GB/s {float('nan') if share is None else share:5.0%} "
        f"{' '.join([*others, *(f'-{name}' for name in failed)])}"
    )


def summary(lines: Sequence[Result]) -> None:
    """Say of each group which share of a copy's speed it reached."""
    for group in dict.fromkeys(line["group"] for line in lines):
        shares = [
            line["share_of_copy"]
            for line in lines
            if line["group"] == group and line["share_of_copy"] is not None
        ]
        if shares:
            middle = median(shares)
            log(f"{group}: share of a copy, median {middle:.2f}, least {min(shares):.2f}")


def main() -> None:
    """Time the cases that the budget reaches."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=420, help="seconds")
    parser.add_argument("--workers", type=int, default=12, help="processes that compile")
    parser.add_argument("--only", default="", help="cases and groups that have this text")
    parser.add_argument("--resume", action="store_true", help="go on where times.jsonl ends")
    options = parser.parse_args()
    budget = Budget(options.budget)
    before = OUT / "times.jsonl"
    had = before.read_text() if options.resume and before.exists() else ""
    measured = [line for line in map(json.loads, had.splitlines()) if "systems" in line]
    lines = Lines("times.jsonl", had)
    known = {line["case"] for line in measured}
    chosen = [case for case in cases() if options.only in f"{case} {case.group}"]
    chosen = [case for case in chosen if str(case) not in known]
    log(f"{len(chosen)} cases; {nvidia_smi()}")
    compile_cases(chosen, options.workers, min(150, options.budget / 3))
    if DRY:
        from .dry import stand_in

        stand_in()
    versions, absent = systems.installed(OTHERS.values())
    for name, why in absent.items():
        log(f"without {name}: {why}")
    begun = results.Run.begin(versions, absent, commit())
    times.warm_up()
    empty = times.empty_kernel()
    log(f"an empty kernel in a graph: {empty.median:.2f} us; {nvidia_smi()}")
    for done, case in enumerate(chosen):
        if budget.over(6):
            log(f"left out: {', '.join(map(str, chosen[done:]))}"[:600])
            break
        told = {"case": str(case), "group": case.group}
        found, problem = guard(measure, case, list(versions))
        if found is None:
            lines.add(**told, problem=problem)
            log(f"{case!s:<34} {problem}")
            continue
        smi = nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw")
        measured.append(lines.add(**told, **found, smi=smi))
        log(row(measured[-1]))
    summary(measured)
    only_here = ("case", "group", "smi")
    told = [{name: line[name] for name in line if name not in only_here} for line in measured]
    results.save(begun, empty, told, OUT / "card.json")
    log(f"{OUT / 'card.json'}: for tests/benchmarks/hardware, which docs/benchmarks.md draws")


if __name__ == "__main__":
    main()
