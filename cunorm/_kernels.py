"""From a plan to a compiled kernel: where kernels/ is, what it holds, how it is compiled.

Each kernel that is built is a line of the log "cunorm", at DEBUG.
"""

from __future__ import annotations

import hashlib
import logging
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import cupy

    from ._plan import Plan
    from ._plan_backward import ColumnSums

Defines = tuple[tuple[str, str | int], ...]

_log = logging.getLogger("cunorm")


@cache
def folder() -> Path:
    """Return the folder of CUDA C files: in the installed package, or beside it in a checkout."""
    package = Path(__file__).resolve().parent
    for candidate in (package / "kernels", package.parent / "kernels"):
        if (candidate / "rms_norm.cu").is_file():
            return candidate
    raise FileNotFoundError(
        f"cunorm's CUDA C files are neither in {package / 'kernels'} nor in "
        f"{package.parent / 'kernels'}: the installation is incomplete, please reinstall cunorm"
    )


@cache
def fingerprint(kernels: Path) -> str:
    """Return a hash of every file in `kernels`.

    CuPy's disk cache knows a kernel by its source and its options, and does not look into included
    files. With this among the options, an edit of any of them is compiled.
    """
    digest = hashlib.sha256()
    for file in sorted((*kernels.glob("*.cu"), *kernels.glob("*.cuh"))):
        digest.update(file.name.encode() + b"\0" + file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


@cache
def arch(device: int) -> int:
    """Return a device's architecture, like 90."""
    import cupy

    return int(cupy.cuda.Device(device).compute_capability)


@cache
def multiprocessors(device: int) -> int:
    """Return how many multiprocessors a device has."""
    import cupy

    return int(cupy.cuda.Device(device).attributes["MultiProcessorCount"])


@cache
def load(plan: Plan | ColumnSums, access: Defines, device: int) -> cupy.RawKernel:
    """Return the kernel of a plan, compiled for one way of reaching its arrays.

    Parameters
    ----------
    plan : Plan
        Which kernel, and what it is specialised for.
    access : tuple of (str, str or int)
        Definitions that depend on the arrays of a call: their alignment, the levels of their rows.
    device : int
        The current device.

    Returns
    -------
    cupy.RawKernel
        One object for each combination, compiled and on the device.
    """
    import cupy

    start = perf_counter()
    kernels = folder()
    # Compiler messages and profilers then name the file, not CuPy's temporary copy of it.
    code = f'#line 1 "kernels/{plan.source}"\n' + (kernels / plan.source).read_text("utf-8")
    defines = [f"{name}={value}" for name, value in plan.defines + access]
    options = (
        f"-I{kernels}",
        f"-DCUNORM_SOURCES={fingerprint(kernels)}",
        *(f"-D{define}" for define in defines),
    )
    kernel = cupy.RawKernel(code, plan.kernel, options)
    if plan.shared_bytes > 0:
        # Past 48 KiB a device wants to be asked, for each kernel.
        kernel.max_dynamic_shared_size_bytes = plan.shared_bytes
    kernel.compile()
    _log.debug(
        "%s on device %d (sm_%d) after %.0f ms: %s",
        *(plan.kernel, device, arch(device), 1e3 * (perf_counter() - start), " ".join(defines)),
    )
    return kernel
