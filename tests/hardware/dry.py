"""What a dry run has in place of hardware: a made-up clock, and PyTorch's CPU for its CUDA."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import count

from arrays import to_torch

from cunorm._bench import peers, systems, times, timing
from cunorm._bench.timing import Launch


def stand_in() -> None:
    """Have `cunorm._bench` time on the software GPU: one launch of one set, by a made-up clock."""
    ticks = count()

    def microseconds(*_: object) -> float:
        return 1.0 + 0.01 * (next(ticks) % 8)

    def run(launch: Launch) -> object:
        return launch()

    timing.microseconds = microseconds
    timing.MOST_SETS = timing.MOST_LAUNCHES = timing.ROUNDS = 1
    times.WARM_UP_SECONDS = 0.0
    systems.need_cuda = lambda: None
    systems.tensor = lambda array: to_torch(array.get())
    systems.on_current_stream = run
    systems.free = lambda _: None
    peers.COMPILER = "aot_eager"  # without the C++ that it writes for a CPU, and without Triton
    peers.OTHERS["compile"] = replace(peers.OTHERS["compile"], modules=("torch",))


def failures(op: str, failed: Sequence[str]) -> list[str]:
    """Return the systems that must not have failed: eager gradients are of CUDA alone."""
    return [name for name in failed if (name, op.endswith("_bwd")) != ("torch", True)]
