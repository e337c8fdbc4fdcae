"""Other ways to share out a row than the plan's, and the kernel of a call that goes one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from cunorm._plan import Way, tuning

from .cases import Case, few_rows
from .session import start_device


@contextmanager
def noting() -> Iterator[list[tuple[Any, Any]]]:
    """Note the plan and the kernel of each launch that is worked out meanwhile."""
    from cunorm._call import remembered
    from cunorm._launch import kernels

    noted = []
    load = kernels.load

    def note(plan: Any, *which: Any) -> Any:
        noted.append((plan, load(plan, *which)))
        return noted[-1][1]

    remembered.clear()  # a repeated call would not work it out again
    try:
        with patch.object(kernels, "load", note):
            yield noted
    finally:
        remembered.clear()


def kernel_of(case: Case, way: Way | None = None) -> tuple[Any, Any]:
    """Return the plan and the kernel of a call on few rows, which goes one way; None is its own."""
    cupy = start_device()
    from cunorm._bench import cases
    from cunorm._call import remembered

    few = few_rows(case)
    with remembered.by(way), noting() as noted:
        cases.call(few, cases.arrays(few))
    cupy.cuda.get_current_stream().synchronize()
    first: tuple[Any, Any] = noted[0]  # before the kernel that adds up sums of columns
    return first


def compile_way(case: Case, way: Way) -> None:
    """Compile a way, by a call on few rows."""
    kernel_of(case, way)


def ways(case: Case) -> list[Way]:
    """Return the way that serves a case, and then the others."""
    from cunorm._bench import cases
    from cunorm._call import remembered
    from cunorm._launch import kernels

    few = few_rows(case)
    with remembered.by(None) as asked:
        cases.call(few, cases.arrays(few))
    return tuning.choices(asked[0]._replace(rows=case.rows), kernels.device(0))


def fewer(found: list[Way], count: int) -> list[Way]:
    """Return the first of the ways, the plan's, and some of the others."""
    return found[:: max(1, len(found) // count)]
