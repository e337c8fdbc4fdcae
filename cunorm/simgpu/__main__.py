"""Run a Python program on simulated devices: ``python -m cunorm.simgpu script.py``."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from . import DEFAULT_ARCH, DEFAULT_MEMORY, install, profile
from .device import ARCHITECTURES

_EXAMPLES = """\
examples:
  python -m cunorm.simgpu script.py --its-own options
  python -m cunorm.simgpu --arch 80 -m pytest -x tests
  python -m cunorm.simgpu -c "import cupy; print(cupy.arange(3) + 1)"
  python -m cunorm.simgpu --profile script.py
"""


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cunorm.simgpu",
        usage="%(prog)s [options] (script.py | -m module | -c code) [arguments ...]",
        description="Run a CuPy program with no GPU: its kernels are executed in software.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        type=int,
        choices=ARCHITECTURES,
        default=DEFAULT_ARCH,
        help="compute capability of the simulated devices (default: %(default)s)",
    )
    parser.add_argument(
        "--devices", type=int, default=1, help="how many there are (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=DEFAULT_MEMORY >> 20,
        metavar="MIB",
        help="memory of each, in MiB (default: %(default)s)",
    )
    parser.add_argument(
        "--profile",
        action="store_true",
        help="count every launch, and print the tables to the standard error at the end",
    )
    parser.add_argument(
        "--profile-to",
        type=_profile_file,
        metavar="FILE",
        help="count every launch, and write the counters to FILE.csv or FILE.json at the end",
    )
    # `-m` and `-c` end the options, as they do for python itself: what follows is the program's.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module")
    parser.add_argument("-c", dest="code", nargs=argparse.REMAINDER, help="run code")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the program and its arguments")
    return parser


def _profile_file(name: str) -> Path:
    file = Path(name).absolute()  # the program may change its directory
    if file.suffix not in (".csv", ".json"):
        raise argparse.ArgumentTypeError(f"{name} must end in .csv or .json")
    return file


@contextmanager
def _profiled(options: argparse.Namespace) -> Iterator[None]:
    """Count the launches made within, if that is asked for, and show them however it ends."""
    if not options.profile and options.profile_to is None:
        yield
        return
    with profile() as counted:
        try:
            yield
        finally:
            if options.profile:
                print(counted.table(), end="", file=sys.stderr)
            if options.profile_to is not None:
                counted.save(options.profile_to)


def main(argv: Sequence[str] | None = None) -> None:
    """Install the devices, then become the program."""
    parser = _parser()
    options = parser.parse_args(argv)
    program = options.module or options.code or options.script
    if not program:
        parser.error("which program? give a script, -m module or -c code")
    install(options.arch, options.devices, options.memory << 20)

    with _profiled(options):
        _run(options, program)


def _run(options: argparse.Namespace, program: Sequence[str]) -> None:
    # `python -m cunorm.simgpu` put the working directory first, where -m and -c want it too.
    target, sys.argv = program[0], list(program)
    if options.module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif options.code:
        sys.argv[0] = "-c"
        sys.path[0] = ""
        exec(compile(target, "<string>", "exec"), {"__name__": "__main__"})
    else:
        sys.path[0] = os.path.dirname(os.path.abspath(target))
        runpy.run_path(target, run_name="__main__")


if __name__ == "__main__":
    main()
