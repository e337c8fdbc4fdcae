"""How CuPy comes to use the simulated devices: its tables are replaced before it is imported."""

from __future__ import annotations

import atexit
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable
from types import ModuleType

from .. import _tables
from ..device import assembler
from ..faults import NotEmulated
from ..options import Options
from ..profiler.profile import Profile
from ..stand_ins import libraries
from ..stand_ins.host import Host
from . import compiling
from .copies import CopyHandlers
from .errors import Status
from .events import EventHandlers
from .functions import FunctionHandlers
from .graphs import GraphHandlers
from .machine import Machine
from .malloc import MemoryHandlers
from .modules import ContextHandlers, ModuleHandlers
from .runtime import DeviceHandlers
from .streams import StreamHandlers

_API = "cupy_backends.cuda.api."

# Capsules that hold data, or functions that only fill a structure in: no driver is reached.
_KEPT = {
    "_is_hip_environment",
    "deviceAttributeComputeCapabilityMajor",
    "deviceAttributeComputeCapabilityMinor",
    "errorContextIsDestroyed",
    "errorInvalidResourceHandle",
    "errorInvalidValue",
    "errorMemoryAllocation",
    "errorPeerAccessAlreadyEnabled",
    "make_Extent",
    "make_PitchedPtr",
    "make_Pos",
}

# Answered in C.
_BUILT_IN = {"_ensure_context"}

# Python functions of the runtime module that have no capsule.
_PYTHON_ONLY = (
    "deviceDisablePeerAccess",
    "ipcCloseMemHandle",
    "ipcGetEventHandle",
    "ipcGetMemHandle",
    "ipcOpenEventHandle",
    "ipcOpenMemHandle",
)


def _refusal(what: str) -> Callable[..., object]:
    def refuse(*_: object, **__: object) -> object:
        raise NotEmulated(f"simgpu does not emulate {what}")

    return refuse


def _cuda_name(table: str, name: str) -> str:
    """Return CUDA's name of a table's function: cudaMalloc for runtime.malloc."""
    prefix = "cuda" if table == "runtime" else "cu"
    return prefix + name[0].upper() + name[1:]


# What functions without an answer are for: a word in their names, and the words for it.
_PURPOSES = {
    "link": "separate compilation and dynamic parallelism",
    "Array": "textures and surfaces",
    "Texture": "textures",
    "Surface": "surfaces",
    "ipc": "memory shared between processes",
}


def _unanswered(table: str, name: str) -> str:
    """Return CUDA's name of a function that is not emulated, and what it is for."""
    purposes = [what for word, what in _PURPOSES.items() if word in name]
    return _cuda_name(table, name) + "".join(f" ({what})" for what in purposes[:1])


def _replace(table: str, module: ModuleType, parts: tuple[object, ...]) -> None:
    """Replace one table's capsules and Python names, after all of them are known to match."""
    ours = _tables.capsules(table)
    theirs: dict[str, object] = module.__pyx_capi__
    if set(theirs) - _KEPT != set(ours):
        differing = ", ".join(sorted(set(theirs) - _KEPT ^ set(ours)))
        raise RuntimeError(f"simgpu does not know this CuPy: {table} differs in {differing}")
    for name, capsule in ours.items():
        found, expected = _tables.signature(theirs[name]), _tables.signature(capsule)
        if found != expected:
            raise RuntimeError(
                f"simgpu does not know this CuPy: {table}.{name} is {found!r}, not {expected!r}"
            )
    python_only = _PYTHON_ONLY if table == "runtime" else ()
    for name in (*ours, *python_only):
        if name in _BUILT_IN:
            continue
        known = [getattr(part, name) for part in parts if hasattr(part, name)]
        handler = known[0] if known else _refusal(_unanswered(table, name))
        if name in ours:
            _tables.bind(f"{table}.{name}", handler)
        if hasattr(module, name):
            setattr(module, name, handler)
    theirs.update(ours)


def _allocator(cupy: ModuleType) -> Callable[[int], object]:
    """Return an allocator that gives each array its own allocation.

    CuPy's pool hands out parts of larger blocks, in which an access past the end of an array still
    finds memory of the program's own.
    """
    memory, runtime = cupy.cuda.memory, cupy.cuda.runtime

    def allocate(nbytes: int) -> object:
        try:
            return memory._malloc(nbytes)
        except runtime.CUDARuntimeError as error:
            if error.status != Status.MEMORY_ALLOCATION:
                raise
        free, total = runtime.memGetInfo()
        raise memory.OutOfMemoryError(nbytes, total - free, total)

    return allocate


# What CuPy calls as its objects die. At the end of the process they die in any order, some after
# the modules that the handlers need.
_DESTRUCTORS = (
    "runtime.eventDestroy",
    "runtime.free",
    "runtime.freeAsync",
    "runtime.freeHost",
    "runtime.graphDestroy",
    "runtime.graphExecDestroy",
    "runtime.streamDestroy",
    "driver.moduleUnload",
)


def _stop_destroying() -> None:
    for name in _DESTRUCTORS:
        _tables.bind(name, lambda *_: None)


def install(options: Options, profiles: list[Profile]) -> Machine:
    """Put simulated devices under CuPy, import it, and return the machine they make.

    Launches are counted into the `profiles` that are there at the time.
    """
    if "cupy" in sys.modules or _API + "runtime" in sys.modules:
        raise RuntimeError("cunorm.simgpu.install() must be called before cupy is imported")
    if importlib.util.find_spec("cupy_backends") is None:
        raise RuntimeError(
            "cunorm.simgpu runs CuPy, and none is installed: pip install 'cunorm[cuda12]', "
            "or 'cunorm[cuda13]' for CUDA 13"
        )
    machine = Machine(options, profiles)
    # NVRTC then gives CuPy PTX instead of machine code.
    os.environ["CUPY_COMPILE_WITH_PTX"] = "1"
    runtime = importlib.import_module(_API + "runtime")
    driver = importlib.import_module(_API + "driver")
    # The version of the CUDA runtime inside CuPy: it needs no driver to say it.
    version = runtime.runtimeGetVersion()

    graphs = GraphHandlers(machine)
    streams = StreamHandlers(machine, graphs)
    runtime_parts = (
        DeviceHandlers(machine, version, streams),
        MemoryHandlers(machine, streams),
        CopyHandlers(machine, streams),
        EventHandlers(machine, streams),
        streams,
        graphs,
    )
    modules = ModuleHandlers(machine)
    driver_parts = (
        ContextHandlers(machine, version, streams),
        modules,
        FunctionHandlers(machine, modules, streams),
    )
    _replace("runtime", runtime, runtime_parts)
    _replace("driver", driver, driver_parts)
    atexit.register(_stop_destroying)
    cupy = importlib.import_module("cupy")
    libraries.replace(Host(machine, streams.submit) if options.stand_ins else None)
    compiling.prepare()
    _tables.watch_calls(importlib.import_module("cupy.cuda.function").Function)
    assembler.observe(importlib.import_module("cupy.cuda.compiler"))
    cupy.cuda.set_allocator(_allocator(cupy))
    return machine
