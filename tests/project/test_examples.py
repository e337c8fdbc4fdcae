"""The programs in examples/ run as they are, and print what the file beside each says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def test_there_are_four_each_with_what_it_prints():
    assert len(PROGRAMS) == 4
    assert [path.with_suffix(".txt") for path in PROGRAMS] == sorted(EXAMPLES.glob("*.txt"))


@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.stem)
def test_an_example_prints_what_is_beside_it(program, tmp_path):
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "cunorm.simgpu", program],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(EXAMPLES.parent)},
        timeout=300,
    )
    assert (done.stdout, done.stderr) == (program.with_suffix(".txt").read_text(), "")
