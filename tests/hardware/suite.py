"""The test suite, on all cores, and what of it failed: python -m hardware.suite SECONDS [--all]

Without `--all`, those test files that reach for a device by themselves. Left out are the files of
left_out.txt; failures that known.txt expects are counted apart.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import re
import signal
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from .session import DRY, OUT, log

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
JUNIT, OUTPUT = OUT / "junit.xml", OUT / "tests.txt"
MOST_PROCESSES = 12  # each has a context and a pool of the device's memory
REACHES_FOR_A_DEVICE = re.compile(r"^(import|from) (cupy|torch_bridge|torch_norms)\b", re.MULTILINE)
# No cache folder, and no benchmark plugin: beside xdist it warns, and warnings are errors.
OPTIONS = ("-v", "-p", "no:cacheprovider", "-p", "no:benchmark", "--no-header", "--tb=short")
# Of other versions of what is installed; only our own warnings need to be errors there.
WARNINGS = ("-W", "default::UserWarning", "-W", "default::DeprecationWarning")
# One file that is soon done.
DRY_FILES = ("tests/unit/test_rows.py",)


def listed(name: str) -> dict[str, str]:
    """Return the entries of a list beside this file, each with its reason."""
    lines = (HERE / name).read_text("utf-8").splitlines()
    entries = (line.partition("  ") for line in lines if line and not line.startswith("#"))
    return {entry: reason.strip() for entry, _, reason in entries}


def files(every: bool) -> Iterator[str]:
    """Yield the test files that are run."""
    if DRY:
        yield from DRY_FILES
        return
    left_out = listed("left_out.txt")
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        if any(name.startswith(entry) for entry in left_out):
            continue
        if name == "tests/interop/test_dask.py" and importlib.util.find_spec("distributed") is None:
            continue
        if every or REACHES_FOR_A_DEVICE.search(path.read_text("utf-8")):
            yield name


def command(every: bool, processes: int) -> list[str]:
    """Return the command that runs the suite, by the plugins that there are."""
    plugins: list[str] = []
    if importlib.util.find_spec("xdist") is not None and not DRY:
        plugins += ["-n", str(processes), "--dist", "worksteal"]
    if importlib.util.find_spec("pytest_timeout") is not None:
        plugins += ["--timeout", "200"]
    junit = f"--junitxml={JUNIT}"
    return [sys.executable, "-m", "pytest", *files(every), *OPTIONS, *WARNINGS, *plugins, junit]


def run(arguments: list[str], seconds: float) -> int:
    """Run pytest; interrupt it when its time is over, so that it still writes its report."""
    JUNIT.unlink(missing_ok=True)
    with OUTPUT.open("w") as output:
        process = subprocess.Popen(arguments, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            log(f"cut off after {seconds:.0f} s")
            process.send_signal(signal.SIGINT)
        try:
            return process.wait(8)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()


@dataclass(frozen=True)
class Outcome:
    """What came of a test: "passed", "skipped" or "failed", and why."""

    file: str
    name: str
    verdict: str
    message: str
    seconds: float

    @property
    def test(self) -> str:
        """The function, as known.txt names it."""
        return f"{self.file}::{self.name.partition('[')[0]}"


def outcomes(junit: Path) -> Iterator[Outcome]:
    """Yield what a junit.xml says."""
    for case in ElementTree.parse(junit).getroot().iter("testcase"):
        file = case.get("classname", "").replace(".", "/") + ".py"
        found = next(
            (child for child in case if child.tag in ("failure", "error", "skipped")), None
        )
        verdict, message = "passed", ""
        if found is not None:
            verdict = "skipped" if found.tag == "skipped" else "failed"
            message = (found.get("message") or "").partition("\n")[0]
        seconds = float(case.get("time") or 0)
        yield Outcome(file, case.get("name", ""), verdict, message, seconds)


def report(junit: Path) -> bool:
    """Print counts by file and the failures that nobody expects; return whether there are none."""
    known, found = listed("known.txt"), list(outcomes(junit))
    counts: dict[str, Counter[str]] = {}
    seconds: Counter[str] = Counter()
    for each in found:
        counts.setdefault(each.file, Counter())[each.verdict] += 1
        seconds[each.file] += each.seconds  # type: ignore[assignment]
    for file, count in sorted(counts.items()):
        numbers = "".join(f"{count[v]:>6} {v}" for v in ("passed", "skipped", "failed"))
        print(f"  {file:<42}{numbers}{seconds[file]:7.0f} s")
    total = Counter(each.verdict for each in found)
    failed = [each for each in found if each.verdict == "failed"]
    unexpected = [each for each in failed if each.test not in known]
    print(
        f"{total['passed']} passed, {total['skipped']} skipped, {total['failed']} failed, "
        f"{len(failed) - len(unexpected)} of them known (known.txt)"
    )
    for each in unexpected[:24]:
        print(f"  {each.file}::{each.name}: {each.message}"[:230])
    if len(unexpected) > 24:
        print(f"  and {len(unexpected) - 24} more in {junit.name}")
    return bool(found) and not unexpected


def failures_so_far() -> None:
    """Print what had failed of a run that left no report, by its output."""
    text = OUTPUT.read_text(errors="replace")
    shares = re.findall(r"\[ *\d+%\]", text)
    log(f"no report of pytest's; it was at {shares[-1] if shares else 'the start'}")
    for line in sorted(set(re.findall(r"(?:FAILED|ERROR) tests\S*", text)))[:20]:
        print(" ", line)
    print(text[-600:])


def main() -> int:
    """Run the suite; return whether anything failed that nobody expects."""
    parser = argparse.ArgumentParser()
    parser.add_argument("seconds", type=float)
    parser.add_argument("--all", action="store_true", help="files that need no device too")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    processes = min(options.processes, MOST_PROCESSES)
    code = run(command(options.all, processes), options.seconds)
    if not JUNIT.exists():
        failures_so_far()
        return 1
    good = report(JUNIT)
    # 1: some failed, as is reported above; 2: interrupted. What is more is a usage that is wrong.
    return int(not good or code > 2)


if __name__ == "__main__":
    sys.exit(main())
