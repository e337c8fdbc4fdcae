"""What every Python runs as it starts that a program on simulated devices starts.

`cunorm.simgpu.children` puts this folder first on PYTHONPATH. Nothing is installed yet: the devices
come with the first import of CuPy, so that a process without CuPy pays nothing. The interpreter may
be any, of an environment that has no cunorm: then it goes on as if this file were not there.
"""
# mypy: ignore-errors

import os
import sys


class _Devices:
    """Finds CuPy where it is, and has it loaded by `_Loader`."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> object:
        """Return the spec that others find for CuPy, with a loader of ours."""
        # An installation under way imports CuPy itself.
        if name not in ("cupy", "cupy_backends") or "cunorm.simgpu.cuda.install" in sys.modules:
            return None
        for finder in sys.meta_path:
            found = None if finder is self else finder.find_spec(name, path, target)
            if found is not None:
                found.loader = _Loader(found.loader)
                return found
        return None


class _Loader:
    """Installs the devices, which imports CuPy."""

    def __init__(self, loader: object) -> None:
        self.loader = loader
        self.spec: object = None

    def create_module(self, spec):
        """Return CuPy, imported on the devices; by its own loader where there is no cunorm."""
        try:
            from cunorm.simgpu import installed
        except ImportError:
            spec.loader = self.loader
            return spec.loader.create_module(spec)
        installed()
        module = sys.modules[spec.name]
        self.spec = module.__spec__
        return module

    def exec_module(self, module):
        """Do nothing but put the module's own spec back: it was executed as it was imported."""
        module.__spec__ = self.spec


if "CUNORM_SIMGPU" in os.environ:
    sys.meta_path.insert(0, _Devices())
# The sitecustomize that this one stands before runs too, if there is one, and takes its place.
_HERE = os.path.dirname(os.path.abspath(__file__))
sys.path[:] = [entry for entry in sys.path if os.path.abspath(entry) != _HERE]
del sys.modules["sitecustomize"]
import sitecustomize  # noqa: E402, F401
