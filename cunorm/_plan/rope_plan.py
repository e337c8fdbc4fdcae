"""The kernel of heads that are normalised and rotated: of one array, or of q and k."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from . import unit
from .plan import Plan
from .unit import Reach, Try

HEADER = "rope.cuh"
# What the arrays that are normalised are called, of so many.
SIDES = {1: ("x",), 2: ("q", "k")}


@dataclass(frozen=True)
class HeadsPlan(Plan):
    """What a kernel does with one array, of rows that are heads or all heads of a token.

    Attributes
    ----------
    row_bytes : int
        Bytes of shared memory that a row passes through, 0 where lanes have their own partners.
    """

    row_bytes: int

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return self.row_bytes * self.split.rows


@dataclass(frozen=True)
class RopePlan:
    """A kernel, of one array, or of two: its blocks take q's rows, then k's.

    Attributes
    ----------
    heads : tuple of HeadsPlan
        What is done with each array. All have one block's shape.
    """

    heads: tuple[HeadsPlan, ...]

    @property
    def kernel(self) -> str:
        """The entry point."""
        return "rms_norm_rope" if len(self.heads) == 1 else "qk_norm_rope"

    @property
    def block(self) -> tuple[int, int]:
        """The block's shape."""
        return self.heads[0].block

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return max(plan.shared_bytes for plan in self.heads)

    def tries(self, reaches: tuple[Reach, ...]) -> Iterator[Try]:
        """Yield what the kernel is to be built with, as `Plan.tries`."""
        both = zip(self.heads, reaches, strict=True)
        plan, reach = min(both, key=lambda pair: pair[0].resident_threads(pair[1]))
        yield from plan.tries(reach)

    def unit(self, reaches: tuple[Reach, ...], attempt: Try) -> str:
        """Return the translation unit: what is done with an array, in a namespace, and the entry.

        What is done with q is often done with k: then a block chooses its arrays, and the compiler
        has half as much to do as where it chooses between two functions.
        """
        names = SIDES[len(self.heads)]
        done = [_done(*side, attempt) for side in zip(self.heads, reaches, strict=True)]
        of = {side: names[done.index(what)] for side, what in zip(names, done, strict=True)}
        arguments = [
            unit.parameter(plan, name, f"{of[side]}::", f"{side}_")
            for side, plan in zip(names, self.heads, strict=True)
            for name in plan.arrays
        ]
        lanes, rows = self.block
        return "\n".join(
            (
                f"// {self.kernel}: rows of {' and '.join(str(p.cols) for p in self.heads)}",
                f'#include "{HEADER}"',
                "",
                *(
                    f"namespace {side} {{\n{what}}}  // namespace {side}\n"
                    for side, what in zip(names, done, strict=True)
                    if of[side] == side
                ),
                "struct Numbers {",
                *(f"  {of[side]}::Numbers {side};" for side in names),
                "  long long blocks;",
                "};",
                "",
                f'extern "C" __global__ void __launch_bounds__({lanes * rows}, {attempt.blocks})',
                f"{self.kernel}({', '.join(arguments)}, const Numbers n) {{",
                *self._body(of),
                "}",
                "",
            )
        )

    def _body(self, of: Mapping[str, str]) -> tuple[str, ...]:
        """Return what the entry point calls, of each side in its namespace."""
        given = [list(plan.arrays) for plan in self.heads]
        if len(of) == 1:
            return (f"  x::run({', '.join(f'x_{name}' for name in given[0])}, n.x, blockIdx.x);",)
        if of["q"] == of["k"]:
            arrays = (f"is_q ? q_{name} : k_{name}" for name in given[0])
            return (
                "  const bool is_q = blockIdx.x < n.blocks;",
                "  const q::Numbers own = is_q ? n.q : n.k;",
                f"  q::run({', '.join(arrays)}, own, is_q ? blockIdx.x : blockIdx.x - n.blocks);",
            )
        q, k = (
            f"{side}::run({', '.join(f'{side}_{name}' for name in names)}, n.{side}, "
            for side, names in zip(of, given, strict=True)
        )
        return (
            f"  if (blockIdx.x < n.blocks) {{\n    {q}blockIdx.x);",
            f"  }} else {{\n    {k}blockIdx.x - n.blocks);\n  }}",
        )

    def summary(self, reaches: tuple[Reach, ...], attempt: Try) -> str:
        """Return the unit's choices in a line, for the log."""
        both = zip(self.heads, reaches, strict=True)
        return "; ".join(plan.summary(reach, attempt) for plan, reach in both)


def _done(plan: HeadsPlan, reach: Reach, attempt: Try) -> str:
    """Return the lines that say what is done with an array."""
    parameters = ", ".join(unit.parameter(plan, name) for name in plan.arrays)
    return "\n".join(
        (
            *unit.declarations(plan, reach, attempt),
            f"__device__ inline void run({parameters}, const Numbers& n, long long group) {{",
            f"  {unit.body(plan, reach)}",
            "}",
            "",
        )
    )
