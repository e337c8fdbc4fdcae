"""Norms of heads that are rotated by their token's position."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from .op import Family, Indices, Input, Op, Option, Output
from .parts import CAST, GAMMA_OFFSET, LOADED, SUMS, eps


def _rope_op(
    name: str, reads: tuple[str, ...], own: str, writes: tuple[Output, ...], keeps: bool
) -> Op:
    """Return an op on heads, each of its arrays with a gamma of its own and the same angles.

    What belongs to one of them has a name of the form `own`.
    """
    (weight,), (statistic,) = ROPE.parameters, ROPE.saves
    parameters = tuple(own.format(read, weight) for read in reads)
    statistics = tuple(own.format(read, statistic) for read in reads)
    return Op(
        name=name + "_fwd" * keeps,
        norm=name,
        family=ROPE,
        source=LOADED,
        keeps=keeps,
        is_backward=False,
        arguments=(
            *map(Input, reads),
            *(Input(parameter, optional=True) for parameter in parameters),
            *map(Input, ("cos", "sin")),
            Indices("positions", optional=True),
            *ROPE.options,
        ),
        reads=reads,
        parameters=parameters,
        operands=(),
        writes=writes,
        returns=(*(output.name for output in writes), *(statistics if keeps else ())),
        leader=reads[0],
    )


ROPE_CAST = replace(CAST, check="rope_cast")
INTERLEAVED = Option("interleaved", False, check="flag", compiled=bool, backward=True)
NORM_FIRST = Option("norm_first", True, check="flag", compiled=bool, backward=True)
ACROSS_HEADS = Option("across_heads", False, check="flag", compiled=bool, backward=True)
# Norms of heads that are rotated by their token's position. Their arrays have axes of their own,
# and so they are none of FAMILIES and OPS, whose ops take rows of any axes.
ROPE = Family(
    "rms_norm_rope",
    "MeanSquare",
    "Scale",
    ("rstd",),
    ("gamma",),
    (eps(1e-6), INTERLEAVED, NORM_FIRST, ACROSS_HEADS, GAMMA_OFFSET, ROPE_CAST),
    sources=(LOADED,),
)
_of_one_array = partial(_rope_op, "rms_norm_rope", ("x",), "{1}", (Output("y", "out", "x"),))
_of_queries_and_keys = partial(
    _rope_op,
    "qk_norm_rope",
    ("q", "k"),
    "{0}_{1}",
    (Output("q_out", "q_out", "q"), Output("k_out", "k_out", "k")),
)
ROPE_BWD = Op(
    name="rms_norm_rope_bwd",
    norm="rms_norm_rope",
    family=ROPE,
    source=LOADED,
    keeps=False,
    is_backward=True,
    arguments=(
        *map(Input, ("dy", "x")),
        Input("gamma", optional=True),
        *map(Input, ("cos", "sin", "rstd")),
        Indices("positions", optional=True),
        *(a for a in ROPE.options if isinstance(a, Option) and a.backward),
        SUMS,
    ),
    reads=("x", "dy"),
    parameters=ROPE.parameters,
    operands=(),
    writes=(),
    returns=("dx", "dgamma"),
)
ROPE_OPS: dict[str, Op] = {
    op.name: op
    for op in (
        *(of(keeps) for keeps in (False, True) for of in (_of_one_array, _of_queries_and_keys)),
        ROPE_BWD,
    )
}
