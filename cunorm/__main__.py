"""`python -m cunorm check | bench | tune | info`: is it right, what does it cost, what is it."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from . import __version__, _info, simgpu
from ._bench import cases
from ._plan import ITEMSIZE

# Exit codes; the last two are those that shells give to what a signal ended.
OFF, USAGE, INTERRUPTED, NO_READER = 1, 2, 130, 141
EXIT_CODES = """\
exit codes: 0 all is well, 1 `check` or `bench` found something off or `info` something unmet, 2 it
could not run as asked, 130 interrupted, 141 nobody reads its output any more"""


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Python would try once more to write what is left, when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return NO_READER
    return code


def _parser() -> argparse.ArgumentParser:
    called = Path(sys.argv[0]).stem
    parser = argparse.ArgumentParser(
        prog="cunorm" if called == "cunorm" else "python -m cunorm",
        description=f"RMSNorm and LayerNorm for CuPy. {__doc__}",
        epilog=EXIT_CODES,
    )
    parser.add_argument("--version", action="version", version=f"cunorm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    for add in (_add_check, _add_bench, _add_tune, _add_info):
        command = add(commands)
        command.set_defaults(prog=command.prog)
    return parser


def _add_check(commands: Any) -> argparse.ArgumentParser:
    check: argparse.ArgumentParser = commands.add_parser(
        "check",
        help="run every op against its definition",
        description="Run every op over sizes and layouts, each in one of the dtypes in turn, "
        "against its float64 definition, on the CUDA device there is, or on the software GPU where "
        "there is none: there it takes some minutes, and says how many are left.",
    )
    check.add_argument("--data", type=Path, metavar="FILE.npz", help="also check these tensors")
    check.add_argument("--all", action="store_true", help="every size and layout in every dtype")
    check.add_argument(
        "--only",
        metavar="TEXT",
        help="of all only what holds TEXT: a row of the table, or a part of one",
    )
    check.set_defaults(run=_check)
    return check


def _add_info(commands: Any) -> argparse.ArgumentParser:
    info: argparse.ArgumentParser = commands.add_parser(
        "info",
        help="print versions and folders, and what is missing",
        description="Print everything that a kernel depends on: a line each, and what to do where "
        "it is missing. The exit code is 0 where all is met, else 1.",
    )
    info.add_argument(
        "--json",
        action="store_true",
        help="as an object: met, and lines with met, found and todo, by name",
    )
    info.set_defaults(run=_print_info)
    return info


def _add_bench(commands: Any) -> argparse.ArgumentParser:
    bench: argparse.ArgumentParser = commands.add_parser(
        "bench",
        help="measure the ops",
        description="Measure the ops: times where there is a CUDA device. Where there is none, "
        "what the software GPU counts: memory traffic, instructions, registers. It has no times.",
    )
    first = f"the first {len(cases.OPS)}"
    _add_kinds(bench, cases.EVERY_OP, cases.OPS, first, cases.DTYPES, "all but float64")
    bench.add_argument(
        "--quant",
        nargs="+",
        choices=cases.SCHEMES,
        default=cases.USUAL_SCHEMES,
        metavar="SCHEME",
        help=f"of codes: {', '.join(cases.SCHEMES)}; {', '.join(cases.USUAL_SCHEMES)}, without it",
    )
    bench.add_argument(
        "--cols",
        nargs="+",
        type=_positive,
        metavar="N",
        help=f"elements of a row; without it {', '.join(map(str, cases.COLS))}",
    )
    bench.add_argument(
        "--rows",
        type=_positive,
        metavar="ROWS",
        help="without it, as many as have 2 MiB where they are counted and 16 MiB where timed",
    )
    bench.add_argument("--odd", action="store_true", help="also rows that do not start on 16 bytes")
    bench.add_argument(
        "--warm", action="store_true", help="also each case on one set of arrays, which L2 holds"
    )
    bench.add_argument(
        "--beside",
        nargs="*",
        choices=cases.SYSTEMS,
        metavar="SYSTEM",
        help=f"also time {', '.join(cases.SYSTEMS)}: those named here, which may be none, or "
        "without it all that are installed",
    )
    bench.add_argument("--csv", type=Path, metavar="FILE.csv", help="write every number")
    bench.add_argument(
        "--png", type=Path, metavar="FILE.png", help="draw a chart; needs cunorm[bench]"
    )
    bench.add_argument(
        "--json", type=Path, metavar="FILE.json", help="write the times with all they depend on"
    )
    bench.set_defaults(run=_bench)
    return bench


def _add_kinds(
    command: argparse.ArgumentParser,
    every: Sequence[str],
    ops: Sequence[str],
    which_ops: str,
    dtypes: Sequence[str],
    which_dtypes: str,
) -> None:
    """Add ``--op`` and ``--dtype``, with what holds without them, and which those are in words."""
    for name, choices, default, which in (
        ("op", every, ops, which_ops),
        ("dtype", ITEMSIZE, dtypes, which_dtypes),
    ):
        command.add_argument(
            f"--{name}",
            nargs="+",
            choices=choices,
            default=default,
            metavar=name.upper(),
            help=f"of {', '.join(choices)}; {which}, without it",
        )


def _add_tune(commands: Any) -> argparse.ArgumentParser:
    tune: argparse.ArgumentParser = commands.add_parser(
        "tune",
        help="find the fastest kernels of given shapes",
        description="Time every way to share out rows of the given shapes on a CUDA device, and "
        "keep the best in a file of the user's for this kind of device, which calls and `warm_up` "
        "follow from then on. Results have the same bits by all of them. A shape takes a minute or "
        "two, nearly all of it to compile.",
    )
    every = (*cases.OPS, *cases.BACKWARD_OPS)
    _add_kinds(tune, every, ("rms_norm",), "rms_norm", ("bfloat16",), "bfloat16")
    tune.add_argument(
        "--cols", nargs="+", type=_positive, required=True, metavar="N", help="elements of a row"
    )
    tune.add_argument(
        "--rows",
        nargs="+",
        type=_positive,
        required=True,
        metavar="ROWS",
        help="rows; what is found for ROWS is taken for up to twice as many",
    )
    tune.set_defaults(run=_tune)
    return tune


def _positive(text: str) -> int:
    """Return a number of rows or columns, for argparse."""
    if not text.isascii() or not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 1, not {text!r}")
    return int(text)


def _bench(arguments: argparse.Namespace) -> int:
    from ._bench import run as bench_run

    options = bench_run.Options(
        list(dict.fromkeys(arguments.op)),
        list(dict.fromkeys(arguments.dtype)),
        arguments.cols,
        arguments.rows,
        arguments.odd,
        arguments.warm,
        None if arguments.beside is None else list(dict.fromkeys(arguments.beside)),
        arguments.csv,
        arguments.png,
        arguments.json,
        list(dict.fromkeys(arguments.quant)),
    )
    obstacle = bench_run.obstacle(options)
    if obstacle is not None:
        return _refuse(arguments, obstacle)
    device = _device(arguments)
    if device is None:
        return USAGE
    obstacle = bench_run.obstacle_on_device(options)
    if obstacle is not None:
        return _refuse(arguments, obstacle)
    try:
        return 0 if bench_run.run(options, device) else OFF
    except MemoryError as error:  # CuPy's is one of them
        return _refuse(arguments, f"too many rows: {error}")
    except bench_run.Ended as why:
        return _refuse(arguments, str(why))


def _tune(arguments: argparse.Namespace) -> int:
    device = _device(arguments)
    if device is None:
        return USAGE
    if simgpu.installed():
        return _refuse(arguments, "no CUDA device to take times on; the software GPU has no times")
    from ._bench import tune

    shapes = product(arguments.op, arguments.dtype, arguments.cols, arguments.rows)
    try:
        tune.run([cases.Case(*shape) for shape in dict.fromkeys(shapes)], device)
    except (OSError, ValueError, MemoryError) as error:
        return _refuse(arguments, str(error))
    return 0


def _check(arguments: argparse.Namespace) -> int:
    device = _device(arguments)
    if device is None:
        return USAGE
    # These import cupy, which comes after the device.
    from ._selfcheck import checks as selfcheck
    from ._selfcheck import run as selfcheck_run
    from ._selfcheck import tensor_file

    checks = list(selfcheck.grid())
    if not arguments.all and arguments.only is None:
        checks = selfcheck.in_one_dtype(checks)
    if arguments.data is not None:
        try:
            checks += tensor_file.checks(tensor_file.read(arguments.data))
        except tensor_file.BadFile as error:
            return _refuse(arguments, str(error))
    if arguments.only is not None:
        checks = selfcheck_run.chosen(checks, arguments.only)
        if not checks:
            return _refuse(arguments, f"no line of the table holds {arguments.only!r}")
    return 0 if selfcheck_run.run(checks, device) else OFF


def _print_info(arguments: argparse.Namespace) -> int:
    found = _info.lines()
    print(_info.as_json(found) if arguments.json else _info.text(found))
    return 0 if all(line.met for line in found.values()) else OFF


def _device(arguments: argparse.Namespace) -> str | None:
    """Return what the ops will run on; None where a line of `info` says that they cannot."""
    found = _info.lines()
    unmet = {name: line for name, line in found.items() if not line.met}
    for name, line in unmet.items():
        _refuse(arguments, f"{name}: {line}")
    return None if unmet else found["device"].found


def _refuse(arguments: argparse.Namespace, why: str) -> int:
    print(f"{arguments.prog}: {why}", file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main())
