"""What a forward computes, step by step, where that is a norm of these ops and nothing else.

A tensor of a forward that is being traced (`cunorm.torch._trace`) stands for one of
`cunorm.torch._values`: x, its squares, their mean, ..., a normalised row. `RULES` has, for each
operation of aten that a norm may be written in, what comes of such values; so several spellings
give one value: ``pow(2)``, ``square`` and ``x * x``; factors in either order; a mean, or a sum over
N; ``rsqrt``, ``pow(-0.5)`` and ``1 / sqrt``; axes that are added, merged or expanded; casts that
change nothing; a fused ``layer_norm`` or ``rms_norm`` and its parts. Each rounding to a narrower
dtype is a step of its own. What is in no rule is where a forward differs, and `Differs` says so.

The statistics are the op's own, in the dtype that the forward has them in; what is computed from
them has the forward's bits. So ``x / sqrt(v)`` is no norm of these ops: it rounds once where
``x * rstd`` has rounded twice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import prod
from typing import Any

import torch

from ._values import (
    Add,
    Data,
    Differs,
    Gate,
    Mean,
    MeanSquare,
    Multiply,
    Normal,
    Parameter,
    Result,
    Root,
    Round,
    Rstd,
    Shape,
    Shifted,
    Square,
    Statistic,
    Step,
    Times,
    Total,
    Unused,
    name_of,
    narrowed,
)

ACCUMULATORS = (torch.float32, torch.float64)


def _mul(a: Any, b: Any) -> Result:
    for one, other in ((a, b), (b, a)):
        value, factor = _value(one), _value(other)
        if isinstance(value, Rstd) and factor == 1:  # as 1 / root does
            return _like(one, value)
        if isinstance(value, Data) and value == factor and one.shape == other.shape:
            return _square(one, _promoted(one, other))
        if value == Data() and isinstance(factor, Gate):
            return _gated(one, other)
        if isinstance(value, Normal) and isinstance(factor, Gate):
            _require_same_shape(one, other)
            step = Times(factor.activation, _promoted(one, other))
            return _like(one, replace(value, steps=(*value.steps, step)))._replace(dtype=step.dtype)
        if isinstance(value, Data) and isinstance(factor, Rstd):
            return _normalised(one, other)
        if isinstance(value, Normal) and isinstance(factor, Parameter):
            return _stepped(Multiply, one, other)
    raise Differs(f"it multiplies {_words(a)} by {_words(b)}")


def _add(a: Any, b: Any, alpha: float = 1) -> Result:
    for one, other in ((a, b), (b, a)):
        value, term = _value(one), _value(other)
        if alpha != 1:
            break
        if isinstance(value, MeanSquare) and isinstance(term, (int, float)):
            return _like(one, Shifted(value.row, value.of, float(term)))
        if isinstance(value, Parameter) and isinstance(term, (int, float)):
            return _like(one, replace(value, changes=(*value.changes, float(term))))
        if isinstance(value, Normal) and isinstance(term, Parameter):
            return _stepped(Add, one, other)
    raise Differs(f"it adds {_words(b)} to {_words(a)}")


def _sub(a: Any, b: Any, alpha: float = 1) -> Result:
    value, term = _value(a), _value(b)
    if value == Data() and isinstance(term, Mean) and alpha == 1:
        dtype = _promoted(a, b)
        if dtype not in ACCUMULATORS:
            raise Differs(f"it rounds x less its mean to {name_of(dtype)}")
        _require_aligned(a, b, term.row)
        return Result(Data(term.row), tuple(a.shape), dtype)
    raise Differs(f"it takes {_words(b)} from {_words(a)}")


def _div(a: Any, b: Any) -> Result:
    value, divisor = _value(a), _value(b)
    if isinstance(value, Total) and divisor == prod(value.row):
        return _like(a, MeanSquare(value.row, value.of))
    if isinstance(value, Data) and isinstance(divisor, Root):
        raise Differs("it divides by the root, which rounds once where a product by rstd rounds")
    raise Differs(f"it divides {_words(a)} by {_words(b)}")


def _pow(a: Any, exponent: Any) -> Result:
    value = _value(a)
    if isinstance(value, Data) and exponent == 2:
        return _square(a, a.dtype)
    if isinstance(value, Shifted) and exponent == -0.5:
        return _like(a, Rstd(value.row, value.of, value.eps))
    if isinstance(value, Shifted) and exponent == 0.5:
        return _like(a, Root(value.row, value.of, value.eps))
    raise Differs(f"it raises {_words(a)} to the power {_words(exponent)}")


def _after(before: type[Any], after: type[Any]) -> Callable[[Any], Result]:
    """Return the rule of a function that makes one statistic of another."""

    def rule(a: Any) -> Result:
        value = _value(a)
        if type(value) is before:
            return _like(a, after(value.row, value.of, value.eps))
        raise Differs(f"it has it of {_words(a)}")

    return rule


def _activated(name: str) -> Callable[[Any], Result]:
    """Return the rule of an activation."""

    def rule(a: Any) -> Result:
        if _value(a) != Gate():
            raise Differs(f"it has it of {_words(a)}")
        if a.dtype not in ACCUMULATORS:
            raise Differs(f"it rounds the activated gate to {name_of(a.dtype)}")
        return _like(a, Gate(name))

    return rule


def _mean(
    a: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Result:
    value = _value(a)
    row, shape = _reduced(a, dim, keepdim)
    kept = a.dtype if dtype is None else dtype
    if value == Data():
        return Result(Mean(row), shape, _accumulated(kept))
    if isinstance(value, Square) and value.of.row in (None, row):
        return Result(MeanSquare(row, value.of), shape, _accumulated(kept, a.dtype))
    raise Differs(f"it takes the mean of {_words(a)}")


def _sum(
    a: Any, dim: Any = None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Result:
    value = _value(a)
    row, shape = _reduced(a, dim, keepdim)
    if isinstance(value, Square) and value.of.row in (None, row):
        kept = _accumulated(a.dtype if dtype is None else dtype, a.dtype)
        return Result(Total(row, value.of), shape, kept)
    raise Differs(f"it sums {_words(a)}")


def _var(a: Any, dim: Any = None, *, correction: Any = None, keepdim: bool = False) -> Result:
    if _value(a) != Data():
        raise Differs(f"it takes the variance of {_words(a)}")
    if correction != 0:
        raise Differs("it divides the variance by less than N")
    row, shape = _reduced(a, dim, keepdim)
    return Result(MeanSquare(row, Data(row)), shape, _accumulated(a.dtype))


def _var_mean(a: Any, dim: Any = None, **options: Any) -> tuple[Result, Result]:
    variance = _var(a, dim, **options)
    return variance, variance._replace(value=Mean(variance.value.row))


def _layer_norm(
    x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> tuple[Result, Result, Result]:
    result = _fused(True, x, shape, weight, bias, eps)
    rest = result._replace(value=Unused("a statistic"))
    return result, rest, rest


def _rms_norm(
    x: Any, shape: Sequence[int], weight: Any, eps: float | None
) -> tuple[Result, Result]:
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    result = _fused(False, x, shape, weight, None, torch.finfo(wide).eps if eps is None else eps)
    return result, result._replace(value=Unused("a statistic"))


def _fused(
    centred: bool, x: Any, shape: Sequence[int], weight: Any, bias: Any, eps: float
) -> Result:
    """Return what PyTorch's own norms do: all in the dtype of sums, then rounded to x's."""
    if _value(x) != Data():
        raise Differs(f"it normalises {_words(x)}")
    row = tuple(shape)
    if tuple(x.shape[-len(row) :]) != row:
        raise Differs(f"it normalises rows of {row}, and x ends in {tuple(x.shape[-len(row) :])}")
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    steps: list[Step] = []
    for kind, tensor in ((Multiply, weight), (Add, bias)):
        parameter = _value(tensor)
        if isinstance(parameter, Parameter):
            steps.append(kind(parameter, wide))
        elif tensor is not None:
            raise Differs(f"its weight or bias is {_words(tensor)}")
    if x.dtype != wide:
        steps.append(Round(x.dtype))
    of = Data(row) if centred else Data()
    return _like(x, Normal(row, of, float(eps), wide, tuple(steps)))


def _cast(a: Any, *, dtype: torch.dtype | None = None, **options: Any) -> Result:
    value, to = _value(a), a.dtype if dtype is None else dtype
    device = options.get("device")
    if device is not None and torch.device(device).type != a.device.type:
        raise Differs(f"it moves {_words(a)} to {device}")
    if to == a.dtype:
        return _like(a, value)
    if not to.is_floating_point:
        raise Differs(f"it casts {_words(a)} to {name_of(to)}")
    if isinstance(value, Normal):
        if narrowed(value.precision, to):
            value = replace(value, steps=(*value.steps, Round(to)))
    elif isinstance(value, Parameter):
        value = replace(value, changes=(*value.changes, to))
    elif not isinstance(value, Data | Gate) or narrowed(a.source, to) or not _is_given(value):
        raise Differs(f"it casts {_words(a)} to {name_of(to)}")
    return Result(value, tuple(a.shape), to)


def _same(a: Any, *_: Any, **__: Any) -> Result:
    return _like(a, _value(a))


def _detach(a: Any) -> Result:
    return _like(a, Unused(f"{_words(a)} without gradients"), is_view=True)


def _view(a: Any, shape: Sequence[int]) -> Result:
    known = [size for size in shape if size != -1]
    size = prod(a.shape) // max(prod(known), 1)
    return _reshaped(a, tuple(size if given == -1 else given for given in shape))


def _expand(a: Any, shape: Sequence[int], **_: Any) -> Result:
    padded = (1,) * (len(shape) - len(a.shape)) + tuple(a.shape)
    new = tuple(p if s == -1 else s for p, s in zip(padded, shape, strict=True))
    if new == padded:
        return _reshaped(a, new)
    if not isinstance(_value(a), (*Statistic, Parameter)):
        raise Differs(f"it expands {_words(a)}")
    return Result(_value(a), new, a.dtype, is_view=True, is_expanded=True)


def _unsqueeze(a: Any, dim: int) -> Result:
    shape = list(a.shape)
    shape.insert(dim % (len(shape) + 1), 1)
    return _reshaped(a, tuple(shape))


def _squeeze(a: Any, dim: Any = None) -> Result:
    dims = range(a.ndim) if dim is None else [d % a.ndim for d in _listed(dim)]
    return _reshaped(a, tuple(s for i, s in enumerate(a.shape) if i not in dims or s != 1))


RULES: dict[str, Callable[..., Any]] = {
    "mul": _mul,
    "add": _add,
    "sub": _sub,
    "div": _div,
    "pow": _pow,
    "square": lambda a: _pow(a, 2),
    "sqrt": _after(Shifted, Root),
    "rsqrt": _after(Shifted, Rstd),
    "reciprocal": _after(Root, Rstd),
    "silu": _activated("silu"),
    "sigmoid": _activated("sigmoid"),
    "mean": _mean,
    "sum": _sum,
    "var": _var,
    "var_mean": _var_mean,
    "native_layer_norm": _layer_norm,
    "_fused_rms_norm": _rms_norm,
    "_to_copy": _cast,
    "clone": _same,
    "detach": _detach,
    "alias": lambda a: _reshaped(a, tuple(a.shape)),
    "view": _view,
    "_unsafe_view": _view,
    "_reshape_alias": lambda a, shape, stride: _view(a, shape),
    "expand": _expand,
    "unsqueeze": _unsqueeze,
    "squeeze": _squeeze,
}


def _value(operand: Any) -> Any:
    """Return what a traced tensor stands for; a number as it is."""
    return getattr(operand, "value", operand)


def _words(operand: Any) -> str:
    value = _value(operand)
    if isinstance(value, torch.Tensor):
        return "a tensor that is no parameter"
    return str(getattr(value, "words", value))


def _like(a: Any, value: Any, is_view: bool = False) -> Result:
    return Result(value, tuple(a.shape), a.dtype, is_view)


def _promoted(a: Any, b: Any) -> torch.dtype:
    if a.ndim == 0 or b.ndim == 0:
        raise Differs(f"it takes {_words(a)} and {_words(b)}, one of which has no axes")
    dtype: torch.dtype = torch.promote_types(a.dtype, b.dtype)
    return dtype


def _accumulated(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype of a statistic, which must not be a narrow one."""
    for dtype in dtypes:
        if dtype not in ACCUMULATORS:
            raise Differs(f"it rounds a statistic to {name_of(dtype)}")
    return dtypes[0]


def _square(a: Any, dtype: torch.dtype) -> Result:
    if dtype not in ACCUMULATORS:
        raise Differs(f"it rounds the squares to {name_of(dtype)}")
    return Result(Square(_value(a)), tuple(a.shape), dtype)


def _normalised(a: Any, statistic: Any) -> Result:
    value, rstd = _value(a), _value(statistic)
    dtype = _promoted(a, statistic)
    if value != rstd.of:
        raise Differs("it normalises x by another statistic")
    if dtype != statistic.dtype:
        raise Differs(f"it multiplies by rstd in {name_of(dtype)}")
    _require_aligned(a, statistic, rstd.row)
    return Result(Normal(rstd.row, rstd.of, rstd.eps, dtype), tuple(a.shape), dtype)


def _stepped(kind: type[Multiply] | type[Add], a: Any, parameter: Any) -> Result:
    """Return what a parameter makes of rows: of one of them, or of as many as it has numbers."""
    value, by = _value(a), _value(parameter)
    dtype, size = _promoted(a, parameter), prod(by.shape)
    shape, given = tuple(a.shape), tuple(parameter.shape)
    padded = (1,) * (len(shape) - len(given)) + given
    count = next((n for n in range(1, len(shape) + 1) if prod(shape[-n:]) >= size), 0)
    if size % prod(value.row) or (by.shape != value.row and len(value.row) > 1):
        axes = len(by.shape)
        raise Differs(
            f"its {by.name} has {axes} {'axis' if axes == 1 else 'axes'}, "
            f"its rows have {'one' if len(value.row) == 1 else len(value.row)}"
        )
    fits = (
        len(given) <= len(shape)
        and padded[-count:] == shape[-count:]
        and prod(shape[-count:]) == size
    )
    if not fits or any(p not in (1, s) for p, s in zip(padded, shape, strict=True)):
        raise Differs(f"{by.words} lies along another axis")
    return Result(replace(value, steps=(*value.steps, kind(by, dtype))), shape, dtype)


def _gated(x: Any, gate: Any) -> Result:
    """Return x times the gate, which is not rounded."""
    _require_same_shape(x, gate)
    dtype = _promoted(x, gate)
    if dtype not in ACCUMULATORS:
        raise Differs(f"it rounds x times the gate to {name_of(dtype)}")
    return Result(Data(gate=_value(gate).activation), tuple(x.shape), dtype)


def _is_given(value: Data | Gate) -> bool:
    """Return whether a value is an input as it was given."""
    return value in (Data(), Gate())


def _require_same_shape(a: Any, gate: Any) -> None:
    if tuple(a.shape) != tuple(gate.shape):
        raise Differs("the gate lies along another axis")


def _require_aligned(a: Any, statistic: Any, row: Shape) -> None:
    """Refuse a statistic that does not meet the rows that it is of."""
    shape, given, count = tuple(a.shape), tuple(statistic.shape), len(row)
    padded = (1,) * (len(shape) - len(given)) + given
    if (
        len(given) > len(shape)
        or shape[-count:] != row
        or padded[:-count] != shape[:-count]
        or any(p not in (1, s) for p, s in zip(padded[-count:], row, strict=True))
    ):
        raise Differs(f"{_words(statistic)} lies along another axis")


def _reduced(a: Any, dim: Any, keepdim: bool) -> tuple[Shape, Shape]:
    """Return the row that a reduction is over, and the shape of its result."""
    dims = sorted(d % a.ndim for d in _listed(dim))
    if not dims or dims != list(range(a.ndim - len(dims), a.ndim)):
        raise Differs(f"it is over axes {_listed(dim)} of {a.ndim}, not the last")
    shape, count = tuple(a.shape), len(dims)
    return shape[-count:], shape[:-count] + ((1,) * count if keepdim else ())


def _reshaped(a: Any, shape: Shape) -> Result:
    """Return the same numbers, in the same order, in another shape."""
    if prod(shape) != prod(a.shape) or (a.is_expanded and shape != tuple(a.shape)):
        raise Differs(f"it reshapes {_words(a)} after it was expanded")
    return Result(_value(a), shape, a.dtype, is_view=True, is_expanded=a.is_expanded)


def _listed(dim: Any) -> list[int]:
    return [] if dim is None else [dim] if isinstance(dim, int) else list(dim)
