"""The driver table's handlers of contexts and modules."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from pathlib import Path

from ..device import assembler
from ..faults import NotEmulated
from ..ptx import module as ptx
from .compiling import parsed
from .errors import driver_error
from .machine import Machine, held
from .streams import StreamHandlers

_OUT_OF_MEMORY, _INVALID_IMAGE, _INVALID_CONTEXT, _INVALID_PTX = 2, 200, 201, 218
_FILE_NOT_FOUND, _INVALID_HANDLE, _NOT_FOUND = 301, 400, 500

# Where functions have their addresses, which lie in no allocation: nothing can be read there.
_CODE = 0x7E00_0000_0000

_TARGET = re.compile(r"^\s*\.target\s+sm_(\d+)", re.MULTILINE)
_VERSION = re.compile(r"^\s*\.version\s+(\d+)\.(\d+)", re.MULTILINE)


@dataclass(eq=False)
class LoadedModule:
    """A module on one device: its code, and where its global variables live."""

    code: ptx.Module
    device: int
    ptx_version: int
    symbols: dict[str, int]
    functions: dict[str, int] = field(default_factory=dict)


@dataclass(eq=False)
class LoadedFunction:
    """A kernel of a loaded module; `started` holds the launch shapes that were found possible."""

    code: ptx.Function
    module: LoadedModule
    sizes: tuple[int, ...]
    max_dynamic_shared: int
    carveout: int = -1
    started: set[object] = field(default_factory=set)


class ContextHandlers:
    """Each device has one context, its primary one, which is current where the device is."""

    def __init__(self, machine: Machine, version: int, streams: StreamHandlers) -> None:
        self._machine = machine
        self._version = version
        self._streams = streams
        self._contexts = [machine.new_handle() for _ in machine.devices]

    def get_build_version(self) -> int:
        return self._version

    def devicePrimaryCtxRelease(self, dev: int) -> None:
        """Check the number; a primary context here is never destroyed."""
        self._machine.check_ordinal(dev)

    def ctxGetCurrent(self) -> int:
        return self._contexts[self._machine.current]

    def ctxSetCurrent(self, ctx: int) -> None:
        if ctx not in self._contexts:
            raise driver_error(_INVALID_CONTEXT)
        self._machine.current = self._contexts.index(ctx)

    def ctxGetDevice(self) -> int:
        return self._machine.current

    def streamGetCtx(self, stream: int) -> int:
        return self._contexts[self._streams.device_of(stream)]


class ModuleHandlers:
    """Modules, and the functions in them, by handle."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._modules: dict[int, LoadedModule] = {}
        self._functions: dict[int, LoadedFunction] = {}

    def moduleLoad(self, filename: str) -> int:
        path = Path(filename)
        if not path.is_file():
            raise driver_error(_FILE_NOT_FOUND, filename)
        return self.moduleLoadData(path.read_bytes())

    def moduleLoadData(self, image: bytes) -> int:
        if image.startswith(b"\x7fELF") or image[:4] == b"\x50\xed\x55\xba":
            raise NotEmulated(
                "simgpu executes PTX, and this module is machine code (a cubin or fatbin): "
                "load PTX, or source with CUPY_COMPILE_WITH_PTX=1"
            )
        text = image.rstrip(b"\0").decode("utf-8", "replace")
        target, version = _TARGET.search(text), _VERSION.search(text)
        if target is None or version is None:
            raise driver_error(_INVALID_IMAGE, "neither PTX nor machine code")
        device = self._machine.device
        if int(target[1]) > device.arch:
            raise driver_error(
                _INVALID_PTX, f"PTX for sm_{target[1]} on a device of sm_{device.arch}"
            )
        code = parsed(text)
        module = LoadedModule(
            code, device.ordinal, 10 * int(version[1]) + int(version[2]), self._place_globals(code)
        )
        assembler.remember(code, image)
        handle = self._machine.new_handle()
        self._modules[handle] = module
        return handle

    def _place_globals(self, code: ptx.Module) -> dict[str, int]:
        symbols = {}
        for variable in code.globals.values():
            try:
                allocation = self._machine.memory.allocate(
                    max(variable.size, 1), "device", self._machine.current
                )
            except MemoryError:
                raise driver_error(_OUT_OF_MEMORY) from None
            ctypes.memset(allocation.address, 0, variable.size)
            ctypes.memmove(allocation.address, variable.initial, len(variable.initial))
            symbols[variable.name] = allocation.address
        functions = {name: _CODE + 16 * at for at, name in enumerate(code.device_functions)}
        for variable in code.globals.values():
            for offset, name, added in variable.addresses:
                address = {**functions, **symbols}.get(name)
                if address is None:
                    raise driver_error(_INVALID_PTX, f"{variable.name} holds the address of {name}")
                word = (address + added).to_bytes(8, "little")
                ctypes.memmove(symbols[variable.name] + offset, word, 8)
        return symbols

    def moduleUnload(self, module: int) -> None:
        loaded = self._module(module)
        del self._modules[module]
        for handle in loaded.functions.values():
            del self._functions[handle]
        for address in loaded.symbols.values():
            self._machine.memory.free(address)

    def moduleGetFunction(self, module: int, funcname: str) -> int:
        loaded = self._module(module)
        if funcname not in loaded.code.functions:
            raise driver_error(_NOT_FOUND, funcname)
        if funcname not in loaded.functions:
            code = loaded.code.functions[funcname]
            handle = self._machine.new_handle()
            room = max(self._machine.device.shared_per_block - code.shared_bytes, 0)
            sizes = tuple(parameter.size for parameter in code.parameters)
            self._functions[handle] = LoadedFunction(code, loaded, sizes, room)
            loaded.functions[funcname] = handle
        return loaded.functions[funcname]

    def moduleGetGlobal(self, module: int, varname: str) -> int:
        symbols = self._module(module).symbols
        if varname not in symbols:
            raise driver_error(_NOT_FOUND, varname)
        return symbols[varname]

    def _module(self, handle: int) -> LoadedModule:
        return held(self._modules, handle, lambda: driver_error(_INVALID_HANDLE))

    def function(self, handle: int) -> LoadedFunction:
        """Return the function behind a handle."""
        return held(self._functions, handle, lambda: driver_error(_INVALID_HANDLE))
