"""kernels/: found in a checkout and installed, hashed whole, compiled for every architecture."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys

import cupy
import plans
import pytest

from cunorm import _plan
from cunorm._launch import kernels


def test_the_folder_has_what_the_unit_of_every_plan_includes():
    for plan in (
        plans.rms_norm(64, "float16", None, arch=90),
        plans.layer_norm_bwd(64, "float16", None, dresidual=False, arch=90),
        _plan.column_sums("float16", "float16"),
    ):
        unit = plan.unit(_plan.Reach(()), _plan.Try(1, 4))
        (included,) = re.findall(r'#include "(.*)"', unit)
        assert (kernels.folder() / included).is_file()


@pytest.mark.parametrize("name", sorted(file.name for file in kernels.folder().glob("*.cuh")))
def test_an_edit_of_any_file_changes_the_fingerprint(name, tmp_path):
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    assert kernels.fingerprint(copy) == kernels.fingerprint(kernels.folder())
    edited = shutil.copytree(copy, tmp_path / "edited")
    (edited / name).write_text((edited / name).read_text() + "\n")
    assert kernels.fingerprint(edited) != kernels.fingerprint(copy)


def test_the_fingerprint_is_in_the_source():
    kernel = kernels.load(_plan.column_sums("float16", "float16"), _plan.Reach(()), 0)
    assert isinstance(kernel, cupy.RawKernel)
    assert f"// with kernels/ {kernels.fingerprint(kernels.folder())}\n" in kernel.code


# Run the ops and say how often NVRTC was asked for one of cunorm's kernels.
PROCESS = """
import cunorm.simgpu
if not cunorm.simgpu.hardware_devices():
    cunorm.simgpu.install()
import pathlib
import sys
import cupy
from cupy.cuda import compiler
import cunorm
from cunorm._launch import kernels

folder = pathlib.Path(sys.argv[1])
kernels.folder = lambda: folder
asked = []
compile = compiler._NVRTCProgram.compile
def counting(self, *arguments, **options):
    asked.extend(["cunorm"] * ("kernels/" in self.src))
    return compile(self, *arguments, **options)
compiler._NVRTCProgram.compile = counting

x = cupy.ones((3, 40), "float32")
cunorm.rms_norm(x)
cunorm.add_layer_norm(x, x)
print(len(asked))
"""


def test_a_second_process_compiles_nothing_until_a_file_in_kernels_is_edited(tmp_path, monkeypatch):
    """CuPy's disk cache does not look into included files: an edit of one was served stale."""
    monkeypatch.setenv("CUPY_CACHE_DIR", str(tmp_path / "cache"))
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")

    def compilations():
        run = subprocess.run(
            [sys.executable, "-c", PROCESS, copy], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert compilations() == 2
    assert compilations() == 0
    included = copy / "packet.cuh"  # by others; any edit of any file changes the fingerprint
    included.write_text(included.read_text() + "// edited\n")
    assert compilations() == 2
    assert compilations() == 0
