"""Times of cunorm and its peers: python -m hardware.times [--budget SECONDS] [--only TEXT]

Launches are captured into a CUDA graph, so that no host is in the number. They take turns over sets
of arrays that together are four times the L2 cache (`warm` cases use one set). A graph lasts about
0.4 ms; it is replayed between events, one replay ahead of the first event so that the device is
never idle when the clock starts. Systems take turns, seven rounds of eight replays: 56 samples
each, of which the median counts; p10 and p90 say how much it wandered. Every result is compared
with float64 before it is timed. `copy` is the faster of cudaMemcpyAsync and a kernel of 16-byte
accesses that read half of the case's bytes and write the other half.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from torch_norms import definition, names

from . import graphs
from .cases import Case, cases
from .compiling import compile_cases
from .given import DEVICE, Given, to_cupy, to_torch
from .graphs import Graph
from .session import (
    DRY,
    OUT,
    WORK,
    Budget,
    Lines,
    guard,
    log,
    nvidia_smi,
    quantiles,
    short,
    start_device,
)
from .systems import PACKAGES, SYSTEMS, Call

cupy = start_device()

ROUNDS = 7
# The largest error that passes, in units of the largest number of an output: some roundings.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-4}
SLOW = {"torch": 2.0, "fuse": 4.0}  # about how many times as long as one kernel
START_AGAIN = 75  # the exit status of a process that a call has broken
BANNED = WORK / "banned.txt"

Result = dict[str, Any]


# --- is it right? ----------------------------------------------------------------------------


def rows_to_check(case: Case) -> list[int] | slice:
    """Return the rows that are compared: of gradients all, for sums of columns are of all."""
    if case.is_backward:
        return slice(None)
    return sorted({*range(min(case.rows, 16)), *range(max(0, case.rows - 16), case.rows)})


def expected(case: Case, given: Given) -> Sequence[torch.Tensor]:
    """Return what is expected of a case in float64."""
    op, rows = case.kind.norm, rows_to_check(case)
    tensors = [
        tensor.double() if tensor.ndim == 1 else tensor[rows].double()
        for tensor in (given.tensors[name] for name in names(op))
    ]
    if not case.is_backward:
        return list(definition(op, tensors))
    leaves = [tensor.requires_grad_() for tensor in tensors]
    (y,) = definition(op, leaves)
    return torch.autograd.grad(y, leaves, given.dy.double())


def error_of(case: Case, outputs: Any, wanted: Sequence[torch.Tensor]) -> float:
    """Return the largest error, in units of the largest number expected of that output."""
    outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    worst = 0.0
    for output, right in zip(outputs, wanted, strict=True):
        actual = to_torch(output)[rows_to_check(case)].double()
        off = float((actual - right).abs().max() / right.abs().max().clamp(min=1e-30))
        worst = max(worst, off if off == off else float("inf"))
    return worst


# --- what a copy takes -----------------------------------------------------------------------

COPY = r"""
extern "C" __global__ void copy16(uint4* to, const uint4* from, long long n) {
  const long long step = (long long)gridDim.x * blockDim.x;
  long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  for (; i + 3 * step < n; i += 4 * step) {
    const uint4 a = from[i], b = from[i + step], c = from[i + 2 * step], d = from[i + 3 * step];
    to[i] = a; to[i + step] = b; to[i + 2 * step] = c; to[i + 3 * step] = d;
  }
  for (; i < n; i += step) to[i] = from[i];
}
extern "C" __global__ void nothing() {}
"""


@cache
def copier(name: str) -> Any:
    """Return a kernel of `COPY`."""
    return cupy.RawKernel(COPY, name)


def copies(case: Case, count: int) -> tuple[dict[str, Callable[[Any], Any]], list[Any]]:
    """Return what copies half of a case's bytes over the other half, and pairs of arrays."""
    half = max(16, case.floor_bytes // 2 // 16 * 16)
    packets = half // 16
    blocks = max(1, min(packets // 256, 8 * cupy.cuda.Device().attributes["MultiProcessorCount"]))
    pairs = []
    for _ in range(count):
        pair = [torch.zeros(half, dtype=torch.uint8, device=DEVICE) for _ in range(2)]
        pairs.append((pair, [to_cupy(tensor) for tensor in pair]))

    def by_kernel(both: Any) -> None:
        copier("copy16")((blocks,), (256,), (*both[1], packets))

    return {"memcpy": lambda both: both[0][0].copy_(both[0][1]), "copy kernel": by_kernel}, pairs


def empty_kernel() -> dict[str, float]:
    """Return what a kernel that does nothing takes in a graph: the least of any launch."""
    graph = Graph(lambda _: copier("nothing")((1,), (32,), ()), [None], 1.5)
    return graphs.in_turns({"nothing": graph}, ROUNDS)["nothing"]


# --- one case --------------------------------------------------------------------------------


def banned() -> list[str]:
    """Return what broke an earlier process."""
    return BANNED.read_text().splitlines() if BANNED.exists() else []


def end_if_broken(what: str) -> None:
    """End this process if a call has broken it, and note which: another one leaves that out.

    A sticky error of CUDA's, or a capture that was left open, would fail all that follows.
    """
    if DRY:
        return
    try:
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        if float(torch.ones(8, device="cuda").sum()) == 8:
            return
    except Exception as error:
        log("this process is broken:", short(error))
    with BANNED.open("a") as file:
        file.write(what + "\n")
    os._exit(START_AGAIN)


def captured(
    case: Case, name: str, given: Sequence[Given], wanted: Sequence[torch.Tensor]
) -> tuple[Graph, float] | None:
    """Return the graph of a system, and how far its result is off; None where it has no such op."""
    call: Call | None = SYSTEMS[name](case)
    if call is None:
        return None
    error = error_of(case, call(given[0]), wanted)
    if not error <= TOLERANCE[case.dtype]:
        raise ArithmeticError(f"off by {error:.2g}")
    return Graph(call, given, SLOW.get(name, 1.0) * graphs.estimated_us(case)), error


def obstacle(case: Case, name: str) -> str | None:
    """Return why a system is not tried, or None."""
    if f"{name} {case.op}" in banned():
        return "it broke an earlier process"
    if name in PACKAGES and importlib.util.find_spec(PACKAGES[name]) is None:
        return "it is not installed"
    return None


def measure(case: Case, lines: Lines) -> Result:
    """Time a case by every system that takes part; return its line of results."""
    given = [Given(case, seed) for seed in range(graphs.sets_of(case))]
    wanted = expected(case, given[0])
    taken: dict[str, Graph] = {}
    errors: dict[str, float] = {}
    trouble: dict[str, str] = {}
    for name in ("cunorm", *case.peers):
        problem = obstacle(case, name)
        if problem is None:
            found, problem = guard(captured, case, name, given, wanted)
            if found is not None:
                taken[name], errors[name] = found
        if problem is not None:
            trouble[name] = problem
            log(f"{case} {name}: {problem}")
            end_if_broken(f"{name} {case.op}")
    functions, pairs = copies(case, len(given))
    for name, function in functions.items():
        graph, problem = guard(Graph, function, pairs, graphs.estimated_us(case))
        if graph is not None:
            taken[name] = graph
        else:
            trouble[name] = str(problem)
    times = graphs.in_turns(taken, ROUNDS)
    line = lines.add(
        case=str(case),
        op=case.op,
        dtype=case.dtype,
        rows=case.rows,
        cols=case.cols,
        group=case.group,
        warm=case.warm,
        floor_bytes=case.floor_bytes,
        sets=len(given),
        us=times,
        copy_us=min((times[n]["median"] for n in functions if n in times), default=None),
        errors=errors,
        launches={name: graph.per for name, graph in taken.items()},
        trouble=trouble,
        smi=nvidia_smi("clocks.sm,clocks.mem,temperature.gpu,power.draw"),
    )
    del given, pairs, wanted
    graphs.free(taken.values())
    return line


def share_of_copy(line: Result) -> float | None:
    """Return the speed of a copy that cunorm reached: 1 where it takes no longer."""
    if not line.get("copy_us") or "cunorm" not in line["us"]:
        return None
    return float(line["copy_us"] / line["us"]["cunorm"]["median"])


def row(line: Result) -> str:
    """Return a row of the table: microseconds, GB/s of cunorm, its share of a copy, and ratios."""
    if "cunorm" not in line["us"]:
        return f"{line['case']:<34} FAILED {line['trouble'].get('cunorm')}"
    own = line["us"]["cunorm"]
    us, share = own["median"], share_of_copy(line)
    others = [
        f"{name}×{line['us'][name]['median'] / us:.2f}"
        for name in SYSTEMS
        if name in line["us"] and name != "cunorm"
    ]
    others += [f"-{name}" for name in line["trouble"]]
    return (
        f"{line['case']:<34}{us:9.2f}us ±{(own['p90'] - own['p10']) / us:4.0%} "
        f"{line['floor_bytes'] / us / 1e3:6.0f}GB/s {share or float('nan'):5.0%} {' '.join(others)}"
    )


# --- all of them -----------------------------------------------------------------------------


def summary(lines: Sequence[Result]) -> None:
    """Say of each group which share of a copy's speed it reached."""
    for group in dict.fromkeys(line.get("group") for line in lines):
        shares = [
            share
            for line in lines
            if line.get("group") == group and (share := share_of_copy(line)) is not None
        ]
        if group and shares:
            median = quantiles(shares)["median"]
            log(f"{group}: share of a copy, median {median:.2f}, least {min(shares):.2f}")


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
    results = [json.loads(text) for text in had.splitlines()]
    lines = Lines("times.jsonl", had)
    known = {line["case"] for line in results}
    chosen = [case for case in cases() if options.only in f"{case} {case.group}"]
    chosen = [case for case in chosen if str(case) not in known]
    log(f"{len(chosen)} cases; {nvidia_smi()}")
    compile_cases(chosen, options.workers, min(150, options.budget / 3))
    graphs.warm_up()
    least = empty_kernel()
    results.append(lines.add(case="an empty kernel", us={"nothing": least}))
    log(f"an empty kernel in a graph: {least['median']:.2f} us; {nvidia_smi()}")
    for done, case in enumerate(chosen):
        if budget.over(6):
            log(f"left out: {', '.join(map(str, chosen[done:]))}"[:600])
            break
        line, problem = guard(measure, case, lines)
        if line is None:
            lines.add(case=str(case), us={}, problem=problem)
            log(f"{case!s:<34} {problem}")
            end_if_broken(f"cunorm {case.op}")
        else:
            results.append(line)
            log(row(line))
    summary(results)


if __name__ == "__main__":
    main()
