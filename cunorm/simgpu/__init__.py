"""A software GPU under the unmodified CuPy: it executes the PTX that NVRTC produced.

``python -m cunorm.simgpu script.py`` runs a program on it; `install` does so from within, before
CuPy is imported. What it does not emulate raises `NotEmulated` or `UnknownInstruction`; what
hardware would punish or leave undefined raises another `Fault`.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from . import _toolchain
from .errors import NotEmulated
from .faults import (
    AbsentBlock,
    BarrierMisuse,
    CopyInFlight,
    DivergentBarrier,
    EndlessLoop,
    Fault,
    GlobalRace,
    LaunchError,
    LocalOutOfBounds,
    Misaligned,
    MissingLanes,
    NoPeerAccess,
    OutOfBounds,
    SharedOutOfBounds,
    SharedRace,
    SharedUninitialised,
    Trap,
    Uninitialised,
    UnknownInstruction,
    UseAfterFree,
)

if TYPE_CHECKING:
    from .machine import Machine
    from .profiling import Profile

__all__ = [
    "AbsentBlock",
    "BarrierMisuse",
    "CopyInFlight",
    "DivergentBarrier",
    "EndlessLoop",
    "Fault",
    "GlobalRace",
    "LaunchError",
    "LocalOutOfBounds",
    "Misaligned",
    "MissingLanes",
    "NoPeerAccess",
    "NotEmulated",
    "OutOfBounds",
    "SharedOutOfBounds",
    "SharedRace",
    "SharedUninitialised",
    "Trap",
    "Uninitialised",
    "UnknownInstruction",
    "UseAfterFree",
    "enqueue_only",
    "hardware_devices",
    "install",
    "installed",
    "profile",
    "uninitialised",
    "warp_races",
]

DEFAULT_ARCH = 90
DEFAULT_MEMORY = 8 << 30

_machine: Machine | None = None
_options: tuple[int, int, int] | None = None


def install(
    arch: int = DEFAULT_ARCH,
    devices: int = 1,
    memory: int = DEFAULT_MEMORY,
    *,
    uninitialised: bool = False,
    warp_races: bool = False,
) -> None:
    """Put simulated devices under CuPy in this process, and import it.

    Parameters
    ----------
    arch : int
        Compute capability without the dot: 75, 80, 86, 89, 90, 100 or 120.
    devices : int
        How many devices there are.
    memory : int
        Bytes of memory of each device. Host memory is taken as it is written to.
    uninitialised : bool
        Whether kernels may read memory that nothing has written, for programs that mean it.
    warp_races : bool
        Whether lanes of one warp race in shared memory where no ``__syncwarp`` is between them.

    Raises
    ------
    RuntimeError
        Where CuPy was imported before or is a version that simgpu does not know, where simgpu was
        installed before with other options, or where its C extension was not built.
    ValueError
        For an architecture that is not in the table, or less than one device or byte.
    """
    global _machine, _options
    options = (arch, devices, memory)
    if _options is not None:
        if _options != options:
            raise RuntimeError(
                "simgpu is installed with (arch, devices, memory) = "
                f"{_options} and cannot change to {options}"
            )
        return
    if devices < 1 or memory < 1:
        raise ValueError(f"devices and memory must be at least 1, not {devices} and {memory}")
    try:
        from . import _tables  # noqa: F401
    except ImportError as error:
        raise RuntimeError(_toolchain.not_built()) from error
    try:
        from ._install import install as install_tables
    except ImportError as error:
        if error.name not in (f"{__name__}._tables", f"{__name__}._fma"):
            raise
        raise RuntimeError(
            "cunorm.simgpu has a C extension of another version: reinstall cunorm"
        ) from error

    _machine = install_tables(arch, devices, memory)
    _machine.memory.uninitialised = uninitialised
    _machine.memory.warp_races = warp_races
    _options = options


def installed() -> bool:
    """Return whether this process's CuPy runs on simulated devices."""
    return _machine is not None


def enqueue_only() -> AbstractContextManager[None]:
    """Return a context in which launches are checked but not executed: host time remains."""
    if _machine is None:
        raise RuntimeError("simgpu is not installed")
    return _machine.enqueue_only()


def profile(registers: bool = True) -> Profile:
    """Return a context in which every launch is counted: ``with simgpu.profile() as prof:``.

    Parameters
    ----------
    registers : bool
        Whether to assemble each kernel to learn its registers and spills, which costs a
        compilation by NVRTC. Without, occupancy is what the other limits allow.

    Returns
    -------
    Profile
        Its `launches` are `cunorm.simgpu.counters.LaunchCounters`; `table` shows them.
    """
    from .profiling import Profile

    return Profile(registers)


def warp_races() -> AbstractContextManager[None]:
    """Return a context in which lanes of one warp race where no ``__syncwarp`` orders them."""
    return _switched_on("warp_races")


def uninitialised() -> AbstractContextManager[None]:
    """Return a context in which kernels may read memory that nothing has written."""
    return _switched_on("uninitialised")


@contextmanager
def _switched_on(switch: str) -> Iterator[None]:
    """Set one of the memory's switches, and leave it as it was."""
    if _machine is None:
        raise RuntimeError("simgpu is not installed")
    memory = _machine.memory
    before = getattr(memory, switch)
    setattr(memory, switch, True)
    try:
        yield
    finally:
        setattr(memory, switch, before)


def hardware_devices() -> int:
    """Return how many real CUDA devices the driver reports; 0 where there is no driver."""
    library = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(library)
    except OSError:
        return 0
    count = ctypes.c_int(0)
    failed = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value
