"""Numbers beside x: those that stand for an operand, and the one that is added to scale."""

from __future__ import annotations

from numbers import Real
from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from .. import _check
from .._plan import accumulator

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._families import Op
    from .._typing import Arrays


def arrays_for_numbers(
    op: Op, arrays: Arrays, options: tuple[object, ...]
) -> tuple[Arrays, tuple[object, ...]]:
    """Return the arguments with an array of x's dtype for each operand that is a number.

    To NumPy a number has no dtype: with scale_offset it makes one number. Where what follows a norm
    is rounded once at the end, the array is as wide as sums are.
    """
    numbers = {n: a for n in op.operands if isinstance(a := arrays[n], Real)}
    if not numbers:
        return arrays, options
    _check.data("x", arrays["x"])
    x = arrays["x"]
    settings = dict(zip((option.name for option in op.options), options, strict=True))
    rounds_once = settings.get("cast") == "after"
    made = {}
    with x.device:
        for name, number in numbers.items():
            value = _check.real(name, number)
            if name == "scale":
                value += _check.real("scale_offset", settings["scale_offset"])
                settings["scale_offset"] = 0.0
            is_wide = rounds_once and name != "gate"  # whose product has its own rounding
            made[name] = cupy.asarray(value, accumulator(x.dtype.name) if is_wide else x.dtype)
    return arrays | made, tuple(settings.values())


def offset_as_added(op: Op, arrays: Arrays, settings: Mapping[str, Any]) -> dict[str, float]:
    """Return `scale_offset` where there is a scale: beside an array a number has its dtype."""
    scale = arrays["scale"] if "scale" in op.operands else None
    if scale is None or settings.get("cast") == "after":
        return {}
    return {"scale_offset": float(np.asarray(settings["scale_offset"], scale.dtype))}
