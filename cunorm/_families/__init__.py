"""The norms as data: a family describes a norm once, and what differs between its ops follows.

Checks, plans, launches, PyTorch's operators and gradients, both definitions, bench cases,
self-checks and test ids are made from these values. A name is put together here, and taken apart
nowhere. Pure: neither cupy nor numpy is imported.

op.py says what an op is made of; parts.py has the options and sources in common; norms.py, codes.py
and heads.py have the ops.
"""

from __future__ import annotations

from .codes import DEQUANTIZE, QUANTISED, QUANTIZE, UNQUANTISED, Y_BESIDE
from .heads import ROPE, ROPE_BWD, ROPE_OPS
from .norms import BACKWARD, FAMILIES, GRADIENTS, LAYER_NORM, LAZY, OPS, PLAIN, RMS_NORM
from .op import DTYPE, Input, Op, Operand, Option, Source
from .parts import ADDED, BESIDE_RESIDUAL, BETA, CAST, COUNT, GATED, LOADED, NORMED, QUANT

__all__ = [
    "ADDED",
    "ALL_OPS",
    "BACKWARD",
    "BESIDE_RESIDUAL",
    "BETA",
    "CAST",
    "COUNT",
    "DEQUANTIZE",
    "DTYPE",
    "FAMILIES",
    "GATED",
    "GRADIENTS",
    "LAYER_NORM",
    "LAZY",
    "LOADED",
    "NORMED",
    "OPS",
    "OPTIONAL",
    "PLAIN",
    "QUANT",
    "QUANTISED",
    "QUANTIZE",
    "RESULTS",
    "RMS_NORM",
    "ROPE",
    "ROPE_BWD",
    "ROPE_OPS",
    "UNQUANTISED",
    "Y_BESIDE",
    "Input",
    "Op",
    "Operand",
    "Option",
    "Source",
]

ALL_OPS = OPS | ROPE_OPS | QUANTISED

# Arrays by name that every op which has them takes None for.
_INPUTS = [a for op in ALL_OPS.values() for a in op.arguments if isinstance(a, Input)]
OPTIONAL = {a.name for a in _INPUTS} - {a.name for a in _INPUTS if not a.optional}
# What results that a user may give are called.
RESULTS = {output.argument for op in ALL_OPS.values() for output in op.writes}
