"""Functions that a kernel calls and the driver provides: for output, assertions and the heap.

NVRTC compiles ``printf`` to a call of ``vprintf`` with the addresses of the format and of a buffer
in the thread's frame, where each argument lies at a multiple of its size: 4 bytes for integers, 8
for long ones, doubles and pointers.
"""

from __future__ import annotations

import functools
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .. import faults
from ..lanes import Array, Lanes, indices
from ..memory.initialised import Written
from ..memory.segment import WINDOW_BITS, WINDOWS
from ..ptx.op import Op
from ..sync.context import Context

Effect = Callable[[Context, Op, Lanes], tuple[Array, ...]]

_SPEC = re.compile(
    rb"%(?P<flags>[-+ #0]*)(?P<width>\*|\d+)?(?:\.(?P<precision>\*|\d*))?"
    rb"(?P<length>hh|h|ll|l|j|z|t)?(?P<conversion>[diuoxXeEfFgGcsp%])"
)
HEAP = 8 << 20  # bytes, CUDA's usual cudaLimitMallocHeapSize; one malloc gets no more
_LONG = (b"l", b"ll", b"j", b"z", b"t")


@dataclass(frozen=True)
class _Frame:
    """Where in a thread's frame a call's arguments and its result lie."""

    arguments: tuple[int, ...]
    results: tuple[int, ...]


class _Thread:
    """One thread's memory, as the driver's functions read it."""

    def __init__(self, batch: Context, op: Op, lane: int) -> None:
        self._batch = batch
        self._op = op
        self._lane = lane

    def fault(self, kind: type[faults.Fault], what: str) -> faults.Fault:
        """Return a fault at the call."""
        return kind(what, self._batch.place(self._op, self._lane))

    def _rest(self, address: int) -> Array:
        """Return the bytes from an address to the end of what holds it."""
        batch = self._batch
        space = batch.spaces.named(address >> WINDOW_BITS)
        if space == "global":
            allocation = batch.memory.find(address)
            if allocation is not None and not allocation.freed:
                return allocation.data[address - allocation.base :]
        elif space is not None:
            segment, owners = batch.spaces.segment("shared" if space == "cluster" else space)
            offset = address & (1 << WINDOW_BITS) - 1
            start = int(owners[self._lane if owners.size > 1 else 0]) * segment.stride
            if offset < segment.nbytes:
                return segment.data[start + offset : start + segment.nbytes]
        raise self.fault(faults.OutOfBounds, f"`{self._op.statement.text}` reads {address:#x}")

    def read(self, address: int, code: str) -> int | float:
        """Return one value at a generic address."""
        dtype = np.dtype(code)
        data = self._rest(address)[: dtype.itemsize]
        if data.size < dtype.itemsize:
            raise self.fault(faults.OutOfBounds, f"an argument at {address:#x}")
        return data.view(dtype)[0].item()  # type: ignore[no-any-return]

    def argument(self, offset: int, code: str = "u8") -> int:
        """Return one of the call's own arguments, which lie in the frame."""
        return int(self.read(WINDOWS["local"] + offset, code))

    def give(self, offset: int, value: int, code: str = "i4") -> None:
        """Put a number where the caller looks for the result."""
        dtype = np.dtype(code)
        place = self._rest(WINDOWS["local"] + offset)[: dtype.itemsize]
        place.view(dtype)[0] = value

    def text(self, address: int) -> bytes:
        """Return a string that ends with a zero byte."""
        if address == 0:
            return b"(null)"
        rest = self._rest(address)
        for end in range(64, 2 * rest.size + 64, 64):
            zeros = np.flatnonzero(rest[end - 64 : end] == 0)
            if zeros.size:
                return rest[: end - 64 + int(zeros[0])].tobytes()
        raise self.fault(faults.OutOfBounds, f"a string at {address:#x} that does not end")


@functools.lru_cache(maxsize=1024)
def _pieces(form: bytes) -> tuple[tuple[bytes, re.Match[bytes] | None], ...]:
    """Cut a format at its conversions: the text before each, and last the text after them."""
    pieces: list[tuple[bytes, re.Match[bytes] | None]] = []
    at = 0
    while (start := form.find(b"%", at)) >= 0:
        spec = _SPEC.match(form, start)
        if spec is None or (b"#" in spec["flags"] and spec["conversion"] == b"o"):
            what = form[start : start + 8].decode(errors="replace")
            raise faults.UnknownInstruction(f"printf's conversion `{what}` is not simulated")
        pieces.append((form[at:start], spec))
        at = spec.end()
    return (*pieces, (form[at:], None))


class _Arguments:
    """The arguments of one printf, read in turn from its buffer."""

    def __init__(self, thread: _Thread, address: int) -> None:
        self._thread = thread
        self._next = address
        self.count = 0

    def take(self, code: str) -> int | float:
        """Return the next argument."""
        size = np.dtype(code).itemsize
        address = -(-self._next // size) * size
        self._next = address + size
        self.count += 1
        return self._thread.read(address, code)

    def convert(self, spec: re.Match[bytes]) -> bytes:
        """Return what one conversion prints. Python's differ from C's in the few points here."""
        flags, kind = spec["flags"], spec["conversion"]
        if kind == b"%":
            return b"%"
        width, precision = (
            b"%d" % int(self.take("i4")) if spec[name] == b"*" else spec[name]
            for name in ("width", "precision")
        )
        value: int | float | bytes
        if kind == b"s":
            value = self._thread.text(int(self.take("u8")))
        elif kind == b"p":
            value = b"%#x" % int(self.take("u8"))
            value = b"(nil)" if value == b"0x0" else value
        elif kind == b"c":
            value = bytes([int(self.take("u4")) & 0xFF])
        elif kind in b"diuoxX":
            signed = "i" if kind in b"di" else "u"
            value = self.take(signed + ("8" if spec["length"] in _LONG else "4"))
            short = {b"h": "2", b"hh": "1"}.get(spec["length"])
            if short:
                value = np.array(value).astype(signed + short).item()
            if precision is not None:
                flags = flags.replace(b"0", b"")
            if value == 0:
                flags = flags.replace(b"#", b"")
        else:
            value = self.take("f8")
            if not np.isfinite(value):
                flags = flags.replace(b"0", b"")
        if kind in b"spc":
            kind, flags = b"s", flags.replace(b"0", b"")
        dot = b"" if precision is None else b"." + precision
        return b"%%%s%s%s%s" % (flags, width or b"", dot, kind) % value


def _printed(thread: _Thread, form: int, buffer: int) -> tuple[bytes, int]:
    arguments = _Arguments(thread, buffer)
    try:
        pieces = _pieces(thread.text(form))
    except faults.UnknownInstruction as error:
        raise thread.fault(faults.UnknownInstruction, error.what) from None
    parts = [text + (arguments.convert(spec) if spec else b"") for text, spec in pieces]
    return b"".join(parts), arguments.count


def _vprintf(batch: Context, op: Op, lanes: Lanes, frame: _Frame) -> None:
    first = batch.geometry.first * batch.geometry.padded
    for lane in indices(lanes, batch.lanes).tolist():
        thread = _Thread(batch, op, lane)
        form, buffer = (thread.argument(offset) for offset in frame.arguments)
        text, count = _printed(thread, form, buffer)
        batch.printed.append((first + lane, text))
        if frame.results:
            thread.give(frame.results[0], count)


def _assertfail(batch: Context, op: Op, lanes: Lanes, frame: _Frame) -> None:
    thread = _Thread(batch, op, 0 if lanes is None else int(lanes[0]))
    message, file, line, function = frame.arguments[:4]
    condition, source, name = (
        thread.text(thread.argument(offset)).decode(errors="replace")
        for offset in (message, file, function)
    )
    where = f"{source}:{thread.argument(line, 'u4')}"
    raise thread.fault(faults.Trap, f"assertion `{condition}` failed in {name}, {where}")


def _malloc(batch: Context, op: Op, lanes: Lanes, frame: _Frame) -> None:
    for lane in indices(lanes, batch.lanes).tolist():
        thread = _Thread(batch, op, lane)
        size, address = thread.argument(frame.arguments[0]), 0
        if 0 < size <= HEAP:
            allocation = batch.memory.allocate(size, "heap", batch.device.ordinal)
            allocation.written = Written(size)
            address = allocation.address
        thread.give(frame.results[0], address, "u8")


def _free(batch: Context, op: Op, lanes: Lanes, frame: _Frame) -> None:
    for lane in indices(lanes, batch.lanes).tolist():
        thread = _Thread(batch, op, lane)
        address = thread.argument(frame.arguments[0])
        held = batch.memory.find(address)
        if address == 0:
            continue
        if held is None or (held.kind, held.address) != ("heap", address):
            what = f"free of {address:#x}, which no malloc in a kernel returned"
            raise thread.fault(faults.OutOfBounds, what)
        if held.freed:
            raise thread.fault(faults.UseAfterFree, f"free of {address:#x}, in {held!r}")
        batch.memory.free(address)


CALLS = {"vprintf": _vprintf, "__assertfail": _assertfail, "malloc": _malloc, "free": _free}


def call(name: str, arguments: list[int], results: list[int]) -> Effect:
    """Return the effect of a call whose arguments and results lie there in the frame."""
    function, frame = CALLS[name], _Frame(tuple(arguments), tuple(results))

    def effect(batch: Context, op: Op, lanes: Lanes) -> tuple[Array, ...]:
        function(batch, op, lanes, frame)
        return ()

    return effect


def show(printed: list[tuple[int, bytes]]) -> None:
    """Write what a launch printed, by block and thread, to the program's standard output."""
    if printed:
        printed.sort(key=lambda entry: entry[0])
        sys.stdout.write(b"".join(text for _, text in printed).decode(errors="replace"))
        printed.clear()
