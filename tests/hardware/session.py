"""What the stages share: the device, or in a dry run the software GPU; results; budgets."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

Result = TypeVar("Result")

DRY = bool(os.environ.get("DRY"))
WORK = Path(os.environ.get("WORK", "/tmp/cunorm_hw"))
OUT = Path(os.environ.get("OUT", WORK / "out"))
START = time.monotonic()


def start_device() -> Any:
    """Import cupy on hardware, or on the software GPU in a dry run; return cupy."""
    if DRY:
        from cunorm import simgpu

        if not simgpu.installed():
            simgpu.install()
    import cupy

    return cupy


class Budget:
    """Says whether another piece of work still fits."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds that are left."""
        return self.end - time.monotonic()

    def over(self, need: float = 0.0) -> bool:
        """Return whether less is left than is needed."""
        return self.left() < need


class Lines:
    """A file of JSON lines under `OUT`, written as results come: a timeout loses nothing."""

    def __init__(self, name: str, before: str = "") -> None:
        OUT.mkdir(parents=True, exist_ok=True)
        self.path = OUT / name
        self._file = self.path.open("w")
        self._file.write(before)

    def add(self, **fields: Any) -> dict[str, Any]:
        """Write a line; return its fields."""
        self._file.write(json.dumps(fields, default=str) + "\n")
        self._file.flush()
        return fields


def commit() -> str | None:
    """Return the commit of a tree that was packed; None of a checkout, which knows its own."""
    packed = WORK / "ready"
    if Path(__file__).is_relative_to(WORK / "tree") and packed.exists():
        return packed.read_text().strip()
    return None


def nvidia_smi(fields: str = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu") -> str:
    """Return one line of nvidia-smi; it reads, and changes nothing."""
    query = ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"]
    try:
        run = subprocess.run(query, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no nvidia-smi: {error}"
    return run.stdout.strip() or run.stderr.strip()


def log(*text: object) -> None:
    """Print a line with the seconds since the process started."""
    print(f"[{time.monotonic() - START:4.0f} s]", *text, flush=True)


def short(error: BaseException, length: int = 160) -> str:
    """Return an exception as one line of at most `length` characters."""
    text = f"{type(error).__name__}: {error}".replace("\n", " ")
    return text if len(text) <= length else text[: length - 1] + "…"


def guard(function: Callable[..., Result], *arguments: Any) -> tuple[Result | None, str | None]:
    """Return the result and None, or None and what went wrong.

    On hardware one failure must not cost the measurements that follow. A dry run tests the scripts:
    there nothing may go wrong.
    """
    try:
        return function(*arguments), None
    except Exception as error:
        if DRY:
            raise
        return None, short(error)
