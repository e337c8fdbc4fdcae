"""`python -m cunorm check | bench | info`: whether it is right, what it costs, what it is."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _bench_cases, simgpu
from ._plan import ITEMSIZE
from ._progress import Progress

if TYPE_CHECKING:
    from ._selfcheck import Check, Outcome

OFF, USAGE = 1, 2  # exit codes
COLUMNS = "{:<15} {:<9} {:<13} {:<22} {:>9} {:>9}  {}"


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
    _add_bench(commands)
    commands.add_parser(
        "info",
        help="print versions and folders",
        description="Print versions, the device, and the folders that kernels are compiled from.",
    )
    arguments = parser.parse_args(argv)
    if arguments.command == "info":
        return _info()
    if arguments.command == "bench":
        return _bench(arguments)
    return _check(arguments.data, arguments.only)


def _add_bench(commands: Any) -> None:
    bench = commands.add_parser(
        "bench",
        help="measure the ops",
        description="Measure the ops: times where there is a CUDA device. Where there is none, "
        "what the software GPU counts: memory traffic, instructions, registers. It has no times.",
    )
    ops, dtypes = _bench_cases.OPS, _bench_cases.DTYPES
    bench.add_argument(
        "--op",
        nargs="+",
        choices=(*ops, *_bench_cases.BACKWARD_OPS),
        default=ops,
        help="the forward ones, without it",
    )
    bench.add_argument(
        "--dtype",
        nargs="+",
        choices=ITEMSIZE,
        default=dtypes,
        help=f"without it {', '.join(dtypes)}",
    )
    bench.add_argument(
        "--cols",
        nargs="+",
        type=_positive,
        metavar="N",
        help=f"elements of a row; without it {', '.join(map(str, _bench_cases.COLS))}",
    )
    bench.add_argument(
        "--rows",
        type=_positive,
        metavar="ROWS",
        help="without it, as many as have 2 MiB where they are counted and 16 MiB where timed",
    )
    bench.add_argument("--odd", action="store_true", help="also rows that do not start on 16 bytes")
    bench.add_argument("--csv", type=Path, metavar="FILE.csv", help="write every number")
    bench.add_argument(
        "--png", type=Path, metavar="FILE.png", help="draw a chart; needs cunorm[bench]"
    )


def _positive(text: str) -> int:
    """Return a number of rows or columns, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _bench(arguments: argparse.Namespace) -> int:
    from . import _bench

    options = _bench.Options(
        list(dict.fromkeys(arguments.op)),
        list(dict.fromkeys(arguments.dtype)),
        arguments.cols,
        arguments.rows,
        arguments.odd,
        arguments.csv,
        arguments.png,
    )
    obstacle = _bench.obstacle(options)
    if obstacle is not None:
        print(f"python -m cunorm bench: {obstacle}", file=sys.stderr)
        return USAGE
    device = _device()
    if device is None:
        return USAGE
    try:
        _bench.run(options, device)
    except MemoryError as error:  # CuPy's is one of them
        print(f"python -m cunorm bench: too many rows: {error}", file=sys.stderr)
        return USAGE
    return 0


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
    progress = Progress(len(checks))
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


if __name__ == "__main__":
    sys.exit(main())
