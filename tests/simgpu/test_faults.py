"""The words of a fault: what, and where."""

import pickle
import sys
import traceback

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


KINDS = [kind for kind in vars(faults).values() if isinstance(kind, type)]


@pytest.mark.parametrize(
    "kind", [kind for kind in KINDS if issubclass(kind, faults.Fault) and kind is not faults.Fault]
)
def test_the_line_below_the_message_says_what_usually_causes_a_fault_and_what_to_try(kind):
    fault = kind("it went wrong")
    shown = traceback.format_exception_only(kind, fault)
    assert shown[0] == f"{kind.__module__}.{kind.__qualname__}: it went wrong\n"
    if sys.version_info >= (3, 11):
        assert shown[1] == f"Usually: {fault.usually}\n"
    assert [part for part in fault.usually.split(". ") if part]
    assert fault.usually.endswith(".")
    assert kind.usually is not faults.Fault.usually


def test_a_caret_stands_below_the_source_line():
    place = faults.Place("k", 12, source_text="y[i] = x[i + 1];", source_column=7)
    assert faults.OutOfBounds("4-byte access", place).__notes__[1:] == [
        "  y[i] = x[i + 1];\n         ^"
    ]


def test_where_the_column_is_not_known_there_is_no_caret():
    assert len(faults.OutOfBounds("x", faults.Place("k", source_text="x;")).__notes__) == 1


def test_the_notes_of_a_fault_pass_to_another_process():
    place = faults.Place("k", 12, source_text="x[i] = 1;", source_column=0)
    fault = faults.OutOfBounds("4-byte access", place)
    copy = pickle.loads(pickle.dumps(fault))
    assert (copy.what, copy.place, copy.__notes__) == (fault.what, place, fault.__notes__)
