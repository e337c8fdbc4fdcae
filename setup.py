"""What pyproject.toml cannot say: kernels/ goes into the package, and the extensions are optional.

`kernels/` stays at the top of the repository, and a wheel has it as `cunorm/kernels`. A mapping of
folders to packages would say so too, but then setuptools makes an editable install an import hook,
which type checkers and editors do not follow; so it is one line that names the repository.
"""

import runpy
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SIMGPU = "cunorm/simgpu"
missing = runpy.run_path(str(ROOT / SIMGPU / "_toolchain.py"))["missing"]


class BuildWithKernels(build_py):
    """Copy the CUDA C files beside the modules; an editable install finds them where they are."""

    def run(self) -> None:
        """Build the modules, then add the kernels."""
        super().run()
        if self.editable_mode:
            return
        target = Path(self.build_lib, "cunorm", "kernels")
        self.mkpath(str(target))
        for file in sorted(ROOT.glob("kernels/*.cuh")):
            self.copy_file(str(file), str(target / file.name))


class BuildOrSayWhy(build_ext):
    """Say what is missing for the extensions, without which the library installs all the same."""

    def run(self) -> None:
        """Warn, which `pip install -v` and `python -m build` show, and build what can be built."""
        lacking = missing()
        if lacking:
            self.warn(f"the software GPU is not built: {lacking}")
        super().run()


EXTENSIONS = [
    Extension(
        "cunorm.simgpu._access",
        [f"{SIMGPU}/access.c"],
        extra_compile_args=["-O2", "-std=c11"],
        optional=True,
    ),
    Extension(
        "cunorm.simgpu._tables",
        [f"{SIMGPU}/tables.c"],
        extra_compile_args=["-O2", "-std=c11"],
        optional=True,
    ),
    Extension(
        "cunorm.simgpu._fma",
        [f"{SIMGPU}/fma.c"],
        # Without these gcc keeps square roots and min/max scalar, for errno and traps unused here.
        extra_compile_args=["-O3", "-std=c11", "-fno-math-errno", "-fno-trapping-math"],
        optional=True,
    ),
]

setup(
    ext_modules=EXTENSIONS if sys.platform == "linux" else [],  # elsewhere there is no software GPU
    cmdclass={"build_py": BuildWithKernels, "build_ext": BuildOrSayWhy},
)
