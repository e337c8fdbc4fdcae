"""The ops on CPU tensors: the kernels' definitions in plain PyTorch, forward and backward.

Formula and roundings are those of kernels/statistic.cuh and of the epilogues. What differs is how
sums are added up: the statistics of 16-bit and float32 data are computed in float64 and rounded
once, so that no square overflows, where a kernel's sums are float32. Both are within the bounds of
cunorm/_reference, these by a wide margin, and so differ by those at most.

Of given statistics, y of 16-bit and float32 data has the kernels' bits, but where a float32 is
subnormal: kernels flush it to zero; and but for activations, which both have to 2.5 ulp. Of float64
rows LayerNorm's multiply-add rounds twice here.

Backward passes are in float32, float64 for float64 data, like the kernels', in the order in which
PyTorch adds. An op is what its family says: a source, a statistic and an epilogue, by the names
that they have in the kernels. Tensors are strided, of one shape where the ops ask for that, and
checked before.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from .._families import Op
from .._typing import Arrays
from ._checks import accumulator
from ._statistics import MeanSquare, Moments, fma

# What an op is given, by name: tensors and options.
Given = Mapping[str, Any]
# The row that is normalised, and what is made beside y on the way.
Made = tuple[Tensor, dict[str, Tensor]]


def trailing(x: Tensor, *parameters: Tensor | None) -> tuple[int, ...]:
    """Return the normalised axes: those of the first parameter that is there, else the last."""
    axes = next((p.ndim for p in parameters if p is not None), 1)
    return tuple(range(-axes, 0))


def rounded(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return a value as a dtype holds it, as wide as it is."""
    return value.to(dtype).to(value.dtype)


def add(given: Given, axes: tuple[int, ...]) -> Made:
    """Return ``h = x + residual``, rounded once to residual's dtype; x times a gate, if any."""
    x, residual, gate = (given[name] for name in ("x", "residual", "gate"))
    wide = accumulator(x.dtype)
    addend = x.to(wide)
    if gate is not None:
        addend = rounded(addend * gate.to(wide), torch.promote_types(x.dtype, gate.dtype))
    h = (addend + residual.to(wide)).to(residual.dtype).contiguous()
    return h, {"residual_out": h}


def gated(given: Given, axes: tuple[int, ...]) -> Made:
    """Return ``v = x * activation(gate)``, not rounded, where the gate comes first; else x."""
    x = given["x"]
    return (x.to(accumulator(x.dtype)) * activated(given) if given["gate_first"] else x), {}


def normed(given: Given, axes: tuple[int, ...]) -> Made:
    """Return ``h = residual + rms_norm(x)``, rounded to residual's dtype."""
    x = given["x"]
    statistic = MeanSquare.of(x, axes, given["eps"])
    h = then_add(_scale(statistic.normal(x), given)(x.dtype), given["residual"])
    h = h.to(given["residual"].dtype)
    (rstd,) = statistic.saved
    return h, {"residual_out": h, "rstd": rstd}


def activated(given: Given) -> Tensor:
    """Return ``activation(gate)``, in float32, float64 for float64 data."""
    gate = given["gate"].to(accumulator(given["x"].dtype))
    return ACTIVATIONS[given["activation"]](gate)


def scale(
    normal: Tensor, gamma: Tensor | None, *, gamma_offset: float, cast: str, dtype: torch.dtype
) -> Tensor:
    """Return y of RMSNorm, given the normalised rows: rounded where the kernel rounds."""
    y = normal
    if gamma is not None:
        if cast == "before":
            y = rounded(y, dtype)
        y = y * (gamma.to(normal.dtype) + gamma_offset)
    return y.to(dtype)


def affine(
    normal: Tensor,
    gamma: Tensor | None,
    beta: Tensor | None,
    *,
    gamma_offset: float,
    dtype: torch.dtype,
) -> Tensor:
    """Return y of LayerNorm, given the normalised rows."""
    y, wide = normal, normal.dtype
    if gamma is not None and beta is not None:
        y = fma(y, gamma.to(wide) + gamma_offset, beta.to(wide))
    elif gamma is not None:
        y = y * (gamma.to(wide) + gamma_offset)
    elif beta is not None:
        y = y + beta.to(wide)
    return y.to(dtype)


# A norm of rows that are normalised already, by the dtype that it is rounded to.
Norm = Callable[[torch.dtype], Tensor]


def _scale(normal: Tensor, given: Given, gamma: str = "gamma") -> Norm:
    options = {name: given[name] for name in ("gamma_offset", "cast")}
    return lambda dtype: scale(normal, given[gamma], **options, dtype=dtype)


def _affine(normal: Tensor, given: Given) -> Norm:
    offset = given["gamma_offset"]
    return lambda dtype: affine(
        normal, given["gamma"], given["beta"], gamma_offset=offset, dtype=dtype
    )


def modulated(norm: Norm, given: Given) -> Tensor:
    """Return ``n * (scale + scale_offset) + shift``, each result rounded to the dtype it has."""
    dtype, rounds = given["x"].dtype, given.get("cast") != "after"
    wide = accumulator(dtype)
    y = norm(dtype if rounds else wide).to(wide)
    for name in ("scale", "shift"):
        operand = given.get(name)
        if operand is None:
            continue
        if name == "scale":
            own = operand if rounds else operand.to(wide)
            # To an array a number has its dtype.
            factor = own + own.new_full((), given["scale_offset"])
            y = y * factor.to(wide)
        else:
            y = y + operand.to(wide)
        dtype = torch.promote_types(dtype, operand.dtype)
        y = rounded(y, dtype) if rounds else y
    return y


def then_gate(norm: Norm, given: Given) -> Tensor:
    """Return ``y = t * activation(gate)`` of the norm t, unless the gate came first."""
    if given["gate_first"]:
        return modulated(norm, given)
    dtype = given["x"].dtype
    wide = accumulator(dtype)
    return norm(dtype if given["cast"] == "before" else wide).to(wide) * activated(given)


def then_add(norm: Tensor, residual: Tensor, gate: Tensor | None = None) -> Tensor:
    """Return ``h = residual + gate * n`` of the norm n, each result rounded to the dtype it has."""
    dtype = norm.dtype
    wide = accumulator(dtype)
    addend = norm.to(wide)
    if gate is not None:
        dtype = torch.promote_types(dtype, gate.dtype)
        addend = rounded(addend * gate.to(wide), dtype)
    return rounded(addend + residual.to(wide), torch.promote_types(dtype, residual.dtype))


def _then_add(norm: Norm, given: Given) -> Tensor:
    return then_add(norm(given["x"].dtype), given["residual"], given["gate"])


def _of_sum(normal: Tensor, given: Given) -> Tensor:
    """Return ``y = rms_norm(h, gamma2)``, rounded to the dtype of h, or once at the end."""
    dtype = given["residual"].dtype if given["cast"] == "before" else normal.dtype
    return _scale(normal, given, "gamma2")(dtype)


# By the names of `_families/`.
SOURCES: dict[str, Callable[[Given, tuple[int, ...]], Made]] = {
    "Loaded": lambda given, _: (given["x"], {}),
    "Added": add,
    "Gated": gated,
    "Normed": normed,
}
STATISTICS: dict[str, type[MeanSquare | Moments]] = {"MeanSquare": MeanSquare, "Moments": Moments}
EPILOGUES: dict[str, Callable[[Tensor, Given], Tensor]] = {
    "Scale": lambda normal, given: modulated(_scale(normal, given), given),
    "Affine": lambda normal, given: modulated(_affine(normal, given), given),
    "ScaleThenGate": lambda normal, given: then_gate(_scale(normal, given), given),
    "AffineThenGate": lambda normal, given: then_gate(_affine(normal, given), given),
    "ScaleThenAdd": lambda normal, given: _then_add(_scale(normal, given), given),
    "AffineThenAdd": lambda normal, given: _then_add(_affine(normal, given), given),
    "ScaleOfSum": _of_sum,
}
ACTIVATIONS: dict[str | None, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "sigmoid": torch.sigmoid,
    None: lambda gate: gate,
}


def forward(op: Op, tensors: Arrays, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the results of a forward op by name."""
    x, group = tensors["x"], options.get("group")
    given = {**_in_groups(tensors, (*op.reads, *op.parameters), group), **options}
    axes = (-1,) if group is not None else trailing(x, *(given[name] for name in op.parameters))
    rows, made = SOURCES[op.source.name](given, axes)
    second = options.get("eps2")
    eps = options["eps"] if second is None else second
    statistic = STATISTICS[op.family.statistic].of(rows, axes, eps)
    y = EPILOGUES[op.family.epilogue](statistic.normal(rows), given)
    made |= {op.writes[0].name: y.to(options.get("dtype") or tensors[op.writes[0].like].dtype)}
    # Of what a family saves, the last are those of the rows that its epilogue follows.
    made |= dict(zip(op.family.saves[-len(statistic.saved) :], statistic.saved, strict=True))
    for output in op.writes:
        made[output.name] = shaped(made[output.name], x.shape)
    lead = rows.shape[: rows.ndim - len(axes)]
    return made | {name: made[name].reshape(lead) for name in op.family.saves}


def backward(op: Op, tensors: Arrays, options: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return what a backward op returns by name, without the sums that nobody wants."""
    x, group = tensors[op.leader], options.get("group")
    gate = tensors["gate"] if "gate" in op.reads else None
    names = (*op.reads, *op.parameters, "beta")
    given = {**_in_groups(tensors, names, group), **options}
    (gamma,), beta = (given[name] for name in op.parameters), given.get("beta")
    axes = (-1,) if group is not None else trailing(x, gamma, beta)
    wide = accumulator(x.dtype)
    dy, data = (given[name].to(wide).contiguous() for name in ("dy", op.leader))
    weight = 1.0 if gamma is None else gamma.to(wide) + options["gamma_offset"]
    gate_first = gate is not None and options["gate_first"]
    factor = upstream_factor(given, wide)
    kept = (_over_columns(tensors[name], axes) for name in op.family.saves)
    statistic = STATISTICS[op.family.statistic](*kept)
    normal = statistic.normal(data * activated(given) if gate_first else data)
    upstream = dy * factor
    dx = statistic.gradient(upstream * weight, normal, axes)
    value = normal * weight + (0.0 if beta is None else beta.to(wide))
    made: dict[str, Tensor] = {}
    if gate is not None:
        product = dx * data if gate_first else dy * value
        made["dgate"] = product * slope(given)
        dx = dx * activated(given) if gate_first else dx
    if given.get("dresidual") is not None:
        dx = dx + given["dresidual"].to(wide)
    made[f"d{op.leader}"] = dx
    terms = {"scale": dy * value, "shift": dy}
    if "gate" in op.operands:
        dh = rounded(dx, x.dtype).reshape(x.shape)
        made["dx"] = dh * given["gate"].to(wide)
        terms["gate"] = dh * given["x"].to(wide)
    made = {
        name: shaped(made[name].to(tensors[name.removeprefix("d")].dtype).contiguous(), x.shape)
        for name in op.gradients
    }
    own = tensors[op.parameters[0]]
    if own is not None and options["sums"]:
        # The first parameter multiplies the normalised rows, and the others are added.
        of_rows = (upstream * normal, *(upstream for _ in op.totals[1:]))
        made |= {name: sum_to(term, own, x) for name, term in zip(op.totals, of_rows, strict=True)}
    for name, term in terms.items():
        if given.get(name) is not None:
            made[f"d{name}"] = sum_to(term, given[name], x)
    return made


def upstream_factor(given: Given, wide: torch.dtype) -> Tensor | float:
    """Return what the norm is multiplied with: a scale, or an activated gate."""
    scale: Tensor | None = given.get("scale")
    if scale is not None:
        return scale.to(wide) + scale.new_full((), given["scale_offset"]).to(wide)
    return 1.0 if given.get("gate_first", True) else activated(given)


def slope(given: Given) -> Tensor | float:
    """Return the derivative of the activation at the gate."""
    if given["activation"] is None:
        return 1.0
    gate: Tensor = given["gate"].to(accumulator(given["x"].dtype))
    sigmoid = gate.sigmoid()
    if given["activation"] == "sigmoid":
        return sigmoid * (1 - sigmoid)
    return sigmoid * (1 + gate * (1 - sigmoid))


def sum_to(terms: Tensor, operand: Tensor, x: Tensor) -> Tensor:
    """Return the sum over the axes along which an operand broadcasts, in its shape and dtype."""
    return terms.reshape(x.shape).sum_to_size(operand.shape).to(operand.dtype).clone()


def _in_groups(tensors: Arrays, names: tuple[str, ...], group: int | None) -> Arrays:
    """Return tensors of which rows and parameters have an axis of groups, where there are any."""
    if group is None:
        return tensors
    found = {name: tensors[name] for name in names if tensors.get(name) is not None}
    return tensors | {n: t.unflatten(-1, (t.shape[-1] // group, group)) for n, t in found.items()}


def shaped(value: Tensor, shape: torch.Size) -> Tensor:
    """Return a value in another shape; no view, of which autograd takes note."""
    return value if value.shape == shape else value.reshape(shape).clone()


def _over_columns(statistic: Tensor, axes: tuple[int, ...]) -> Tensor:
    return statistic.reshape(statistic.shape + (1,) * len(axes))
