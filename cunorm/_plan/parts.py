"""The parts of a kernel, by the names that `_families.py` gives them.

A part is a type of kernels/ and what it is made of. Each function here takes the dtypes of the
arrays that are there, by name, and what the kernel is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .dtypes import ITEMSIZE, accumulator
from .unit import Stage

Dtypes = Mapping[str, str]
Chosen = Mapping[str, Any]
Stages = Callable[[Dtypes, Chosen], tuple[Stage, ...]]


# To the dtype of x, as models do before gamma multiplies.
ROUND = Stage("Round<S, X::E>", "{}")


def then(stages: Iterable[Stage]) -> Stage:
    """Return the epilogue of some stages, in order, that ends in a rounding to y's type."""
    stages = tuple(stages)
    arrays = "{}"
    for stage in reversed(stages):
        arrays = f"{{{stage.arrays}, {arrays}}}"
    return Stage(f"Then<{', '.join(('S', 'Y::E', *(s.type for s in stages)))}>", arrays)


def scale(of: Dtypes, chosen: Chosen) -> Stage:
    """Return what multiplies by gamma, as a stage or as the part of a backward kernel."""
    if "gamma" not in of:
        return Stage("Unscaled<S>", "{}")
    offset = str(chosen.get("gamma_offset", False)).lower()
    return Stage(f"Scale<S, Gamma, {offset}>", "{$gamma, n.gamma_offset}")


def _scaled(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
    if "gamma" not in of:
        return ()
    # Wider data is not rounded, and so both casts have one kernel.
    is_rounded = chosen["cast"] == "before" and ITEMSIZE[of["x"]] == 2
    return (ROUND, scale(of, chosen)) if is_rounded else (scale(of, chosen),)


def _affine(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
    if "gamma" in of and "beta" in of:
        return (Stage("Affine<S, Gamma, Beta>", "{$gamma, $beta}"),)
    if "gamma" in of:
        return (Stage("Scale<S, Gamma, false>", "{$gamma, 0}"),)
    return (Stage("AddBeta<S, Beta>", "{$beta}"),) if "beta" in of else ()


def epilogue(name: str, of: Dtypes, chosen: Chosen) -> Stage:
    """Return what follows the normalised value; `name` is that of a family."""
    norm = STAGES[name](of, chosen)
    if norm == (ROUND, scale(of, {})) and of["gamma"] == of["x"] == of["y"]:
        return Stage("ModelScale<S, Gamma>", "{$gamma}")
    if of["y"] != of["x"] and chosen.get("cast") != "after":
        norm = (*norm, ROUND)
    return then(norm)


def _loaded(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    return of["x"], Stage("Loaded<S, X>", "{$x}")


def _added(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    arrays = "{$x, $residual, $residual_out}"
    return of["residual"], Stage("Added<S, X, Residual, ResidualOut>", arrays)


def _gated(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    if not chosen["gate_first"]:
        return _loaded(of, chosen)
    activation = ACTIVATIONS[chosen["activation"]]
    return accumulator(of["x"]), Stage(f"Gated<S, X, Gate, {activation}>", "{$x, $gate}")


def _then_gate(norm: Stages) -> Stages:
    """Return the stages of a norm that a gate multiplies, unless it has done so before."""

    def stages(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
        if chosen["gate_first"]:
            return norm(of, chosen)
        gate = Stage(f"TimesGate<S, Gate, {ACTIVATIONS[chosen['activation']]}>", "{$gate}")
        rounded = (ROUND,) if chosen["cast"] == "before" else ()
        return (*norm(of, chosen), *rounded, gate)

    return stages


ACTIVATIONS = {"silu": "Silu", "sigmoid": "Sigmoid", None: "Identity"}
# To the dtype of the row that is normalised, and the part.
SOURCES: dict[str, Callable[[Dtypes, Chosen], tuple[str, Stage]]] = {
    "Loaded": _loaded,
    "Added": _added,
    "Gated": _gated,
}
# To the stages of a norm.
STAGES: dict[str, Stages] = {
    "Scale": _scaled,
    "Affine": _affine,
    "ScaleThenGate": _then_gate(_scaled),
}
