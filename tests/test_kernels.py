"""kernels/: found in a checkout and installed, hashed whole, compiled for every architecture."""

from __future__ import annotations

import shutil
import subprocess
import sys

import cupy
import pytest

from cunorm import _kernels, _plan, _plan_backward


def test_the_folder_has_the_kernels_of_every_plan():
    for plan in (
        _plan.rms_norm_fwd(64, "float16", None, cast_before=True, gamma_offset=False, arch=90),
        _plan.layer_norm_fwd(64, "float16", None, None, arch=90),
        _plan_backward.rms_norm_bwd(
            64, "float16", None, gamma_offset=False, dresidual=False, arch=90
        ),
        _plan_backward.layer_norm_bwd(64, "float16", None, dresidual=False, arch=90),
        _plan_backward.column_sums("float16", "float16"),
    ):
        assert plan.kernel in (_kernels.folder() / plan.source).read_text()


@pytest.mark.parametrize("name", ["rms_norm.cu", "vec.cuh"])
def test_an_edit_of_any_file_changes_the_fingerprint(name, tmp_path):
    copy = shutil.copytree(_kernels.folder(), tmp_path / "kernels")
    assert _kernels.fingerprint(copy) == _kernels.fingerprint(_kernels.folder())
    edited = shutil.copytree(copy, tmp_path / "edited")
    (edited / name).write_text((edited / name).read_text() + "\n")
    assert _kernels.fingerprint(edited) != _kernels.fingerprint(copy)


def test_the_fingerprint_is_among_the_options():
    kernel = _kernels.load(_plan_backward.column_sums("float16", "float16"), (), 0)
    assert isinstance(kernel, cupy.RawKernel)
    assert f"-DCUNORM_SOURCES={_kernels.fingerprint(_kernels.folder())}" in kernel.options


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
from cunorm import _kernels

folder = pathlib.Path(sys.argv[1])
_kernels.folder = lambda: folder
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
    copy = shutil.copytree(_kernels.folder(), tmp_path / "kernels")

    def compilations():
        run = subprocess.run(
            [sys.executable, "-c", PROCESS, copy], capture_output=True, text=True, check=True
        )
        return int(run.stdout)

    assert compilations() == 2
    assert compilations() == 0
    for file in sorted(copy.glob("*.cu*")):
        file.write_text(file.read_text() + "// edited\n")
        assert compilations() == 2, file.name
    assert compilations() == 0
