"""Run a Python program on simulated devices: ``python -m cunorm.simgpu script.py``."""

from __future__ import annotations

import argparse
import os
import runpy
import sys
from collections.abc import Sequence

from . import DEFAULT_ARCH, DEFAULT_MEMORY, install
from .device import ARCHITECTURES

_EXAMPLES = """\
examples:
  python -m cunorm.simgpu script.py --its-own options
  python -m cunorm.simgpu --arch 80 -m pytest -x tests
  python -m cunorm.simgpu -c "import cupy; print(cupy.arange(3) + 1)"
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
    # `-m` and `-c` end the options, as they do for python itself: what follows is the program's.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module")
    parser.add_argument("-c", dest="code", nargs=argparse.REMAINDER, help="run code")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the program and its arguments")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Install the devices, then become the program."""
    parser = _parser()
    options = parser.parse_args(argv)
    program = options.module or options.code or options.script
    if not program:
        parser.error("which program? give a script, -m module or -c code")
    install(options.arch, options.devices, options.memory << 20)

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
