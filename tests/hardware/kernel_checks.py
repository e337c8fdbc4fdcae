"""What a real driver and real multiprocessors show of the kernels, with CuPy alone."""

from __future__ import annotations

import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from arrays import EVERY, NARROW, bits, random
from threads import at_once

from .cases import sized
from .session import DRY, WORK, Budget, start_device

cupy = start_device()

import cunorm  # noqa: E402
from cunorm._families import OPS  # noqa: E402
from cunorm._reference import DTYPES  # noqa: E402
from cunorm._selfcheck import checks  # noqa: E402

from .ways import kernel_of  # noqa: E402

FUZZ_SECONDS = 0.5 if DRY else 25.0


def attributes_of_kernels_of_every_plan() -> str:
    """Registers and shared memory as the driver has them, clusters and past 48 KiB; no spills."""
    said = []
    for dtype in ("bfloat16", "float32"):
        for cols in (128, 1024, 4096, 16384, 32768, 65536, 131072, 262144)[: 2 if DRY else None]:
            plan, kernel = kernel_of(sized("rms_norm", dtype, cols, ""))
            if kernel.local_size_bytes:
                raise AssertionError(f"{dtype} {cols}: {kernel.local_size_bytes} bytes spilled")
            said.append(
                f"{dtype[0]}{cols}:{plan.split.lanes}x{plan.split.cluster} {kernel.num_regs}r "
                f"{plan.shared_bytes >> 10}K"
            )
    return "; ".join(said)


def hold(op: str, dtype: str, shape: tuple[int, ...], layout: str = "contiguous") -> None:
    """Hold a call against its definition, as `python -m cunorm check` does."""
    check = checks.Check(op, dtype, shape, layout, checks.measure)
    faults = check.run().faults
    if faults:
        raise AssertionError(f"{check}: {'; '.join(faults)}")


def rows_in_clusters_are_right() -> str:
    """Eight blocks of 227 KiB share a row: distributed shared memory, cluster launch by CuPy."""
    longest = 1_000_003
    for dtype, cols in (
        ("float32", 65536),
        ("bfloat16", 131072),
        ("bfloat16", 262144),
        ("float16", longest),
        ("float32", 524288),
        ("float64", 131072),
    )[: 1 if DRY else None]:
        for op in ("rms_norm_fwd", "layer_norm_fwd")[: 1 if DRY else None]:
            hold(op, dtype, (3, cols))
    return f"up to {longest:,} columns"


def many_clusters_at_once_are_right() -> str:
    """As many as the device holds, many times over, with the bits of one alone."""
    said = []
    for dtype, cols in (("float32", 65536), ("float32", 262144), ("bfloat16", 262144)):
        few = cupy.asarray(random((8, cols if not DRY else 64), dtype))
        x = cupy.concatenate([few] * (2 if DRY else 2048 * 65536 // cols), axis=0)
        y = cunorm.rms_norm(x)
        each = y.reshape(-1, 8, x.shape[1]).view(f"u{y.itemsize}")
        if not bool((each == each[:1]).all()):
            raise AssertionError(f"{dtype} {cols}: rows differ from copies of themselves")
        for i in range(8):
            if bits(y[i]) != bits(cunorm.rms_norm(few[i : i + 1])):
                raise AssertionError(f"{dtype} {cols}: row {i}")
        said.append("x".join(map(str, x.shape)))
    return ", ".join(said)


def the_same_bits_under_load() -> str:
    """The same call many times, while another stream keeps the device busy."""
    turns, shape, busy = (2, (3, 64), 4) if DRY else (200, (512, 20000), 4096)
    x, dy = (cupy.asarray(random(shape, "bfloat16", seed=seed)) for seed in range(2))
    gamma = cupy.ones(shape[1], DTYPES["bfloat16"])
    noise_stream = cupy.cuda.Stream(non_blocking=True)
    noise = cupy.ones((busy, busy), "float32")

    def call() -> list[bytes]:
        y, rstd = cunorm.rms_norm_fwd(x, gamma)
        return [*map(bits, (y, rstd, *cunorm.rms_norm_bwd(dy, x, gamma, rstd)))]

    wanted = call()
    cupy.cuda.Device().synchronize()
    for turn in range(turns):
        with noise_stream:
            for _ in range(8):
                cunorm.layer_norm(noise, out=noise)
        if call() != wanted:
            raise AssertionError(f"turn {turn}")
    return f"{turns} turns"


def threads_of_streams() -> str:
    """Each with a stream and a row of its own."""

    def work(index: int) -> set[bytes]:
        with cupy.cuda.Stream(non_blocking=True):
            x = cupy.asarray(random((64, 769 + index) if not DRY else (2, 64), "float16"))
            return {bits(cunorm.rms_norm(x)) for _ in range(2 if DRY else 50)}

    found = at_once(work)
    wrong = [index for index, different in enumerate(found) if len(different) != 1]
    if wrong:
        raise AssertionError(f"threads {wrong}")
    return f"{len(found)} threads"


def fuzz_against_the_definition() -> str:
    """Random ops, sizes, dtypes and layouts, within the derived tolerance."""
    budget, count = Budget(FUZZ_SECONDS), 0
    rng = np.random.default_rng(int(os.environ.get("FUZZ_SEED", "1")))
    longest, most = (200, 4) if DRY else (70_000, 3000)
    forward = [op.name for op in OPS.values() if op.keeps]
    backward = [op.name for op in OPS.values() if op.is_backward]
    while not budget.over():
        cols = int(math.exp(rng.uniform(0, math.log(longest))))
        rows = int(math.exp(rng.uniform(0, math.log(max(2, min(most, 400_000 // cols))))))
        is_forward = rng.random() < 0.7
        layout = "contiguous"
        if is_forward:
            layout = rng.choice([layout, "row-strided", "base + 1 element", "transposed"])
        op = rng.choice(forward if is_forward else backward)
        hold(str(op), str(rng.choice(EVERY)), (rows, cols), str(layout))
        count += 1
    return f"{count} calls"


SIMULATED = """
import sys
import numpy as np
from cunorm import simgpu
simgpu.install()
from hardware.kernel_checks import results
np.savez(sys.argv[1], **results())
"""


def results() -> dict[str, Any]:
    """Return outputs and statistics of forward ops, as their bits, by names."""
    made = {}
    for op in ("rms_norm_fwd", "layer_norm_fwd"):
        for dtype in NARROW[: 1 if DRY else None]:
            for cols in (7, 128, 769, 1024, 5120)[: 1 if DRY else None]:
                outputs = getattr(cunorm, op)(cupy.asarray(random((5, cols), dtype)))
                for i, output in enumerate(outputs):
                    made[f"{op}.{dtype}.{cols}.{i}"] = output.view(f"u{output.itemsize}").get()
    return made


def the_software_gpu_has_the_bits_of_hardware() -> str:
    """The same arrays on both: all but what hangs on rsqrt.approx should be the same bits."""
    file = WORK / "simulated.npz"
    run = subprocess.run(
        [sys.executable, "-c", SIMULATED, str(file)],
        capture_output=True,
        text=True,
        timeout=200,
    )
    if run.returncode:
        raise RuntimeError(run.stderr[-300:])
    own = results()
    with np.load(file) as simulated:
        differ = {name: int((simulated[name] != made).sum()) for name, made in own.items()}
    total, off = sum(made.size for made in own.values()), sum(differ.values())
    where = {name: count for name, count in differ.items() if count}
    return f"{total - off} of {total} numbers; others: {dict(list(where.items())[:8])}"


def what_a_host_call_costs() -> str:
    """Microseconds of enqueueing, with an empty queue: the real driver under the real CuPy."""
    shape = (3, 64) if DRY else (64, 4096)
    x, gamma = cupy.ones(shape, "float16"), cupy.ones(shape[1], "float16")
    y = cupy.empty_like(x)
    return best_of(
        {
            "cupy.add": lambda: cupy.add(x, x, out=y),
            "rms_norm": lambda: cunorm.rms_norm(x, gamma, out=y),
        }
    )


def best_of(calls: dict[str, Callable[[], Any]]) -> str:
    """Return the least time of each call on the host, in turns."""
    best = dict.fromkeys(calls, math.inf)
    rounds, repeats = (1, 1) if DRY else (300, 20)
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(repeats):
                call()
            best[name] = min(best[name], (time.perf_counter() - started) / repeats * 1e6)
            cupy.cuda.Device().synchronize()
    return "; ".join(f"{name} {us:.1f} us" for name, us in best.items())


CHECKS: tuple[Callable[[], str | None], ...] = (
    attributes_of_kernels_of_every_plan,
    rows_in_clusters_are_right,
    many_clusters_at_once_are_right,
    the_same_bits_under_load,
    threads_of_streams,
    fuzz_against_the_definition,
    the_software_gpu_has_the_bits_of_hardware,
    what_a_host_call_costs,
)
