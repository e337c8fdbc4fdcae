"""`python -m cunorm check | info`: whether an installation is right, and what it is made of."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from . import simgpu

if TYPE_CHECKING:
    from ._selfcheck import Check, Outcome

OFF, USAGE = 1, 2  # exit codes
COLUMNS = "{:<15} {:<9} {:<13} {:<22} {:>9} {:>9}  {}"
PLAIN_PROGRESS = 10.0  # seconds between progress lines where stderr is no terminal


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m cunorm", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    check = commands.add_parser(
        "check",
        help="run every op against its definition",
        description="Run every op over dtypes, sizes and layouts against its float64 definition, "
        "on the CUDA device there is, or on the software GPU where there is none.",
    )
    check.add_argument("--data", type=Path, metavar="FILE.npz", help="also check these tensors")
    check.add_argument("--only", metavar="TEXT", help="only the lines of the table that hold TEXT")
    commands.add_parser(
        "info",
        help="print versions and folders",
        description="Print versions, the device, and the folders that kernels are compiled from.",
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        return _info()
    return _check(arguments.data, arguments.only)


def _check(data: Path | None, only: str | None) -> int:
    device = _device()
    if device is None:
        return USAGE
    from . import _selfcheck, _tensor_file  # these import cupy, which comes after the device

    try:
        tensors = _tensor_file.read(data) if data is not None else None
    except _tensor_file.BadFile as error:
        print(f"python -m cunorm check: {error}", file=sys.stderr)
        return USAGE

    checks = list(_selfcheck.grid())
    if tensors is not None:
        checks += _tensor_file.checks(tensors)
    checks = [check for check in checks if only is None or only in str(check)]
    if not checks:
        print(f"python -m cunorm check: no line of the table holds {only!r}", file=sys.stderr)
        return USAGE

    print(f"cunorm on {device}\n")
    print(COLUMNS.format("op", "dtype", "shape", "layout", "worst ulp", "allowed", "verdict"))
    progress = _Progress(len(checks))
    off = 0
    for check in checks:
        progress.show(str(check))
        outcome = check.run()
        progress.clear()
        print(_line(check, outcome), flush=True)
        off += bool(outcome.faults)
    verdict = f"{off} OFF" if off else "all within tolerance"
    print(f"\n{len(checks)} checks in {progress.seconds():.0f} s: {verdict}")
    return OFF if off else 0


def _line(check: Check, outcome: Outcome) -> str:
    """Return a row of the table."""
    verdict = f"OFF: {'; '.join(outcome.faults)}" if outcome.faults else "ok"
    if outcome.note:
        verdict += f" ({outcome.note})"
    shape = str(check.shape).replace(" ", "")
    error = (f"{outcome.worst:.2f}", f"{outcome.allowed:.2f}")
    return COLUMNS.format(check.op, check.dtype, shape, check.where, *error, verdict)


def _device() -> str | None:
    """Return what the ops will run on; None where there is no device, not even the software GPU."""
    if not simgpu.installed() and simgpu.hardware_devices() == 0:
        try:
            simgpu.install()
        except (ImportError, RuntimeError) as error:
            print(f"no CUDA device, and no software GPU: {error}", file=sys.stderr)
            return None
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return f"{properties['name'].decode()} (sm_{properties['major']}{properties['minor']})"


def _info() -> int:
    device = _device()
    from ._info import rows

    for name, value in rows(device):
        print(f"{name:<16} {value}")
    return 0 if device is not None else USAGE


class _Progress:
    """One line on stderr that says what is being done; on a terminal it replaces itself."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._done = 0
        self._start = self._said = time.monotonic()
        self._terminal = sys.stderr.isatty()

    def seconds(self) -> float:
        return time.monotonic() - self._start

    def show(self, what: str) -> None:
        text = f"{self._done}/{self._total}, {self.seconds():.0f} s: {what}"
        self._done += 1
        if self._terminal:
            print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)
        elif time.monotonic() - self._said > PLAIN_PROGRESS:
            print(text, file=sys.stderr, flush=True)
            self._said = time.monotonic()

    def clear(self) -> None:
        if self._terminal:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
