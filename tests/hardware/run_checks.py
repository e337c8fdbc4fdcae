"""Runs what only hardware can show: python -m hardware.run_checks [--budget SECONDS] [--only TEXT]

Each check prints one line, and a failure does not keep the others from running.
"""

from __future__ import annotations

import argparse
import sys
import time
import traceback
from collections.abc import Callable

import pytest

from . import kernel_checks, tensor_checks
from .session import DRY, Budget, Lines, log, short

LOST = "llegal"  # "an illegal memory access", "illegal instruction": the context does not recover


def main() -> int:
    """Run the checks; return whether one failed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--budget", type=float, default=240, help="seconds")
    parser.add_argument("--only", default="", help="checks whose names have this text")
    options = parser.parse_args()
    budget, lines, failed = Budget(options.budget), Lines("checks.jsonl"), 0
    for check in (*kernel_checks.CHECKS, *tensor_checks.CHECKS):
        name = check.__name__
        if options.only not in name:
            continue
        if budget.over(5) and not DRY:
            log(f"left out, no time: {name}")
            continue
        started = time.monotonic()
        verdict, said, details = outcome(check)
        seconds = round(time.monotonic() - started, 1)
        lines.add(check=name, verdict=verdict, said=said, seconds=seconds, traceback=details)
        log(f"{verdict:<8}{name}: {said}")
        failed += verdict == "FAILED"
        if verdict == "FAILED" and DRY:
            print(details)
        if verdict == "FAILED" and LOST in said:
            log("the context is lost: what follows would fail in its name")
            break
    log(f"{failed} FAILED" if failed else "no check failed", f"({lines.path})")
    return int(failed > 0)


def outcome(check: Callable[[], str | None]) -> tuple[str, str, str]:
    """Run a check; return a verdict, what it said, and the traceback of a failure."""
    try:
        return "ok", check() or "", ""
    except pytest.skip.Exception as skip:
        return "skipped", str(skip), ""
    except Exception as error:
        return "FAILED", short(error, 400), traceback.format_exc()


if __name__ == "__main__":
    sys.exit(main())
