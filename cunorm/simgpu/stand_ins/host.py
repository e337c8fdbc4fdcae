"""Calls of libraries' functions: in the order of their stream, checked, counted, named once."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any, ClassVar, NoReturn, Protocol

import numpy as np

from .._tables import read_arguments
from ..faults import GlobalRace, LaunchError, NotEmulated
from ..lanes import Array
from ..memory.space import GlobalMemory
from ..profiler.counters import StandInCall
from ..profiler.profile import Profile
from .operand import Operand, check_written, columns_of, locate, note_written, view

# How hard NumPy looks for an element in common of two arrays whose bounds overlap. Where it gives
# up they count as apart, so that no correct program is blamed.
_WORK = 10_000


class StatusError(RuntimeError):
    """What CuPy raises for a status of a library, which each names in a class of its own."""

    names: ClassVar[dict[int, str]]

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(self.names[status])

    def __reduce__(self) -> tuple[type, tuple[int]]:
        return type(self), (self.status,)


class Machine(Protocol):
    """What a stand-in needs to know of the devices."""

    memory: GlobalMemory
    profiles: list[Profile]
    executing: bool

    @property
    def current(self) -> int:
        """The calling thread's current device."""

    def unreachable(self, ordinal: int) -> frozenset[int]:
        """Return the devices whose memory a device may not access."""

    def new_handle(self) -> int:
        """Return a number that no other object has."""


class Call:
    """One call of a function as it runs: what it reads and writes passes here.

    Parameters
    ----------
    library, function : str
        Their names.
    memory : GlobalMemory
        Where operands lie.
    """

    def __init__(self, library: str, function: str, memory: GlobalMemory) -> None:
        self.library, self.function = library, function
        self.memory = memory
        self._read: list[tuple[Operand, Array]] = []
        self.read_bytes = self.written_bytes = 0

    def read(self, operand: Operand) -> Array:
        """Return the elements of an operand, where they lie."""
        if operand.size == 0:
            return np.zeros(operand.shape, operand.dtype)
        allocation = locate(self.memory, operand, self.function, "reads")
        if not self.memory.uninitialised:
            check_written(allocation, operand, self.function)
        values = view(allocation, operand)
        self._read.append((operand, values))
        self.read_bytes += operand.nbytes
        return values

    def batch(self, name: str, address: int, count: int, like: Operand) -> list[Operand]:
        """Return the matrices behind an array of pointers in device memory."""
        pointers = Operand(f"{name}array", address, (count,), (1,), np.dtype(np.uintp))
        return [
            Operand(f"{name}[{at}]", int(pointer), like.shape, like.strides, like.dtype)
            for at, pointer in enumerate(self.read(pointers).tolist())
        ]

    def read_triangle(self, a: Operand, uplo: int, *, strict: bool = False) -> Array:
        """Return a triangle of a matrix, of which the rest is not read and is 0 in the result."""
        known = np.zeros(a.shape, a.dtype)
        for column in columns_of(a, uplo, strict=strict):
            known[column.rows, column.number] = self.read(column.operand)
        return known

    def write_triangle(self, a: Operand, uplo: int, values: Array) -> None:
        """Write a triangle of a matrix alone."""
        for column in columns_of(a, uplo):
            self.write(column.operand, values[column.rows, column.number])

    def write(self, operand: Operand, values: Array, *, in_place: bool = False) -> None:
        """Write an operand's elements, which may be those of one that was read if `in_place`.

        An operand may always be written where it was read itself.
        """
        if operand.size == 0:
            return
        allocation = locate(self.memory, operand, self.function, "writes")
        target = view(allocation, operand)
        if _overlaps_itself(operand):
            raise GlobalRace(
                f"{self.function} writes two elements of {operand.name} to one address, in the "
                f"{allocation}: its strides are {operand.strides} for {operand.shape} elements"
            )
        for other, source in self._read:
            if not in_place and other != operand and _overlap(target, source):
                raise GlobalRace(
                    f"{self.function} writes {operand.name} where it reads {other.name}, "
                    f"in the {allocation}: nothing orders the one and the other"
                )
        with np.errstate(all="ignore"):
            target[...] = values
        note_written(allocation, operand)
        self.written_bytes += operand.nbytes


def _overlap(target: Array, source: Array) -> bool:
    try:
        return np.shares_memory(target, source, max_work=_WORK)  # type: ignore[arg-type]
    except np.exceptions.TooHardError:
        return False


def _overlaps_itself(operand: Operand) -> bool:
    """Return whether two elements of an array share an address."""
    reach = 0
    pairs = zip(map(abs, operand.strides), operand.shape, strict=True)
    for stride, n in sorted(pair for pair in pairs if pair[1] > 1):
        if stride <= reach:
            break
        reach += stride * (n - 1)
    else:
        return False  # each axis steps over all that the smaller ones reach
    offsets = np.zeros((), np.int64)
    for stride, n in zip(operand.strides, operand.shape, strict=True):
        offsets = offsets[..., None] + np.arange(n) * stride
    return np.unique(offsets).size < offsets.size


Operation = Callable[[Call], None]


class Host:
    """Where stand-ins run.

    Parameters
    ----------
    machine : Machine
        The devices.
    submit : callable
        Runs an operation on a stream, or records it where the stream is being captured.
    """

    def __init__(self, machine: Machine, submit: Callable[[int, Callable[[], None]], None]) -> None:
        self._machine = machine
        self._submit = submit
        self._named: set[str] = set()

    @property
    def memory(self) -> GlobalMemory:
        """The memory of all devices."""
        return self._machine.memory

    def new_handle(self) -> int:
        """Return a number that no other object has."""
        return self._machine.new_handle()

    def stream(self) -> int:
        """Return the calling thread's current stream."""
        from cupy.cuda import get_current_stream

        stream: int = get_current_stream().ptr
        return stream

    def call(self, library: str, function: str, operation: Operation) -> None:
        """Run a function's operation on the current stream."""
        if library not in self._named:
            self._named.add(library)
            print(
                f"cunorm.simgpu: {library} is a stand-in that computes with NumPy on the host "
                "(--no-stand-ins refuses it)",
                file=sys.stderr,
            )
        if self._machine.executing:
            device = self._machine.current
            self._submit(self.stream(), partial(self._run, library, function, device, operation))

    def _run(self, library: str, function: str, device: int, operation: Operation) -> None:
        # Whom the device may access is looked up now: a graph runs later than it was captured.
        self.memory.unreachable = self._machine.unreachable(device)
        call = Call(library, function, self.memory)
        with np.errstate(all="ignore"):
            operation(call)
        counted = StandInCall(library, function, call.read_bytes, call.written_bytes)
        for profile in self._machine.profiles:
            profile.stand_ins.append(counted)

    def _require_host(self, address: int, nbytes: int, what: str) -> None:
        """Raise where an address is none of the program's own memory."""
        allocation = self.memory.find(address)
        if allocation is not None and allocation.kind == "device":
            raise LaunchError(f"{what} must be in host memory, and {address:#x} is in {allocation}")
        pointer = ctypes.c_void_p(address)
        if read_arguments(ctypes.addressof(pointer), (nbytes,)) == [None]:
            raise LaunchError(f"{what} must be in host memory, and none is at {address:#x}")

    def from_host(self, address: int, dtype: np.dtype[Any], what: str) -> Any:
        """Return a number of the program's own memory, as it is now."""
        self._require_host(address, dtype.itemsize, what)
        return np.frombuffer(ctypes.string_at(address, dtype.itemsize), dtype)[0]

    def to_host(self, address: int, value: Array, what: str) -> None:
        """Write a number to the program's own memory."""
        self._require_host(address, value.nbytes, what)
        ctypes.memmove(address, value.tobytes(), value.nbytes)


class Module(ModuleType):
    """Stands where CuPy would import a library; a name that it does not have is refused.

    Parameters
    ----------
    name : str
        Of the module.
    library, wanted : str
        The library behind it, and what programs want of it.
    """

    def __init__(self, name: str, library: str, wanted: str) -> None:
        super().__init__(name)
        self._library = library
        self._wanted = wanted

    def __getattr__(self, name: str) -> NoReturn:
        if name.startswith("__"):  # the import system asks for its own
            raise AttributeError(name)
        raise not_emulated(self._library, self._wanted, name)


def not_emulated(library: str, wanted: str, name: str) -> NotEmulated:
    """Return the refusal of a function of a library."""
    return NotEmulated(
        f"simgpu does not emulate {library}, which is machine code for {wanted} "
        f"({name} was asked for)"
    )


def refuse_capture(library: str, stream: int) -> None:
    """Raise what CuPy says to a call while its stream is being captured."""
    from cupy_backends.cuda.api import runtime

    if runtime.streamIsCapturing(stream):
        raise NotImplementedError(
            f"calling {library} API during stream capture is currently unsupported"
        )
