"""What `python -m cunorm info` prints: all that a kernel depends on, and what is to be done.

Whatever is asked here may be missing or broken, and every answer is a line all the same.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import json
import os
import platform
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from . import __version__, simgpu
from ._launch import kernels
from ._plan import tuning
from ._progress import counted

OLDEST_NUMPY = (2, 1, 2)  # from which on CuPy has bfloat16
INSTALL_CUPY = "pip install 'cunorm[cuda12]', or 'cunorm[cuda13]' for CUDA 13"


@dataclass(frozen=True)
class Line:
    """One thing that kernels need.

    Attributes
    ----------
    found : str
        What there is.
    todo : str
        What to do, where that is not what is needed.
    """

    found: str
    todo: str = ""

    @property
    def met(self) -> bool:
        """Whether there is nothing to do."""
        return not self.todo

    def __str__(self) -> str:
        return self.found if self.met else f"{self.found}: {self.todo}"


class _Unmet(Exception):
    """What was found is not what is needed; the arguments are those of the line."""


def lines() -> dict[str, Line]:
    """Return every line by its name; where there is no device, install the software GPU.

    What was tuned is a line where all that is needed is met.
    """
    found = {name: _line(*asked) for name, asked in _ASKED.items()}
    if all(line.met for line in found.values()):
        found["tuned"] = _line(_tuned, "delete it, and run python -m cunorm tune again")
    return found


def text(found: dict[str, Line]) -> str:
    """Return the lines as `info` prints them."""
    width = max(map(len, found))
    marks = {name: "ok" if line.met else "UNMET" for name, line in found.items()}
    return "\n".join(f"{name:<{width}}  {marks[name]:<5}  {found[name]}" for name in found)


def as_json(found: dict[str, Line]) -> str:
    """Return the lines as `info --json` prints them."""
    told = {
        name: {"met": line.met, "found": line.found, "todo": line.todo}
        for name, line in found.items()
    }
    return json.dumps({"met": all(line.met for line in found.values()), "lines": told}, indent=2)


def cache_folder() -> Path:
    """Return the folder where CuPy keeps compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()


def _line(ask: Callable[[], str], todo: str) -> Line:
    """Return what `ask` finds; an exception, whichever it is, is what was found."""
    try:
        return Line(ask())
    except _Unmet as unmet:
        return Line(*unmet.args)
    except Exception as error:
        return Line(_told(error), todo)


def _told(error: Exception) -> str:
    """Return the first line of an exception."""
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"


def _cunorm() -> str:
    return f"{__version__} in {Path(__file__).parent}"


def _python() -> str:
    return f"{platform.python_version()} on {platform.platform()}"


def _numpy() -> str:
    import numpy

    version = numpy.__version__
    if tuple(map(int, re.findall(r"\d+", version)[:3])) < OLDEST_NUMPY:
        oldest = ".".join(map(str, OLDEST_NUMPY))
        raise _Unmet(
            f"{version}, with which CuPy has no bfloat16", f"pip install 'numpy>={oldest}'"
        )
    return version


def _ml_dtypes() -> str:
    import ml_dtypes

    return str(ml_dtypes.__version__)


def _kernel_folder() -> str:
    return str(kernels.folder())


def _kernel_cache() -> str:
    folder = cache_folder()
    nearest = next(place for place in (folder, *folder.parents) if place.exists())
    try:
        tempfile.TemporaryFile(dir=nearest).close()
    except OSError as error:
        if os.environ.get("CUPY_CACHE_IN_MEMORY") == "1" and folder.is_dir():
            return "in memory"
        raise _Unmet(f"{folder} cannot be written to ({error.strerror})", _NO_CACHE) from error
    return str(folder)


def _software_gpu() -> str:
    try:
        from .simgpu import _access, _fma, _tables  # noqa: F401
    except ImportError as error:
        if simgpu.hardware_devices() > 0:
            return "not built, and not needed beside a CUDA device"
        raise _Unmet(
            f"not built ({error})",
            "install a C compiler and Python's headers (Debian: gcc, python3-dev), "
            "then reinstall cunorm",
        ) from error
    return "built"


def _device() -> str:
    """Return what the ops will run on, and let that be the software GPU where there is no other."""
    if not simgpu.installed() and simgpu.hardware_devices() == 0:
        try:
            simgpu.install()
        except Exception as error:
            found = f"no CUDA device, and no software GPU ({_told(error)})"
            raise _Unmet(found, _NO_DEVICE) from error
    import cupy

    properties = cupy.cuda.runtime.getDeviceProperties(cupy.cuda.Device().id)
    return f"{properties['name'].decode()} (sm_{properties['major']}{properties['minor']})"


def _cupy() -> str:
    names = sorted(set(importlib.metadata.packages_distributions().get("cupy", [])))
    found = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    if len(names) > 1:  # they share their files
        raise _Unmet(
            found,
            f"only one may be installed: pip uninstall {' '.join(names)}, then {INSTALL_CUPY}",
        )
    try:
        import cupy
    except ModuleNotFoundError:
        raise
    except Exception as error:
        raise _Unmet(f"{found} cannot be imported ({_told(error)})", _SEE_ABOVE) from error
    return found or f"cupy {cupy.__version__}"


def _nvrtc() -> str:
    from cuda import pathfinder  # type: ignore[import-untyped]

    path = pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path
    major, minor = ctypes.c_int(), ctypes.c_int()
    ctypes.CDLL(path).nvrtcVersion(ctypes.byref(major), ctypes.byref(minor))
    return f"{major.value}.{minor.value} in {path}"


def _cuda_headers() -> str:
    from cuda import pathfinder

    folder = pathfinder.find_nvidia_header_directory("cudart")
    if folder is None:
        raise _Unmet("not found", INSTALL_CUPY)
    if not (Path(folder) / "cuda_fp16.h").is_file():
        raise _Unmet(f"{folder}, without cuda_fp16.h", INSTALL_CUPY)
    return str(folder)


def _tuned() -> str:
    import cupy

    file = tuning.file_of(kernels.device(cupy.cuda.Device().id))
    if not file.exists():
        return f"nothing in {file}"
    return f"{counted(len(list(tuning.read(file))), 'shape')} in {file}"


_SEE_ABOVE = "see the lines above, or reinstall it"
_NO_DEVICE = "install NVIDIA's driver where there is a GPU, else see the other lines"
_NO_CACHE = "set CUPY_CACHE_DIR to a folder that can be written to"
# What is asked, and what to do where the answer is an exception. What CuPy needs to be imported
# comes before it, and so does the software GPU, if that is the device.
_ASKED: dict[str, tuple[Callable[[], str], str]] = {
    "cunorm": (_cunorm, "reinstall cunorm"),
    "python": (_python, "reinstall Python"),
    "numpy": (_numpy, "pip install numpy"),
    "ml_dtypes": (_ml_dtypes, "pip install ml_dtypes"),
    "kernels": (_kernel_folder, "reinstall cunorm"),
    "kernel_cache": (_kernel_cache, _NO_CACHE),
    "software_gpu": (_software_gpu, "reinstall cunorm"),
    "device": (_device, _NO_DEVICE),
    "cupy": (_cupy, INSTALL_CUPY),
    "nvrtc": (_nvrtc, INSTALL_CUPY),
    "cuda_headers": (_cuda_headers, INSTALL_CUPY),
}
