"""Chooses the device for the whole session: hardware where there is some, else the software GPU."""

from __future__ import annotations

import gc
import os

if "PYTEST_XDIST_WORKER" in os.environ:  # each has a core: before what reads this is imported
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import subprocess
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from turns import TURNS
from whole_session import runs_instructions

from cunorm import simgpu

PROCESS_MEMORY = 4 << 30  # what the largest files of tests take, with what Python keeps of it
SHARES = 10  # of the cases marked as slow, of which a run takes one by default
DEVICES = 2  # so that tests of several devices run; hardware has as many as it has


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cunorm")
    group.addoption("--slow", action="store_true", help="every case of the tests marked as slow")
    group.addoption(
        "--every-kernel", action="store_true", help="assemble every kernel in test_registers.py"
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "simgpu(why): needs the software GPU in this process")
    of_each_commit = f"of its cases each commit runs 1 in `shares`, {SHARES} if not given"
    config.addinivalue_line(
        "markers",
        f"slow(why, shares, together): {of_each_commit}; those that share `together` in one",
    )
    # The models of transformers are built here, and nothing is fetched.
    os.environ["HF_HUB_OFFLINE"] = "1"
    # `python -m cunorm.simgpu -m pytest` and `pytest --simgpu` have installed it.
    if not simgpu.installed() and simgpu.hardware_devices() == 0:
        with pytest.MonkeyPatch.context() as patch:
            # Of a kernel of CuPy's own two thirds of the time goes into its headers: 165 ms become
            # 60. NVRTC then reads a header once a process, wherever it changes, and writes into the
            # current folder: tests edit copies in new folders, and their processes are not asked.
            if os.access(".", os.W_OK):
                patch.setenv("CUPY_NVRTC_USE_PCH", "1")
            try:
                simgpu.install(devices=DEVICES)
            except RuntimeError as error:
                raise pytest.UsageError(str(error)) from error
    if not config.getoption("numprocesses", None):  # else that is for the workers of xdist to do
        os.environ.pop("CUNORM_SIMGPU", None)  # tests start processes with devices of their own


def pytest_report_header(config: pytest.Config) -> str:
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(0)
    count, name = cupy.cuda.runtime.getDeviceCount(), properties["name"].decode()
    return f"device: {count} x {name} (sm_{properties['major']}{properties['minor']})"


@pytest.fixture(scope="session", autouse=True)
def untuned_plans(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Let rows be few up to 4, so that tests on some rows meet the plans of few and of many.

    What the user has tuned is none of the tests'.
    """
    from cunorm._launch import kernels

    device = kernels.device
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CUNORM_CACHE_DIR", str(tmp_path_factory.mktemp("cunorm")))
        patch.setattr(kernels, "device", lambda number: device(number)._replace(multiprocessors=4))
        yield


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Return how many processes `pytest -n auto` has: as many as have a core and memory each.

    A GPU is not shared out: there the tests run in this one process, as without `-n`.
    """
    simulated = config.getoption("--simgpu") or config.getoption("--simgpu-arch") is not None
    if not simulated and simgpu.hardware_devices() > 0:
        return 0
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(1, min(len(os.sched_getaffinity(0)), memory // PROCESS_MEMORY))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole files in their order, and those about one session to one process."""
    from xdist.scheduler import LoadFileScheduling

    # By the number of their tests, the files of a few long ones came last, to one process.
    config.option.loadscopereorder = False

    class WholeFiles(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = Path(super()._split_scope(nodeid))
            session = runs_instructions(file.name) or file.name == "test_forms.py"
            return "instructions" if session else str(file)

    return WholeFiles(config, log)


def pytest_collection_finish(session: pytest.Session) -> None:
    # What is imported by now stays: the garbage collector looked through it again and again, for
    # a fifteenth of all the time that the tests took, and for another one through what is young.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:
        why = TURNS.get("/".join(item.path.parts[-2:]))
        if why is not None and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.slow(why))
    if not config.getoption("--slow"):
        named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
        whole = bool({config.rootpath, config.rootpath / "tests"} & named)
        commit = _commit(config.rootpath)
        left_out = {item for item in items if _is_left_out(item, commit, named, whole)}
        config.hook.pytest_deselected(items=[item for item in items if item in left_out])
        items[:] = [item for item in items if item not in left_out]
    if "PYTEST_XDIST_WORKER" in os.environ:
        reason = "takes times, and other processes run: pytest tests/benchmarks"
        for item in items:
            counts = item.path.name == "test_kernel_counters.py"
            if "benchmark" in getattr(item, "fixturenames", ()) and not counts:
                item.add_marker(pytest.mark.skip(reason=reason))
    if not simgpu.installed():
        for item in items:
            mark = item.get_closest_marker("simgpu")
            if mark is not None:
                (why,) = mark.args or ("about the software GPU",)
                item.add_marker(pytest.mark.skip(reason=f"{why}; run with --simgpu"))


def _commit(root: Path) -> int:
    """Return a number of this commit, by which its runs take their share of the slow cases."""
    asked = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(asked, capture_output=True, text=True)
    return int(found.stdout[:8] or "0", 16)


def _is_left_out(item: pytest.Item, commit: int, named: set[Path], whole: bool) -> bool:
    """Return whether an item is a slow one of another share; who names its file asks for all.

    A run of some folders, and not of the `whole` suite, takes none of what fewer commits run.
    """
    slow = item.get_closest_marker("slow")
    folder = item.path.parent
    asked_for = item.path in named or (folder in named and folder.name == "slow")
    if slow is None or asked_for:
        return False
    shares = slow.kwargs.get("shares", SHARES)
    if shares > SHARES and not whole:
        return True
    together = slow.kwargs.get("together", item.nodeid)
    return (zlib.crc32(together.encode()) - commit) % shares != 0


@pytest.fixture(scope="module", autouse=True)
def _own_kernels() -> Iterator[None]:
    """Forget every kernel after each file: on the software GPU one takes some MB, as decoded."""
    yield
    import cupy

    from cunorm._call import remembered

    remembered.clear()
    cupy.clear_memo()
