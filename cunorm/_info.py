"""What `python -m cunorm info` prints: the versions and folders that a kernel depends on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import cupy
from cuda import pathfinder  # type: ignore[import-untyped]

from . import __version__, _kernels


def rows(device: str | None) -> Iterator[tuple[str, str]]:
    """Yield name and value, line by line."""
    yield "cunorm", f"{__version__} in {Path(__file__).parent}"
    yield "cupy", _cupy_distributions()
    yield "numpy", _version("numpy")
    yield "ml_dtypes", _version("ml_dtypes")
    yield "python", f"{platform.python_version()} on {platform.platform()}"
    yield "device", device or "none"
    yield "NVRTC", "{}.{} in {}".format(*cupy.cuda.nvrtc.getVersion(), _nvrtc_library())
    yield "CUDA headers", pathfinder.find_nvidia_header_directory("cudart") or "not found"
    yield "kernels", str(_kernels.folder())
    yield "kernel cache", str(cache_folder())


def cache_folder() -> Path:
    """Return the folder where CuPy keeps compiled kernels."""
    return Path(os.environ.get("CUPY_CACHE_DIR", "~/.cupy/kernel_cache")).expanduser()


def _cupy_distributions() -> str:
    """Return the installed distributions of CuPy: only one may be, since they share files."""
    names = sorted(set(importlib.metadata.packages_distributions().get("cupy", [])))
    found = ", ".join(f"{name} {_version(name)}" for name in names) or cupy.__version__
    if len(names) > 1:
        return f"{found}: only one may be installed, uninstall all of them and install one"
    return found


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _nvrtc_library() -> str:
    try:
        return str(pathfinder.load_nvidia_dynamic_lib("nvrtc").abs_path)
    except pathfinder.DynamicLibNotFoundError as error:
        return f"no library: {error}"
