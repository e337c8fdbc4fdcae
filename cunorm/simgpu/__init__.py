"""A software GPU under the unmodified CuPy: it executes the PTX that NVRTC produced.

``python -m cunorm.simgpu script.py`` runs a program on it; `install` does so from within, before
CuPy is imported. What it does not emulate raises `NotEmulated` or `UnknownInstruction`; what
hardware would punish or leave undefined raises another `Fault`.
"""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from . import children
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
    NotEmulated,
    OutOfBounds,
    SharedOutOfBounds,
    SharedRace,
    SharedUninitialised,
    Trap,
    Uninitialised,
    UnknownInstruction,
    UseAfterFree,
)
from .options import DEFAULT, Options

if TYPE_CHECKING:
    from .cuda.machine import Machine
    from .profiler.profile import Profile

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

_machine: Machine | None = None
_profiles: list[Profile] = []  # those that are open
_options: Options | None = None


def install(
    arch: int = DEFAULT.arch,
    devices: int = DEFAULT.devices,
    memory: int = DEFAULT.memory,
    *,
    uninitialised: bool = False,
    warp_races: bool = False,
    budget: int = DEFAULT.budget,
    stand_ins: bool = True,
) -> None:
    """Put simulated devices under CuPy in this process, and import it.

    Real devices are hidden: ``CUDA_VISIBLE_DEVICES`` is set to nothing, for a PyTorch with CUDA
    beside it and for processes that this one starts.

    Parameters
    ----------
    arch : int
        Compute capability without the dot: 75, 80, 86, 87, 89, 90, 100, 103, 120 or 121.
    devices : int
        How many devices there are.
    memory : int
        Bytes of memory of each device. Host memory is taken as it is written to.
    uninitialised : bool
        Whether kernels may read memory that nothing has written, for programs that mean it.
    warp_races : bool
        Whether lanes of one warp race in shared memory where no ``__syncwarp`` is between them.
    budget : int
        PTX instructions that the blocks executed together (up to 16,384 threads) may take before
        the launch is an `EndlessLoop`: one counts once for all threads that execute it together.
        Seconds would let a program pass on one machine and fail on a busy one.
    stand_ins : bool
        Whether what CuPy asks of NVIDIA's libraries (cuBLAS, cuRAND, ...) is computed on the host
        by NumPy; without, it raises `NotEmulated`.

    Raises
    ------
    RuntimeError
        Where CuPy was imported before or is a version that simgpu does not know, where simgpu was
        installed before with other options, by this program or for the one that started it, where
        its C extension was not built, or where CUDA is at work on a real device already.
    ValueError
        For an architecture that is not in the table, or less than one device, byte or instruction.

    See Also
    --------
    installed : Whether it was done.
    hardware_devices : Whether there is a GPU.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> import cupy
    >>> cupy.arange(4).sum()
    array(6)
    """
    _inherit()
    _put_under_cupy(Options(arch, devices, memory, uninitialised, warp_races, budget, stand_ins))


def _inherit() -> None:
    """Install the devices of the program that started this process, where it has some."""
    options = children.inherited()
    if _options is None and options is not None:
        _put_under_cupy(Options(**options))


def _put_under_cupy(options: Options) -> None:
    global _machine, _options
    if _options is not None:
        if _options[:3] != options[:3]:
            raise RuntimeError(
                "simgpu is installed with (arch, devices, memory) = "
                f"{_options[:3]} and cannot change to {options[:3]}"
            )
        return
    if options.devices < 1 or options.memory < 1:
        raise ValueError(
            f"devices and memory must be at least 1, not {options.devices} and {options.memory}"
        )
    if options.budget < 1:
        raise ValueError(f"budget must be at least 1, not {options.budget}")
    try:
        from . import _tables  # noqa: F401
    except ImportError as error:
        from . import _toolchain

        raise RuntimeError(_toolchain.not_built()) from error
    try:
        from .cuda.install import install as install_tables
    except ImportError as error:
        if error.name not in [f"{__name__}.{part}" for part in ("_access", "_fma", "_tables")]:
            raise
        raise RuntimeError(
            "cunorm.simgpu has a C extension of another version: reinstall cunorm"
        ) from error

    _hide_hardware()
    _machine = install_tables(options, _profiles)
    _options = options


def installed() -> bool:
    """Return whether this process's CuPy runs on simulated devices.

    In a process that a program on simulated devices started, they are installed by asking.

    Returns
    -------
    bool
        Whether `install` was called here, or ``python -m cunorm.simgpu`` started the program.

    See Also
    --------
    install : What does it.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> simgpu.installed()
    True
    """
    _inherit()
    return _machine is not None


def _installed_machine() -> Machine:
    _inherit()
    if _machine is None:
        raise RuntimeError("simgpu is not installed")
    return _machine


def enqueue_only() -> AbstractContextManager[None]:
    """Return a context in which launches are checked but not executed: host time remains.

    Returns
    -------
    context manager
        Nothing is to be read of what was launched in it.

    See Also
    --------
    profile : What kernels do, where time is not the question.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> import cupy
    >>> x = cupy.zeros(4)
    >>> with simgpu.enqueue_only():
    ...     x += 1
    >>> x
    array([0., 0., 0., 0.])
    """
    return _installed_machine().enqueue_only()


def profile(registers: bool = True, *, chains: bool = False) -> Profile:
    """Return a context in which every launch is counted: ``with simgpu.profile() as prof:``.

    Parameters
    ----------
    registers : bool
        Whether to assemble each kernel to learn its registers and spills, which costs a
        compilation by NVRTC. Without, occupancy is what the other limits allow.
    chains : bool
        Whether to follow each launch's longest chain of instructions that need one another, its
        `chain`. The launch runs several times as long.

    Returns
    -------
    Profile
        Its `launches` are `cunorm.simgpu.profiler.counters.LaunchCounters`; `table` shows them.

    See Also
    --------
    enqueue_only : What a launch costs on the host.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> import cupy
    >>> x = cupy.zeros(4)
    >>> with simgpu.profile(registers=False) as prof:
    ...     x += 1
    >>> len(prof.launches)
    1
    """
    from .profiler.profile import Profile

    return Profile(registers, _profiles, chains=chains)


def warp_races() -> AbstractContextManager[None]:
    """Return a context in which lanes of one warp race where no ``__syncwarp`` orders them.

    Returns
    -------
    context manager
        A race raises `SharedRace`.

    See Also
    --------
    install : Its `warp_races` is for the whole program.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> import cupy
    >>> with simgpu.warp_races():
    ...     total = cupy.arange(4).sum()
    >>> total
    array(6)
    """
    return _switched_on("warp_races")


def uninitialised() -> AbstractContextManager[None]:
    """Return a context in which kernels may read memory that nothing has written.

    Returns
    -------
    context manager
        Outside of it such a read raises `Uninitialised`.

    See Also
    --------
    install : Its `uninitialised` is for the whole program.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> simgpu.install()
    >>> import cupy
    >>> with simgpu.uninitialised():
    ...     total = cupy.empty(4).sum()
    >>> total.shape
    ()
    """
    return _switched_on("uninitialised")


@contextmanager
def _switched_on(switch: str) -> Iterator[None]:
    """Set one of the memory's switches, and leave it as it was."""
    memory = _installed_machine().memory
    before = getattr(memory, switch)
    setattr(memory, switch, True)
    try:
        yield
    finally:
        setattr(memory, switch, before)


def _driver_devices(mode: int, *, initialise: bool = False) -> int:
    """Return how many devices the driver reports; 0 without one, or while it is not initialised."""
    count = ctypes.c_int(0)
    try:
        driver = ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1", mode=mode)
    except OSError:
        return 0
    failed = (initialise and driver.cuInit(0)) or driver.cuDeviceGetCount(ctypes.byref(count))
    return 0 if failed else count.value


def _hide_hardware() -> None:
    """Let no other library in this process, and no process that it starts, find a real device.

    The simulated devices know nothing of memory there. CUDA reads the variable once, as its driver
    is initialised: afterwards it is too late.
    """
    # This loads no driver: it finds the one that a library of this process has loaded.
    count = _driver_devices(getattr(os, "RTLD_NOLOAD", 0))
    if count > 0:
        raise RuntimeError(
            f"CUDA is initialised in this process, with {count} real device(s), on which "
            "PyTorch or another library may be at work: install the simulated ones before, or set "
            "CUDA_VISIBLE_DEVICES to nothing before"
        )
    os.environ["CUDA_VISIBLE_DEVICES"] = ""


def hardware_devices() -> int:
    """Return how many real CUDA devices the driver reports; 0 where there is no driver.

    To ask initialises CUDA, so that devices it finds can no longer be hidden by `install`.

    Returns
    -------
    int
        Of the driver, whatever CuPy sees.

    See Also
    --------
    install : The software GPU, for where there are none.

    Examples
    --------
    >>> from cunorm import simgpu
    >>> if simgpu.hardware_devices() == 0:
    ...     simgpu.install()
    """
    return _driver_devices(ctypes.DEFAULT_MODE, initialise=True)
