"""Norms whose results are codes with scales, and codes alone."""

from __future__ import annotations

from dataclasses import replace

from .norms import LAYER_NORM, PLAIN, RMS_NORM, forward_op
from .op import DTYPE, Family, Input, Op, Output, Source
from .parts import ADDED, CAST, GAMMA_OFFSET, LOADED, QUANT, eps

# Of an op that quantises y: codes, their scales, and y where it is asked for too.
CODES = (Output("q", "out", "x"), Output("scales", "scale_out", "x"))
Y_BESIDE = Output("y_out", "y_out", "x")
RMS_NORM_QUANT = Family(
    "rms_norm_quant",
    "MeanSquare",
    "Scale",
    (),
    ("gamma",),
    (eps(1e-6), QUANT, GAMMA_OFFSET, CAST),
    has_gradient=False,
)
LAYER_NORM_QUANT = Family(
    "layer_norm_quant",
    "Moments",
    "Affine",
    (),
    ("gamma", "beta"),
    (eps(1e-5), QUANT, GAMMA_OFFSET),
    has_gradient=False,
)
# The norm of each.
_NORMS = {RMS_NORM_QUANT.name: RMS_NORM, LAYER_NORM_QUANT.name: LAYER_NORM}


def _quantised_op(family: Family, source: Source) -> Op:
    op = forward_op(family, source, keeps=False)
    writes = (*CODES, Y_BESIDE, *source.writes)
    returned = (*CODES, *source.writes)
    return replace(op, writes=writes, returns=tuple(output.name for output in returned))


# Ops that return codes, and their scales.
QUANTISED: dict[str, Op] = {
    op.name: op
    for op in (
        _quantised_op(family, source)
        for source in (LOADED, ADDED)
        for family in (RMS_NORM_QUANT, LAYER_NORM_QUANT)
    )
}
# The op whose y it is that such an op quantises, by its name.
UNQUANTISED: dict[str, Op] = {
    op.name: plain
    for op in QUANTISED.values()
    for plain in PLAIN
    if plain.source is op.source and plain.family is _NORMS[op.family.name]
}
# Of y itself, without a norm.
QUANTIZE = Op(
    name="quantize",
    norm="quantize",
    family=Family("quantize", "Unnormalised", "Unchanged", (), (), (), has_gradient=False),
    source=LOADED,
    keeps=False,
    is_backward=False,
    arguments=(Input("x"), replace(QUANT, keyword=False)),
    reads=("x",),
    parameters=(),
    operands=(),
    writes=CODES,
    returns=tuple(output.name for output in CODES),
)

# And back: x has the codes.
DEQUANTIZE = Op(
    name="dequantize",
    norm="dequantize",
    family=Family("dequantize", "", "", (), (), (), has_gradient=False),
    source=LOADED,
    keeps=False,
    is_backward=False,
    arguments=(
        *map(Input, ("x", "factors")),
        *(replace(option, keyword=False) for option in (QUANT, DTYPE)),
    ),
    reads=("x", "factors"),
    parameters=(),
    operands=(),
    writes=(),
    returns=("y",),
)
