"""The gradients of the operators: what a forward pass keeps, and what a backward pass makes of it.

Kept are what was normalised (x, or h = x + residual), what multiplies it (the weight, a scale, a
gate), and the statistics: nothing that would have to be computed first. Where the gradient of an
operand is not the kernel's, PyTorch sums it, in float32 (float64 for float64 data).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from .._families import (
    ADDED,
    BESIDE_RESIDUAL,
    GATED,
    GRADIENTS,
    LOADED,
    NORMED,
    OPS,
    Input,
    Op,
    Option,
    Source,
)
from . import _cpu
from ._checks import accumulator, named
from ._operators import OPERATORS

Grads = dict[str, Tensor | None]


class Saved:
    """What a backward pass has: what was kept, and of every argument its shape and dtype.

    Parameters
    ----------
    op : Op
        The forward op.
    ctx : object
        What PyTorch keeps of the call.
    """

    def __init__(self, op: Op, ctx: Any) -> None:
        self.op = op
        self.tensors: Grads = dict(zip(ctx.names, ctx.saved_tensors, strict=True))
        self.given: dict[str, tuple[torch.Size, torch.dtype] | None] = ctx.given
        self.options: dict[str, Any] = ctx.options
        names = (argument.name for argument in op.of_tensors)
        self.needed = dict(zip(names, ctx.needs_input_grad, strict=True))

    def __getitem__(self, name: str) -> Any:
        return self.tensors.get(name)


def save(op: Op, ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep what `gradients` needs of an operator's inputs and outputs."""
    given = named(op.of_tensors, inputs)
    made = dict(zip(op.returns, output, strict=True))
    ctx.set_materialize_grads(False)
    inputs_of, options_of, always = _names(op)
    ctx.given = {
        name: None if given[name] is None else (given[name].shape, given[name].dtype)
        for name in inputs_of
    }
    ctx.options = {name: given[name] for name in options_of}
    values = given | made
    names = [*always, *_kept_beside(op, given)]
    kept: dict[str, Tensor] = {n: values[n] for n in names if n in values and values[n] is not None}
    ctx.names = tuple(kept)
    # Autograd cannot see tensors of torch.inference_mode() written to, and keeps none of them.
    ctx.save_for_backward(*[t.clone() if t.is_inference() else t for t in kept.values()])


@cache
def _names(op: Op) -> tuple[list[str], list[str], list[str]]:
    """Return the names of the tensors that an operator takes, of its options, and of what it keeps.

    It keeps what was normalised, what multiplies that, and the statistics.
    """
    inputs = [argument.name for argument in op.of_tensors if isinstance(argument, Input)]
    options = [argument.name for argument in op.of_tensors if isinstance(argument, Option)]
    rows = [output.name for output in op.source.writes] or ["x"]
    weights = [name for name in op.parameters if name != "beta"]
    return inputs, options, [*rows, *weights, *op.family.saves]


def _kept_beside(op: Op, given: dict[str, Any]) -> list[str]:
    """Return the names of what else the gradients of a call are made of."""
    names = ["x"] if op.source is NORMED else []
    operands = [name for name in ("gate", "scale") if given.get(name) is not None]
    if op.source is ADDED and "gate" in operands:
        names.append("x")
    # What is multiplied by a scale or a gate has beta in it, and without gamma beta has the axes.
    beta = ["beta"] if operands or given["gamma"] is None else []
    return [*names, *operands, "shift", *beta]


def gradients(op: Op, ctx: Any, *grads: Tensor | None, dx: Tensor | None = None) -> tuple[Any, ...]:
    """Return the gradients of an operator's inputs, None for those without one.

    y and h are both differentiable, and one kernel adds up what reaches x and residual by them. Of
    an x that goes on beside a norm of it, `dx` is the gradient that reaches it so.
    """
    saved = Saved(op, ctx)
    upstream = {**dict(zip(op.returns, grads, strict=True)), "x": dx}
    found = OF_SOURCES[op.source](saved, upstream)
    for name, gradient in found.items():
        own = saved.given[name]
        if gradient is not None and own is not None:
            found[name] = gradient.to(own[1])
    return tuple(found.get(argument.name) for argument in op.of_tensors)


def _of_rows(saved: Saved, upstream: Grads) -> Grads:
    """Return the gradients of a norm of x, which a gate may multiply."""
    dy, dx = upstream["y"], upstream["x"]
    return {"x": dx} if dy is None else of_norm(saved, dy, dresidual=dx)


def _of_sum(saved: Saved, upstream: Grads) -> Grads:
    """Return the gradients of a norm of ``h = residual + gate * x``."""
    dy, dh = upstream["y"], upstream["residual_out"]
    gate = saved["gate"]
    if dy is not None and gate is not None and saved.needed["gate"]:
        backward = OPS[f"{saved.op.norm}_bwd"]
        return of_norm(saved, dy, rows="residual_out", dresidual=dh, backward=backward)
    # Without a dy nothing of the norm is left, and a gate without a gradient has no sums.
    found: Grads = {"x": dh}
    if dy is not None:
        found = of_norm(saved, dy, rows="residual_out", dresidual=dh)
    found["residual"] = dh = found["x"]
    if gate is None or dh is None:
        return found
    x = saved["x"]
    wide = dh.to(accumulator(x.dtype))
    found["x"] = wide * gate.to(wide.dtype) if saved.needed["x"] else None
    if saved.needed["gate"]:
        found["gate"] = _cpu.sum_to(wide * x.to(wide.dtype), gate, x)
    return found


def _of_addend(saved: Saved, upstream: Grads) -> Grads:
    """Return the gradients of ``h = residual + gate * norm(x)``: to the norm a gate is a scale."""
    dh, gate = upstream["y"], saved["gate"]
    if dh is None:
        return {}
    operands = {} if gate is None else {"scale": gate, "scale_offset": 0.0}
    found = of_norm(saved, dh, operands=operands)
    if gate is not None:
        found["gate"] = found.pop("scale")
    return {**found, "residual": dh}


def _of_both(saved: Saved, upstream: Grads) -> Grads:
    """Return the gradients of the norms of x and of ``h = residual + norm(x)``."""
    dy, dh = upstream["y"], upstream["residual_out"]
    found: Grads = {}
    if dy is not None:
        names = {"rows": "residual_out", "weight": "gamma2", "statistics": ("rstd2",)}
        found = of_norm(saved, dy, dresidual=dh, **names)  # type: ignore[arg-type]
        dh = found.pop("x")
    if dh is not None:
        found |= of_norm(saved, dh, statistics=("rstd",))
    return {**found, "residual": dh}


OF_SOURCES: dict[Source, Callable[[Saved, Grads], Grads]] = {
    LOADED: _of_rows,
    GATED: _of_rows,
    ADDED: _of_sum,
    BESIDE_RESIDUAL: _of_addend,
    NORMED: _of_both,
}


def of_norm(
    saved: Saved,
    dy: Tensor,
    *,
    rows: str = "x",
    weight: str = "gamma",
    statistics: tuple[str, ...] | None = None,
    dresidual: Tensor | None = None,
    operands: dict[str, Any] | None = None,
    backward: Op | None = None,
) -> Grads:
    """Return the gradients of a norm, by the kernel of its family.

    Parameters
    ----------
    saved : Saved
        What there is.
    dy : torch.Tensor
        The gradient of what the norm returns.
    rows, weight, statistics : str, str, tuple of str, optional
        The names of what was normalised, of what multiplies it, and of what was kept of it: those
        of the family, if left out.
    dresidual : torch.Tensor, optional
        The gradient that reaches the rows by another way.
    operands : dict, optional
        scale and scale_offset; those of the op, if left out.
    backward : Op, optional
        The kernel's op, if it is not the family's: that of a sum, whose gate has a gradient.

    Returns
    -------
    dict of str to Tensor or None
        The gradients of the rows as "x", or "residual" where `backward` tells those from x's, and
        of all else by its name.
    """
    backward = backward or GRADIENTS[saved.op.family]
    h, gamma = saved[rows], saved[weight]
    dy = dy.to(h.dtype)
    if operands is None:
        operands = {name: saved[name] for name in ("scale", "shift")}
        operands["shift"] = operands["shift"] if saved.needed.get("shift") else None
    beta = saved.given.get("beta") if saved.needed.get("beta") else None
    # The kernel's dbeta has gamma's dtype, and where there is no gamma there is none.
    along = beta is not None and gamma is not None and gamma.dtype == beta[1]
    of_weight = gamma is not None and saved.needed[weight]
    kept = zip(backward.family.saves, statistics or backward.family.saves, strict=True)
    given = {
        **saved.options,
        **{own: saved[name] for own, name in kept},
        **{"dy": dy, "x": saved["x"], backward.leader: h, "gate": saved["gate"]},
        **{"gamma": gamma, "beta": saved["beta"]},
        **{"dresidual": dresidual, "sums": of_weight or along, **operands},
    }
    arguments = [given.get(a.name, _default(a)) for a in backward.of_tensors]
    made = dict(zip(_returned(backward), _kernel(backward)(*arguments), strict=True))
    found: Grads = {"x": made["dx"], weight: made["dgamma"] if of_weight else None}
    if "dh" in made:
        found["residual"] = made["dh"]
    if beta is not None:
        found["beta"] = made["dbeta"] if along else _sum_of_rows(dy, given, *beta)
    for name in ("gate", *backward.operands):
        if f"d{name}" in made and given.get(name) is not None:
            found[name] = made[f"d{name}"]
    return found


def _default(argument: Input | Option) -> Any:
    return argument.default if isinstance(argument, Option) else None


def _returned(op: Op) -> tuple[str, ...]:
    return (*op.returns, *(f"d{name}" for name in op.operands))


def _kernel(op: Op) -> Any:
    return getattr(torch.ops.cunorm, op.name)


def _sum_of_rows(
    dy: Tensor, given: dict[str, Any], shape: torch.Size, dtype: torch.dtype
) -> Tensor:
    """Return the gradient of beta where the kernel has none."""
    terms = dy.to(accumulator(dy.dtype))
    factor = _cpu.upstream_factor(given, terms.dtype)
    return (terms * factor).sum_to_size(shape).to(dtype)


def refuse(op: str, *_: object) -> None:
    raise RuntimeError(
        f"{op} can be differentiated once and not again: its gradient is a kernel without a "
        "gradient of its own. Call backward() or torch.autograd.grad() without create_graph=True"
    )


for _op in OPS.values():
    if _op.is_backward:
        OPERATORS[_op.name].register_autograd(partial(refuse, _op.norm))
    elif _op.keeps:
        OPERATORS[_op.name].register_autograd(
            partial(gradients, _op), setup_context=partial(save, _op)
        )
