"""Which array an address was computed from: the program is read backwards, once it went wrong.

The allocation nearest to a wrong address may be any other. So the register that held the address is
traced, through sums and choices, to where pointers come from: the launch's arguments, variables of
the module, and memory.
"""

from __future__ import annotations

from collections.abc import Sequence

from .. import faults
from ..lanes import Array
from ..memory.access import BadAccess
from ..memory.allocation import Allocation
from ..ptx.op import Op
from .setup import Launch

# Which operands of an instruction its result may be a pointer because of.
_CARRIED = {
    "add": slice(2),
    "and": slice(2),
    "cvt": slice(1),
    "cvta": slice(1),
    "mad": slice(2, 3),
    "max": slice(2),
    "min": slice(2),
    "mov": slice(1),
    "or": slice(2),
    "selp": slice(2),
    "sub": slice(1),
}


def explained(
    refusal: BadAccess, launch: Launch, registers: list[Array], op: Op, lane: int
) -> BadAccess:
    """Return a refusal of a global access that says of which array it is, as far as is known."""
    if refusal.fault not in (faults.OutOfBounds, faults.UseAfterFree):
        return refusal
    pointers = Pointers(launch, registers, lane)
    meant = pointers.behind(op)
    if len(meant) == 1:
        ((allocation, name),) = meant.items()
        return _refused(refusal, allocation, name)
    if refusal.fault is faults.UseAfterFree:
        return refusal
    near = sorted((meant or pointers.given()).items(), key=lambda item: item[0].address)
    if not near:
        return refusal
    listed = "; ".join(_beside(refusal.address, *item) for item in near)
    what = f"{refusal.access}, outside the arrays that it may have been computed from: {listed}"
    return BadAccess(faults.OutOfBounds, what, refusal.position)


def _refused(refusal: BadAccess, allocation: Allocation, name: str) -> BadAccess:
    address = refusal.address
    fault: type[faults.Fault] = faults.OutOfBounds
    if address < allocation.address:
        where = f"{allocation.address - address} bytes before the start of"
    elif address < allocation.end and allocation.freed:
        fault, where = faults.UseAfterFree, f"{address - allocation.address} bytes into"
    else:
        where = f"{address + refusal.width - allocation.end} bytes past the end of"
    return BadAccess(fault, f"{refusal.access}, {where} {allocation!r}, {name}", refusal.position)


def _beside(address: int, allocation: Allocation, name: str) -> str:
    if address < allocation.address:
        return f"{name}, {allocation!r}, begins {allocation.address - address} bytes above"
    if address < allocation.end:
        return f"{name}, {allocation!r}, has it {allocation.end - address} bytes before its end"
    return f"{name}, {allocation!r}, ended {address - allocation.end} bytes below"


class Pointers:
    """Where the pointers of a lane come from."""

    def __init__(self, launch: Launch, registers: list[Array], lane: int) -> None:
        self.launch, self.registers, self.lane = launch, registers, lane
        self.program = launch.program
        self.definitions: dict[int, list[Op]] = {}
        self.stores: dict[int, list[int]] = {}  # of arguments of device functions, by their place
        for block in self.program.blocks:
            for op in (*block.ops, *block.terminator.ops):
                for slot in op.targets:
                    self.definitions.setdefault(slot, []).append(op)
                if op.statement.opcode.startswith("st.param"):
                    self.stores.setdefault(self._place(op, 0), []).extend(op.sources[1:])

    def behind(self, op: Op) -> dict[Allocation, str]:
        """Return the arrays that an access's address may have been computed from, with names."""
        addresses = [operand for operand in op.statement.operands if operand.startswith("[")]
        slots = op.sources[: len(addresses)]
        # What the lane's registers hold tells which way it went; they may have changed since.
        return self._trace(slots, certain=True) or self._trace(slots, certain=False)

    def given(self) -> dict[Allocation, str]:
        """Return every array that the launch was given, with its name."""
        named = [(word, f"arg {number}") for number, word in self.launch.pointers()]
        named += [(address, f"variable {name}") for name, address in self.launch.symbols.items()]
        return {array: name for word, name in named if (array := self._array(word)) is not None}

    def _trace(self, slots: Sequence[int], *, certain: bool) -> dict[Allocation, str]:
        found: dict[Allocation, str] = {}
        pending, seen = list(slots), set(slots)
        while pending:
            slot = pending.pop()
            if self.program.initial[slot].dtype.itemsize != 8:
                continue  # no pointer fits
            if slot in self.program.symbols:
                array = self._array(self._value(slot))
                if array is not None:
                    found[array] = f"variable {self.program.symbols[slot][0]}"
            for op in self._definitions(slot, certain=certain):
                before = self._before(op, certain=certain)
                if before is None:
                    word, name = self._loaded(op, slot)
                    array = self._array(word)
                    if array is not None:
                        found[array] = self.given().get(array, name)
                    continue
                pending.extend(each for each in before if each not in seen)
                seen.update(before)
        return found

    def _definitions(self, slot: int, *, certain: bool) -> list[Op]:
        """Return the operations that may have written a register last."""
        every = self.definitions.get(slot, [])
        if not certain or len(every) < 2:
            return every
        copies = (op for op in every if op.statement.opcode.startswith(("mov.", "cvta.")))
        return [op for op in copies if self._value(op.sources[0]) == self._value(slot)] or every

    def _before(self, op: Op, *, certain: bool) -> Sequence[int] | None:
        """Return the registers that a pointer came from; None where this is its beginning."""
        opcode = op.statement.opcode
        if opcode.startswith("ld.param") and self._parameter(op) is None:
            return self.stores.get(self._place(op, 1))
        carried = _CARRIED.get(opcode.partition(".")[0])
        if carried is None or op.statement.operands[1].startswith("{"):  # put together from halves
            return None
        if opcode.startswith("selp") and certain:
            first, second, chosen = op.sources
            return (first,) if self._value(chosen) else (second,)
        return op.sources[carried]

    def _loaded(self, op: Op, slot: int) -> tuple[int, str]:
        """Return a pointer at its beginning, and what to call what it points to."""
        at = self._parameter(op)
        if at is None:
            return self._value(slot), f"by the pointer of PTX line {op.statement.line}"
        at += 8 * op.targets.index(slot)
        word = self.launch.parameters.data[at : at + 8].tobytes()
        starts = enumerate(self.program.parameters.values())
        number = max(number for number, start in starts if start <= at)
        return int.from_bytes(word, "little"), f"arg {number}"

    def _parameter(self, op: Op) -> int | None:
        """Return where a load of a kernel's parameter reads; None for any other operation."""
        if not op.statement.opcode.startswith("ld.param"):
            return None
        name, offset = _base(op.statement.operands[1])
        start = self.program.parameters.get(name)
        return None if start is None else start + offset

    def _place(self, op: Op, operand: int) -> int:
        """Return where in the stack frame an argument of a device function is."""
        return self._value(op.sources[0]) + _base(op.statement.operands[operand])[1]

    def _value(self, slot: int) -> int:
        register = self.registers[slot]
        at = self.lane if register.size > 1 else 0
        return int.from_bytes(register[at : at + 1].tobytes(), "little")

    def _array(self, word: int) -> Allocation | None:
        """Return the allocation that a pointer points into, or to the end of."""
        nearest = self.launch.memory.nearest(word)
        return nearest if nearest is not None and word <= nearest.end else None


def _base(text: str) -> tuple[str, int]:
    """Split ``[base+offset]``."""
    base, _, offset = text.strip("[] ").partition("+")
    return base, int(offset or "0", 0)
