"""Run a sample of CuPy's own tests on the software GPU, and tell what fails and why.

CuPy's wheels come without its tests. They are in its repository, under the tag of its version::

    git clone --depth 1 --branch v14.2.0 https://github.com/cupy/cupy /tmp/cupy
    python tests/simgpu/sample_cupy_tests.py /tmp/cupy                       # all folders
    python tests/simgpu/sample_cupy_tests.py /tmp/cupy fft_tests --tests 200 # some, and more of it

Each folder is run in a process of its own. Tests that need SciPy are skipped where it is missing.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

PARTS = ("cupy_tests", "cupyx_tests")
_ERROR = re.compile(r"[\w.]+: ")


class Sample:
    """A plugin of pytest's that picks tests at equal distances, and writes down how each ends.

    Parameters
    ----------
    record : pathlib.Path
        A line of JSON is added as a test begins, and one as it ends.
    tests, begin : int
        How many there are in the sample, and how many of those to leave out at its beginning.
    seconds : int
        What one test may take.
    """

    def __init__(self, record: Path, tests: int, begin: int, seconds: int) -> None:
        self._record = record
        self._tests, self._begin, self._seconds = tests, begin, seconds
        self._skipped = ""

    def _write(self, **line: object) -> None:
        with self._record.open("a") as file:
            file.write(json.dumps(line) + "\n")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        tests = min(self._tests, len(items))
        picked = [items[at * len(items) // tests] for at in range(tests)]
        self._write(sample=tests, of=len(items))
        items[:] = picked[self._begin :]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> object:
        self._write(begins=item.nodeid)
        signal.signal(signal.SIGALRM, self._too_long)
        signal.alarm(self._seconds)
        try:
            return (yield)
        finally:
            signal.alarm(0)

    def _too_long(self, *_: object) -> None:
        raise TimeoutError(f"the test takes longer than {self._seconds} seconds")

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._write(begins=report.nodeid)
            self._write(ends="failed", why=_why(report))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        # What a fixture says counts where the test itself was not reached.
        if report.when == "call" or not report.passed:
            self._write(ends=report.outcome, why=_why(report) if report.failed else "")


def _why(report: pytest.TestReport | pytest.CollectReport) -> str:
    """Return the class and the first line of what was raised, without what differs by test."""
    text = str(report.longrepr)
    raised = [line[1:].strip() for line in text.splitlines() if line.startswith("E ")]
    # CuPy's decorators raise an AssertionError with the traceback of what was raised in its text.
    errors = [line for line in raised if _ERROR.match(line)]
    faults = [line for line in errors if line.startswith("cunorm.")]
    line = (faults or errors[-1:] or raised or text.strip().splitlines()[-1:] or [""])[0]
    line = re.sub(r"0x[0-9a-f]+", "0x..", line.removeprefix("cunorm.simgpu.faults."))
    line = re.sub(r"/tmp/\S+", "/tmp/..", line)
    return re.sub(r" \(kernel .*", "", line)[:160]


def run_sample(arguments: argparse.Namespace) -> int:
    """Run a folder's sample in this process, whose CuPy is on the software GPU."""
    sys.path.pop(0)  # this script's folder, which has a conftest.py of its own
    sample = Sample(arguments.record, arguments.tests, arguments.begin, arguments.test_seconds)
    options = ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors", "-m", "not slow"]
    return pytest.main([*options, *arguments.folders], plugins=[sample])


def sample_folder(folder: str, arguments: argparse.Namespace) -> collections.Counter[str]:
    """Run a folder's sample in processes of its own: a further one after each that crashed."""
    outcomes: collections.Counter[str] = collections.Counter()
    reasons: dict[str, list[str]] = collections.defaultdict(list)
    deadline = time.monotonic() + arguments.seconds
    begun, complete = 0, False
    with tempfile.TemporaryDirectory() as scratch:
        while not complete and time.monotonic() < deadline:
            record = Path(scratch) / f"{begun}.jsonl"
            record.touch()
            ended = _run_child(folder, record, begun, deadline, arguments)
            lines = [json.loads(line) for line in record.read_text().splitlines()]
            complete = ended in (0, 1, 2, 5) or not lines
            test = folder
            for line in lines:
                outcomes.update(sample=line.get("sample", 0) if begun == 0 else 0)
                if "begins" in line:
                    test = line["begins"]
                if "ends" in line:
                    outcomes[line["ends"]] += 1
                if line.get("why"):
                    reasons[line["why"]].append(test)
            begun += sum("begins" in line for line in lines)
            if not complete and "begins" in lines[-1] and time.monotonic() < deadline:
                outcomes["failed"] += 1
                reasons[f"the process ended with {ended}"].append(test)
    outcomes["not reached"] = max(
        0, outcomes["sample"] - sum(outcomes[how] for how in ("passed", "failed", "skipped"))
    )
    _show(folder, outcomes, reasons)
    return outcomes


def _run_child(
    folder: str, record: Path, begun: int, deadline: float, arguments: argparse.Namespace
) -> int | None:
    """Run the rest of a folder's sample; return the exit status, None where time ran out."""
    child = [sys.executable, "-m", "cunorm.simgpu", "--devices", str(arguments.devices)]
    child += [str(Path(__file__).resolve()), str(arguments.checkout), folder]
    child += ["--record", str(record), "--begin", str(begun), "--tests", str(arguments.tests)]
    child += ["--test-seconds", str(arguments.test_seconds)]
    # Tests of more devices than there are skip themselves.
    environment = {**os.environ, "CUPY_TEST_GPU_LIMIT": str(arguments.devices)}
    with open(os.devnull if arguments.quiet else os.dup(2), "w") as out:
        process = subprocess.Popen(
            child,
            cwd=arguments.checkout / "tests",
            env=environment,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
        try:
            return process.wait(deadline - time.monotonic())
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return None


def _show(folder: str, outcomes: collections.Counter[str], reasons: dict[str, list[str]]) -> None:
    columns = " | ".join(str(outcomes[how]) for how in COLUMNS)
    print(f"| {folder} | {columns} |")
    for why, tests in sorted(reasons.items(), key=lambda reason: -len(reason[1])):
        print(f"    {len(tests)} x {why}\n        {tests[0]}")
    sys.stdout.flush()


COLUMNS = ("sample", "passed", "failed", "skipped", "not reached")


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("checkout", type=Path, help="CuPy's repository, of the installed version")
    parser.add_argument("folders", nargs="*", help="folders or files of its tests (all)")
    parser.add_argument("--tests", type=int, default=40, help="tests of each folder (40)")
    parser.add_argument("--seconds", type=int, default=600, help="time of each folder (600)")
    parser.add_argument("--test-seconds", type=int, default=60, help="time of each test (60)")
    parser.add_argument("--devices", type=int, default=2, help="simulated devices (2)")
    parser.add_argument("--quiet", action="store_true", help="without pytest's own report")
    parser.add_argument("--record", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--begin", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.record is not None:
        return run_sample(arguments)
    arguments.checkout = arguments.checkout.resolve()
    tests = arguments.checkout / "tests"
    folders = arguments.folders or [
        f"{part}/{path.name}"
        for part in PARTS
        for path in sorted((tests / part).iterdir())
        if path.name.endswith("_tests") or path.name.startswith("test_")
    ]
    print("| folder | " + " | ".join(COLUMNS) + " |")
    total: collections.Counter[str] = collections.Counter()
    for folder in folders:
        known = [
            path
            for path in (folder, *(f"{part}/{folder}" for part in PARTS))
            if (tests / path).exists()
        ]
        if not known:
            parser.error(f"{folder} is no folder of {tests}")
        total += sample_folder(known[0], arguments)
    _show("all", total, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
