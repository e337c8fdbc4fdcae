"""Run a Python program on simulated devices: ``python -m cunorm.simgpu script.py``."""

from __future__ import annotations

import argparse
import code
import json
import os
import runpy
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import ModuleType, TracebackType

from . import Fault, NotEmulated, children, install, profile
from .device.tables import ARCHITECTURES
from .options import DEFAULT

_EXAMPLES = """\
examples:
  python -m cunorm.simgpu script.py --its-own options
  python -m cunorm.simgpu --arch 80 -m pytest -x tests
  python -m cunorm.simgpu -c "import cupy; print(cupy.arange(3) + 1)"
  python -m cunorm.simgpu --profile script.py
  python -m cunorm.simgpu

Without a program it is Python's prompt. "-" is a program on the standard input.
The exit status is the program's own; it is 2 where the options are wrong.
Python processes that the program starts have the same devices.
"""
_OURS = os.path.dirname(os.path.abspath(__file__))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cunorm.simgpu",
        usage="%(prog)s [options] [script.py | - | -m module | -c code] [arguments ...]",
        description="Run a CuPy program with no GPU: its kernels are executed in software.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--arch",
        type=_arch,
        choices=ARCHITECTURES,
        default=DEFAULT.arch,
        help="compute capability of the simulated devices (default: %(default)s)",
    )
    parser.add_argument(
        "--devices", type=_count, default=1, help="how many there are (default: %(default)s)"
    )
    parser.add_argument(
        "--memory",
        type=_count,
        default=DEFAULT.memory >> 20,
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
    parser.add_argument(
        "--fault-to",
        type=_fault_file,
        metavar="FILE",
        help="write the fault that ends the program, where one does, to FILE.json",
    )
    parser.add_argument(
        "--instructions",
        action="store_true",
        help="print the PTX instructions that are executed, as a page of markdown, and end",
    )
    parser.add_argument(
        "--uninitialised",
        action="store_true",
        help="let kernels read memory that nothing has written (default: a fault)",
    )
    parser.add_argument(
        "--warp-races",
        action="store_true",
        help="let lanes of one warp race where no __syncwarp orders them (default: let them pass)",
    )
    parser.add_argument(
        "--budget",
        type=_count,
        default=DEFAULT.budget,
        metavar="N",
        help="instructions that blocks executed together may take before a launch counts as endless"
        " (default: %(default)s)",
    )
    parser.add_argument(
        "--no-stand-ins",
        dest="stand_ins",
        action="store_false",
        help="refuse what CuPy asks of NVIDIA's libraries (default: NumPy computes it on the host)",
    )
    # `-m` and `-c` end the options, as they do for python itself: what follows is the program's.
    parser.add_argument("-m", dest="module", nargs=argparse.REMAINDER, help="run a module")
    parser.add_argument("-c", dest="code", nargs=argparse.REMAINDER, help="run code")
    parser.add_argument("script", nargs=argparse.REMAINDER, help="the program and its arguments")
    return parser


def _arch(text: str) -> int:
    number = text.removeprefix("sm_")
    if not number.isdecimal():
        raise argparse.ArgumentTypeError(f"must be like 80 or sm_80, not {text}")
    return int(number)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a number of at least 1, not {text}")
    return int(text)


def _profile_file(name: str) -> Path:
    file = Path(name).absolute()  # the program may change its directory
    if file.suffix not in (".csv", ".json"):
        raise argparse.ArgumentTypeError(f"{name} must end in .csv or .json")
    return file


def _fault_file(name: str) -> Path:
    file = Path(name).absolute()
    if file.suffix != ".json":
        raise argparse.ArgumentTypeError(f"{name} must end in .json")
    return file


@contextmanager
def _fault_kept(file: Path | None) -> Iterator[None]:
    """Write a fault that ends the program to a file, if that is asked for."""
    try:
        yield
    except Fault as fault:
        if file is not None:
            frames = _frames(fault, fault.__traceback__)
            lines = [
                f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}"
                for frame in frames
                if frame.tb_frame.f_globals.get("__name__", "").partition(".")[0] != "cupy"
            ]
            told = {
                "fault": type(fault).__name__,
                "what": fault.what,
                "usually": fault.usually,
                "program": lines[-1] if lines else None,
                **asdict(fault.place),
            }
            file.write_text(json.dumps(told, indent=2) + "\n", "utf-8")
        raise


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


def _is_ours(frame: TracebackType) -> bool:
    name = frame.tb_frame.f_code.co_filename
    return name in ("<frozen runpy>", runpy.__file__, code.__file__) or os.path.dirname(
        name
    ).startswith(_OURS)


def _frames(error: BaseException, trace: TracebackType | None) -> list[TracebackType]:
    """Return a traceback from the program on and, for a fault, as far as its launch."""
    frames = []
    while trace is not None:
        frames.append(trace)
        trace = trace.tb_next
    while frames and _is_ours(frames[0]):
        frames.pop(0)
    if isinstance(error, (Fault, NotEmulated)):
        while frames and _is_ours(frames[-1]):
            frames.pop()
    return frames


def _show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print an error with the traceback that concerns the program."""
    frames, trace = _frames(error, trace), None
    for frame in reversed(frames):
        trace = TracebackType(trace, frame.tb_frame, frame.tb_lasti, frame.tb_lineno)
    sys.__excepthook__(kind, error.with_traceback(trace), trace)
    if sys.version_info < (3, 11):  # which shows no notes
        print(*getattr(error, "__notes__", ()), sep="\n", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """Install the devices, then become the program."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.instructions:
        from .isa.page import page

        print(page(), end="")
        return
    program = options.module or options.code or options.script
    script = next(iter(options.script), "-") if program is options.script else "-"
    if script != "-" and not os.path.exists(script):
        parser.error(f"there is no file {script}")
    asked = {
        "arch": options.arch,
        "devices": options.devices,
        "memory": options.memory << 20,
        "uninitialised": options.uninitialised,
        "warp_races": options.warp_races,
        "budget": options.budget,
        "stand_ins": options.stand_ins,
    }
    children.enable(asked)
    try:
        install(**asked)
    except RuntimeError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    sys.excepthook = _show

    with _fault_kept(options.fault_to), _profiled(options):
        _run(options, program)


def _run(options: argparse.Namespace, program: Sequence[str]) -> None:
    # `python -m cunorm.simgpu` put the working directory first, where -m and -c want it too.
    sys.argv = list(program) or [""]
    target = sys.argv[0]
    if options.module:
        runpy.run_module(target, run_name="__main__", alter_sys=True)
    elif options.code:
        sys.argv[0] = "-c"
        _run_code(target, "<string>")
    elif target not in ("", "-"):
        sys.path[0] = os.path.dirname(os.path.abspath(target))
        runpy.run_path(target, run_name="__main__")
    elif sys.stdin.isatty():
        _prompt(f"{options.devices} simulated device(s) of sm_{options.arch}")
    else:
        _run_code(sys.stdin.read(), "<stdin>")


def _main_module() -> ModuleType:
    """Return a new main module, where pickle and multiprocessing look for the program's names."""
    sys.path[0] = ""
    module = sys.modules["__main__"] = ModuleType("__main__")
    return module


def _run_code(text: str, file: str) -> None:
    exec(compile(text, file, "exec"), _main_module().__dict__)


def _prompt(devices: str) -> None:
    if hasattr(sys, "__interactivehook__"):
        sys.__interactivehook__()  # history, and completion by the tab key
    banner = f"Python {sys.version} on {sys.platform}\n{devices}"
    code.interact(banner, local=_main_module().__dict__, exitmsg="")


if __name__ == "__main__":
    main()
