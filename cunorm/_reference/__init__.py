"""What every op means: the definitions in wide NumPy, and how far from them a result may be.

A definition is computed in float64 (float64 data in `numpy.longdouble`) and left unrounded; only
the roundings that are part of the definition itself, such as that of ``cast="before"``, are made.
A kernel works in float32 (float64 for float64 data), here called the accumulator, and so may differ
from the definition by its roundings. Those are counted below, once, for `python -m cunorm check`
and for the tests. `rms_norm`, and every other op by its name, is its definition.

The tolerance
-------------
Half an ulp of the output dtype, for the last rounding, plus a slack made of these terms. `u` is the
unit roundoff of the accumulator, 2^-24 or 2^-53.

- A sum of N terms passes through k additions, each good to u. Rounding errors of either sign add
  up like a random walk (Higham & Mary, SIAM J. Sci. Comput. 41, 2019): sqrt(k) u. In a leaf of the
  tree (kernels/tree.cuh) at most 32 elements follow each other, and N/65536 such chains; at most 15
  more additions join leaves and chunks: k = min(N, 32 + N/65536) + 15.
- `rstd`: the terms of the sum (u for a square; 5 u where it is the square of a difference), the
  sum, the division by N, eps in the accumulator's precision, and adding it: halved by the square
  root. The reciprocal square root itself is good to 2.2 u (PTX ISA, `rsqrt.approx`: 2^-22.9).
- The product x * rstd: u. Where the definition rounds it to x's dtype, a value that close to a tie
  may go to either neighbour, which is one ulp of the *product*, times gamma.
- gamma + gamma_offset: u of each. The product with it: u. Adding beta: u of the result.
- LayerNorm's mean is corrected by the mean of the differences from it (Chan, Golub & LeVeque 1983),
  so its error is that of a sum of N differences: (sqrt(k) + 3) u times their mean size.
- Backward, each error is carried beside its value: n is good to u (2 u where the mean is
  subtracted), and to what mean and rstd are off where they are the kernel's own; g * dy to u, a
  mean over the row to (sqrt(k) + 2) u of the mean of sizes, and the products and the difference
  that make dx to u each. Of rows, a sum of M passes at most min(M, max(32, M/1024) + 112)
  additions: those of its block, of the up to 32 rows beside it, of every 16th block, and of the 16
  sums of those.
- float32 subnormals count as zero: CuPy compiles with `-ftz=true`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from .._families import OPS, Op, Option
from .backward import backward
from .forward import forward
from .near import BFLOAT16, DTYPES, Expected, round_to, ulp, ulps
from .rope import (
    qk_norm_rope,
    qk_norm_rope_fwd,
    rms_norm_rope,
    rms_norm_rope_bwd,
    rms_norm_rope_fwd,
)

__all__ = [
    "BFLOAT16",
    "DTYPES",
    "Expected",
    "define",
    "qk_norm_rope",
    "qk_norm_rope_fwd",
    "rms_norm_rope",
    "rms_norm_rope_bwd",
    "rms_norm_rope_fwd",
    "round_to",
    "ulp",
    "ulps",
]


def __getattr__(name: str) -> Callable[..., Any]:
    """Return the definition of an op: called as the op is, it returns what is expected of it."""
    if name not in OPS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return partial(define, OPS[name])


def define(op: Op, *given: Any, **named: Any) -> Any:
    """Return each result of an op as an `Expected`, None where the op returns None.

    Parameters
    ----------
    op : Op
        The op.
    *given, **named
        Its arguments, but for `out` and `residual_out`: NumPy arrays, numbers and words. A backward
        op's statistics may be an `Expected` too. The gradients are then those as defined, and their
        slack has room for what the forward kernel's own statistics may be off.
    """
    arguments = dict(zip(op.names, given, strict=False)) | named
    if len(arguments) != len(given) + len(named) or not arguments.keys() <= set(op.names):
        raise TypeError(f"{op.name} takes {', '.join(op.names)}, but was given {list(arguments)}")
    for argument in op.arguments:
        default = argument.default if isinstance(argument, Option) else None
        arguments.setdefault(argument.name, default)
    with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
        made = (backward if op.is_backward else forward)(op, arguments)
    return op.results(arguments, made)
