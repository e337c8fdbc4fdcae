"""The norms as data: a family describes a norm once, and what differs between its ops follows.

Checks, plans, launches, PyTorch's operators and gradients, both definitions, bench cases,
self-checks and test ids are made from these values. A name is put together here, and taken apart
nowhere. Pure: neither cupy nor numpy is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, partial
from inspect import Parameter
from operator import itemgetter
from typing import Any


@dataclass(frozen=True)
class Option:
    """A number or a word that an op takes.

    Attributes
    ----------
    name : str
        What users call it.
    default : float, str, bool or None
        What holds where it is left out; its type is that of PyTorch's operator. `Parameter.empty`
        of what is not left out.
    check : str
        What `_check.OPTIONS` refuses a wrong value by.
    number : bool
        Whether the kernel takes the value among the numbers of its last argument.
    compiled : function or None
        What the kernel is compiled for, of the value; None where it does not matter.
    backward : bool
        Whether the backward op takes it too.
    keyword : bool
        Whether it is given by name alone.
    """

    name: str
    default: Any
    check: str
    number: bool = False
    compiled: Callable[[Any], object] | None = None
    backward: bool = False
    keyword: bool = True


@dataclass(frozen=True)
class Input:
    """An array that an op reads; whether it may be None, and is given by name alone."""

    name: str
    optional: bool = False
    keyword: bool = False


@dataclass(frozen=True)
class Operand(Input):
    """An array that broadcasts against x, and may be a number."""

    optional: bool = True
    keyword: bool = True


@dataclass(frozen=True)
class Indices(Input):
    """An array of integers."""


@dataclass(frozen=True)
class Output:
    """An array of rows that an op writes, and that a user may give.

    Attributes
    ----------
    name : str
        Its name in the kernel.
    argument : str
        What users call it.
    like : str
        The input whose shape and dtype it has, and which it may overwrite.
    of_any_dtype : bool
        Whether its dtype may be another, as the option `dtype` or what the user gives has it.
    """

    name: str
    argument: str
    like: str
    of_any_dtype: bool = False


Y = Output("y", "out", "x", of_any_dtype=True)


@dataclass(frozen=True)
class Source:
    """Where the row that is normalised comes from.

    Attributes
    ----------
    name : str
        A type of the kernels.
    prefix : str
        What the names of its ops begin with.
    reads : tuple of str
        Arrays of rows: x, and what is brought together with it.
    writes : tuple of Output
        What is written beside y. The last one is what was normalised.
    operands : tuple of Operand
        What may take part beside.
    y : Output
        What becomes of the row.
    """

    name: str
    prefix: str
    reads: tuple[str, ...]
    writes: tuple[Output, ...]
    operands: tuple[Operand, ...] = ()
    y: Output = Y


# Of an op that quantises y: codes, their scales, and y where it is asked for too.
CODES = (Output("q", "out", "x"), Output("scales", "scale_out", "x"))
Y_BESIDE = Output("y_out", "y_out", "x")
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


@dataclass(frozen=True)
class Family:
    """A norm: what it computes, keeps and takes.

    Attributes
    ----------
    name : str
        The stem of ops, kernels, definitions and tests.
    statistic, epilogue : str
        Types of the kernels: what is computed of a row, and what follows the normalised value. Each
        has a definition of that name in `_reference` and in `torch/_cpu.py`.
    saves : tuple of str
        The statistics that ``*_fwd`` returns and ``*_bwd`` takes.
    parameters : tuple of str
        Arrays of one row. The first multiplies, and the backward op takes it; beta is added.
    options : tuple of Option or Operand
        What else is given, in the order of arguments, from `eps` on.
    sources : tuple of Source
        Where its rows may come from.
    has_gradient : bool
        Whether there are backward ops, one for each source.
    given : tuple of Input or Option
        What may stand for the sums over a row: an array, and the number of columns that it is of.
    """

    name: str
    statistic: str
    epilogue: str
    saves: tuple[str, ...]
    parameters: tuple[str, ...]
    options: tuple[Option | Operand, ...]
    sources: tuple[Source, ...] = (LOADED, ADDED)
    has_gradient: bool = True
    given: tuple[Input | Option, ...] = ()

    @property
    def eps(self) -> float:
        """What `eps` is where it is left out."""
        return next(float(o.default) for o in self.options if isinstance(o, Option))


@dataclass(frozen=True, eq=False)
class Op:
    """An op; compared by identity, which costs a call nothing.

    Attributes
    ----------
    name : str
        What users call it.
    norm : str
        The op of `cunorm.torch` that does the same with a gradient.
    family : Family
        The norm.
    source : Source
        Where the rows that are normalised come from.
    keeps : bool
        Whether it returns the family's statistics.
    is_backward : bool
        Whether it returns gradients.
    arguments : tuple of Input or Option
        What is given, in order. The results that a user may give follow.
    reads : tuple of str
        Arrays of rows that are read.
    parameters : tuple of str
        Arrays of one row that are read.
    operands : tuple of str
        Arrays that broadcast against x. A backward op returns the gradients of those that are
        given.
    writes : tuple of Output
        Arrays of rows that are written and that a user may give.
    returns : tuple of str
        The arrays that are returned.
    leader : str
        The array whose device and library are those of a call; of a backward op it is the one that
        was normalised.
    """

    name: str
    norm: str
    family: Family
    source: Source
    keeps: bool
    is_backward: bool
    arguments: tuple[Input | Option, ...]
    reads: tuple[str, ...]
    parameters: tuple[str, ...]
    operands: tuple[str, ...]
    writes: tuple[Output, ...]
    returns: tuple[str, ...]
    leader: str = "x"

    def returned(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of what is returned: gradients of operands where those are given."""
        if not self.is_backward:
            return self.returns
        return (*self.returns, *(f"d{name}" for name in self.operands if given[name] is not None))

    def results(self, given: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
        """Return what a call returns, of all of its arrays: one, or a tuple of them."""
        return itemgetter(*self.returned(given))(made)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names, in the kernel, of the arrays among the arguments, results last."""
        inputs = (a.name for a in self.arguments if isinstance(a, Input))
        return (*inputs, *(output.name for output in self.writes))

    @cached_property
    def results_given(self) -> dict[str, str]:
        """What results that a user may give are called, by their names in the kernel."""
        return {output.name: output.argument for output in self.writes}

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Arrays of rows by their names in the kernel: what is read, then what is written."""
        written = self.gradients if self.is_backward else (output.name for output in self.writes)
        return (*self.reads, *written)

    @cached_property
    def of_tensors(self) -> tuple[Input | Option, ...]:
        """The arguments that the op of `cunorm.torch` takes."""
        return tuple(a for a in self.arguments if a not in self.family.given)

    @cached_property
    def of_tensors_in_place(self) -> tuple[Input | Option, ...]:
        """The arguments of the one that writes over its input, whose dtype that has."""
        return tuple(a for a in self.of_tensors if a is not DTYPE)

    @cached_property
    def sums(self) -> tuple[str, ...]:
        """What may be given in place of the sums over a row."""
        return tuple(a.name for a in self.arguments if a in self.family.given[:1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return tuple(a.name for a in self.arguments)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The numbers and words among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Option))

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """The arrays of integers among the arguments."""
        return tuple(a.name for a in self.arguments if isinstance(a, Indices))

    @cached_property
    def totals(self) -> tuple[str, ...]:
        """The sums over all rows that a backward op returns, one for each parameter."""
        return tuple(f"d{name}" for name in self.family.parameters) if self.is_backward else ()

    @cached_property
    def gradients(self) -> tuple[str, ...]:
        """The arrays of rows that a backward op returns."""
        return tuple(name for name in self.returns if name not in self.totals)


def _forward_op(family: Family, source: Source, keeps: bool) -> Op:
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


def _eps(default: float) -> Option:
    return Option("eps", default, check="eps", number=True, keyword=False)


EPS2 = Option("eps2", None, check="eps2", number=True)
GAMMA_OFFSET = Option(
    "gamma_offset", 0.0, check="gamma_offset", number=True, compiled=bool, backward=True
)
CAST = Option("cast", "before", check="cast", compiled=str)
ROPE_CAST = replace(CAST, check="rope_cast")
ACTIVATION = Option(
    "activation", "silu", check="activation", compiled=lambda word: word, backward=True
)
GATE_FIRST = Option("gate_first", False, check="gate_first", compiled=bool, backward=True)
GROUP = Option("group", None, check="group", backward=True)
SCALE_OFFSET = Option("scale_offset", 1.0, check="scale_offset", number=True, compiled=bool)
DTYPE = Option("dtype", None, check="dtype")
COUNT = Option("count", None, check="count", number=True)
SUMS = Option("sums", True, check="sums", compiled=bool, backward=True)
# What a backward op needs for the gradient of scale alone.
BETA = Input("beta", optional=True, keyword=True)
QUANT = Option("quant", Parameter.empty, check="quant", compiled=lambda quant: quant)
MODULATION = (Operand("scale"), Operand("shift"), SCALE_OFFSET)

RMS_NORM = Family(
    "rms_norm",
    "MeanSquare",
    "Scale",
    ("rstd",),
    ("gamma",),
    (_eps(1e-6), GAMMA_OFFSET, CAST, *MODULATION, DTYPE),
    given=(Input("squares", optional=True, keyword=True), COUNT),
)
LAYER_NORM = Family(
    "layer_norm",
    "Moments",
    "Affine",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (_eps(1e-5), GAMMA_OFFSET, *MODULATION, DTYPE),
    given=(Input("moments", optional=True, keyword=True), COUNT),
)
GATING = (ACTIVATION, GATE_FIRST, GROUP, GAMMA_OFFSET, CAST, DTYPE)
RMS_NORM_GATED = Family(
    "rms_norm_gated",
    "MeanSquare",
    "ScaleThenGate",
    ("rstd",),
    ("gamma",),
    (_eps(1e-6), *GATING),
    sources=(GATED,),
)
LAYER_NORM_GATED = Family(
    "layer_norm_gated",
    "Moments",
    "AffineThenGate",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (_eps(1e-5), *GATING),
    sources=(GATED,),
)
RMS_NORM_ADD = Family(
    "rms_norm_add",
    "MeanSquare",
    "ScaleThenAdd",
    ("rstd",),
    ("gamma",),
    (_eps(1e-6), GAMMA_OFFSET, CAST),
    sources=(BESIDE_RESIDUAL,),
    has_gradient=False,
)
LAYER_NORM_ADD = Family(
    "layer_norm_add",
    "Moments",
    "AffineThenAdd",
    ("mean", "rstd"),
    ("gamma", "beta"),
    (_eps(1e-5), GAMMA_OFFSET),
    sources=(BESIDE_RESIDUAL,),
    has_gradient=False,
)
RMS_NORM_ADD_RMS_NORM = Family(
    "rms_norm_add_rms_norm",
    "MeanSquare",
    "ScaleOfSum",
    ("rstd", "rstd2"),
    ("gamma", "gamma2"),
    (_eps(1e-6), EPS2, GAMMA_OFFSET, CAST),
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
RMS_NORM_QUANT = Family(
    "rms_norm_quant",
    "MeanSquare",
    "Scale",
    (),
    ("gamma",),
    (_eps(1e-6), QUANT, GAMMA_OFFSET, CAST),
    has_gradient=False,
)
LAYER_NORM_QUANT = Family(
    "layer_norm_quant",
    "Moments",
    "Affine",
    (),
    ("gamma", "beta"),
    (_eps(1e-5), QUANT, GAMMA_OFFSET),
    has_gradient=False,
)


def _quantised_op(family: Family, source: Source) -> Op:
    op = _forward_op(family, source, keeps=False)
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

# Forward ops, those that return the statistics, and backward ops: in the order of README's table.
OPS: dict[str, Op] = {
    op.name: op
    for op in (
        *(
            _forward_op(family, source, keeps)
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
    (_eps(1e-6), INTERLEAVED, NORM_FIRST, ACROSS_HEADS, GAMMA_OFFSET, ROPE_CAST),
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
ALL_OPS = OPS | ROPE_OPS | QUANTISED

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

# Arrays by name that every op which has them takes None for.
_INPUTS = [a for op in ALL_OPS.values() for a in op.arguments if isinstance(a, Input)]
OPTIONAL = {a.name for a in _INPUTS} - {a.name for a in _INPUTS if not a.optional}
# What results that a user may give are called.
RESULTS = {output.argument for op in ALL_OPS.values() for output in op.writes}
# Ops whose rows may be those of a dask array: what they return lies as x does.
LAZY = tuple(op.name for op in OPS.values() if op.reads == ("x",) and op.returns == (Y.name,))
