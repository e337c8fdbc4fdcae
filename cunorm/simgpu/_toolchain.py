"""What the C extension needs to be built, and which package has what is missing.

The build runs this file by its path, before there is a package: it imports the standard library.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path


def missing() -> str:
    """Return what a build of the extension lacks here, and how to get it; empty where nothing."""
    if sys.platform != "linux":
        return (
            f"the software GPU is for Linux alone, and this is {sys.platform} "
            "(on Windows, use WSL 2 or an NVIDIA GPU)"
        )
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    lacking = []
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")[0]
    if shutil.which(compiler) is None:
        lacking.append(
            f"there is no C compiler {compiler} (Debian and Ubuntu: apt install gcc; "
            "Fedora: dnf install gcc)"
        )
    headers = Path(sysconfig.get_path("include"))
    if not (headers / "Python.h").is_file():
        lacking.append(
            f"Python's own headers are missing: there is no {headers / 'Python.h'} (Debian and "
            f"Ubuntu: apt install python{version}-dev; Fedora: dnf install python{version}-devel)"
        )
    return "; ".join(lacking)


REINSTALL = (
    "reinstall cunorm: `pip install --force-reinstall --no-deps --no-cache-dir cunorm`, or "
    "`pip install --no-deps -e .` in a clone"
)


def not_built() -> str:
    """Return why there is no extension here, as far as that can be seen now, and what to do."""
    lacking = missing()
    if not lacking:
        return (
            "cunorm.simgpu needs its C extension, which was not built, though there are a C "
            f"compiler and Python's headers here. {REINSTALL[0].upper()}{REINSTALL[1:]}; with "
            "`-v`, pip shows what the compiler says"
        )
    if sys.platform != "linux":
        return f"cunorm.simgpu has no C extension here: {lacking}"
    return f"cunorm.simgpu needs its C extension, which was not built: {lacking}. Then {REINSTALL}"
