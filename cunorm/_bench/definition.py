"""Whether a result is what its op is defined to be, before anyone asks how fast it came."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _quant_reference, _reference
from .._families import UNQUANTISED
from .cases import Case

# The largest error that passes, in units of the largest number of the output: some roundings, for
# systems round where others do not.
TOLERANCE = {"float16": 4e-3, "bfloat16": 3e-2, "float32": 2e-4, "float64": 1e-11}
# What quantising adds, in the same units: half a step between the largest codes, which are 416 and
# 448 of e4m3, and 126 and 127. A power of two that is rounded up may leave 256 for the largest one.
# Of e2m1, whose last step is from 4 to 6, the scale may be off by a sixteenth, too.
OF_CODES = {
    "fp8_row": 16 / 448,
    "int8_row": 0.5 / 127,
    "deepseek": 16 / 448,
    "mxfp8": 16 / 256,
    "nvfp4": 1 / 6 + 1 / 16,
}
ENDS = 16  # rows or columns at either end that are compared, at most
ENDS_ELEMENTS = 1 << 18  # that those have, at most: the definition takes the host some 0.2 s

Ends = tuple[slice, slice]


class WrongResult(ArithmeticError):
    """A result that is not what the op is defined to be."""


class Definition:
    """What is expected of a case: the first and last rows, of sums over rows columns.

    A row depends on no other, and a sum over rows on its own column alone, given the statistics.

    Parameters
    ----------
    case : Case
        The case.
    given : dict of str to cupy.ndarray
        The arrays that it is called with.
    """

    def __init__(self, case: Case, given: dict[str, Any]) -> None:
        self._case = case
        self._tolerance = TOLERANCE[case.dtype] + OF_CODES.get(case.quant or "", 0)
        # Of rows, or of tokens, which have several heads each.
        self._rows = _ends(math.prod(case.shape(case.kind.leader)[1:]))
        self._cols = _ends(case.rows)
        self._wanted = [_defined(case, given, end, slice(None)) for end in self._rows]
        self._wanted_sums = (
            [_defined(case, given, slice(None), end) for end in self._cols]
            if case.is_backward
            else []
        )

    def hold(self, outputs: Any) -> float:
        """Return the largest error of a call's outputs, in units of the largest number of each.

        Raises
        ------
        WrongResult
            Where that is more than some roundings, or there are more or fewer outputs.
        """
        outputs = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
        wanted = {"scales", *self._wanted[0]}
        names = [name for name in self._case.kind.returns if name in wanted]
        if len(outputs) != len(names):
            raise WrongResult(f"{len(outputs)} outputs, not {', '.join(names)}")
        if self._case.quant is not None:
            outputs = (self._numbers(*outputs[:2]), *outputs[2:])
            names.remove("scales")
        errors = [self._error(*pair) for pair in zip(names, outputs, strict=True)]
        worst = max(errors)
        if not worst <= self._tolerance:
            raise WrongResult(f"{names[errors.index(worst)]} is off by {worst:.2g} of its largest")
        return worst

    def _numbers(self, codes: Any, scales: Any) -> Any:
        """Return what codes stand for, on the host: CuPy's are integers, PyTorch's have dtypes."""
        if not hasattr(codes, "get"):
            return codes.float().cpu().numpy() * scales.float().cpu().numpy()
        scheme = self._case.scheme
        assert scheme is not None
        return _quant_reference.dequantize(codes.get(), scales.get(), scheme, np.float32)

    def _error(self, name: str, output: Any) -> float:
        case = self._case
        is_sum = name in case.kind.totals
        shape = case.shape("x" if case.quant else name)
        if tuple(output.shape) != shape:
            raise WrongResult(f"{name} has shape {tuple(output.shape)}, not {shape}")
        ends, wanted = (self._cols, self._wanted_sums) if is_sum else (self._rows, self._wanted)
        worst = 0.0
        for end, values in zip(ends, wanted, strict=True):
            right = values[name]
            off = np.abs(_on_host(output[end]) - right).max() / max(np.abs(right).max(), 1e-30)
            worst = max(worst, math.inf if math.isnan(off) else float(off))
        return worst


def _ends(length: int) -> Ends:
    """Return the first and the last rows or columns, of so many elements each."""
    most = max(1, min(ENDS, ENDS_ELEMENTS // length))
    return slice(most), slice(-most, None)


def _defined(case: Case, given: dict[str, Any], rows: slice, cols: slice) -> dict[str, Any]:
    """Return what is expected of some rows and columns, by name."""
    op = case.kind
    # Of the arrays that are read; statistics have an element for each row.
    named = {
        name: (array[rows, cols] if array.ndim == 2 and name in case.names else array[at]).get()
        for name, array in given.items()
        if name in op.names and name not in op.results_given
        for at in (cols if name in case.parameters else rows,)
    }
    if case.is_of_heads:
        return _defined_heads(case, named)
    returns = op.returns
    if case.quant is not None:  # the numbers, whose codes are held to them
        op = UNQUANTISED[op.name]
        returns = tuple(name for name in returns if name != "scales")
    made = _reference.define(op, **named)
    made = made if isinstance(made, tuple) else (made,)
    return {
        name: expected.value
        for name, expected in zip(returns, made, strict=True)
        if expected is not None
    }


def _defined_heads(case: Case, named: dict[str, Any]) -> dict[str, Any]:
    op, angles = case.kind, (named["cos"], named["sin"])
    found = {}
    for read, weight, output in zip(op.reads, op.parameters, op.returns, strict=True):
        y, _ = _reference.rms_norm_rope_fwd(named[read], named[weight], *angles)
        found[output] = y.value
    return found


def _on_host(part: Any) -> Any:
    """Return a part of CuPy's or PyTorch's in float64, on the host."""
    if isinstance(part, np.ndarray):
        return part.astype("float64")
    if hasattr(part, "get"):
        return part.astype("float64").get()
    return part.detach().double().cpu().numpy()
