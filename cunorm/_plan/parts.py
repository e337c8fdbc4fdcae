"""The parts of a kernel, by the names that `_families.py` gives them.

A part is a type of kernels/ and what it is made of. Each function here takes the dtypes of the
arrays that are there, by name, and what the kernel is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .dtypes import ITEMSIZE
from .unit import Stage

Dtypes = Mapping[str, str]
Chosen = Mapping[str, Any]


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


def _scaled(of: Dtypes, chosen: Chosen) -> Stage:
    # Data that is not rounded, or that gamma does not multiply, has one kernel for both casts.
    x, gamma = of["x"], of.get("gamma")
    if gamma is None:
        return then(())
    if chosen["cast"] == "after" or ITEMSIZE[x] > 2:
        return then((scale(of, chosen),))
    if gamma == x and not chosen["gamma_offset"]:
        return Stage("ModelScale<S, Gamma>", "{$gamma}")
    return then((Stage("Round<S, Y::E>", "{}"), scale(of, chosen)))


def _affine(of: Dtypes, chosen: Chosen) -> Stage:
    if "gamma" in of and "beta" in of:
        return then((Stage("Affine<S, Gamma, Beta>", "{$gamma, $beta}"),))
    if "gamma" in of:
        return then((Stage("Scale<S, Gamma, false>", "{$gamma, 0}"),))
    if "beta" in of:
        return then((Stage("AddBeta<S, Beta>", "{$beta}"),))
    return then(())


def _loaded(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    return of["x"], Stage("Loaded<S, X>", "{$x}")


def _added(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    arrays = "{$x, $residual, $residual_out}"
    return of["residual"], Stage("Added<S, X, Residual, ResidualOut>", arrays)


# To the dtype of the row that is normalised, and the part.
SOURCES: dict[str, Callable[[Dtypes, Chosen], tuple[str, Stage]]] = {
    "Loaded": _loaded,
    "Added": _added,
}
EPILOGUES: dict[str, Callable[[Dtypes, Chosen], Stage]] = {"Scale": _scaled, "Affine": _affine}
