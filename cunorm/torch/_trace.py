"""Runs the forward of a module on tensors that have no memory, and follows what it does.

The module is a copy: its parameters are such tensors too, of any dtype and device type that is
asked for. No array is made, no device is touched (a tensor on "cuda" needs none), and no random
number is drawn: an operation that `cunorm.torch._match` has no rule for ends the run.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from ._match import RULES
from ._values import Data, Differs, Gate, Normal, Parameter, Result, Shape, Unused

SESSION = "_cunorm_session"


class Setting(NamedTuple):
    """What a forward is run on, and in which state."""

    row: Shape
    leading: Shape = (2, 3)
    x: torch.dtype = torch.float32
    parameters: torch.dtype = torch.float32
    device: str = "cpu"
    autocast: torch.dtype | None = None
    training: bool = True
    grad: bool = True
    requires_grad: bool = False
    contiguous: bool = True
    gated: bool = False  # whether there is a gate beside x


@dataclass
class Notes:
    """What the runs of a module's forward read of it, and whether any normalised a row."""

    reads: set[str] = field(default_factory=set)
    normalises: bool = False


class Traced(torch.Tensor):
    """A tensor without memory, and the value that it stands for."""

    value: Any
    source: torch.dtype  # the narrowest dtype that it is known to fit into
    is_given: bool
    is_view: bool
    is_expanded: bool

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def __new__(
        cls,
        result: Result,
        device: str,
        *,
        source: torch.dtype | None = None,
        is_given: bool = False,
        strides: Shape | None = None,
        requires_grad: bool = False,
    ) -> Traced:
        """Return a tensor of some shape, dtype and device, of which nothing is allocated."""
        # With an index, no part of PyTorch has to ask the device for one.
        place = torch.device(device, 0) if device == "cuda" else torch.device(device)
        traced: Traced = torch.Tensor._make_wrapper_subclass(
            cls,
            result.shape,
            strides=strides,
            dtype=result.dtype,
            device=place,
            requires_grad=requires_grad,
        )
        traced.value = result.value
        traced.source = result.dtype if source is None else source
        traced.is_given = is_given
        traced.is_view = result.is_view
        traced.is_expanded = result.is_expanded
        return traced

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise Differs(f"its forward differs at {func}: it runs apart from the rest")


class Session(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows the operations of one run."""

    def __init__(self, setting: Setting, notes: Notes) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.setting = setting
        self.notes = notes
        self.differs: Differs | None = None
        self.pending: dict[int, tuple[Any, str]] = {}  # results that nothing has used yet
        self.viewed: dict[int, Any] = {}

    def refuse(self, message: str) -> Differs:
        """Note where a forward differs first, whatever it does about the exception."""
        if self.differs is None:
            self.differs = Differs(message)
        return self.differs

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        packet = func.overloadpacket.__name__
        name = f"{func.namespace}.{packet}"
        if torch.is_grad_enabled() != self.setting.grad:
            raise self.refuse(f"its forward differs at {name}: it turns gradients on or off")
        rule = RULES.get(packet) if func.namespace == "aten" else None
        written = None
        if rule is None and func._schema.is_mutable:
            written, rule = args[0], RULES.get(packet.removesuffix("_"))
            if not self._may_write(written, kwargs):
                raise self.refuse(f"its forward differs at {name}: it writes to a tensor in place")
        if rule is None:
            raise self.refuse(f"its forward differs at {name}: no norm known has it")
        try:
            results = rule(*args, **(kwargs or {}))
        except Differs as differs:
            text = str(differs)
            named = text if text.startswith("its") else f"its forward differs at {name}: {text}"
            raise self.refuse(named) from None
        except (TypeError, ValueError, AttributeError):
            raise self.refuse(f"its forward differs at {name}: no norm known has it so") from None
        for operand in (*args, *(kwargs or {}).values()):
            self.pending.pop(id(operand), None)
        if written is not None:
            return self._overwritten(written, results, name)
        if isinstance(results, tuple) and not isinstance(results, Result):
            return tuple(self._traced(result, args, name) for result in results)
        return self._traced(results, args, name)

    def _traced(self, result: Result, args: tuple[Any, ...], name: str) -> Traced:
        if isinstance(result.value, Data):
            sources = [a.source for a in args if isinstance(a, Traced)]
            source = functools.reduce(torch.promote_types, sources)
        else:
            source = result.dtype
        traced = Traced(result, self.setting.device, source=source)
        self.notes.normalises |= isinstance(result.value, Normal)
        if result.is_view:
            self.viewed[id(args[0])] = args[0]
        if not isinstance(result.value, Unused):
            self.pending[id(traced)] = (traced, name)
        return traced

    def _may_write(self, written: Any, kwargs: Any) -> bool:
        """Return whether a result may be written over: nothing else must share its memory."""
        return (
            isinstance(written, Traced)
            and "out" not in (kwargs or {})
            and not (written.is_given or written.is_view or id(written) in self.viewed)
        )

    def _overwritten(self, written: Traced, result: Any, name: str) -> Traced:
        if not isinstance(result, Result) or (result.shape, result.dtype) != (
            tuple(written.shape),
            written.dtype,
        ):
            raise self.refuse(f"its forward differs at {name}: it rounds to another dtype in place")
        written.value = result.value
        self.pending[id(written)] = (written, name)
        return written


class Reads:
    """Notes which attributes a forward reads, and lets it write none."""

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        if not name.startswith("__"):
            session = super().__getattribute__("__dict__").get(SESSION)
            if session is not None:
                session.notes.reads.add(name)
                if isinstance(value, torch.Tensor) and not isinstance(value, Traced):
                    what = f"is a {type(value).__qualname__}"
                    raise session.refuse(
                        f"its {name} {'is no parameter of its own' if value.ndim else what}"
                    )
        return value

    def __getattr__(self, name: str) -> Any:
        session = vars(self).get(SESSION)
        if session is not None:
            session.notes.reads.add(name)
        return super().__getattr__(name)  # type: ignore[misc]

    def __setattr__(self, name: str, value: Any) -> None:
        session = vars(self).get(SESSION)
        raise Differs(name) if session is None else session.refuse(f"its forward sets its {name}")

    def __delattr__(self, name: str) -> None:
        self.__setattr__(name, None)


def run(
    module: torch.nn.Module, setting: Setting, changed: dict[str, Any], notes: Notes
) -> tuple[Normal, torch.dtype]:
    """Return what a module's class computes, and the dtype of its result.

    Some attributes may be `changed` for that. Where the forward is no norm of the ops, or fails,
    `Differs` says why. What it reads is noted in either case.
    """
    session = Session(setting, notes)
    probe, lists = _probe(module, session, changed)
    x = _input(setting, Data())
    gates = [_input(setting, Gate())] if setting.gated else []
    cls: Any = type(module)
    with _state(setting):
        try:
            with session:
                y = cls.forward(probe, x, *gates)
        except Exception as error:
            if session.differs is None:
                said = (str(error).splitlines() or [""])[0][:100]
                session.refuse(f"its forward raises {type(error).__qualname__}: {said}")
    if session.differs is not None:
        raise session.differs.with_traceback(None)
    if not isinstance(y, Traced):
        raise Differs(f"its forward returns a {type(y).__qualname__}")
    session.pending.pop(id(y), None)
    if not isinstance(y.value, Normal):
        raise Differs("its forward does not normalise")
    if y.shape != x.shape:
        raise Differs("its forward returns another shape")
    if setting.gated and not y.value.is_gated:
        raise Differs("its forward takes other arguments than x and a gate")
    for _, name in session.pending.values():
        if setting.requires_grad and name == "aten.clone":  # of autograd, to write in place
            continue
        raise Differs(f"its forward differs at {name}: it does not return what it computes there")
    if any(vars(module)[name] != value for name, value in lists.items()):
        raise Differs("its forward changes a list")
    return y.value, y.dtype


def _input(setting: Setting, value: Data | Gate) -> Traced:
    shape = (*setting.leading, *setting.row)
    strides, step = [], 1
    for size in reversed(shape):
        strides.append(step)
        step *= size if setting.contiguous else 2 * size
    return Traced(
        Result(value, shape, setting.x),
        setting.device,
        is_given=True,
        strides=tuple(reversed(strides)),
        requires_grad=setting.requires_grad,
    )


def _probe(
    module: torch.nn.Module, session: Session, changed: dict[str, Any]
) -> tuple[Any, dict[str, list[Any]]]:
    """Return a copy of a module with traced parameters, and its lists."""
    setting = session.setting
    lists = {name: list(value) for name, value in vars(module).items() if type(value) is list}
    state = {**vars(module), **lists, "training": setting.training, **changed}
    for held in ("_parameters", "_buffers"):
        state[held] = {
            name: None
            if tensor is None
            else Traced(
                Result(
                    Parameter(name, tuple(tensor.shape)), tuple(tensor.shape), setting.parameters
                ),
                setting.device,
                is_given=True,
                requires_grad=setting.requires_grad,
            )
            for name, tensor in vars(module)[held].items()
        }
    for name in ("forward", "_old_forward"):
        state.pop(name, None)
    cls: Any = type(module)
    probe: Any = object.__new__(probe_class(cls))
    vars(probe).update(state)
    vars(probe)[SESSION] = session
    return probe, lists


@functools.cache
def probe_class(cls: Any) -> type:
    """Return a subclass that notes what is read."""
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    metaclass: Callable[..., type] = type(cls)
    return metaclass(cls.__name__, (Reads, cls), names)


@contextmanager
def _state(setting: Setting) -> Iterator[None]:
    """Set what a forward may ask for beside its arguments, and say nothing of what it warns of."""
    devices = ("cpu", "cuda")
    before = [(torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in devices]
    with (
        warnings.catch_warnings(),
        torch.inference_mode(False),
        torch.set_grad_enabled(setting.grad),
    ):
        warnings.simplefilter("ignore")
        try:
            for device in devices:
                on = setting.autocast is not None and device == setting.device
                torch.set_autocast_enabled(device, on)
                if setting.autocast is not None and on:
                    torch.set_autocast_dtype(device, setting.autocast)
            yield
        finally:
            for device, (enabled, dtype) in zip(devices, before, strict=True):
                torch.set_autocast_enabled(device, enabled)
                torch.set_autocast_dtype(device, dtype)
