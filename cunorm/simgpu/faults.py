"""What the software GPU raises: one exception class a fault.

Each message says what was done wrong and where: the kernel, the PTX line, the block, the thread
and, for memory, the address and the allocation that it missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar


@dataclass(frozen=True)
class Place:
    """Where in a launch something happened; what is not known is None.

    `source` is a file of CUDA source and the number of a line in it, `source_text` that line, and
    `source_column` where in that text it happened.
    """

    kernel: str | None = None
    ptx_line: int | None = None
    ptx_text: str | None = None
    source: str | None = None
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    source_text: str | None = None
    source_column: int | None = None

    @property
    def caret(self) -> str | None:
        """The source line, and below it a caret at the place; None where that is not known."""
        if self.source_text is None or self.source_column is None:
            return None
        return f"  {self.source_text}\n  {' ' * self.source_column}^"

    @property
    def instruction(self) -> str:
        """The PTX line, and the source line it was compiled from where that is known."""
        if self.ptx_line is None:
            return "an instruction that is not known"
        text = f" `{self.ptx_text}`" if self.ptx_text else ""
        source = f", {self.source}" if self.source is not None else ""
        source += f" `{self.source_text}`" if self.source_text else ""
        return f"PTX line {self.ptx_line}{text}{source}"

    def __str__(self) -> str:
        parts = []
        if self.kernel is not None:
            parts.append(f"kernel {self.kernel}")
        if self.ptx_line is not None:
            parts.append(self.instruction)
        if self.block is not None:
            parts.append(f"block {self.block}")
        if self.thread is not None:
            parts.append(f"thread {self.thread}")
        return ", ".join(parts)


class Fault(RuntimeError):
    """Base of all faults: a program did what hardware would punish or leave undefined.

    Attributes
    ----------
    what : str
        The fault alone, without the place.
    place : Place
        Kernel, PTX line, source line and its text, block and thread, as far as known.
    usually : str
        What usually causes a fault of this class, and what to try. With the source line and a caret
        it is in the notes below the message, which tracebacks show since Python 3.11.
    """

    usually: ClassVar[str] = ""

    def __init__(self, what: str, place: Place | None = None) -> None:
        self.what = what
        self.place = place or Place()
        where = str(self.place)
        super().__init__(f"{what} ({where})" if where else what)
        usually = f"Usually: {self.usually}" if self.usually else None
        self.__notes__ = [note for note in (usually, self.place.caret) if note]

    def at(self, **known: object) -> Fault:
        """Return the same fault with more of its place filled in."""
        return type(self)(self.what, replace(self.place, **known))  # type: ignore[arg-type]


class OutOfBounds(Fault):
    """A global access outside every live allocation, or across the end of one."""

    usually = (
        "an index that is not compared with the array's length, or a grid with more "
        "threads than elements. Compare before the access (`if (i < n)`), and check the "
        "size that the kernel was given."
    )


class UseAfterFree(Fault):
    """A global access to memory that was freed."""

    usually = (
        "a pointer kept after its array was freed: hold a reference to the array for as "
        "long as a kernel uses its address, and do not keep `array.data.ptr` instead."
    )


class NoPeerAccess(Fault):
    """A global access to the memory of another device, without peer access to it."""

    usually = (
        "an array of another device than the current one. Launch under `with "
        "array.device:`, copy it over, or ask for "
        "`cupy.cuda.runtime.deviceEnablePeerAccess`."
    )


class Uninitialised(Fault):
    """A read of global memory that nothing has written since it was allocated."""

    usually = (
        "an array of `cupy.empty` that is read before it is written, or a launch that "
        "left elements out. Begin with `cupy.zeros`, or check which elements the launch "
        "before wrote; `--uninitialised` lets such reads pass."
    )


class SharedUninitialised(Fault):
    """A read of shared memory that nothing has written in this launch."""

    usually = (
        "a tile that is filled by fewer threads than read it, at the edge of an array "
        "most often. Write a neutral value where there is no element: shared memory "
        "begins with whatever was there."
    )


class Misaligned(Fault):
    """An access at an address that is no multiple of its width."""

    usually = (
        "a vector (`float4`) read at the address of one element. Use it only where "
        "address and row length are multiples of its size, and single elements "
        "elsewhere."
    )


class SharedOutOfBounds(Fault):
    """A shared-memory access outside the block's shared memory."""

    usually = (
        "an index past the tile, or too little dynamic shared memory. Check the index, "
        "and pass `shared_mem=` in bytes, not in elements."
    )


class SharedRace(Fault):
    """Accesses of two warps to the same shared memory, one a write, with no barrier in between."""

    usually = (
        "a missing `__syncthreads()` between a write and another warp's read, or "
        "between a read and the next write in a loop. Put one in between, where all "
        "threads of the block come by."
    )


class GlobalRace(Fault):
    """Accesses of two blocks to the same global memory, one a write, with nothing to order them."""

    usually = (
        "two blocks that write one element, or a block that reads what another writes. "
        "Give each element to one block, use an atomic, or make two launches of it: "
        "blocks run in no order."
    )


class LocalOutOfBounds(Fault):
    """A local-memory access outside the thread's stack frame."""

    usually = (
        "an index past an array of the kernel's own. Check its length against the loop's bounds."
    )


class AbsentBlock(Fault):
    """An access to the shared memory of a neighbour that has exited, or need not be there."""

    usually = (
        "an access to a neighbour before it has started or after it may have ended. "
        "Call `cluster.sync()` before the first such access and after the last one."
    )


class CopyInFlight(Fault):
    """An access to shared memory that an asynchronous copy may still be writing."""

    usually = (
        "a copy that was not waited for. Wait (`cp.async.wait_group`, "
        "`__pipeline_wait_prior`, the mbarrier's phase) and then let the block meet, "
        "before anything reads or reuses the place."
    )


class BarrierMisuse(Fault):
    """An operation on an mbarrier that is not initialised, or past what it expects."""

    usually = (
        "an mbarrier that no thread has initialised where others see it, or one that "
        "more arrive at than it was initialised for. Initialise it by one thread, then "
        "`__syncthreads()`, and count arrivals and bytes."
    )


class DivergentBarrier(Fault):
    """A barrier that some threads of the block, or of the cluster, can no longer reach."""

    usually = (
        "a `__syncthreads()` under a condition that not all threads of the block share. "
        "Move it out of the branch, or make the condition the same for the whole block."
    )


class MissingLanes(Fault):
    """A warp collective whose mask names lanes that stay away, or leaves out one that is there."""

    usually = (
        "a mask of all lanes (0xffffffff) in a branch that only some take. Call it "
        "outside of the branch, or pass the lanes that are there, by `__ballot_sync` "
        "before the branch."
    )


class EndlessLoop(Fault):
    """A launch that used up its instruction budget."""

    usually = (
        "a loop whose end no thread changes, or a lock that a lane of the same warp "
        "holds. Check what its condition reads (`volatile`, an atomic); a launch that "
        "is only long wants a larger `--budget`."
    )


class LaunchError(Fault):
    """A launch that cannot start: block too large, too much shared memory, bad arguments."""

    usually = (
        "a block, a grid or shared memory past the device's limits, or arguments of "
        "other types than the kernel's parameters. Pass scalars as "
        "`numpy.float32(...)`, `numpy.int32(...)`."
    )


class UnknownInstruction(Fault, NotImplementedError):
    """PTX that the software GPU does not know; it never guesses."""

    usually = (
        "code for tensor cores, textures or calls through pointers. Take another path "
        "where it is compiled for the software GPU, or run it on hardware."
    )


class Trap(Fault):
    """A program that ended itself: ``trap``, ``__trap()``, a failed assertion."""

    usually = (
        "an `assert` that failed or a `__trap()`: what it printed, and the condition on "
        "the line above, say which."
    )


class NotEmulated(Fault, NotImplementedError):
    """A CUDA function, library or kind of code that the software GPU does not have."""

    usually = (
        "a library or a function that is machine code. CuPy's own kernels often do the "
        "same; else run this part on hardware."
    )
