"""What `python -m cunorm bench` measures: which calls, on which arrays, and their least bytes."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from .._families import ALL_OPS, BACKWARD, FAMILIES, PLAIN, QUANTISED, ROPE, ROPE_OPS, Op
from .._plan import ITEMSIZE, accumulator
from .._quant import (
    Quant,
    buffer_shape,
    codes_dtype,
    codes_shape,
    from_buffer,
    scales_dtype,
)

if TYPE_CHECKING:
    import cupy

OPS = tuple(op.name for family in FAMILIES for op in PLAIN if op.family is family)
# Those of norms without a gate.
BACKWARD_OPS = tuple(op.name for op in BACKWARD.values() if "gate" not in op.reads)
# Those of heads that are rotated, and those whose results are codes.
HEAD_OPS = tuple(op.name for op in ROPE_OPS.values() if not op.keeps and not op.is_backward)
CODE_OPS = tuple(QUANTISED)
EVERY_OP = (*OPS, *BACKWARD_OPS, *HEAD_OPS, *CODE_OPS)
# How results of those may be quantised.
SCHEMES = {
    "fp8_row": Quant.fp8_row(),
    "int8_row": Quant.int8_row(),
    "deepseek": Quant.deepseek(),
    "mxfp8": Quant.mxfp8(),
    "nvfp4": Quant.nvfp4(1.0),
}
USUAL_SCHEMES = ("fp8_row",)  # of those, where none is named
DTYPES = ("float16", "bfloat16", "float32")
# What is timed beside cunorm: CuPy's operators and `cupy.fuse`, PyTorch and its compiler, and more.
SYSTEMS = ("cupy", "fuse", "torch", "compile", "liger", "quack", "flashinfer")
# Heads, the models of today and what comes after them; the last two no single block can hold.
COLS = (64, 128, 256, 512, 768, 1024, 2048, 4096, 5120, 8192, 16384, 32768, 65536, 131072, 262144)
# Rows that do not all start on 16 bytes: odd ones, and even ones in arrays one element off.
ODD_COLS = (769, 1025, 4097, 5125)
SHIFTED_COLS = (512, 1024, 4096, 8192)
# Of heads: a token has 32, and a fourth as many of keys, as Qwen3 of 8B has.
HEAD_COLS = (64, 80, 96, 128, 256)
SHIFTED_HEAD_COLS = (128,)
HEADS, QUERIES_OF_KEY = 32, 4
# A launch of so many bytes of x has enough rows that what a block does once weighs little.
COUNTED_BYTES = 2 << 20
# On hardware: 2048 rows of 4096 in float16, whose x and y just stay in the cache of an sm_90.
TIMED_BYTES = 16 << 20
_INTEGERS = {"uint8": 1, "int8": 1, "uint32": 4}  # bytes of codes and of scales
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
    quant : str or None
        Of codes, the scheme: a name of `SCHEMES`.
    """

    op: str
    dtype: str
    cols: int
    rows: int
    offset: int = 0
    dresidual: bool = True
    warm: bool = False
    few: bool = False
    quant: str | None = None

    def __str__(self) -> str:
        shifted = f" + {self.offset} element" if self.offset else ""
        warm = " warm" if self.warm else ""
        quant = f" {self.quant}" if self.quant else ""
        return f"{self.op}{quant} {self.dtype} ({self.rows}, {self.cols}){shifted}{warm}"

    @property
    def kind(self) -> Op:
        """What the op is made of."""
        return ALL_OPS[self.op]

    @property
    def scheme(self) -> Quant | None:
        """How results are quantised, where they are."""
        return None if self.quant is None else SCHEMES[self.quant]

    @property
    def is_of_heads(self) -> bool:
        """Whether rows are heads of tokens."""
        return self.kind.family is ROPE

    @property
    def is_backward(self) -> bool:
        """Whether the op is a backward pass."""
        return self.kind.is_backward

    @property
    def is_layer_norm(self) -> bool:
        """Whether rows have a mean taken off."""
        return self.kind.family.statistic == "Moments"

    @property
    def x_bytes(self) -> int:
        """Bytes of x, and of every other array of rows."""
        return self.rows * self.cols * ITEMSIZE[self.dtype]

    @property
    def names(self) -> tuple[str, ...]:
        """The arrays of rows: what is read, then what is written."""
        left_out = {"scales", "y_out"} | (set() if self.dresidual else {"dresidual"})
        return tuple(name for name in self.kind.rows if name not in left_out)

    @property
    def parameters(self) -> tuple[str, ...]:
        """The arrays of one row: what is read."""
        return self.kind.parameters

    @property
    def beside(self) -> tuple[str, ...]:
        """The arrays of tokens, or of scales."""
        return ("cos", "sin") if self.is_of_heads else ("scales",) if self.quant else ()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of an array, of scales that of their memory."""
        rows = (self.rows, self.cols)
        if name in self.parameters or name in self.kind.totals:
            return (self.cols,)
        if self.scheme is not None and name in ("q", "scales"):
            return (codes_shape if name == "q" else buffer_shape)(self.scheme, rows)
        if not self.is_of_heads:
            return rows
        heads = min(HEADS, self.rows)
        tokens = self.rows // heads
        if name in ("cos", "sin"):
            return (tokens, self.cols // 2)
        of_keys = name in ("k", "k_out")
        return (tokens, max(1, heads // QUERIES_OF_KEY) if of_keys else heads, self.cols)

    def dtype_of(self, name: str) -> str:
        """Return the dtype of an array."""
        if self.scheme is not None and name in ("q", "scales"):
            return (codes_dtype if name == "q" else scales_dtype)(self.scheme)
        return self.dtype

    def bytes_of(self, name: str) -> int:
        """Return the bytes of an array."""
        return math.prod(self.shape(name)) * (ITEMSIZE | _INTEGERS)[self.dtype_of(name)]

    @property
    def floor_bytes(self) -> int:
        """The least that memory must move: every array once."""
        every = (*self.names, *self.parameters, *self.kind.totals, *self.beside)
        return sum(map(self.bytes_of, every))


def misfit(op: str, quant: str | None, cols: int) -> str | None:
    """Return why an op cannot have rows of so many columns; None where it can."""
    if op in HEAD_OPS and cols % 2:
        return f"{op} takes an even number of columns"
    group = 1 if quant is None else SCHEMES[quant].group or 1
    if cols % group:
        return f"{op} with {quant} takes a multiple of {group} columns"
    return None


def grid(
    ops: Sequence[str],
    dtypes: Sequence[str],
    cols: Sequence[int] | None,
    rows: int | None,
    odd: bool,
    launch_bytes: int,
    quants: Sequence[str] = USUAL_SCHEMES,
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
    quants : sequence of str
        The schemes of ops that return codes.
    """
    for op in ops:
        is_of_heads = op in HEAD_OPS
        sizes = [(n, 0) for n in cols or (HEAD_COLS if is_of_heads else COLS)]
        if odd:
            sizes += [(n, 0) for n in ODD_COLS if not is_of_heads]
            sizes += [(n, 1) for n in (SHIFTED_HEAD_COLS if is_of_heads else SHIFTED_COLS)]
        for quant in quants if op in CODE_OPS else (None,):
            for dtype in dtypes:
                for n, offset in dict.fromkeys(sizes):
                    if misfit(op, quant, n):
                        continue
                    count = rows or max(1, launch_bytes // (n * ITEMSIZE[dtype]))
                    if is_of_heads:
                        count = max(1, count // HEADS) * HEADS
                    few = rows is not None
                    yield Case(op, dtype, n, count, offset, few=few, quant=quant)


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

    dtypes = numpy_dtypes | {name: np.dtype(name) for name in _INTEGERS}
    values = np.random.default_rng(0).standard_normal(VALUES)
    given = {output.name for output in case.kind.writes}
    made = {}
    for at, name in enumerate((*case.names, *case.parameters, *case.beside)):
        if name in case.kind.returns and name not in given:
            continue
        shape, dtype = case.shape(name), dtypes[case.dtype_of(name)]
        offset = case.offset if name in case.names else 0
        whole = cupy.empty(offset + math.prod(shape), dtype)
        if name not in given:
            _repeat(np.roll(values.astype(dtype), 97 * at), whole)  # no two arrays agree
        made[name] = whole[offset:].reshape(shape)
    if case.scheme is not None:
        made["scales"] = from_buffer(case.scheme, made["scales"], (case.rows,))
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

    named: dict[str, Any] = {
        case.kind.results_given.get(name, name): array for name, array in given.items()
    }
    if case.scheme is not None:
        named["quant"] = case.scheme
    return getattr(cunorm, case.op)(**named)
