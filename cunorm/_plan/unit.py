"""The translation unit of a kernel: some lines of CUDA C that choose its parts.

kernels/norm.cuh and kernels/gradient.cuh say what the parts are. A unit, below the hash of
kernels/, is CuPy's key of a compiled kernel.
"""

from __future__ import annotations

from dataclasses import dataclass
from string import Template
from typing import TYPE_CHECKING

from .dtypes import C_TYPE

if TYPE_CHECKING:
    from . import Plan


@dataclass(frozen=True)
class Stage:
    """A part of a kernel: its type, and what it is made of, an initialiser in braces.

    There ``$x`` stands for an array: where it begins, and its strides where it is one of rows.
    """

    type: str
    arrays: str


@dataclass(frozen=True)
class Reach:
    """How a launch reaches its arrays.

    Attributes
    ----------
    access : tuple of (str, str)
        For each array, by name, how its packets arrive: an Access of kernels/stream.cuh.
    levels : int
        Strided levels of rows.
    wide_index : bool
        Whether the number of rows needs 64 bits.
    by_row : tuple of str
        Parameters that are not the same for all rows.
    """

    access: tuple[tuple[str, str], ...]
    levels: int = 1
    wide_index: bool = False
    by_row: tuple[str, ...] = ()

    @property
    def shifted(self) -> tuple[str, ...]:
        """The arrays whose packets are shifted into place: each has a seam in shared memory."""
        return tuple(name for name, access in self.access if access == "SHIFTED")

    @property
    def all_aligned(self) -> bool:
        """Whether every array is reached in whole packets."""
        return all(access == "ALIGNED" for _, access in self.access)


@dataclass(frozen=True)
class Try:
    """How many registers a kernel may have: what launch bounds and its loads ask for.

    Attributes
    ----------
    blocks : int
        Blocks that a multiprocessor should hold.
    at_once : int
        Packets that a lane asks for before it needs the first.
    """

    blocks: int
    at_once: int


def type_name(array: str) -> str:
    """Return the name that a unit gives to the type of an array."""
    return "".join(part.capitalize() for part in array.split("_"))


def chosen(plan: Plan, reach: Reach, attempt: Try) -> dict[str, int]:
    """Return the numbers that a unit chooses: see Split of kernels/place.cuh."""
    split = plan.split
    return {
        "COLS": plan.cols,
        "LANES": split.lanes,
        "CLUSTER": split.cluster,
        "ROWS": split.rows,
        "PACKETS": split.packets,
        "SHARED": split.shared,
        "DEPTH": split.depth,
        "AT_ONCE": attempt.at_once,
        "SEAMS": max(1, len(reach.shifted)),
        "LEVELS": reach.levels,
        "FEW": int(plan.few),
    }


def strided(plan: Plan, reach: Reach) -> tuple[str, ...]:
    """Return the arrays that have strides, in the order of the kernel's last argument."""
    return (*plan.of_rows, *reach.by_row)


def arrays(plan: Plan, reach: Reach) -> dict[str, str]:
    """Return the types that a unit gives to arrays, by name: see Array of kernels/stream.cuh."""
    types = {}
    of_rows = strided(plan, reach)
    for name, how in reach.access:
        seam = reach.shifted.index(name) if name in reach.shifted else 0
        number = f", {seam}" if name in of_rows else ""
        types[name] = f"Array<{C_TYPE[plan.arrays[name]]}, {how}{number}>"
    return types


def declarations(plan: Plan, reach: Reach, attempt: Try) -> tuple[str, ...]:
    """Return the lines that name what a kernel is made of, and the struct of its numbers."""
    index = "unsigned long long" if reach.wide_index else "unsigned"
    numbers = f"\n  S::Acc {', '.join(plan.scalars)};" if plan.scalars else ""
    if plan.by_segment is not None:
        pitches = "".join(f"\n  long long {name}_pitch;" for name in plan.by_segment)
        numbers = f"\n  Segments segments;{pitches}{numbers}"
    return (
        "struct Chosen {",
        f"  using T = {C_TYPE[plan.row]};",
        f"  using Index = {index};",
        "  static constexpr int "
        + ", ".join(f"{n} = {value}" for n, value in chosen(plan, reach, attempt).items())
        + ";",
        "};",
        "using S = Split<Chosen>;",
        *(f"using {type_name(n)} = {how};" for n, how in arrays(plan, reach).items()),
        "struct Numbers {",
        "  Rows rows;",
        f"  Strides {', '.join(strided(plan, reach))};{numbers}",
        "};",
        "",
    )


def body(plan: Plan, reach: Reach) -> str:
    """Return what the entry point calls, with its arrays."""
    of_rows = strided(plan, reach)
    places = {n: f"{{{n}, n.{n}}}" if n in of_rows else f"{{{n}}}" for n in plan.arrays}
    for name in plan.by_segment or ():
        places[name] = f"{{row_of_segment({name}, n.{name}_pitch, n.segments)}}"
    return Template(plan.body).substitute(places)


def write(plan: Plan, reach: Reach, attempt: Try) -> str:
    """Return the translation unit of a kernel."""
    split = plan.split
    cluster = f" __cluster_dims__({split.cluster}, 1, 1)" if split.cluster > 1 else ""
    return "\n".join(
        (
            f"// {plan.kernel}: rows of {plan.cols} {plan.row}",
            f'#include "{plan.header}"',
            "",
            *declarations(plan, reach, attempt),
            f'extern "C" __global__ void{cluster} '
            f"__launch_bounds__({split.lanes * split.rows}, {attempt.blocks})",
            f"{plan.kernel}({', '.join(parameter(plan, name) for name in plan.arrays)}, "
            "const Numbers n) {",
            f"  {body(plan, reach)}",
            "}",
            "",
        )
    )


def parameter(plan: Plan, name: str, scope: str = "", prefix: str = "") -> str:
    """Return a parameter of the entry point: that of an array, with its type's scope."""
    element = "S::Acc*" if name in plan.statistics else f"{type_name(name)}::E*"
    if name in plan.written:
        return f"{scope}{element} {prefix}{name}"
    restricted = "__restrict__ " if name in plan.parameters else ""
    return f"const {scope}{element} {restricted}{prefix}{name}"
