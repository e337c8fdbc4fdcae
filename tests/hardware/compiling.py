"""Kernels compiled by all cores at once; CuPy's disk cache keeps them for what follows."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from typing import Any

from .cases import Case, few_rows
from .session import DRY, log, short, start_device

Work = Callable[[], Any]


def in_processes(
    work: Sequence[Work], workers: int, timeout: float
) -> Iterable[tuple[Work, Any, str | None]]:
    """Run each function in a process of a pool; yield it, its result, and what went wrong or None.

    A dry run runs them here, and lets pass what they raise.
    """
    if DRY:
        yield from ((function, function(), None) for function in work)
        return
    # A process that has used CUDA cannot be forked.
    pool = ProcessPoolExecutor(workers, mp_context=multiprocessing.get_context("spawn"))
    waiting = {pool.submit(function): function for function in work}
    try:
        for done in as_completed(waiting, timeout=timeout):
            function = waiting.pop(done)
            error = done.exception()
            if error is None:
                yield function, done.result(), None
            else:
                yield function, None, short(error, 300)
    except TimeoutError:
        log(f"{len(waiting)} of {len(work)} were not done in {timeout:.0f} s")
        for function in waiting.values():
            yield function, None, "not done in time"
        for process in list((pool._processes or {}).values()):
            process.kill()  # children of this process, by their handles
    pool.shutdown(wait=False, cancel_futures=True)


def compile_case(case: Case) -> None:
    """Compile the kernels of a case, by a call on few rows."""
    cupy = start_device()
    from cunorm._bench import cases as bench_cases

    few = few_rows(case)
    bench_cases.call(few, bench_cases.arrays(few))
    cupy.cuda.get_current_stream().synchronize()


def compile_cases(cases: Sequence[Case], workers: int, timeout: float) -> None:
    """Compile the kernels of all cases; say what failed."""
    kinds = {(c.op, c.dtype, c.cols): partial(compile_case, c) for c in cases}
    failed = [why for _, _, why in in_processes([*kinds.values()], workers, timeout) if why]
    log(f"{len(kinds)} calls compiled by {workers} processes, {len(failed)} not", *failed[:3])
