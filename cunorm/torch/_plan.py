"""How the ops compute what a forward was found to: one fused op, and what is left to PyTorch."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from .._typing import Cast
from ._gated import rms_norm_gated
from ._ops import layer_norm, rms_norm
from ._trace import Setting
from ._values import Add, Multiply, Normal, Parameter, Round, Step, Times, name_of, narrowed

NARROW = (torch.float16, torch.bfloat16, torch.float32)
TAKEN = {torch.float64: (torch.float64, torch.float32)}  # by rows of that dtype; else NARROW


class Plan(NamedTuple):
    """One call of an op, the cast before it, and the steps that follow.

    `eps` is the name of the attribute that has it, or a number that the forward has itself;
    `group` the columns that are normalised together, where those are not all; `gating` are the
    options of a gated op.
    """

    centred: bool
    to: torch.dtype | None
    gamma: Parameter | None
    offset: float
    beta: Parameter | None
    cast: Cast
    eps: str | float
    scale: Parameter | None = None
    shift: Parameter | None = None
    dtype: torch.dtype | None = None
    group: int | None = None
    gating: dict[str, Any] | None = None
    steps: tuple[Step, ...] = ()

    def eps_of(self, module: Any) -> Any:
        """Return what a module has for eps now."""
        return getattr(module, self.eps) if isinstance(self.eps, str) else self.eps

    def compute(
        self, module: Any, axes: int, x: torch.Tensor, gate: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return what the forward of a module returns, of rows over a number of trailing axes."""
        eps = self.eps_of(module)
        gamma, beta, scale, shift = (
            None if parameter is None else tensor_of(module, parameter)
            for parameter in (self.gamma, self.beta, self.scale, self.shift)
        )
        rows = x if self.to is None else x.to(self.to)
        if axes > 1 and gamma is None and beta is None:
            rows = rows.flatten(-axes)
        if self.group is not None and self.gating is None:
            # To a group what has all columns is of a head, of which each has its own.
            heads = (x.shape[-1] // self.group, self.group)
            rows = rows.reshape(*x.shape[:-1], *heads)
            scale, shift = (None if t is None else t.reshape(heads) for t in (scale, shift))
        if self.gating is not None and gate is not None:
            y = rms_norm_gated(
                rows,
                gate,
                gamma,
                eps,
                group=self.group,
                gamma_offset=self.offset,
                cast=self.cast,
                dtype=self.dtype,
                **self.gating,
            )
        elif self.centred:
            y = layer_norm(
                rows,
                gamma,
                beta,
                eps,
                gamma_offset=self.offset,
                scale=scale,
                shift=shift,
                scale_offset=0.0,
                dtype=self.dtype,
            )
        else:
            y = rms_norm(
                rows,
                gamma,
                eps,
                gamma_offset=self.offset,
                cast=self.cast,
                scale=scale,
                shift=shift,
                scale_offset=0.0,
                dtype=self.dtype,
            )
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


def plan(normal: Normal, setting: Setting, y: torch.dtype, eps: str | None) -> Plan | str:
    """Return how x of a dtype is normalised by an op, or why it cannot be.

    The op computes in the dtype of the forward's statistics. It is called on x as it is, where it
    can round where the forward first rounds, and else on x in that dtype.
    """
    wide, parameters, x = normal.dtype, setting.parameters, setting.x
    group = None
    if normal.row != setting.row[-len(normal.row) :]:
        if len(normal.row) != 1 or len(setting.row) != 1:
            return f"its rows of {setting.row} are normalised by {normal.row}"
        (group,) = normal.row
    for given in dict.fromkeys((x, wide)):
        if wide != (torch.float64 if given == torch.float64 else torch.float32):
            continue
        fusion = _layer(normal, given) if normal.centred else _rms(normal, given)
        if fusion is None:
            continue
        gating = None
        if normal.is_gated:
            found = _gating(normal, setting, fusion, given)
            if found is None:
                continue
            gating, fusion = found
        cast: Cast = "after" if normal.centred else fusion.cast
        gamma, offset = _offset(fusion.gamma, parameters, given, cast)
        taken = TAKEN.get(given, NARROW)
        for factor in (gamma, fusion.beta):
            dtype = None if factor is None else _dtype(factor, parameters)
            if dtype is not None and dtype not in taken:
                return f"the ops take no {name_of(dtype)} weight with {name_of(given)} rows"
        beside: dict[str, Parameter] = {}
        made, rest = given, fusion.rest
        if gating is None:
            beside, made, rest = _beside(fusion, given, wide, parameters, taken)
        if (rest[-1].dtype if rest else made) != y:
            rest = (*rest, Round(y))
        if rest and isinstance(rest[0], Round):
            made, rest = rest[0].dtype, rest[1:]
        return Plan(
            normal.centred,
            None if given == x else given,
            gamma,
            offset,
            fusion.beta,
            fusion.cast,
            normal.eps if eps is None else eps,
            **beside,
            dtype=None if made == given else made,
            group=group,
            gating=gating,
            steps=rest,
        )
    if normal.is_gated:
        return f"the ops round a gated norm elsewhere, with {name_of(parameters)} weights"
    return f"the ops have no statistics in {name_of(wide)} for it"


def _gating(
    normal: Normal, setting: Setting, fusion: Fusion, given: torch.dtype
) -> tuple[dict[str, Any], Fusion] | None:
    """Return the options of a gated op, and what it takes over with the gate; None if it cannot.

    The gate multiplies in the dtype of sums: before the norm, or after it and before the last
    rounding.
    """
    wide = normal.dtype
    if normal.centred or len(setting.row) != 1 or given != setting.x:
        return None
    first = normal.of.gate
    options = {"gate_first": first is not None}
    rest = fusion.rest
    if first is not None:
        return {**options, "activation": _activation(first)}, fusion
    # `_rms` leaves off before the gate: what is left are the gate and a last rounding.
    if not rest or not isinstance(rest[0], Times) or rest[0].dtype != wide:
        return None
    if given != wide and (len(rest) < 2 or rest[1] != Round(given)):
        return None
    taken = 1 if given == wide else 2
    own = {**options, "activation": _activation(rest[0].activation)}
    return own, fusion._replace(rest=rest[taken:])


def _activation(name: str) -> str | None:
    return None if name == "none" else name


def _beside(
    fusion: Fusion,
    given: torch.dtype,
    wide: torch.dtype,
    parameters: torch.dtype,
    taken: tuple[torch.dtype, ...],
) -> tuple[dict[str, Parameter], torch.dtype, tuple[Step, ...]]:
    """Return what an op takes for scale and shift, the dtype that has, and the rest of the steps.

    They round as the forward does, but for those of an op that rounds once, at its end.
    """
    rest, dtype = list(fusion.rest), given
    found: dict[str, Parameter] = {}
    if fusion.cast == "after" and given != wide:
        return found, dtype, tuple(rest)
    for name, kind in (("scale", Multiply), ("shift", Add)):
        if not rest or not isinstance(rest[0], kind):
            continue
        own = _dtype(rest[0].by, parameters)
        if own not in taken or torch.promote_types(dtype, own) != rest[0].dtype:
            break
        dtype = rest[0].dtype
        found[name] = rest.pop(0).by  # type: ignore[union-attr]
    return found, dtype, tuple(rest)


def _offset(
    gamma: Parameter | None, parameters: torch.dtype, given: torch.dtype, cast: Cast
) -> tuple[Parameter | None, float]:
    """Return gamma and what is added to it by `rms_norm`, which takes every dtype as it is.

    It adds in the dtype of its sums, and not where it rounds before: what is added in another is
    added to the few numbers of gamma first.
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
        if isinstance(first, Multiply) and first.dtype == wide and _is_gamma(first, normal):
            return Fusion(first.by, None, "after", steps[1:])
        return Fusion(None, None, "after", steps)
    if first == Round(given):
        if isinstance(second, Multiply) and second.dtype == given and _is_gamma(second, normal):
            return Fusion(second.by, None, "before", steps[2:])
        return Fusion(None, None, "before", steps[1:])
    if isinstance(first, Multiply) and first.dtype == wide and _is_gamma(first, normal):
        if second == Round(given):
            return Fusion(first.by, None, "after", steps[2:])
        if isinstance(second, Times):  # which is rounded in turn
            return Fusion(first.by, None, "after", steps[1:])
    return None


def _is_gamma(step: Multiply | Add, normal: Normal) -> bool:
    """Return whether a parameter is one row of an op, of which a gated op has groups."""
    return step.by.shape == normal.row or (normal.is_gated and len(step.by.shape) == 1)


def _layer(normal: Normal, given: torch.dtype) -> Fusion | None:
    """Return what `layer_norm` takes over, as `_rms`; it rounds once, and has no offset."""
    rest, wide = list(normal.steps), normal.dtype
    gamma = beta = None
    if (
        rest
        and isinstance(rest[0], Multiply)
        and rest[0].dtype == wide
        and _is_gamma(rest[0], normal)
    ):
        gamma = rest.pop(0).by  # type: ignore[union-attr]
    if rest and isinstance(rest[0], Add) and rest[0].dtype == wide and _is_gamma(rest[0], normal):
        beta = rest.pop(0).by  # type: ignore[union-attr]
    if given != wide and (not rest or rest.pop(0) != Round(given)):
        return None
    return Fusion(gamma, beta, "before", tuple(rest))


def tensor_of(module: Any, parameter: Parameter) -> torch.Tensor:
    tensor: torch.Tensor = getattr(module, parameter.name)
    for change in parameter.changes:
        tensor = tensor + change if isinstance(change, float) else tensor.to(change)
    return tensor


def _stepped(step: Step, module: Any, y: torch.Tensor) -> torch.Tensor:
    if isinstance(step, Round):
        return y.to(step.dtype)
    if isinstance(step, Times):
        raise AssertionError("a gate is part of an op")
    other = tensor_of(module, step.by)
    if torch.promote_types(y.dtype, other.dtype) != step.dtype:
        y = y.to(step.dtype)
    return y * other if isinstance(step, Multiply) else y + other
