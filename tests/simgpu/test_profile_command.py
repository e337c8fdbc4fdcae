"""`python -m cunorm.simgpu --profile`, each time in a process of its own."""

import csv
import json

import pytest
from test_command import simgpu

COPY = "import cupy; x = cupy.arange(1000, dtype='i4'); y = x.copy(); y[:] = x; print(int(y[7]))"


def test_the_table_comes_at_the_end_on_the_standard_error():
    done = simgpu("--profile", "-c", COPY)
    assert (done.returncode, done.stdout) == (0, "7\n")
    lines = done.stderr.split("\n")
    assert lines[0].split()[:5] == ["#", "times", "kernel", "grid", "block"]
    assert "cupy_arange" in done.stderr
    assert "global memory, by array" in lines
    assert "warp instructions, by class" in lines


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_the_counters_go_to_a_file(ending, tmp_path):
    done = simgpu("--profile-to", f"counts.{ending}", "-c", COPY, cwd=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, "7\n", "")
    text = (tmp_path / f"counts.{ending}").read_text()
    rows = list(csv.DictReader(text.splitlines())) if ending == "csv" else json.loads(text)
    assert [row["kernel"] for row in rows if "arange" in row["kernel"]]


def test_a_program_that_fails_is_shown_as_far_as_it_came():
    done = simgpu("--profile", "-c", f"{COPY}; 1 / 0")
    assert done.returncode == 1
    assert "cupy_arange" in done.stderr
    assert "ZeroDivisionError" in done.stderr
    done = simgpu("--profile", "-c", f"{COPY}; raise SystemExit(7)")
    assert done.returncode == 7
    assert "cupy_arange" in done.stderr


def test_a_program_without_kernels_says_so():
    done = simgpu("--profile", "-c", "")
    assert (done.returncode, done.stderr) == (0, "no kernel was launched\n")


def test_a_file_of_another_kind_is_refused_before_the_program_runs():
    done = simgpu("--profile-to", "counts.txt", "-c", "print(1)")
    assert (done.returncode, done.stdout) == (2, "")
    assert "counts.txt must end in .csv or .json" in done.stderr


def test_without_it_nothing_is_printed():
    assert simgpu("-c", COPY).stderr == ""
