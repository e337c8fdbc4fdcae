"""Deliberate mistakes in copies of kernels/: each must give a wrong result or a fault."""

import shutil

import pytest
from mutations import MUTATIONS
from probes import PROBES

from cunorm._call import remembered
from cunorm._launch import kernels

pytestmark = [
    pytest.mark.slow(
        "builds kernels/ with a mistake each time: about the tests, not about the kernels",
        shares=20,
    ),
    pytest.mark.simgpu,  # on hardware these would write wherever they happen to
]


@pytest.fixture(autouse=True)
def fresh_kernels():
    remembered.clear()
    yield
    remembered.clear()


@pytest.mark.parametrize(
    ("file", "before", "after", "probe"),
    [pytest.param(*rest, id=name) for name, *rest in MUTATIONS],
)
def test_a_mistake_in_a_kernel_is_noticed(tmp_path, monkeypatch, file, before, after, probe):
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    text = (copy / file).read_text()
    assert before in text, "the kernel has changed: say the mistake anew"
    (copy / file).write_text(text.replace(before, after))
    monkeypatch.setattr(kernels, "folder", lambda: copy)
    faults = PROBES[probe].run().faults
    assert faults
    # A mutant that does not compile proves nothing about the tests.
    assert "CompileException" not in faults[0], faults[0]


@pytest.mark.parametrize("probe", sorted({probe for *_, probe in MUTATIONS}))
def test_the_kernels_as_they_are_pass_the_same_probes(probe):
    assert PROBES[probe].run().faults == []


def test_a_mistake_that_changes_nothing_is_not_noticed(tmp_path, monkeypatch):
    # Otherwise copying the kernels and pointing the library at the copy might be the fault.
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    monkeypatch.setattr(kernels, "folder", lambda: copy)
    assert PROBES["rms_norm float32 (3, 769) row-strided"].run().faults == []
