"""From a plan to a compiled kernel: where kernels/ is, what it holds, how it is compiled.

Each kernel that is built is a line of the log "cunorm", at DEBUG.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from threading import Lock
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .._plan import Device

if TYPE_CHECKING:
    import cupy

    from .._plan import Reach, Try

_log = logging.getLogger("cunorm")


@cache
def folder() -> Path:
    """Return the folder of CUDA C files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "norm.cuh").is_file():
            return candidate
    raise FileNotFoundError(
        f"cunorm's CUDA C files are neither in {package / 'kernels'} nor in "
        f"{package.parent / 'kernels'}: the installation is incomplete, please reinstall cunorm"
    )


@cache
def fingerprint(kernels: Path) -> str:
    """Return a hash of every file in `kernels`.

    CuPy's disk cache knows a kernel by its source and its options, and does not look into included
    files. With this in the source, an edit of any of them is compiled.
    """
    digest = hashlib.sha256()
    for file in sorted(kernels.glob("*.cuh")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def device(number: int) -> Device:
    """Return what plans know of a device."""
    import cupy

    found = cupy.cuda.runtime.getDeviceProperties(number)
    arch = 10 * found["major"] + found["minor"]
    return Device(arch, found["multiProcessorCount"], found["name"].decode())


def arch(number: int) -> int:
    """Return a device's architecture, like 90."""
    return device(number).arch


_built: dict[tuple[Any, ...], cupy.RawKernel] = {}
_building: dict[tuple[Any, ...], Lock] = {}
_look = Lock()


def forget() -> None:
    """Forget every kernel."""
    _built.clear()


def load(plan: Any, reach: Reach | tuple[Reach, ...], device: int) -> cupy.RawKernel:
    """Return the kernel of a plan, compiled for one way of reaching its arrays.

    One that the assembler has no registers for is built again, until nothing of it is left in local
    memory, or nothing is left to try: see `Plan.tries`.

    Parameters
    ----------
    plan : Plan, RopePlan, ColumnSums, SegmentSums or Dequantised
        Which kernel, and what it is specialised for.
    reach : Reach or tuple of Reach
        What depends on the arrays of a call: their alignment, the levels of their rows.
    device : int
        The current device.

    Returns
    -------
    cupy.RawKernel
        One object for each combination, compiled and on the device.
    """
    which = (plan, reach, device)
    kernel = _built.get(which)
    if kernel is None:
        with _look:
            own = _building.setdefault(which, Lock())
        # Of several threads that want a kernel one builds it; those that want others go on.
        with own:
            kernel = _built.get(which)
            if kernel is None:
                kernel = _built[which] = _build(*which)
    return kernel


def _build(plan: Any, reach: Reach | tuple[Reach, ...], device: int) -> cupy.RawKernel:
    start = perf_counter()
    for attempt in plan.tries(reach):
        kernel = _compiled(plan, reach, attempt)
        if kernel.local_size_bytes == 0:
            break
    _log.debug(
        "%s on device %d (sm_%d) after %.0f ms: %s",
        *(plan.kernel, device, arch(device), 1e3 * (perf_counter() - start)),
        plan.summary(reach, attempt),
    )
    return kernel


def _compiled(plan: Any, reach: Reach | tuple[Reach, ...], attempt: Try) -> cupy.RawKernel:
    import cupy

    kernels = folder()
    code = f"// with kernels/ {fingerprint(kernels)}\n{plan.unit(reach, attempt)}"
    kernel = cupy.RawKernel(code, plan.kernel, ("--std=c++17", f"-I{kernels}"))
    if plan.shared_bytes > 0:
        # Past 48 KiB a device wants to be asked, for each kernel.
        kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    kernel.compile()
    return kernel
