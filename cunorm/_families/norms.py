"""Norms of rows of any axes: their families, and an op for each source."""

from __future__ import annotations

from dataclasses import replace

from .op import DTYPE, Family, Input, Op, Operand, Option, Source, Y
from .parts import (
    ACTIVATION,
    ADDED,
    BESIDE_RESIDUAL,
    BETA,
    CAST,
    COUNT,
    EPS2,
    GAMMA_OFFSET,
    GATE_FIRST,
    GATED,
    GROUP,
    LOADED,
    MODULATION,
    NORMED,
    SOURCES,
    SUMS,
    eps,
)

RMS_NORM = Family(
    "rms_norm",
    "MeanSquare",
    "Scale",
    ("rstd",),
    ("gamma",),
    (eps(1e-6), GAMMA_OFFSET, CAST, *MODULATION, DTYPE),
    sources=(LOADED, ADDED),
    given=(Input("squares", optional=True, keyword=True), COUNT),
)
LAYER_NORM = Family(
    "layer_norm",
    "Moments",
    "Affine",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (eps(1e-5), GAMMA_OFFSET, *MODULATION, DTYPE),
    sources=(LOADED, ADDED),
    given=(Input("moments", optional=True, keyword=True), COUNT),
)
GATING = (ACTIVATION, GATE_FIRST, GROUP, GAMMA_OFFSET, CAST, DTYPE)
RMS_NORM_GATED = Family(
    "rms_norm_gated",
    "MeanSquare",
    "ScaleThenGate",
    ("rstd",),
    ("gamma",),
    (eps(1e-6), *GATING),
    sources=(GATED,),
)
LAYER_NORM_GATED = Family(
    "layer_norm_gated",
    "Moments",
    "AffineThenGate",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (eps(1e-5), *GATING),
    sources=(GATED,),
)
RMS_NORM_ADD = Family(
    "rms_norm_add",
    "MeanSquare",
    "ScaleThenAdd",
    ("rstd",),
    ("gamma",),
    (eps(1e-6), GAMMA_OFFSET, CAST),
    sources=(BESIDE_RESIDUAL,),
    has_gradient=False,
)
LAYER_NORM_ADD = Family(
    "layer_norm_add",
    "Moments",
    "AffineThenAdd",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (eps(1e-5), GAMMA_OFFSET),
    sources=(BESIDE_RESIDUAL,),
    has_gradient=False,
)
RMS_NORM_ADD_RMS_NORM = Family(
    "rms_norm_add_rms_norm",
    "MeanSquare",
    "ScaleOfSum",
    ("rstd", "rstd2"),
    ("gamma", "gamma2"),
    (eps(1e-6), EPS2, GAMMA_OFFSET, CAST),
    sources=(NORMED,),
    has_gradient=False,
)
FAMILIES = (
    RMS_NORM,
    LAYER_NORM,
    RMS_NORM_GATED,
    LAYER_NORM_GATED,
    RMS_NORM_ADD,
    LAYER_NORM_ADD,
    RMS_NORM_ADD_RMS_NORM,
)


def forward_op(family: Family, source: Source, keeps: bool) -> Op:
    norm = source.prefix + family.name
    parameters = (Input(name, optional=True) for name in family.parameters)
    writes = (source.y, *source.writes)
    eps, *others = family.options
    given = family.given if source is LOADED else ()
    options = (eps, *source.operands, *others, *given)
    return Op(
        name=norm + "_fwd" * keeps,
        norm=norm,
        family=family,
        source=source,
        keeps=keeps,
        is_backward=False,
        arguments=(*map(Input, source.reads), *parameters, *options),
        reads=source.reads,
        parameters=family.parameters,
        operands=tuple(a.name for a in options if isinstance(a, Operand)),
        writes=writes,
        returns=(*(output.name for output in writes), *(family.saves if keeps else ())),
    )


def _backward_op(family: Family, source: Source) -> Op:
    weight, *biases = family.parameters
    norm = source.prefix + family.name
    gate = ["gate"] if source is GATED else []
    # A gate differs by row, and so nothing else stands beside the rows.
    modulation = () if gate else MODULATION
    dresidual = [] if gate else ["dresidual"]
    # Of a sum that was normalised, what a gate has scaled.
    rows: str = "x"
    addend: tuple[Input, ...] = ()
    if source is ADDED:
        rows, addend = "h", (Input("x"), replace(source.operands[0], optional=False, keyword=False))
    return Op(
        name=f"{norm}_bwd",
        norm=norm,
        family=family,
        source=source,
        keeps=False,
        is_backward=True,
        arguments=(
            *map(Input, ("dy", rows, *gate)),
            Input(weight, optional=True),
            *map(Input, family.saves),
            *addend,
            *(a for a in family.options if isinstance(a, Option) and a.backward),
            *(BETA for _ in biases),
            *modulation,
            *(Input(name, optional=True, keyword=True) for name in dresidual),
            SUMS,
        ),
        reads=(rows, "dy", *gate, *(a.name for a in addend[:1]), *dresidual),
        parameters=(weight,),
        operands=tuple(a.name for a in (*modulation, *addend) if isinstance(a, Operand)),
        writes=(),
        returns=tuple(f"d{n}" for n in (*dict.fromkeys(("x", rows)), *gate, *family.parameters)),
        leader=rows,
    )


# Forward ops, those that return the statistics, and backward ops: in the order of README's table.
OPS: dict[str, Op] = {
    op.name: op
    for op in (
        *(
            forward_op(family, source, keeps)
            for keeps in (False, True)
            for source in SOURCES
            for family in FAMILIES
            if source in family.sources
        ),
        *(
            _backward_op(family, source)
            for source in SOURCES
            for family in FAMILIES
            if source in family.sources and family.has_gradient
        ),
    )
}

# Those that return no statistics, which users call where no gradient is wanted.
PLAIN = tuple(op for op in OPS.values() if not (op.keeps or op.is_backward))
BACKWARD = {
    op.family: op for op in OPS.values() if op.is_backward and op.source is op.family.sources[0]
}
# What the gradients of a family are made with: where it has no backward op, that of its norm.
GRADIENTS = BACKWARD | {
    RMS_NORM_ADD: BACKWARD[RMS_NORM],
    LAYER_NORM_ADD: BACKWARD[LAYER_NORM],
    RMS_NORM_ADD_RMS_NORM: BACKWARD[RMS_NORM],
}
# Those whose rows may be those of a dask array: what they return lies as x does.
LAZY = tuple(op.name for op in OPS.values() if op.reads == ("x",) and op.returns == (Y.name,))
