"""The driver table's handlers of functions: attributes, occupancy and launches."""

# The methods are documented by CUDA under their names.
# ruff: noqa: D102

from __future__ import annotations

from functools import partial
from typing import cast

from .._tables import given_arguments, read_arguments
from ..device import assembler
from ..device.geometry import Extent
from ..device.occupancy import MAX_REGISTERS, occupancy
from ..device.tables import Device
from ..execution import launch
from ..faults import LaunchError, NotEmulated, Place
from ..lanes import WARP
from ..profiler.profile import Observer
from ..ptx.module import Function
from .arguments import check as check_arguments
from .errors import driver_error
from .machine import Machine
from .modules import LoadedFunction, ModuleHandlers
from .streams import StreamHandlers

_INVALID_VALUE, _INVALID_HANDLE, _COOPERATIVE_LAUNCH_TOO_LARGE = 1, 400, 720

# CUfunction_attribute
_MAX_THREADS, _SHARED_SIZE, _CONST_SIZE, _LOCAL_SIZE, _NUM_REGS = range(5)
_PTX_VERSION, _BINARY_VERSION, _CACHE_MODE_CA, _MAX_DYNAMIC_SHARED, _CARVEOUT = range(5, 10)


class FunctionHandlers:
    """What is known of a function, and its launches."""

    def __init__(self, machine: Machine, modules: ModuleHandlers, streams: StreamHandlers) -> None:
        self._machine = machine
        self._modules = modules
        self._streams = streams

    # --- attributes and occupancy -----------------------------------------------------------

    def funcGetAttribute(self, attribute: int, func: int) -> int:
        function = self._modules.function(func)
        if attribute == _NUM_REGS:
            known = assembler.resources(function.code, self._machine.device.arch).registers
            return -1 if known is None else known
        answers = {
            _MAX_THREADS: self._max_threads(function),
            _SHARED_SIZE: function.code.shared_bytes,
            _CONST_SIZE: 0,
            # What PTX declares: it has registers without end, and nothing is assembled for this.
            _LOCAL_SIZE: function.code.local_bytes,
            _PTX_VERSION: function.module.ptx_version,
            _BINARY_VERSION: self._machine.device.arch,
            _CACHE_MODE_CA: 0,
            _MAX_DYNAMIC_SHARED: function.max_dynamic_shared,
            _CARVEOUT: function.carveout,
        }
        # CuPy reports -1 where CUDA does not know an attribute.
        return answers.get(attribute, -1)

    def funcSetAttribute(self, func: int, attribute: int, value: int) -> None:
        function = self._modules.function(func)
        if attribute == _MAX_DYNAMIC_SHARED:
            room = self._machine.device.shared_per_block_opt_in - function.code.shared_bytes
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
        return min(function.code.max_threads, self._machine.device.max_threads_per_block)

    def occupancyMaxActiveBlocksPerMultiprocessor(
        self, func: int, blockSize: int, dynamicSMemSize: int
    ) -> int:
        function = self._modules.function(func)
        if blockSize < 1:
            raise driver_error(_INVALID_VALUE)
        if blockSize > self._max_threads(function) or dynamicSMemSize > function.max_dynamic_shared:
            return 0
        shared = function.code.shared_bytes + dynamicSMemSize
        device = self._machine.device
        registers = assembler.resources(function.code, device.arch).registers
        return occupancy(device, blockSize, registers, shared).blocks

    def occupancyMaxPotentialBlockSize(
        self, func: int, dynamicSMemSize: int, blockSizeLimit: int
    ) -> tuple[int, int]:
        most = self._max_threads(self._modules.function(func))
        if blockSizeLimit > 0:
            most = min(most, blockSizeLimit)
        best = (0, 0, 0)
        for threads in {most, *range(WARP, most + 1, WARP)}:
            blocks = self.occupancyMaxActiveBlocksPerMultiprocessor(func, threads, dynamicSMemSize)
            best = max(best, (blocks * threads, threads, blocks))
        _, threads, blocks = best
        return blocks * self._machine.device.multiprocessors, threads

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
        if extra != 0:
            raise NotEmulated("simgpu does not emulate cuLaunchKernel's `extra`")
        grid = (grid_dim_x, grid_dim_y, grid_dim_z)
        block = (block_dim_x, block_dim_y, block_dim_z)
        self._launch(f, grid, block, shared_mem_bytes, stream, kernel_params)

    def _launch(
        self,
        f: int,
        grid: Extent,
        block: Extent,
        dynamic: int,
        stream: int,
        kernel_params: int,
        *,
        cooperative: bool = False,
    ) -> None:
        function = self._modules.function(f)
        device = self._machine.device
        if self._streams.device_of(stream) != device.ordinal:
            raise driver_error(_INVALID_HANDLE, "the stream is another device's")
        if function.module.device != device.ordinal:
            raise driver_error(_INVALID_HANDLE, "the function was loaded on another device")
        shape = (grid, block, dynamic)
        if shape not in function.started:
            self._check(function, device, grid, block, dynamic)
            function.started.add(shape)
        executing = self._machine.executing
        given = given_arguments()
        if given is not None and executing:
            check_arguments(function.code, given)
        arguments = _arguments(function, kernel_params)
        if not executing:
            return
        self._streams.submit(
            stream,
            partial(self._run, function, device, grid, block, dynamic, arguments, cooperative),
        )

    def _run(
        self,
        function: LoadedFunction,
        device: Device,
        grid: Extent,
        block: Extent,
        dynamic: int,
        arguments: list[bytes],
        cooperative: bool,
    ) -> None:
        memory, profiles = self._machine.memory, self._machine.profiles
        # Whom the device may access is looked up now: a graph runs later than it was captured.
        memory.unreachable = self._machine.unreachable(device.ordinal)
        launch.run(
            function.code,
            grid,
            block,
            dynamic,
            arguments,
            memory=memory,
            device=device,
            symbols=function.module.symbols,
            budget=self._machine.budget,
            cooperative=cooperative,
            observer=Observer(profiles) if profiles else None,
        )

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
        if grid_dim_x * grid_dim_y * grid_dim_z > resident * self._machine.device.multiprocessors:
            raise driver_error(_COOPERATIVE_LAUNCH_TOO_LARGE)
        self._launch(f, grid, block, shared_mem_bytes, stream, kernel_params, cooperative=True)

    def _check(
        self,
        function: LoadedFunction,
        device: Device,
        grid: Extent,
        block: Extent,
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
        else:
            problem = _registers_missing(code, device, threads)
        if problem is not None:
            raise LaunchError(f"the launch asks for {problem}", Place(kernel=code.name))


def _registers_missing(code: Function, device: Device, threads: int) -> str | None:
    """Return what is wrong where a block would take more registers than there are.

    To know a kernel's registers takes the assembler, and so it is asked only where the answer
    matters: not for a block of 256 threads, which fits whatever they take, nor for a kernel with
    launch bounds, which the assembler has keep to them.
    """
    if code.has_launch_bounds or occupancy(device, threads, MAX_REGISTERS, 0).blocks > 0:
        return None
    registers = assembler.resources(code, device.arch).registers
    if occupancy(device, threads, registers, 0).blocks > 0:
        return None
    return (
        f"{threads} threads a block of {registers} registers each, where a multiprocessor has "
        f"{device.registers} in all; __launch_bounds__ makes the compiler keep to fewer"
    )


def _arguments(function: LoadedFunction, kernel_params: int) -> list[bytes]:
    """Copy each argument now: CuPy frees them when the launch returns, and a graph runs later.

    The driver is not told how many there are, and neither is this function where CuPy's own
    kernels are launched. Past the end of a short list lies whatever memory held before; where that
    is no address, it is an error here instead of a crash.
    """
    arguments = read_arguments(kernel_params, function.sizes)
    if None in arguments:
        raise LaunchError(
            f"the kernel takes {len(arguments)} arguments, and number {arguments.index(None) + 1} "
            "was not given",
            Place(kernel=function.code.name),
        )
    return cast("list[bytes]", arguments)
