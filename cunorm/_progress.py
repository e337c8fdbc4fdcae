"""What a command that takes a while says on stderr."""

from __future__ import annotations

import sys
import time

PLAIN_SECONDS = 10.0  # between lines where stderr is no terminal


class Progress:
    """One line on stderr that says what is being done; on a terminal it replaces itself."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def seconds(self) -> float:
        """Return the seconds since the start."""
        return time.monotonic() - self._start

    def show(self, what: str) -> None:
        """Say that the next of the total has begun."""
        text = f"{self._done}/{self._total}, {self.seconds():.0f} s: {what}"
        self._done += 1
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
