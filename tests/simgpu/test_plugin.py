"""`pytest --simgpu`: the plugin that pytest finds where cunorm is installed."""

import importlib.metadata
import os
import subprocess
import sys

import pytest

TEST = """
import cupy
import pytest

def told():
    device, runtime = cupy.cuda.Device(), cupy.cuda.runtime
    sizes = runtime.getDeviceCount(), runtime.memGetInfo()[1] >> 20
    return (device.compute_capability, *sizes, int(cupy.arange(10).sum()))
"""


def pytest_in(folder, *options, **changes):
    environment = {name: text for name, text in os.environ.items() if name != "CUNORM_SIMGPU"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options],
        cwd=folder,
        env=environment | changes,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def folder(tmp_path):
    """A test suite whose conftest.py imports CuPy."""
    (tmp_path / "conftest.py").write_text("import cupy\n")
    return tmp_path


def test_the_entry_point_is_the_plugin():
    (entry,) = [
        entry
        for entry in importlib.metadata.distribution("cunorm").entry_points
        if entry.group == "pytest11"
    ]
    assert (entry.name, entry.value) == ("simgpu", "cunorm.simgpu.pytest_plugin")


def test_the_devices_are_there_before_conftest_imports_cupy(folder):
    (folder / "test_it.py").write_text(
        f"{TEST}\ndef test_told():\n    assert told() == ('90', 1, 8192, 45)"
    )
    done = pytest_in(folder, "--simgpu")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "simgpu: on\n" in done.stdout


def test_each_option_implies_it_and_reaches_the_devices_and_children(folder):
    child = "import cupy; from cunorm import simgpu; print(simgpu._machine.budget)"
    (folder / "test_it.py").write_text(
        f"""{TEST}
import subprocess, sys
from cunorm import simgpu

def test_told():
    assert told() == ('80', 2, 64, 45)
    memory = simgpu._machine.memory
    assert (memory.uninitialised, memory.warp_races) == (True, False)
    child = subprocess.run([sys.executable, "-c", {child!r}], capture_output=True, text=True)
    assert (child.stdout, child.stderr) == ("1234\\n", "")
"""
    )
    options = ("--simgpu-devices=2", "--simgpu-memory=64", "--simgpu-budget=1234")
    done = pytest_in(folder, "--simgpu-arch", "sm_80", *options, "--simgpu-uninitialised")
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "simgpu: on arch=80 devices=2 memory=67108864 uninitialised=True" in done.stdout


def test_workers_of_xdist_have_the_devices(folder):
    pytest.importorskip("xdist", reason="pytest-xdist is not installed")
    (folder / "test_it.py").write_text(
        f"""{TEST}
@pytest.mark.parametrize("n", range(4))
def test_told(n, worker_id):
    assert worker_id != "master"
    assert told() == ("80", 1, 8192, 45)
"""
    )
    done = pytest_in(folder, "--simgpu-arch=80", "-n", "1")
    assert "4 passed" in done.stdout, done.stdout + done.stderr


def test_the_command_around_pytest_needs_no_option_and_bears_it(folder):
    (folder / "test_it.py").write_text(
        f"{TEST}\ndef test_told():\n    assert told() == ('75', 1, 8192, 45)"
    )
    command = [sys.executable, "-m", "cunorm.simgpu", "--arch", "75", "-m", "pytest", "--simgpu"]
    command += ["-W", "error"]  # of modules imported too early for pytest to rewrite
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--simgpu-arch=70"], "--simgpu: arch must be one of 75, "),
        (["--simgpu-arch=new"], "argument --simgpu-arch: invalid _architecture value: 'new'"),
        (["--simgpu-devices=0"], "--simgpu: devices and memory must be at least 1, not 0"),
        (["--simgpu-budget=0"], "--simgpu: budget must be at least 1, not 0"),
        (["--simgpu", "-p", "cupy"], "must be called before cupy is imported"),
    ],
)
def test_what_cannot_be_is_an_error_of_usage(options, says, folder):
    alone = ("-p", "cunorm.simgpu.pytest_plugin")  # other plugins take a second to import
    done = pytest_in(folder, *alone, *options, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1")
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert says in done.stderr


def test_without_an_option_next_to_nothing_is_imported(tmp_path):
    (tmp_path / "test_it.py").write_text(
        """
import os, sys

def test_imports():
    ours = {name for name in sys.modules if name.startswith("cunorm")}
    light = {"children", "faults", "options", "pytest_plugin"}
    assert ours == {"cunorm", "cunorm.simgpu", *(f"cunorm.simgpu.{name}" for name in light)}
    assert not {"cupy", "numpy", "torch"} & set(sys.modules)
    assert "CUNORM_SIMGPU" not in os.environ
"""
    )
    # Another plugin may import NumPy, as Hypothesis does.
    options = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = pytest_in(tmp_path, "-p", "cunorm.simgpu.pytest_plugin", **options)
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert "simgpu:" not in done.stdout
