"""A kernel is built until the assembler has registers for all of it."""

import pytest

from cunorm import _calls, _kernels, _plan

PLAN = _plan.rms_norm_fwd(40, "float32", None, cast_before=False, gamma_offset=False, arch=90)
REACH = _plan.Reach((("y", "ALIGNED"), ("x", "ALIGNED")))
TRIES = list(PLAN.tries(REACH))


@pytest.fixture(autouse=True)
def nothing_built():
    _calls.clear()
    yield
    _calls.clear()


@pytest.mark.parametrize("enough", [0, 2, len(TRIES)])
def test_the_first_kernel_that_has_its_registers_is_taken_else_the_last(monkeypatch, enough):
    built, compiled = [], _kernels._compiled

    def building(plan, reach, attempt):
        built.append(attempt)
        return compiled(plan, reach, attempt)

    monkeypatch.setattr(_kernels, "_compiled", building)
    monkeypatch.setattr(_kernels, "has_its_registers", lambda kernel: len(built) > enough)
    assert len(TRIES) > 2
    assert _kernels.load(PLAN, REACH, 0).name == "rms_norm_fwd"
    assert built == TRIES[: enough + 1]


@pytest.mark.parametrize("bytes_of_stack", [0, 8])
def test_a_kernel_with_local_memory_has_not_its_registers(bytes_of_stack):
    kernel = type("Kernel", (), {"local_size_bytes": bytes_of_stack})
    assert _kernels.has_its_registers(kernel) == (bytes_of_stack == 0)
