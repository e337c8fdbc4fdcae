"""What a command that takes a while says on stderr, and how commands print numbers."""

from __future__ import annotations

import shutil
import sys
import time

PLAIN_SECONDS = 10.0  # between lines where stderr is no terminal


def counted(number: int, noun: str) -> str:
    """Return a number of things: ``1 check``, ``2 checks``."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def percent(share: float) -> str:
    """Return a share as tables show it: ``38 %``."""
    return f"{100 * share:.0f} %"


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
        text = f"{self._done}/{self._total}, {self.seconds():.0f} s{self._left()}: {what}"
        self._done += 1
        if self._terminal:
            # A line that wraps could not be replaced.
            text = text[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > PLAIN_SECONDS:
            print(text, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    def clear(self) -> None:
        """Take the line away, so that something else can be printed."""
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)

    def _left(self) -> str:
        """Return how long the rest takes, if each takes as long as those before did."""
        if self._done == 0:
            return ""
        seconds = self.seconds() / self._done * (self._total - self._done)
        rest = f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"
        return f", about {rest} left"
