"""How results are quantised: `Quant`, and the shapes of codes and of scales. CuPy is not needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, prod
from numbers import Integral, Real
from typing import Any

import numpy as np

from ._words import type_name, word

# The largest number of each format, and how many codes a byte holds.
LARGEST = {"e4m3": 448.0, "e5m2": 57344.0, "int8": 127.0, "e2m1": 6.0}
CODES_OF_BYTE = {"e4m3": 1, "e5m2": 1, "int8": 1, "e2m1": 2}
CODES = ("uint8", "int8", "uint32")  # dtypes that codes have, and scales of few bits
SCALES = ("float32", "e8m0", "e4m3")
LAYOUTS = ("rows", "columns", "packed", "swizzled")
# Groups are whole lanes' and lie in one turn of a warp: 32 lanes have 128 neighbouring columns of
# float32, and a lane has 8 of 16 bits.
GROUPS = (16, 32, 64, 128)
# To which rows of scales are filled up, and to which groups where four of a row share a word.
ROWS_OF_TILE = {"rows": 1, "columns": 4, "packed": 4, "swizzled": 128}
GROUPS_OF_WORD = 4
# Beyond it the multiplier of the smallest e4m3 scale, global_scale / 2^-9, leaves float32.
LARGEST_GLOBAL_SCALE = 2.0**118


@dataclass(frozen=True)
class Quant:
    """How rows are quantised: the format of their codes, and what each code is multiplied by.

    Codes are ``q = round(y / s)``, with a scale s for each row, for each group of columns, or for
    all. With A the largest ``abs(y)`` that s is for, at least `floor` and at most `ceiling`, and Q
    the largest number of the format:

    - float32 scales are ``s = A / Q``, and at least `minimum`;
    - e8m0 scales are the power of two that is not less than ``A / Q``;
    - e4m3 scales are ``s = e4m3(A / Q * global_scale)``, and ``q = round(y * (global_scale / s))``.

    All of that is float32, each result rounded to nearest even. What is past Q becomes Q. NaN is
    ignored in A, and stays NaN (0x7F) in e4m3 and e5m2; in int8 it becomes 0, in e2m1 6. Where s is
    0, finite numbers become 0.

    Parameters
    ----------
    format : {"e4m3", "e5m2", "int8", "e2m1"}
        Of the codes. Q is 448, 57344, 127 and 6. int8 codes are from -127 on. Of e2m1 two share a
        byte, the even column in its low half.
    group : {16, 32, 64, 128}, optional
        The columns that share a scale; all of a row, if left out.
    scale : {"float32", "e8m0", "e4m3"}
        The format of the scales.
    layout : {"rows", "columns", "packed", "swizzled"}
        How the scales of M rows of G groups lie in memory. "rows": C order. "columns": one column
        after the other, each filled up to a multiple of 4 rows. "packed": four groups of a row
        share a uint32, the first in its low byte; these lie as columns. "swizzled": tiles of 128
        rows and 4 groups, as tensor cores of sm_100 and sm_120 want them. What fills up is 0.
    floor : float
        The least that A may be.
    minimum : float
        The least that a float32 scale may be.
    ceiling : float, optional
        The most that A may be; what is larger becomes Q.
    static : float, optional
        The scale of all rows, in place of one that follows from them.
    global_scale : float, optional
        What e4m3 scales are multiplied by.

    See Also
    --------
    quantize : Quantise an array.
    rms_norm_quant : Normalise and quantise, in one pass.

    Notes
    -----
    Presets are `fp8_static`, `fp8_row`, `int8_static`, `int8_row`, `deepseek`, `mxfp8`, `mxfp4` and
    `nvfp4`. The formats are those of the OCP's specifications "8-bit Floating Point" and
    "Microscaling Formats (MX)", 2023; e4m3 has no infinity there, and 448 is its largest number.

    Examples
    --------
    >>> import cunorm
    >>> cunorm.Quant.fp8_static(0.5) == cunorm.Quant("e4m3", static=0.5)
    True
    >>> cunorm.Quant.mxfp8().group
    32
    """

    format: str
    group: int | None = None
    scale: str = "float32"
    layout: str = "rows"
    floor: float = 0.0
    minimum: float = 0.0
    ceiling: float | None = None
    static: float | None = None
    global_scale: float | None = None

    def __post_init__(self) -> None:
        """Refuse what is no scheme."""
        word(self.format, "format", tuple(LARGEST))
        word(self.scale, "scale", SCALES)
        word(self.layout, "layout", LAYOUTS)
        group: Any = self.group
        if group is not None:
            if isinstance(group, bool) or not isinstance(group, Integral):
                raise TypeError(f"group must be an int or None, but is a {type_name(group)}")
            if group not in GROUPS:
                raise ValueError(f"group must be 16, 32, 64, 128 or None, but is {group}")
            object.__setattr__(self, "group", int(group))
        for name in ("floor", "minimum"):
            self._keep(name, zero=True)
        for name in ("ceiling", "static", "global_scale"):
            if getattr(self, name) is not None:
                self._keep(name, zero=False)
        self._refuse_what_does_not_go_together()

    def _keep(self, name: str, *, zero: bool) -> None:
        value = getattr(self, name)
        if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
            raise TypeError(f"{name} must be a real number, but is a {type_name(value)}")
        with np.errstate(over="ignore"):
            number = float(np.float32(value))
        if not isfinite(number) or number < 0 or (number == 0 and not zero):
            wanted = "finite and not negative" if zero else "finite and greater than 0"
            raise ValueError(f"{name} must be {wanted} in float32, but is {value}")
        object.__setattr__(self, name, float(value))

    def _refuse_what_does_not_go_together(self) -> None:
        if self.layout == "packed" and self.scale != "e8m0":
            raise ValueError(
                f"scale must be 'e8m0' where layout is 'packed', but is {self.scale!r}"
            )
        if self.layout == "swizzled" and self.scale == "float32":
            raise ValueError(
                "scale must be 'e8m0' or 'e4m3' where layout is 'swizzled', but is 'float32'"
            )
        if self.minimum != 0 and self.scale != "float32":
            raise ValueError(
                f"minimum must be 0 where scale is {self.scale!r}, but is {self.minimum}"
            )
        if (self.global_scale is None) == (self.scale == "e4m3"):
            wanted = "a number" if self.scale == "e4m3" else "None"
            raise ValueError(
                f"global_scale must be {wanted} where scale is {self.scale!r}, "
                f"but is {self.global_scale}"
            )
        if self.global_scale is not None and self.global_scale > LARGEST_GLOBAL_SCALE:
            raise ValueError(f"global_scale must be at most 2**118, but is {self.global_scale}")
        if self.static is not None:
            for field, default in STATIC.items():
                if getattr(self, field) != default:
                    raise ValueError(
                        f"{field} must be {default!r} where static is given, "
                        f"but is {getattr(self, field)!r}"
                    )

    @classmethod
    def fp8_static(cls, s: float) -> Quant:
        """Return e4m3 codes that share the given scale, as vLLM's static scheme has it."""
        return cls("e4m3", static=s)

    @classmethod
    def fp8_row(cls) -> Quant:
        """Return e4m3 codes with a scale a row, at least 1 / (448 * 512): as vLLM's."""
        return cls("e4m3", minimum=1 / (448 * 512))

    @classmethod
    def int8_static(cls, s: float) -> Quant:
        """Return int8 codes that share the given scale."""
        return cls("int8", static=s)

    @classmethod
    def int8_row(cls) -> Quant:
        """Return int8 codes with a scale a row, at least 2^-23: as vLLM's."""
        return cls("int8", minimum=2.0**-23)

    @classmethod
    def deepseek(cls, e8m0: bool = False) -> Quant:
        """Return e4m3 codes with a scale for 128 columns, as DeepGEMM takes them.

        Scales are float32, in columns; or, for sm_100 and sm_120, packed powers of two.
        """
        if e8m0:
            return cls("e4m3", group=128, scale="e8m0", layout="packed", floor=1e-4)
        return cls("e4m3", group=128, layout="columns", floor=1e-4)

    @classmethod
    def mxfp8(cls, layout: str = "swizzled") -> Quant:
        """Return MXFP8: e4m3 codes with a power of two for 32 columns, rounded up."""
        return cls("e4m3", group=32, scale="e8m0", layout=layout)

    @classmethod
    def mxfp4(cls, layout: str = "swizzled") -> Quant:
        """Return MXFP4: e2m1 codes with a power of two for 32 columns, rounded up."""
        return cls("e2m1", group=32, scale="e8m0", layout=layout)

    @classmethod
    def nvfp4(cls, global_scale: float, layout: str = "swizzled") -> Quant:
        """Return NVFP4: e2m1 codes with an e4m3 scale for 16 columns, times `global_scale`."""
        return cls("e2m1", group=16, scale="e4m3", layout=layout, global_scale=global_scale)


# What a scale that is given leaves nothing to say about.
STATIC: dict[str, Any] = {
    "group": None,
    "scale": "float32",
    "layout": "rows",
    "floor": 0.0,
    "minimum": 0.0,
    "ceiling": None,
}


def groups(quant: Quant, cols: int) -> int:
    """Return how many scales a row has."""
    return 1 if quant.group is None else cols // quant.group


def codes_dtype(quant: Quant) -> str:
    """Return the dtype of the codes in CuPy, which has none of 8 and of 4 bits but integers."""
    return "int8" if quant.format == "int8" else "uint8"


def codes_shape(quant: Quant, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the codes of rows of a shape."""
    return (*shape[:-1], shape[-1] // CODES_OF_BYTE[quant.format])


def scales_dtype(quant: Quant) -> str:
    """Return the dtype of the scales: bytes of the narrow formats, or words of them."""
    if quant.scale == "float32":
        return "float32"
    return "uint32" if quant.layout == "packed" else "uint8"


def scales_shape(quant: Quant, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape of the scales of rows of a shape, as they are returned."""
    lead, of_row = tuple(shape[:-1]), groups(quant, shape[-1])
    words = -(-of_row // GROUPS_OF_WORD)
    if quant.static is not None:
        return ()
    if quant.layout == "swizzled":
        tile = ROWS_OF_TILE["swizzled"]
        return (-(-prod(lead) // tile) * words * tile * GROUPS_OF_WORD,)
    return (*lead, words if quant.layout == "packed" else of_row)


def buffer_shape(quant: Quant, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the shape, in C order, of the memory of the scales, with what fills it up."""
    own = scales_shape(quant, shape)
    if quant.layout not in ("columns", "packed"):
        return own
    return (own[-1], padded_rows(quant, prod(shape[:-1])))


def padded_rows(quant: Quant, rows: int) -> int:
    """Return how many rows of scales are written."""
    tile = ROWS_OF_TILE[quant.layout]
    return -(-rows // tile) * tile


def from_buffer(quant: Quant, buffer: Any, lead: Sequence[int]) -> Any:
    """Return the scales that lie in a buffer, of any library's arrays, without a copy."""
    if quant.layout not in ("columns", "packed"):
        return buffer
    table = buffer.T[: prod(lead)]
    # To split an axis copies nothing. To the same shape it may give an axis of 1 another stride.
    return table if len(lead) == 1 else table.reshape((*lead, buffer.shape[0]))


def strides(quant: Quant, shape: Sequence[int]) -> tuple[int, ...]:
    """Return the strides of the scales, in elements, of an array that has no axis of extent 0."""
    extents = scales_shape(quant, shape)
    in_columns = quant.layout in ("columns", "packed")
    step, last = 1, padded_rows(quant, prod(shape[:-1]))
    steps: list[int] = []
    for extent in reversed(extents[:-1] if in_columns else extents):
        steps.insert(0, step)
        step *= extent
    return (*steps, last) if in_columns else tuple(steps)
