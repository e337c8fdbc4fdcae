"""What simgpu says where its C extension was not built: which package of the system is missing."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cunorm.simgpu import _toolchain

VERSION = f"{sys.version_info.major}.{sys.version_info.minor}"
GCC = (
    "there is no C compiler no-such-gcc (Debian and Ubuntu: apt install gcc; Fedora: dnf install "
    "gcc)"
)


@pytest.fixture
def without_compiler(monkeypatch):
    monkeypatch.setenv("CC", "no-such-gcc -pthread")


@pytest.fixture
def without_headers(monkeypatch, tmp_path):
    """As Debian's python3 is: sysconfig names a folder that another package would fill."""
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return (
        f"Python's own headers are missing: there is no {tmp_path / 'Python.h'} (Debian and "
        f"Ubuntu: apt install python{VERSION}-dev; Fedora: dnf install python{VERSION}-devel)"
    )


def test_a_machine_that_built_the_extension_lacks_nothing():
    assert _toolchain.missing() == ""


@pytest.mark.usefixtures("without_compiler")
def test_a_missing_compiler_is_named_with_its_package():
    assert _toolchain.missing() == GCC
    assert _toolchain.not_built() == (
        f"cunorm.simgpu needs its C extension, which was not built: {GCC}. Then reinstall cunorm: "
        "`pip install --force-reinstall --no-deps --no-cache-dir cunorm`, or "
        "`pip install --no-deps -e .` in a clone"
    )


def test_a_compiler_without_python_s_headers_asks_for_the_headers(without_headers):
    assert _toolchain.missing() == without_headers
    assert f"{without_headers}. Then reinstall cunorm" in _toolchain.not_built()


@pytest.mark.usefixtures("without_compiler")
def test_both_are_named_where_both_are_missing(without_headers):
    assert _toolchain.missing() == f"{GCC}; {without_headers}"


@pytest.mark.parametrize("platform", ["win32", "darwin"])
def test_another_system_is_told_that_the_software_gpu_is_for_linux(monkeypatch, platform):
    monkeypatch.setattr(sys, "platform", platform)
    assert _toolchain.not_built() == (
        "cunorm.simgpu has no C extension here: the software GPU is for Linux alone, and this is "
        f"{platform} (on Windows, use WSL 2 or an NVIDIA GPU)"
    )


def test_the_file_runs_by_its_path_alone_as_the_build_runs_it():
    code = (
        "import runpy, sys\n"
        f"lacking = runpy.run_path({_toolchain.__file__!r})['missing']()\n"
        "print(lacking, 'cunorm' in sys.modules, sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {"CC": "no-such-gcc"},
        cwd=Path(_toolchain.__file__).parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"{GCC}\nFalse\n"
