"""The words of a fault: what, and where."""

import pytest

from cunorm.simgpu import faults


def test_a_place_says_what_is_known():
    place = faults.Place("k", 12, "ld.global.u32 %r1, [%rd1]", "norm.cu:7", (1, 0, 0), (31, 0, 0))
    assert str(place) == (
        "kernel k, PTX line 12 `ld.global.u32 %r1, [%rd1]`, norm.cu:7,"
        " block (1, 0, 0), thread (31, 0, 0)"
    )
    assert str(faults.Place()) == ""


def test_at_fills_the_place_in_and_keeps_the_class():
    fault = faults.OutOfBounds("4-byte access").at(kernel="k", thread=(3, 0, 0))
    assert type(fault) is faults.OutOfBounds
    assert str(fault) == "4-byte access (kernel k, thread (3, 0, 0))"


@pytest.mark.parametrize(
    "name", [name for name in vars(faults) if isinstance(getattr(faults, name), type)]
)
def test_every_fault_is_a_fault(name):
    kind = getattr(faults, name)
    if issubclass(kind, Exception):
        assert issubclass(kind, faults.Fault)
        assert kind.__doc__
