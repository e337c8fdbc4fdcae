"""The driver table's handlers: contexts, modules, functions and launches."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

import ctypes
import re
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import cast

from . import ptx
from ._tables import read_arguments
from .device import WARP, Device
from .errors import NotEmulated, driver_error
from .faults import LaunchError, Place
from .machine import Machine, held
from .streams import StreamHandlers

_INVALID_VALUE, _OUT_OF_MEMORY, _INVALID_IMAGE, _INVALID_CONTEXT = 1, 2, 200, 201
_INVALID_PTX, _FILE_NOT_FOUND, _INVALID_HANDLE, _NOT_FOUND = 218, 301, 400, 500
_COOPERATIVE_LAUNCH_TOO_LARGE = 720

# CUfunction_attribute
_MAX_THREADS, _SHARED_SIZE, _CONST_SIZE, _LOCAL_SIZE, _NUM_REGS = range(5)
_PTX_VERSION, _BINARY_VERSION, _CACHE_MODE_CA, _MAX_DYNAMIC_SHARED, _CARVEOUT = range(5, 10)

# PTX names virtual registers without end; how many of the hardware's a thread takes is decided by
# ptxas, which does not run here. Kernels of the usual size take about this many.
_REGISTERS = 32

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
    """Modules and functions; `launch_checked` is what the launches share."""

    def __init__(self, machine: Machine, streams: StreamHandlers) -> None:
        self._machine = machine
        self._streams = streams
        self._modules: dict[int, LoadedModule] = {}
        self._functions: dict[int, LoadedFunction] = {}

    # --- modules ----------------------------------------------------------------------------

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
        device = self._device
        if int(target[1]) > device.arch:
            raise driver_error(
                _INVALID_PTX, f"PTX for sm_{target[1]} on a device of sm_{device.arch}"
            )
        code = ptx.parse(text)
        module = LoadedModule(
            code, device.ordinal, 10 * int(version[1]) + int(version[2]), self._place_globals(code)
        )
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
            room = max(self._device.shared_per_block - code.shared_bytes, 0)
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

    def _function(self, handle: int) -> LoadedFunction:
        return held(self._functions, handle, lambda: driver_error(_INVALID_HANDLE))

    @property
    def _device(self) -> Device:
        return self._machine.devices[self._machine.current]

    # --- attributes and occupancy -----------------------------------------------------------

    def funcGetAttribute(self, attribute: int, func: int) -> int:
        function = self._function(func)
        answers = {
            _MAX_THREADS: self._max_threads(function),
            _SHARED_SIZE: function.code.shared_bytes,
            _CONST_SIZE: 0,
            _LOCAL_SIZE: 0,
            _NUM_REGS: _REGISTERS,
            _PTX_VERSION: function.module.ptx_version,
            _BINARY_VERSION: self._device.arch,
            _CACHE_MODE_CA: 0,
            _MAX_DYNAMIC_SHARED: function.max_dynamic_shared,
            _CARVEOUT: function.carveout,
        }
        # CuPy reports -1 where CUDA does not know an attribute.
        return answers.get(attribute, -1)

    def funcSetAttribute(self, func: int, attribute: int, value: int) -> None:
        function = self._function(func)
        if attribute == _MAX_DYNAMIC_SHARED:
            room = self._device.shared_per_block_opt_in - function.code.shared_bytes
            if not 0 <= value <= room:
                raise driver_error(
                    _INVALID_VALUE,
                    f"{value} bytes of dynamic shared memory for {function.code.name}, "
                    f"where the device allows {room}",
                )
            function.max_dynamic_shared = value
            function.started.clear()
        elif attribute == _CARVEOUT and -1 <= value <= 100:
            function.carveout = value
        else:
            raise driver_error(_INVALID_VALUE)

    def _max_threads(self, function: LoadedFunction) -> int:
        return min(function.code.max_threads, self._device.max_threads_per_block)

    def occupancyMaxActiveBlocksPerMultiprocessor(
        self, func: int, blockSize: int, dynamicSMemSize: int
    ) -> int:
        function = self._function(func)
        if blockSize < 1:
            raise driver_error(_INVALID_VALUE)
        if blockSize > self._max_threads(function) or dynamicSMemSize > function.max_dynamic_shared:
            return 0
        shared = function.code.shared_bytes + dynamicSMemSize
        return self._device.resident_blocks(blockSize, shared, _REGISTERS)

    def occupancyMaxPotentialBlockSize(
        self, func: int, dynamicSMemSize: int, blockSizeLimit: int
    ) -> tuple[int, int]:
        most = self._max_threads(self._function(func))
        if blockSizeLimit > 0:
            most = min(most, blockSizeLimit)
        best = (0, 0, 0)
        for threads in {most, *range(WARP, most + 1, WARP)}:
            blocks = self.occupancyMaxActiveBlocksPerMultiprocessor(func, threads, dynamicSMemSize)
            best = max(best, (blocks * threads, threads, blocks))
        _, threads, blocks = best
        return blocks * self._device.multiprocessors, threads

    # --- launches ---------------------------------------------------------------------------

    def launchKernel(
        self,
        f: int,
        grid_dim_x: int,
        grid_dim_y: int,
        grid_dim_z: int,
        block_dim_x: int,
        block_dim_y: int,
        block_dim_z: int,
        shared_mem_bytes: int,
        stream: int,
        kernel_params: int,
        extra: int,
    ) -> None:
        function = self._function(f)
        if extra != 0:
            raise NotEmulated("simgpu does not emulate cuLaunchKernel's `extra`")
        grid = (grid_dim_x, grid_dim_y, grid_dim_z)
        block = (block_dim_x, block_dim_y, block_dim_z)
        device = self._device
        if self._streams.device_of(stream) != device.ordinal:
            raise driver_error(_INVALID_HANDLE, "the stream is another device's")
        if function.module.device != device.ordinal:
            raise driver_error(_INVALID_HANDLE, "the function was loaded on another device")
        shape = (grid, block, shared_mem_bytes)
        if shape not in function.started:
            self._check(function, device, grid, block, shared_mem_bytes)
            function.started.add(shape)
        arguments = _arguments(function, kernel_params)
        if not self._machine.executing:
            return
        from . import launch

        run = partial(
            launch.run,
            function.code,
            grid,
            block,
            shared_mem_bytes,
            arguments,
            memory=self._machine.memory,
            device=device,
            symbols=function.module.symbols,
        )
        self._streams.submit(stream, run)

    def launchCooperativeKernel(
        self,
        f: int,
        grid_dim_x: int,
        grid_dim_y: int,
        grid_dim_z: int,
        block_dim_x: int,
        block_dim_y: int,
        block_dim_z: int,
        shared_mem_bytes: int,
        stream: int,
        kernel_params: int,
    ) -> None:
        grid = (grid_dim_x, grid_dim_y, grid_dim_z)
        block = (block_dim_x, block_dim_y, block_dim_z)
        threads = block_dim_x * block_dim_y * block_dim_z
        resident = self.occupancyMaxActiveBlocksPerMultiprocessor(f, threads, shared_mem_bytes)
        if grid_dim_x * grid_dim_y * grid_dim_z > resident * self._device.multiprocessors:
            raise driver_error(_COOPERATIVE_LAUNCH_TOO_LARGE)
        self.launchKernel(f, *grid, *block, shared_mem_bytes, stream, kernel_params, 0)

    def _check(
        self,
        function: LoadedFunction,
        device: Device,
        grid: tuple[int, int, int],
        block: tuple[int, int, int],
        dynamic: int,
    ) -> None:
        """Raise where the device could not start this launch."""
        code = function.code
        threads = block[0] * block[1] * block[2]
        problem = None
        if threads == 0 or any(n > most for n, most in zip(block, device.max_block, strict=True)):
            problem = f"a block of {block}, where each must be from 1 to {device.max_block}"
        elif threads > self._max_threads(function):
            problem = f"{threads} threads a block, where it allows {self._max_threads(function)}"
        elif 0 in grid or any(n > most for n, most in zip(grid, device.max_grid, strict=True)):
            problem = f"a grid of {grid}, where each must be from 1 to {device.max_grid}"
        elif dynamic > function.max_dynamic_shared:
            problem = (
                f"{dynamic} bytes of dynamic shared memory, where {function.max_dynamic_shared} "
                f"are allowed; max_dynamic_shared_size_bytes may raise that to "
                f"{device.shared_per_block_opt_in - code.shared_bytes} on this device"
            )
        if problem is not None:
            raise LaunchError(f"the launch asks for {problem}", Place(kernel=code.name))


def _arguments(function: LoadedFunction, kernel_params: int) -> list[bytes]:
    """Copy each argument now: CuPy frees them when the launch returns, and a graph runs later."""
    arguments = read_arguments(kernel_params, function.sizes)
    if None in arguments:
        raise LaunchError(
            f"the kernel takes {len(arguments)} arguments, and number {arguments.index(None) + 1} "
            "was not given",
            Place(kernel=function.code.name),
        )
    return cast("list[bytes]", arguments)
