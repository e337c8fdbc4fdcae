"""A kernel is built until the assembler has registers for all of it."""

import time
from types import SimpleNamespace

import plans
import pytest
from threads import at_once

from cunorm import _plan
from cunorm._call import remembered
from cunorm._launch import kernels

PLAN = plans.rms_norm(40, "float32", None, cast="after", arch=90)
REACH = _plan.Reach((("y", "ALIGNED"), ("x", "ALIGNED")))
TRIES = list(PLAN.tries(REACH))


@pytest.fixture(autouse=True)
def nothing_built():
    remembered.clear()
    yield
    remembered.clear()


@pytest.mark.parametrize("in_vain", [0, 2, len(TRIES) - 1, len(TRIES)])
def test_the_first_kernel_without_local_memory_is_taken_else_the_last(monkeypatch, in_vain):
    built = []

    def building(plan, reach, attempt):
        built.append(attempt)
        return SimpleNamespace(local_size_bytes=8 if len(built) <= in_vain else 0, by=attempt)

    monkeypatch.setattr(kernels, "_compiled", building)
    assert len(TRIES) > 3
    assert kernels.load(PLAN, REACH, 0).by == built[-1]
    assert built == TRIES[: in_vain + 1]


def test_threads_that_want_one_kernel_at_once_build_it_once(monkeypatch):
    built = []

    def building(plan, reach, attempt):
        built.append(plan)
        time.sleep(0.1)  # all threads ask meanwhile
        return SimpleNamespace(local_size_bytes=0)

    monkeypatch.setattr(kernels, "_compiled", building)
    found = at_once(lambda _: kernels.load(PLAN, REACH, 0))
    assert len(built) == 1
    assert {id(kernel) for kernel in found} == {id(found[0])}
