"""What a launch that takes long says while it runs."""

from __future__ import annotations

import sys
import time

from ..ptx.statements import Statement

FIRST = 10.0  # seconds of silence; each line doubles the time to the next, for the sake of logs
PACE = 20_000  # instructions between two looks at the clock: 20 ms of one warp, a second of many


class Progress:
    """How far a launch is: a line on the standard error where it takes long.

    Parameters
    ----------
    kernel : str
        Its name.
    blocks : int
        All that there are to do.
    budget : int
        The instructions that a batch of them may take, for who looks.
    """

    def __init__(self, kernel: str, blocks: int, budget: int) -> None:
        self.budget = budget
        self._kernel, self._all = kernel, blocks
        self._started = time.monotonic()
        self._due = self._started + FIRST
        self._blocks = self._instructions = 0

    def finished(self, blocks: int, steps: int) -> None:
        """Count blocks that are done, and the instructions that they took."""
        self._blocks += blocks
        self._instructions += steps
        if self._blocks < self._all:
            self.look(0, None)

    def look(self, steps: int, at: Statement | None) -> None:
        """Print a line if it is time for one; `steps` are those of the blocks that run."""
        now = time.monotonic()
        if now < self._due:
            return
        seconds = now - self._started
        self._due = self._started + 2 * seconds
        where = f", now at {at.source or f'PTX line {at.line}'}" if at is not None else ""
        print(
            f"cunorm.simgpu: kernel {self._kernel} has run for {seconds:.0f} s: "
            f"{self._blocks:,} of {self._all:,} blocks done, "
            f"{self._instructions + steps:,} instructions{where}",
            file=sys.stderr,
            flush=True,
        )
