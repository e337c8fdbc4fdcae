"""How the ops compute what a forward was found to: one fused op, and what is left to PyTorch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .._typing import Cast
from ._ops import layer_norm, rms_norm
from ._values import Add, Multiply, Normal, Parameter, Round, Step, name_of, narrowed

NARROW = (torch.float16, torch.bfloat16, torch.float32)
TAKEN = {torch.float64: (torch.float64, torch.float32)}  # by rows of that dtype; else NARROW


class Plan(NamedTuple):
    """One call of an op, the cast before it, and the steps that follow.

    `eps` is the name of the attribute that has it, or a number that the forward has itself.
    """

    centred: bool
    to: torch.dtype | None
    gamma: Parameter | None
    offset: float
    beta: Parameter | None
    cast: Cast
    eps: str | float
    steps: tuple[Step, ...]

    def eps_of(self, module: Any) -> Any:
        """Return what a module has for eps now."""
        return getattr(module, self.eps) if isinstance(self.eps, str) else self.eps

    def compute(self, module: Any, x: torch.Tensor, axes: int) -> torch.Tensor:
        """Return what the forward of a module returns, of rows over a number of trailing axes."""
        eps = self.eps_of(module)
        gamma = None if self.gamma is None else _tensor(module, self.gamma)
        rows = x if self.to is None else x.to(self.to)
        if axes > 1 and gamma is None and self.beta is None:
            rows = rows.flatten(-axes)
        if self.centred:
            beta = None if self.beta is None else _tensor(module, self.beta)
            y = layer_norm(rows, gamma, beta, eps)
        else:
            y = rms_norm(rows, gamma, eps, gamma_offset=self.offset, cast=self.cast)
        if y.shape != x.shape:
            y = y.view(x.shape)
        for step in self.steps:
            y = _stepped(step, module, y)
        return y


class Fusion(NamedTuple):
    """The steps that an op can take over, and the rest."""

    gamma: Parameter | None
    beta: Parameter | None
    cast: Cast
    rest: tuple[Step, ...]


def plan(
    normal: Normal, x: torch.dtype, parameters: torch.dtype, y: torch.dtype, eps: str | None
) -> Plan | str:
    """Return how x of a dtype is normalised by an op, or why it cannot be.

    The op computes in the dtype of the forward's statistics. It is called on x as it is, where it
    can round where the forward first rounds, and else on x in that dtype.
    """
    wide = normal.dtype
    for given in dict.fromkeys((x, wide)):
        if wide != (torch.float64 if given == torch.float64 else torch.float32):
            continue
        fusion = _layer(normal, given) if normal.centred else _rms(normal, given)
        if fusion is None:
            continue
        gamma, offset = _offset(fusion.gamma, parameters, given, fusion.cast)
        for factor in (gamma, fusion.beta):
            dtype = None if factor is None else _dtype(factor, parameters)
            if dtype is not None and dtype not in TAKEN.get(given, NARROW):
                return f"the ops take no {name_of(dtype)} weight with {name_of(given)} rows"
        rest = fusion.rest
        if (rest[-1].dtype if rest else given) != y:
            rest = (*rest, Round(y))
        return Plan(
            normal.centred,
            None if given == x else given,
            gamma,
            offset,
            fusion.beta,
            fusion.cast,
            normal.eps if eps is None else eps,
            rest,
        )
    return f"the ops have no statistics in {name_of(wide)} for it"


def _offset(
    gamma: Parameter | None, parameters: torch.dtype, given: torch.dtype, cast: Cast
) -> tuple[Parameter | None, float]:
    """Return gamma and what is added to it by `rms_norm`, which takes every dtype as it is.

    It adds in the dtype of its sums, and not where it rounds before: what is added in another, and
    by LayerNorm, whose op adds nothing, is added to the few numbers of gamma first.
    """
    if gamma is None:
        return None, 0.0
    changes, dtype = gamma.changes, _dtype(gamma, parameters)
    casts = [change for change in changes if isinstance(change, torch.dtype)]
    if any(narrowed(one, other) for one, other in pairwise((parameters, *casts))):
        return gamma, 0.0
    if len(casts) == len(changes):
        return replace(gamma, changes=()), 0.0
    offset = changes[-1]
    wide = torch.float64 if given == torch.float64 else torch.float32
    adds_last = len(casts) == len(changes) - 1 and isinstance(offset, float)
    if adds_last and cast == "after" and dtype == wide:
        return replace(gamma, changes=()), float(offset)  # type: ignore[arg-type]
    return gamma, 0.0


def _dtype(parameter: Parameter, given: torch.dtype) -> torch.dtype:
    """Return the dtype of a parameter after its changes."""
    return next((c for c in reversed(parameter.changes) if isinstance(c, torch.dtype)), given)


def _rms(normal: Normal, given: torch.dtype) -> Fusion | None:
    """Return what `rms_norm` of rows of a dtype takes over of the steps, None where it cannot."""
    steps, wide = normal.steps, normal.dtype
    first, second = (*steps, None, None)[:2]
    if given == wide:
        if isinstance(first, Multiply) and first.dtype == wide:
            return Fusion(first.by, None, "after", steps[1:])
        return Fusion(None, None, "after", steps)
    if first == Round(given):
        if isinstance(second, Multiply) and second.dtype == given:
            return Fusion(second.by, None, "before", steps[2:])
        return Fusion(None, None, "before", steps[1:])
    if isinstance(first, Multiply) and first.dtype == wide and second == Round(given):
        return Fusion(first.by, None, "after", steps[2:])
    return None


def _layer(normal: Normal, given: torch.dtype) -> Fusion | None:
    """Return what `layer_norm` takes over, as `_rms`; it rounds once, and has no offset."""
    rest, wide = list(normal.steps), normal.dtype
    gamma = beta = None
    if rest and isinstance(rest[0], Multiply) and rest[0].dtype == wide:
        gamma = rest.pop(0).by  # type: ignore[union-attr]
    if rest and isinstance(rest[0], Add) and rest[0].dtype == wide:
        beta = rest.pop(0).by  # type: ignore[union-attr]
    if given != wide and (not rest or rest.pop(0) != Round(given)):
        return None
    return Fusion(gamma, beta, "before", tuple(rest))


def _tensor(module: Any, parameter: Parameter) -> torch.Tensor:
    tensor: torch.Tensor = getattr(module, parameter.name)
    for change in parameter.changes:
        tensor = tensor + change if isinstance(change, float) else tensor.to(change)
    return tensor


def _stepped(step: Step, module: Any, y: torch.Tensor) -> torch.Tensor:
    if isinstance(step, Round):
        return y.to(step.dtype)
    other = _tensor(module, step.by)
    if torch.promote_types(y.dtype, other.dtype) != step.dtype:
        y = y.to(step.dtype)
    return y * other if isinstance(step, Multiply) else y + other
