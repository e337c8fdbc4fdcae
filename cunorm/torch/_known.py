"""What is known of a norm: how the ops compute what its forward does, and while that holds.

A forward is traced for every pair of dtypes of x and the parameters, on either type of device, in
and out of autocast; and for more shapes, strides and modes, in which it must do the same. What it
reads of the module while it runs is what the answer depends on, and all that it depends on: the
answer holds for every module of the class with the same values, and is looked for once.
"""

from __future__ import annotations

import inspect
import math
from contextlib import suppress
from dataclasses import dataclass, replace
from numbers import Real
from typing import Any, NamedTuple

import torch
from torch.nn import functional

from ._plan import NARROW, TAKEN, Plan, plan
from ._trace import Notes, Setting, run
from ._values import Add, Differs, Multiply, Normal, Parameter, Shape, name_of

FLOATS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
ROWS = ((7,), (64,))  # of norms without a weight, which take rows of any length
LEADING: tuple[Shape, ...] = ((), (3,), (2, 3), (2, 3, 5), (2, 3, 5, 2))
OTHERS: tuple[Shape, ...] = ((1,), (1, 1), (65537,), (1, 4096))  # a forward may look at sizes
FUNCTIONS = ("layer_norm", "rms_norm")  # of torch.nn.functional, which libraries patch
PROBE = 0.1328125  # an eps that no module has, exact in float32

Key = tuple[Any, ...]
Value = Any


@dataclass(frozen=True, eq=False)
class Known:
    """How the ops compute a norm, by `key` of what it is called with.

    It holds while the `attributes` have their values, and the `functions` are what their owners
    have by that name. `eps` names the attribute that is read anew for each call.
    """

    plans: dict[Key, Plan]
    names: tuple[str, ...]
    shape: Shape | None
    axes: int
    ranks: frozenset[int]
    eps: str | None
    attributes: tuple[tuple[str, Value], ...]
    functions: tuple[tuple[Any, str, Any], ...]
    reasons: dict[Key, str]

    def find(self, module: Any, x: torch.Tensor, gate: torch.Tensor | None = None) -> Plan | None:
        """Return how to compute the norm of x, None where that is not known."""
        if x.ndim not in self.ranks:
            return None
        if self.shape is not None and tuple(x.shape[-len(self.shape) :]) != self.shape:
            return None
        if gate is not None and (gate.shape, gate.dtype, gate.device) != (
            x.shape,
            x.dtype,
            x.device,
        ):
            return None
        for owner, name, function in self.functions:
            if getattr(owner, name, None) is not function:
                return None
        for name, value in self.attributes:
            if getattr(module, name, None) != value:
                return None
        device = "cuda" if x.is_cuda else "cpu"
        dtypes = [getattr(module, name).dtype for name in self.names]
        autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
        return self.plans.get((device, autocast, x.dtype, *dtypes))

    def reason(self, module: torch.nn.Module) -> str:
        """Return why a norm with parameters of these dtypes is not swapped, nothing where it is.

        What counts are rows of the parameters' dtype; without any, of each dtype.
        """
        parameters = [getattr(module, name) for name in self.names]
        dtypes = [parameter.dtype for parameter in parameters]
        if len(set(dtypes)) > 1:
            return f"its parameters are {' and '.join(map(name_of, dict.fromkeys(dtypes)))}"
        device = "cuda" if any(parameter.is_cuda for parameter in parameters) else "cpu"
        for x in dtypes[:1] or FLOATS[:3]:
            key = (device, None, x, *dtypes)
            if key not in self.plans:
                return f"{self.reasons[key]}, in {name_of(x)}"
        return ""


class Unknown(NamedTuple):
    """Why nothing is known of a module, and whether it normalises rows all the same."""

    reason: str
    normalises: bool


@dataclass(frozen=True)
class Answer:
    """What was found of modules of a class, and of which: those that `fits`."""

    found: Known | Unknown
    shapes: tuple[tuple[str, Shape | None], ...]
    attributes: tuple[tuple[str, Value], ...]
    functions: tuple[tuple[Any, str, Any], ...]
    eps: str | None

    def fits(self, module: torch.nn.Module) -> bool:
        """Return whether the answer is one of this module too."""
        return (
            _shapes(module) == self.shapes
            and all(getattr(o, n, None) is f for o, n, f in self.functions)
            and all(_same(getattr(module, n, None), v) for n, v in self.attributes)
            and (self.eps is None or _is_number(getattr(module, self.eps, None)))
        )


_answers: dict[type, list[Answer]] = {}


def known(module: torch.nn.Module) -> Known | Unknown:
    """Return what is known of a module, or why nothing is: where its forward differs first."""
    if module._modules:
        return Unknown("it has other modules in it", normalises=False)
    answers = _answers.setdefault(type(module), [])
    for answer in answers:
        if answer.fits(module):
            return answer.found
    trial = _Trial(module)
    try:
        found: Known | Unknown = trial.learn()
    except Differs as differs:
        found = Unknown(str(differs), trial.notes.normalises)
    eps = found.eps if isinstance(found, Known) else None
    with suppress(Differs):  # what reads more than plain values is looked at again each time
        values = trial.attributes(eps)
        answers.append(Answer(found, _shapes(module), values, trial.functions(), eps))
    return found


class _Trial:
    """All runs of one module's forward."""

    def __init__(self, module: torch.nn.Module) -> None:
        self.module = module
        self.notes = Notes()

    def run(self, setting: Setting, **changed: Any) -> tuple[Normal, torch.dtype]:
        return run(self.module, setting, changed, self.notes)

    def learn(self) -> Known:
        """Return what there is to know; `Differs` says where a forward differs."""
        gated = len(arguments(type(self.module))) > 1
        shapes = [shape for _, shape in _shapes(self.module) if shape is not None]
        if len(set(shapes)) > 1:
            raise Differs("its parameters are of several shapes")
        base, normal = self._first(shapes, gated)
        row = base.row
        eps = self._eps(base, normal)
        self._require_the_same(base, normal, bool(shapes))
        self._require_the_same(_in(base, torch.bfloat16), None, bool(shapes))
        plans, reasons = self._plans(base, eps, bool(shapes))
        names = tuple(dict.fromkeys(p.name for p in _parameters(plans)))
        if not names and shapes:
            plans = {key[:3]: plan for key, plan in plans.items()}
        else:
            plans = {(*key[:3], *key[3:] * len(names)): plan for key, plan in plans.items()}
            reasons = {(*key[:3], *key[3:] * len(names)): why for key, why in reasons.items()}
        fixed = bool(names) or row not in ROWS
        if not fixed and normal.row != row:
            raise Differs("it normalises groups of rows of any length")
        return Known(
            plans,
            names,
            row if fixed else None,
            len(normal.row),
            self._ranks(base, normal),
            eps,
            self.attributes(eps),
            self.functions(),
            reasons,
        )

    def attributes(self, eps: str | None) -> tuple[tuple[str, Value], ...]:
        """Return the values that a forward read of its module."""
        held = {*vars(self.module)["_parameters"], *vars(self.module)["_buffers"]}
        found = []
        for name in sorted(self.notes.reads - held - {"training", eps}):
            value = getattr(self.module, name, None)
            if inspect.isroutine(value):
                continue
            if not _is_plain(value):
                raise Differs(f"its forward reads its {name}, a {type(value).__qualname__}")
            found.append((name, list(value) if type(value) is list else value))
        return tuple(found)

    def functions(self) -> tuple[tuple[Any, str, Any], ...]:
        """Return the functions that a forward may have called, with what they are found by."""
        cls = type(self.module)
        base: tuple[Any, ...] = cls.__mro__[: cls.__mro__.index(torch.nn.Module)]
        found: list[tuple[Any, str, Any]] = [
            (owner, "forward", owner.forward) for owner in base if "forward" in vars(owner)
        ]
        for name in sorted(self.notes.reads):
            method = getattr(cls, name, None)
            if inspect.isroutine(method) and getattr(cls, name) is method:
                found.append((cls, name, method))
        found += [(functional, name, getattr(functional, name)) for name in FUNCTIONS]
        return tuple(found)

    def _first(self, shapes: list[Shape], gated: bool) -> tuple[Setting, Normal]:
        """Return a setting that a forward runs in, and what it computes there.

        Without a parameter, the row may be as long as some attribute says.
        """
        base = Setting(shapes[0] if shapes else ROWS[0], gated=gated)
        try:
            return base, self.run(base)[0]
        except Differs:
            if shapes:
                raise
            for name in sorted(self.notes.reads):
                given = vars(self.module).get(name)
                row = (given,) if isinstance(given, int) else given
                if isinstance(row, (tuple, list)) and row and all(type(n) is int for n in row):
                    with suppress(Differs):
                        other = base._replace(row=tuple(row))
                        return other, self.run(other)[0]
            raise

    def _eps(self, base: Setting, normal: Normal) -> str | None:
        """Return the name of the attribute that eps is read from at each call."""
        for name in sorted(self.notes.reads):
            value = vars(self.module).get(name)
            if not _is_number(value) or not _is_eps(normal.eps, value):
                continue
            try:
                changed, _ = self.run(base, **{name: PROBE})
            except Differs:
                continue
            if changed == replace(normal, eps=PROBE):
                return name
        return None

    def _require_the_same(self, base: Setting, normal: Normal | None, fixed: bool) -> None:
        """Refuse a forward that does something else for other sizes, strides and modes."""
        if normal is None:
            try:
                normal, _ = self.run(base)
            except Differs:
                return
        settings = {
            **{f"for x of {(*lead, *base.row)}": base._replace(leading=lead) for lead in OTHERS},
            "for strided x": base._replace(contiguous=False),
            "in eval mode without gradients": base._replace(training=False, grad=False),
            "for x with a gradient": base._replace(requires_grad=True),
        }
        if not fixed and base.row in ROWS:
            settings |= {f"for rows of {row}": base._replace(row=row) for row in ROWS}
        for words, setting in settings.items():
            try:
                other, _ = self.run(setting)
            except Differs as differs:
                raise Differs(f"{differs}, {words}") from None
            if replace(other, row=normal.row) != normal:
                raise Differs(f"its forward does something else {words}")

    def _plans(
        self, base: Setting, eps: str | None, fixed: bool
    ) -> tuple[dict[Key, Plan], dict[Key, str]]:
        plans: dict[Key, Plan] = {}
        reasons: dict[Key, str] = {}
        for device in ("cpu", "cuda"):
            for autocast in (None, torch.bfloat16, torch.float16):
                for x in FLOATS:
                    for w in TAKEN.get(x, NARROW) if fixed else (None,):
                        key = (device, autocast, x) if w is None else (device, autocast, x, w)
                        setting = base._replace(
                            device=device, autocast=autocast, x=x, parameters=w or torch.float32
                        )
                        try:
                            normal, y = self.run(setting)
                        except Differs as differs:
                            reasons[key] = str(differs)
                            continue
                        found = plan(normal, setting, y, eps)
                        if isinstance(found, Plan):
                            plans[key] = found
                        else:
                            reasons[key] = found
        return plans, reasons

    def _ranks(self, base: Setting, normal: Normal) -> frozenset[int]:
        """Return the numbers of axes of x for which a forward does the same."""
        ranks = set()
        for leading in LEADING:
            try:
                other, _ = self.run(base._replace(leading=leading))
            except Differs:
                continue
            if other == normal:
                ranks.add(len(leading) + len(base.row))
        return frozenset(ranks)


def arguments(cls: Any) -> tuple[str, ...]:
    """Return the names of what a forward takes beside the module: x, and maybe a gate."""
    try:
        names = list(inspect.signature(cls.forward).parameters.values())
    except (TypeError, ValueError):
        raise Differs("its forward has no signature") from None
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    if len(names) not in (2, 3) or any(p.kind not in positional for p in names):
        raise Differs("its forward takes other arguments than x and a gate")
    return tuple(p.name for p in names[1:])


def _in(setting: Setting, dtype: torch.dtype) -> Setting:
    return setting._replace(x=dtype, parameters=dtype)


def _parameters(plans: dict[Key, Plan]) -> list[Parameter]:
    found = []
    for each in plans.values():
        found += [p for p in (each.gamma, each.beta, each.scale, each.shift) if p is not None]
        found += [step.by for step in each.steps if isinstance(step, Multiply | Add)]
    return found


def _shapes(module: torch.nn.Module) -> tuple[tuple[str, Shape | None], ...]:
    held = {**vars(module)["_parameters"], **vars(module)["_buffers"]}
    return tuple((n, None if t is None else tuple(t.shape)) for n, t in held.items())


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_eps(traced: float, value: Any) -> bool:
    """Return whether a number is the eps of a trace, which may have been rounded to float32."""
    return math.isclose(traced, value, rel_tol=2.0**-23)


def _is_plain(value: Any) -> bool:
    """Return whether a value can be compared, and says all that it is by that."""
    if isinstance(value, (tuple, list)):
        return all(map(_is_plain, value))
    plain = (bool, int, float, str, torch.dtype, torch.device)
    return value is None or isinstance(value, plain)


def _same(one: Value, other: Value) -> bool:
    return type(one) is type(other) and bool(one == other)
