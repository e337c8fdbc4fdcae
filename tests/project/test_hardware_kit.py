"""The scripts of tests/hardware: a dry run of each stage, their lists, and what is packed."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hardware import counters, suite
from hardware.cases import cases

ROOT = Path(__file__).parents[2]
KIT = ROOT / "tests" / "hardware"
# What each stage leaves, besides what it prints.
LEAVES = {
    1: ("environment.txt", "check.txt", "selfcheck.jsonl", "checks.jsonl", "junit.xml"),
    2: ("times.jsonl", "card.json", "times.txt", "bench.csv"),
    3: ("ncu.csv", "ncu.jsonl", "plans.jsonl", "plans.txt"),
    4: ("junit.xml", "host.txt"),
}


def run(script, work):
    """Run a shell command as a stage is run, dry; return what came of it."""
    given = {
        # A process of its own, and no worker of the one that asks.
        **{name: value for name, value in os.environ.items() if "XDIST" not in name},
        "DRY": "1",
        "WORK": str(work),
        "OUT": str(work / "out"),
        "PY": sys.executable,
        # Kernels that other tests compiled are not compiled again.
        "CUPY_CACHE_DIR": os.environ.get(
            "CUPY_CACHE_DIR", os.path.expanduser("~/.cupy/kernel_cache")
        ),
    }
    given.pop("PYTHONPATH", None)
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, env=given, cwd=work, timeout=3600
    )


@pytest.mark.parametrize("stage", LEAVES)
def test_a_dry_run_of_a_stage_ends_well_and_leaves_its_results(stage, tmp_path):
    done = run(f"TOTAL=900 bash {KIT}/stage{stage}.sh", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"stage {stage} is done\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    for name in LEAVES[stage]:
        assert (tmp_path / "out" / name).stat().st_size > 0


def test_a_step_that_fails_fails_its_stage_and_keeps_no_other_from_running(tmp_path):
    steps = 'step 9 false; step 9 echo "still here"; finish "a stage"'
    done = run(f"TOTAL=9; source {KIT}/common.sh; {steps}", tmp_path)
    assert done.returncode == 1
    assert "still here\n" in done.stdout
    assert "a stage is done; failed: 1 from false; \n" in done.stdout


# What is renamed before a dry run, and the script that must notice. Each is a part of the project
# that scripts use by its name.
RENAMED = {
    "plans": "from cunorm import _plan; del _plan.split.forward",
    "selfcheck 1 9": "from cunorm import _selfcheck; del _selfcheck.grid",
    "counters run": "from cunorm._bench import cases; del cases.arrays",
}


@pytest.mark.parametrize("script", RENAMED)
def test_a_dry_run_fails_where_the_project_has_other_names(script, tmp_path):
    module, *arguments = script.split()
    code = (
        "import runpy, sys; from cunorm import simgpu; simgpu.install(); "
        f"{RENAMED[script]}; sys.argv[1:] = {arguments}; "
        f"runpy.run_module('hardware.{module}', run_name='__main__')"
    )
    environment = f"PYTHONPATH={ROOT}:{ROOT}/tests"
    done = run(f'{environment} {sys.executable} -c "{code}"', tmp_path)
    assert done.returncode == 1, done.stdout
    assert re.search(r"^(Attribute|Import|Name|Type)Error: ", done.stderr, re.MULTILINE)


BREAKS = """
import runpy, sys
from cunorm import simgpu
simgpu.install()
from cunorm._bench import times
time = times.time
def breaks(case, others):
    if case.op == "layer_norm" and "torch" in [system.name for system in others]:
        raise times.DeviceLost("torch", case, RuntimeError("sticky"))
    return time(case, others)
times.time = breaks
sys.argv[1:] = ["--only", "main", *sys.argv[1:]]
runpy.run_module("hardware.times", run_name="__main__")
"""


def test_times_go_on_in_a_new_process_without_the_call_that_broke_one(tmp_path):
    (tmp_path / "breaks.py").write_text(BREAKS)
    again = f"PYTHONPATH={ROOT}:{ROOT}/tests {sys.executable} {tmp_path}/breaks.py"
    done = run(again, tmp_path)
    assert done.returncode == 75, done.stderr
    assert (tmp_path / "banned.txt").read_text() == "torch layer_norm\n"
    begun = (tmp_path / "out" / "times.jsonl").read_text()
    done = run(f"{again} --resume", tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "times.jsonl").read_text().startswith(begun)
    measured = json.loads((tmp_path / "out" / "card.json").read_text())["cases"]
    assert [case["op"] for case in measured] == ["rms_norm", "add_rms_norm", "layer_norm"]
    assert ["torch" in case["systems"] for case in measured] == [True, True, False]


def test_the_suite_on_hardware_is_every_file_but_those_left_out_with_a_reason(monkeypatch):
    monkeypatch.setattr(suite, "DRY", False)
    every, first = list(suite.files(every=True)), list(suite.files(every=False))
    left_out = suite.listed("left_out.txt")
    assert set(first) < set(every)
    assert {"tests/ops/test_rms_norm.py", "tests/torch/test_torch_ops.py"} <= set(first)
    assert "tests/unit/test_plan.py" not in first
    assert all(left_out.values())
    for entry in left_out:
        assert (ROOT / entry).exists(), entry
        assert not any(name.startswith(entry) for name in every)


def test_known_failures_name_tests_that_exist_and_have_a_reason():
    known = suite.listed("known.txt")
    assert all(known.values())
    for test in known:
        file, _, name = test.partition("::")
        assert re.search(rf"^def {name}\(", (ROOT / file).read_text("utf-8"), re.MULTILINE), test


JUNIT = """<testsuites><testsuite>
<testcase classname="tests.test_a" name="test_good[1]" time="1.5"/>
<testcase classname="tests.test_a" name="test_off[1]"><failure message="wrong&#10;more"/></testcase>
<testcase classname="tests.simgpu.test_b" name="test_off"><skipped message="why"/></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize("is_known", [False, True])
def test_the_report_tells_failures_that_nobody_expects(is_known, tmp_path, monkeypatch, capsys):
    junit = tmp_path / "junit.xml"
    junit.write_text(JUNIT)
    known = {"tests/test_a.py::test_off": "a reason"} if is_known else {}
    monkeypatch.setattr(suite, "listed", lambda name: known)
    assert suite.report(junit) == is_known
    out = capsys.readouterr().out
    assert f"1 passed, 1 skipped, 1 failed, {int(is_known)} of them known" in out
    assert ("tests/test_a.py::test_off[1]: wrong\n" in out) != is_known


def test_what_ncu_writes_is_read_in_bytes_and_nanoseconds(tmp_path):
    file = tmp_path / "ncu.csv"
    file.write_text(
        '==PROF== Connected\n"ID","Kernel Name","gpu__time_duration.sum","launch__grid_size"\n'
        '"","","us",""\n"0","rms_norm_fwd","1,234.5","8"\n"1","cupy_fill","1","1"\n'
    )
    (found,) = counters.read(file)
    assert (found.kernel, found["gpu__time_duration.sum"]) == ("rms_norm_fwd", 1_234_500)
    assert found["launch__grid_size"] == 8
    assert found["dram__bytes_read.sum"] != found["dram__bytes_read.sum"]
    file.write_text("==ERROR== no permission\n")
    assert counters.read(file) == []


def test_cases_are_of_bytes_that_a_card_holds_many_times_over():
    found = cases()
    assert len(found) > 90
    assert all(case.floor_bytes < 3 << 30 for case in found)
    backward = next(case for case in found if case.is_backward)
    assert backward.floor_bytes == (3 * backward.rows + 2) * backward.cols * 2


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="packs HEAD of a git checkout")
def test_what_is_packed_runs_elsewhere(tmp_path):
    """Of HEAD: its stages find everything under WORK, extensions built there included."""
    packed = tmp_path / "packed"
    done = run(f"bash {KIT}/pack.sh {packed} --no-packages", tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"tree.tar.gz", "commit", "stage1.sh", "common.sh", "README.md"} <= {
        path.name for path in packed.iterdir()
    }
    code = (
        "import cunorm, hardware.suite; from hardware.session import commit; "
        "print(cunorm.__file__, hardware.suite.ROOT, commit())"
    )
    step = f"step 99 $PY -m cunorm.simgpu -c '{code}'"
    done = run(f"TOTAL=99; source {packed}/common.sh; {step}; finish it", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    head = subprocess.check_output(["git", "-C", ROOT, "rev-parse", "HEAD"], text=True)
    assert (tmp_path / "ready").read_text() == head
    assert f"{tmp_path}/tree/cunorm/__init__.py {tmp_path}/tree {head}" in done.stdout
