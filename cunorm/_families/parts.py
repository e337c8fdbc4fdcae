"""The options and the sources that ops have in common."""

from __future__ import annotations

from inspect import Parameter

from .op import Input, Operand, Option, Output, Source

LOADED = Source("Loaded", "", ("x",), ())
ADDED = Source(
    "Added",
    "add_",
    ("x", "residual"),
    (Output("residual_out", "residual_out", "residual"),),
    (Operand("gate"),),
)
GATED = Source("Gated", "", ("x", "gate"), ())
# The norm of x is added to a residual: y is the sum.
BESIDE_RESIDUAL = Source(
    "Loaded",
    "",
    ("x", "residual"),
    (),
    (Operand("gate"),),
    y=Output("y", "residual_out", "residual"),
)
# That sum is normalised in turn.
NORMED = Source(
    "Normed",
    "",
    ("x", "residual"),
    (Output("residual_out", "residual_out", "residual"),),
    y=Output("y", "out", "x"),
)
SOURCES = (LOADED, ADDED, GATED, BESIDE_RESIDUAL, NORMED)


def eps(default: float) -> Option:
    """Return the option of that name, whose default each norm has its own of."""
    return Option("eps", default, check="eps", number=True, keyword=False)


EPS2 = Option("eps2", None, check="eps2", number=True)
GAMMA_OFFSET = Option(
    "gamma_offset", 0.0, check="gamma_offset", number=True, compiled=bool, backward=True
)
CAST = Option("cast", "before", check="cast", compiled=str)
ACTIVATION = Option(
    "activation", "silu", check="activation", compiled=lambda word: word, backward=True
)
GATE_FIRST = Option("gate_first", False, check="flag", compiled=bool, backward=True)
GROUP = Option("group", None, check="group", backward=True)
SCALE_OFFSET = Option("scale_offset", 1.0, check="scale_offset", number=True, compiled=bool)
COUNT = Option("count", None, check="count", number=True)
SUMS = Option("sums", True, check="flag", compiled=bool, backward=True)
# What a backward op needs for the gradient of scale alone.
BETA = Input("beta", optional=True, keyword=True)
QUANT = Option("quant", Parameter.empty, check="quant", compiled=lambda quant: quant)
MODULATION = (Operand("scale"), Operand("shift"), SCALE_OFFSET)
