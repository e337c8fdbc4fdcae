"""The programs in examples/ run as they are, and print what the file beside each says."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
PROGRAMS = sorted(EXAMPLES.glob("*.py"))


def test_there_are_six_each_with_what_it_prints():
    assert len(PROGRAMS) == 6
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
    assert done.stdout == program.with_suffix(".txt").read_text()
    told = done.stderr.splitlines()
    assert [line for line in told if " is a stand-in that computes with NumPy" not in line] == []
