"""What the software GPU raises: one exception class a fault.

Each message says what was done wrong and where: the kernel, the PTX line, the block, the thread
and, for memory, the address and the allocation that it missed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Place:
    """Where in a launch something happened; what is not known is None.

    `source` is a file of CUDA source and the number of a line in it, `source_text` that line.
    """

    kernel: str | None = None
    ptx_line: int | None = None
    ptx_text: str | None = None
    source: str | None = None
    block: tuple[int, int, int] | None = None
    thread: tuple[int, int, int] | None = None
    source_text: str | None = None

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
    """

    def __init__(self, what: str, place: Place | None = None) -> None:
        self.what = what
        self.place = place or Place()
        where = str(self.place)
        super().__init__(f"{what} ({where})" if where else what)

    def at(self, **known: object) -> Fault:
        """Return the same fault with more of its place filled in."""
        return type(self)(self.what, replace(self.place, **known))  # type: ignore[arg-type]


class OutOfBounds(Fault):
    """A global access outside every live allocation, or across the end of one."""


class UseAfterFree(Fault):
    """A global access to memory that was freed."""


class NoPeerAccess(Fault):
    """A global access to the memory of another device, without peer access to it."""


class Uninitialised(Fault):
    """A read of global memory that nothing has written since it was allocated."""


class SharedUninitialised(Fault):
    """A read of shared memory that nothing has written in this launch."""


class Misaligned(Fault):
    """An access at an address that is no multiple of its width."""


class SharedOutOfBounds(Fault):
    """A shared-memory access outside the block's shared memory."""


class SharedRace(Fault):
    """Accesses of two warps to the same shared memory, one a write, with no barrier in between."""


class GlobalRace(Fault):
    """Accesses of two blocks to the same global memory, one a write, with nothing to order them."""


class LocalOutOfBounds(Fault):
    """A local-memory access outside the thread's stack frame."""


class AbsentBlock(Fault):
    """An access to the shared memory of a neighbour that has exited, or need not be there."""


class CopyInFlight(Fault):
    """An access to shared memory that an asynchronous copy may still be writing."""


class BarrierMisuse(Fault):
    """An operation on an mbarrier that is not initialised, or past what it expects."""


class DivergentBarrier(Fault):
    """A barrier that some threads of the block, or of the cluster, can no longer reach."""


class MissingLanes(Fault):
    """A warp collective whose mask names lanes that stay away, or leaves out one that is there."""


class EndlessLoop(Fault):
    """A launch that used up its instruction budget."""


class LaunchError(Fault):
    """A launch that cannot start: block too large, too much shared memory, bad arguments."""


class UnknownInstruction(Fault, NotImplementedError):
    """PTX that the software GPU does not know; it never guesses."""


class Trap(Fault):
    """A program that ended itself: ``trap``, ``__trap()``, a failed assertion."""


class NotEmulated(Fault, NotImplementedError):
    """A CUDA function, library or kind of code that the software GPU does not have."""
