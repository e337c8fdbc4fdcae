"""What `python -m cunorm bench` measures: which calls, on which arrays, and their least bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._families import BACKWARD, FAMILIES, PLAIN, Op
from .._families import OPS as _OPS
from .._plan import ITEMSIZE, accumulator

if TYPE_CHECKING:
    import cupy

OPS = tuple(op.name for family in FAMILIES for op in PLAIN if op.family is family)
# Those of norms without a gate.
BACKWARD_OPS = tuple(op.name for op in BACKWARD.values() if "gate" not in op.reads)
DTYPES = ("float16", "bfloat16", "float32")
# What is timed beside cunorm: CuPy's operators and `cupy.fuse`, PyTorch and its compiler, and more.
SYSTEMS = ("cupy", "fuse", "torch", "compile", "liger", "quack", "flashinfer")
# Heads, the models of today and what comes after them; the last two no single block can hold.
COLS = (64, 128, 256, 512, 768, 1024, 2048, 4096, 5120, 8192, 16384, 32768, 65536, 131072, 262144)
# Rows that do not all start on 16 bytes: odd ones, and even ones in arrays one element off.
ODD_COLS = (769, 1025, 4097, 5125)
SHIFTED_COLS = (512, 1024, 4096, 8192)
# A launch of so many bytes of x has enough rows that what a block does once weighs little.
COUNTED_BYTES = 2 << 20
# On hardware: 2048 rows of 4096 in float16, whose x and y just stay in the cache of an sm_90.
TIMED_BYTES = 16 << 20
VALUES = 65537  # random values, repeated: coprime to every length of the grid, so no two rows agree


@dataclass(frozen=True)
class Case:
    """One call.

    Attributes
    ----------
    op : str
        A public op.
    dtype : str
        The dtype of all its arrays.
    cols, rows : int
        The shape of x.
    offset : int
        Elements between a boundary of 16 bytes and the start of every array of rows.
    dresidual : bool
        Whether a backward op is given a gradient of the residual.
    warm : bool
        Whether it is timed on one set of arrays, which the L2 cache holds.
    few : bool
        Whether those are all rows that a call would have, and no sample of many.
    """

    op: str
    dtype: str
    cols: int
    rows: int
    offset: int = 0
    dresidual: bool = True
    warm: bool = False
    few: bool = False

    def __str__(self) -> str:
        shifted = f" + {self.offset} element" if self.offset else ""
        warm = " warm" if self.warm else ""
        return f"{self.op} {self.dtype} ({self.rows}, {self.cols}){shifted}{warm}"

    @property
    def kind(self) -> Op:
        """What the op is made of."""
        return _OPS[self.op]

    @property
    def is_backward(self) -> bool:
        """Whether the op is a backward pass."""
        return self.kind.is_backward

    @property
    def is_layer_norm(self) -> bool:
        """Whether rows have a mean taken off."""
        return "mean" in self.kind.family.saves

    @property
    def x_bytes(self) -> int:
        """Bytes of x, and of every other array of rows."""
        return self.rows * self.cols * ITEMSIZE[self.dtype]

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays of rows: what is read, then what is written."""
        return tuple(name for name in self.kind.rows if self.dresidual or name != "dresidual")

    @property
    def parameters(self) -> tuple[str, ...]:
        """The arrays of one row: what is read."""
        return self.kind.parameters

    @property
    def floor_bytes(self) -> int:
        """The least that memory must move: every array once."""
        of_one_row = len(self.parameters) + len(self.kind.totals)
        return len(self.names) * self.x_bytes + of_one_row * self.x_bytes // self.rows


def grid(
    ops: Sequence[str],
    dtypes: Sequence[str],
    cols: Sequence[int] | None,
    rows: int | None,
    odd: bool,
    launch_bytes: int,
) -> Iterator[Case]:
    """Yield the cases of a run.

    Parameters
    ----------
    ops, dtypes : sequence of str
        Which ones.
    cols : sequence of int or None
        Which N; None for those of `COLS`.
    rows : int or None
        Rows of every case; None for as many as `launch_bytes` of x have.
    odd : bool
        Whether rows that do not start on 16 bytes follow.
    launch_bytes : int
        Bytes of x of a launch.
    """
    sizes = [(n, 0) for n in cols or COLS]
    if odd:
        sizes += [(n, 0) for n in ODD_COLS] + [(n, 1) for n in SHIFTED_COLS]
    for op in ops:
        for dtype in dtypes:
            for n, offset in dict.fromkeys(sizes):
                fit = max(1, launch_bytes // (n * ITEMSIZE[dtype]))
                yield Case(op, dtype, n, rows or fit, offset, few=rows is not None)


def timed(cases: Iterable[Case], warm: bool) -> Iterator[Case]:
    """Yield cases as they are timed: without a dresidual, which no other system takes.

    With `warm`, each follows once more, on one set of arrays.
    """
    for case in cases:
        plain = replace(case, dresidual=False)
        yield plain
        if warm:
            yield replace(plain, warm=True)


def arrays(case: Case) -> dict[str, cupy.ndarray]:
    """Return the arrays of a case by name, each an allocation of its own.

    A backward op makes what it writes; mean and rstd are those of rows of normal values.
    """
    import cupy
    import numpy as np

    from .._reference import DTYPES as numpy_dtypes

    dtype = numpy_dtypes[case.dtype]
    values = np.random.default_rng(0).standard_normal(VALUES).astype(dtype)
    given = {output.name for output in case.kind.writes}
    made = {}
    for at, name in enumerate((*case.names, *case.parameters)):
        if name in case.kind.returns and name not in given:
            continue
        of_rows = name in case.names
        shape = (case.rows, case.cols) if of_rows else (case.cols,)
        offset = case.offset if of_rows else 0
        whole = cupy.empty(offset + math.prod(shape), dtype)
        if name not in given:
            _repeat(np.roll(values, 97 * at), whole)  # no two arrays agree
        made[name] = whole[offset:].reshape(shape)
    if case.is_backward:
        for name in case.kind.family.saves:
            made[name] = cupy.full(case.rows, float(name == "rstd"), accumulator(case.dtype))
    return made


def _repeat(values: Any, whole: cupy.ndarray) -> None:
    """Fill an array with values, over and over, by copies on the device that double them."""
    done = min(whole.size, values.size)
    whole[:done].set(values[:done])
    while done < whole.size:
        more = min(done, whole.size - done)
        whole[done:].data.copy_from_device_async(whole.data, more * whole.itemsize)
        done += more


def call(case: Case, given: dict[str, cupy.ndarray]) -> Any:
    """Call the op on `arrays(case)`: a forward op writes y, and with a residual residual_out."""
    import cunorm

    named = {case.kind.results_given.get(name, name): array for name, array in given.items()}
    return getattr(cunorm, case.op)(**named)
