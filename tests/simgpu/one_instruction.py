"""A kernel around one instruction, and an exact oracle for its floats.

The oracle works on Python integers and fractions alone: nothing of NumPy's arithmetic, nothing of
the simulator's.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from fractions import Fraction
from types import SimpleNamespace

import numpy as np

from cunorm.simgpu import isa
from cunorm.simgpu.execution import launch
from cunorm.simgpu.memory.space import GlobalMemory
from cunorm.simgpu.ptx import module as ptx

DEVICE = SimpleNamespace(arch=90, multiprocessors=132)
DTYPES = {
    **{f"{kind}{bits}": np.dtype(f"{letter}{bits // 8}") for kind, letter in
       (("u", "u"), ("s", "i"), ("b", "u")) for bits in (8, 16, 32, 64)},
    "f16": np.dtype("u2"), "bf16": np.dtype("u2"), "f16x2": np.dtype("u4"),
    "bf16x2": np.dtype("u4"), "f32": np.dtype("u4"), "f64": np.dtype("u8"), "pred": np.dtype("u1"),
    "tf32": np.dtype("u4"),
}  # fmt: skip
THREADS = 64
# What the tests of this session ran through `start`: (pattern of a form, field, its word).
EXERCISED: set[tuple[str, str, str | None]] = set()


def note(function):
    """Enter a kernel's forms as exercised, each with the words that its fields had."""
    for statement in function.statements:
        found = isa.find(statement.opcode)
        if found is not None:
            form, fields = found
            EXERCISED.add((form.pattern, "", ""))
            EXERCISED.update((form.pattern, field, word) for field, word in fields.items())


def start(text, kernel, grid, block, arguments, *, shared=0, memory, symbols=None, **options):
    """Run a kernel of a PTX text; integers among the arguments are 8-byte pointers."""
    function = ptx.parse(text).functions[kernel]
    note(function)
    packed = [
        argument if isinstance(argument, bytes) else struct.pack("<Q", argument)
        for argument in arguments
    ]
    launch.run(
        function, grid, block, shared, packed, memory=memory, device=DEVICE,
        symbols=symbols or {}, **options,
    )  # fmt: skip


def entry(body, parameters=(), name="k", top=""):
    """Wrap a body into a module; each parameter is a 64-bit pointer."""
    declared = ", ".join(f".param .u64 {parameter}" for parameter in parameters)
    return (
        f".version 8.8\n.target sm_90\n.address_size 64\n{top}\n"
        f".visible .entry {name}({declared})\n{{\n{body}\n}}\n"
    )


def _register_type(kind):
    size = DTYPES[kind].itemsize
    return ".pred" if kind == "pred" else f".b{max(16, 8 * size)}"


def execute(opcode, results, *operands):
    """Return the bits that `opcode` gives: one array for each type in `results`.

    Operands are (bits or values, type) pairs, one lane per element, or strings, as written.
    """
    given = [operand for operand in operands if not isinstance(operand, str)]
    lanes = max((np.size(values) for values, _ in given), default=1)
    memory = GlobalMemory(1 << 30)
    names, lines, pointers = [], [], []
    declared = ["  .reg .b64 %at<9>, %base<9>;", "  .reg .b32 %i<5>;", "  .reg .b16 %byte<9>;"]
    for at, operand in enumerate(operands):
        if isinstance(operand, str):
            names.append(operand)
            continue
        values, kind = operand
        dtype = DTYPES[kind]
        array = np.broadcast_to(np.asarray(values), lanes)
        array = array.view(dtype) if array.dtype.itemsize == dtype.itemsize else array.astype(dtype)
        allocation = memory.allocate(array.nbytes)
        allocation.data[:] = np.ascontiguousarray(array).view(np.uint8)
        pointers.append(allocation.address)
        declared.append(f"  .reg {_register_type(kind)} %in{at};")
        lines += _address(len(pointers) - 1, dtype.itemsize)
        source = f"[%at{len(pointers) - 1}]"
        if kind == "pred":
            lines += [
                f"  ld.global.u8 %byte{at}, {source};",
                f"  setp.ne.u16 %in{at}, %byte{at}, 0;",
            ]
        else:
            load = kind if kind in ("u8", "s8") else f"b{8 * dtype.itemsize}"
            lines.append(f"  ld.global.{load} %in{at}, {source};")
        names.append(f"%in{at}")
    outputs, targets = [], []
    for at, kind in enumerate(results):
        outputs.append(memory.allocate(lanes * DTYPES[kind].itemsize))
        pointers.append(outputs[-1].address)
        declared.append(f"  .reg {_register_type(kind)} %out{at};")
        targets.append(f"%out{at}")
    lines.append(f"  {opcode} {'|'.join(targets)}{', ' * bool(names)}{', '.join(names)};")
    for at, kind in enumerate(results):
        size = DTYPES[kind].itemsize
        lines += _address(len(given) + at, size)
        value = f"%out{at}"
        if kind == "pred":
            lines.append(f"  selp.u16 %byte8, 1, 0, {value};")
            value = "%byte8"
        lines.append(f"  st.global.b{8 * size} [%at{len(given) + at}], {value};")
    head = [
        "  mov.u32 %i0, %tid.x;", "  mov.u32 %i1, %ctaid.x;",
        f"  mad.lo.u32 %i2, %i1, {THREADS}, %i0;", f"  setp.ge.u32 %outside, %i2, {lanes};",
        "  @%outside ret;",
    ]  # fmt: skip
    parameters = [f"p{at}" for at in range(len(pointers))]
    body = "\n".join(["  .reg .pred %outside;", *declared, *head, *lines, "  ret;"])
    start(
        entry(body, parameters), "k", (-(-lanes // THREADS), 1, 1), (THREADS, 1, 1), pointers,
        memory=memory,
    )  # fmt: skip
    arrays = [output.data.view(DTYPES[kind]) for output, kind in zip(outputs, results, strict=True)]
    return arrays[0] if len(arrays) == 1 else arrays


def _address(at, size):
    return [
        f"  ld.param.u64 %base{at}, [p{at}];",
        f"  mad.wide.u32 %at{at}, %i2, {size}, %base{at};",
    ]


@dataclass(frozen=True)
class Format:
    """A binary float format: bits of the significand (with the hidden one) and of the exponent."""

    name: str
    precision: int
    exponent: int
    nan: int

    @property
    def bits(self):
        return self.precision + self.exponent

    @property
    def lowest(self):
        """The exponent of the last place of subnormals."""
        return 3 - (1 << self.exponent - 1) - self.precision

    @property
    def infinity(self):
        return ((1 << self.exponent) - 1) << self.precision - 1

    @property
    def sign(self):
        return 1 << self.bits - 1

    def value(self, bits):
        """Return a fraction, or the float infinity or NaN; the sign of zero is in the bits."""
        magnitude = bits & (self.sign - 1)
        negative = -1 if bits & self.sign else 1
        if magnitude >= self.infinity:
            return negative * math.inf if magnitude == self.infinity else math.nan
        power = max(magnitude >> self.precision - 1, 1)
        hidden = (magnitude >> self.precision - 1 > 0) << self.precision - 1
        digits = (magnitude & ((1 << self.precision - 1) - 1)) + hidden
        return negative * digits * Fraction(2) ** (power - 1 + self.lowest)

    def round(self, value, mode="rn", zero=0):
        """Return the bits of a fraction (or infinity or NaN); `zero` is the sign bit of a zero."""
        if value != value:
            return self.nan
        if value in (math.inf, -math.inf):
            return self.infinity | (self.sign if value < 0 else 0)
        if value == 0:
            return zero
        negative, size = value < 0, abs(value)
        place = self.lowest
        top = size.numerator.bit_length() - size.denominator.bit_length()
        if Fraction(2) ** top > size:
            top -= 1
        place = max(place, top - self.precision + 1)
        scaled = size / Fraction(2) ** place
        digits, rest = divmod(scaled.numerator, scaled.denominator)
        rest = Fraction(rest, scaled.denominator)
        up = {
            "rn": rest > Fraction(1, 2) or (rest == Fraction(1, 2) and digits & 1),
            "rz": False, "rm": negative and rest > 0, "rp": not negative and rest > 0,
        }[mode]  # fmt: skip
        digits += bool(up)
        bits = digits + (place - self.lowest << self.precision - 1)
        if bits >= self.infinity:
            limit = mode == "rz" or (mode == "rm" and not negative) or (mode == "rp" and negative)
            bits = self.infinity - 1 if limit else self.infinity
        return bits | (self.sign if negative else 0)

    def flush(self, bits):
        """Return the bits with a subnormal made a zero of its sign."""
        normal = bits & (self.sign - 1) >= 1 << self.precision - 1
        return bits if normal else bits & self.sign

    def edges(self):
        """Return bits worth trying: zeros, subnormals, ones, ties, limits, infinities, NaNs."""
        one = self.round(Fraction(1))
        least = 1 << self.precision - 1
        top = self.infinity
        positive = [
            0, 1, 2, least - 1, least, least + 1, one - 1, one, one + 1, one + 3, one + least,
            self.round(Fraction(3, 2)), self.round(Fraction(10)), self.round(Fraction(1, 3)),
            self.round(Fraction(2) ** (self.lowest // 2)),
            self.round(Fraction(2) ** (self.precision - 1)),
            self.round(Fraction(2) ** self.precision + 1, "rp"), top - 1, top - least, top, top + 1,
            self.nan,
        ]  # fmt: skip
        return positive + [bits | self.sign for bits in positive]


FORMATS = {
    "f16": Format("f16", 11, 5, 0x7FFF),
    "bf16": Format("bf16", 8, 8, 0x7FFF),
    "f32": Format("f32", 24, 8, 0x7FFFFFFF),
    "f64": Format("f64", 53, 11, 0x7FFFFFFFFFFFFFFF),
}
