"""kernels/: found in a checkout and installed, hashed whole, compiled for every architecture."""

from __future__ import annotations

import shutil

import cupy
import pytest

from cunorm import _kernels, _plan


def test_the_folder_has_the_kernels_of_every_plan():
    for plan in (
        _plan.rms_norm_fwd(64, "float16", None, cast_before=True, gamma_offset=False, arch=90),
        _plan.layer_norm_fwd(64, "float16", None, None, arch=90),
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
    plan = _plan.rms_norm_fwd(64, "float16", None, cast_before=True, gamma_offset=False, arch=90)
    kernel = _kernels.load(plan, (), 0)
    assert isinstance(kernel, cupy.RawKernel)
    assert f"-DCUNORM_SOURCES={_kernels.fingerprint(_kernels.folder())}" in kernel.options
