"""The parts of a kernel, by the names that `_families/` gives them.

A part is a type of kernels/ and what it is made of. Each function here takes the dtypes of the
arrays that are there, by name, and what the kernel is compiled for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from .dtypes import C_TYPE, ITEMSIZE, accumulator, promoted
from .unit import Stage, type_name

Dtypes = Mapping[str, str]
Chosen = Mapping[str, Any]
Stages = Callable[[Dtypes, Chosen], tuple[Stage, ...]]


# To the dtype of x, as models do before gamma multiplies.
ROUND = Stage("Round<S, X::E>", "{}")
# What a backward kernel of a sum makes dx by, of an x that a gate has scaled.
ADDEND = Stage("AddendGradient<S, X, Gate, Dx>", "{$x, $gate, $dx}")


def then(stages: Iterable[Stage], to: str = "Y::E") -> Stage:
    """Return the epilogue of some stages, in order, that ends in a rounding to a type."""
    stages = tuple(stages)
    arrays = "{}"
    for stage in reversed(stages):
        arrays = f"{{{stage.arrays}, {arrays}}}"
    return Stage(f"Then<{', '.join(('S', to, *(s.type for s in stages)))}>", arrays)


def times_gamma(of: Dtypes, chosen: Chosen, gamma: str = "gamma") -> Stage:
    """Return what multiplies by gamma, as a stage or as the part of a backward kernel."""
    if gamma not in of:
        return Stage("Unscaled<S>", "{}")
    has_offset = word(chosen["gamma_offset"])
    return Stage(f"Times<S, {type_name(gamma)}, {has_offset}>", f"{{${gamma}, n.gamma_offset}}")


def weight_of(of: Dtypes, chosen: Chosen) -> Stage:
    """Return what a backward kernel multiplies dy by: gamma, scale, or both."""
    gamma = times_gamma(of, chosen)
    if "scale" not in of:
        return gamma
    type_ = f"Times<S, Scale, {word(chosen['scale_offset'])}>"
    scale = Stage(type_, "{$scale, n.scale_offset}")
    if "gamma" not in of:
        return scale
    return Stage(f"Both<S, {gamma.type}, {scale.type}>", f"{{{gamma.arrays}, {scale.arrays}}}")


def gate_of(of: Dtypes, chosen: Chosen) -> tuple[Stage, Stage]:
    """Return what a backward kernel of a gated norm reads its rows by, and what makes dgate."""
    activation = f"{ACTIVATIONS[chosen['activation']]}AndSlope"
    first = word(chosen["gate_first"])
    bias, beta = "Unscaled<S>", "{}"
    if "beta" in of and not chosen["gate_first"]:
        bias, beta = "Plus<S, Beta>", "{$beta}"
    return (
        Stage(f"GatedPairs<S, X, Dy, Gate, {activation}, {first}>", "{{$x, $dy}, $gate}"),
        Stage(
            f"GateGradient<S, {bias}, Dgate, {activation}, {first}>",
            f"{{$dgate, {beta}}}",
        ),
    )


def word(value: object) -> str:
    """Return a flag as C++ has it."""
    return str(value).lower()


def _scaled(of: Dtypes, chosen: Chosen, gamma: str = "gamma") -> tuple[Stage, ...]:
    if gamma not in of:
        return ()
    product = times_gamma(of, chosen, gamma)
    # Wider data is not rounded, and so both casts have one kernel.
    is_rounded = chosen["cast"] == "before" and ITEMSIZE[of["x"]] == 2
    return (ROUND, product) if is_rounded else (product,)


def _affine(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
    if "gamma" in of and "beta" in of:
        type_ = f"TimesPlus<S, Gamma, Beta, {word(chosen['gamma_offset'])}>"
        return (Stage(type_, "{$gamma, $beta, n.gamma_offset}"),)
    if "gamma" in of:
        return (times_gamma(of, chosen),)
    return (Stage("Plus<S, Beta>", "{$beta}"),) if "beta" in of else ()


def _modulated(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
    """Return what follows a norm: each result is rounded to the dtype that NumPy gives it."""
    rounds = chosen.get("cast") != "after"
    dtype = of["x"]
    stages = [ROUND] if rounds and {"scale", "shift"} & of.keys() else []
    if "scale" in of:
        dtype = promoted(dtype, of["scale"])
        own = ", Scale::E" if rounds else ""
        type_ = f"Times<S, Scale, {word(chosen['scale_offset'])}{own}>"
        stages.append(Stage(type_, "{$scale, n.scale_offset}"))
        stages += [_round(dtype)] * rounds
    if "shift" in of:
        dtype = promoted(dtype, of["shift"])
        stages.append(Stage("Plus<S, Shift>", "{$shift}"))
    if rounds and dtype != of["y"]:
        stages.append(_round(dtype))
    return tuple(stages)


def _then_add(norm: Stages) -> Stages:
    """Return the stages of a norm, of its product with a gate, and of their sum with a residual."""

    def stages(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
        dtype = of["x"]
        made = [*norm(of, chosen), ROUND]
        if "gate" in of:
            dtype = promoted(dtype, of["gate"])
            made += [Stage("Times<S, Gate, false>", "{$gate}"), _round(dtype)]
        made.append(Stage("Plus<S, Residual>", "{$residual}"))
        dtype = promoted(dtype, of["residual"])
        return tuple(made) if dtype == of["y"] else (*made, _round(dtype))

    return stages


def _round(dtype: str) -> Stage:
    return Stage(f"Round<S, {C_TYPE[dtype]}>", "{}")


def epilogue(name: str, of: Dtypes, chosen: Chosen, y: str = "Y::E") -> Stage:
    """Return what follows the normalised value; `name` is that of a family, `y` the type of y."""
    stages = STAGES[name](of, chosen)
    for gamma in ("gamma", "gamma2"):
        is_of_models = stages == (ROUND, times_gamma(of, {"gamma_offset": False}, gamma))
        if is_of_models and of[gamma] == of["x"] == of["y"]:
            return Stage(f"ModelScale<S, {type_name(gamma)}>", f"{{${gamma}}}")
    return then(stages, y)


def between(of: Dtypes, chosen: Chosen) -> Stage:
    """Return what makes h of x's normalised values, where h is normalised in turn."""
    return then(STAGES["ScaleThenAdd"]({**of, "y": of["residual_out"]}, chosen), "ResidualOut::E")


def _loaded(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    return of["x"], Stage("Loaded<S, X>", "{$x}")


def _added(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    gate, arrays = "Ungated<S>", "{}"
    if "gate" in of:
        product = C_TYPE[promoted(of["x"], of["gate"])]
        gate, arrays = f"TimesOperand<S, Gate, {product}>", "{$gate}"
    return of["residual"], Stage(
        f"Added<S, X, Residual, ResidualOut, {gate}>", f"{{$x, $residual, $residual_out, {arrays}}}"
    )


def _gated(of: Dtypes, chosen: Chosen) -> tuple[str, Stage]:
    if not chosen["gate_first"]:
        return _loaded(of, chosen)
    activation = ACTIVATIONS[chosen["activation"]]
    return accumulator(of["x"]), Stage(f"Gated<S, X, Gate, {activation}>", "{$x, $gate}")


def _then_gate(norm: Stages) -> Stages:
    """Return the stages of a norm that a gate multiplies, unless it has done so before."""

    def stages(of: Dtypes, chosen: Chosen) -> tuple[Stage, ...]:
        if chosen["gate_first"]:
            return norm(of, chosen) + _modulated(of, chosen)
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
    "Normed": _loaded,
}
# To the stages of a norm.
STAGES: dict[str, Stages] = {
    "Scale": lambda of, chosen: _scaled(of, chosen) + _modulated(of, chosen),
    "Affine": lambda of, chosen: _affine(of, chosen) + _modulated(of, chosen),
    "ScaleThenGate": _then_gate(_scaled),
    "AffineThenGate": _then_gate(_affine),
    "ScaleThenAdd": _then_add(_scaled),
    "AffineThenAdd": _then_add(_affine),
    "ScaleOfSum": lambda of, chosen: _scaled(of, chosen, "gamma2"),
    "Unchanged": lambda of, chosen: (),
}
