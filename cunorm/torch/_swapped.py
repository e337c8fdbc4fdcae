"""Classes that known norms become: the same modules, whose forward is one fused op.

A swapped class derives from the class that it takes the place of. So ``isinstance`` holds as
before, each attribute is read where it always was, and whatever the op does not treat as the
original does (float64 where the original computes in float32, a device that is neither a CPU nor a
GPU, a nested tensor, a forward that was patched since) reaches the original's forward; and so does
all of a model that is exported.
"""

from __future__ import annotations

import functools
import types
from typing import Any, ClassVar

import torch

from ._export import exporting
from ._known import Known, arguments, known
from ._modules import copied

KNOWN = "_cunorm_known"  # where a swapped module has what is known of it


class Swapped(torch.nn.Module):
    """A norm whose forward calls an op, and the original's forward where the op is not the same."""

    _cunorm_original: ClassVar[type[torch.nn.Module]]
    _cunorm_arguments: ClassVar[tuple[str, ...]]
    _cunorm_copies = False  # whether x is copied where it is kept for a gradient

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the original's forward does, fused where that can be."""
        cls: Any = type(self)
        # A bound forward that someone kept may outlive the swap: then there is no original.
        original = getattr(cls, "_cunorm_original", None)
        if original is None:
            return cls.forward(self, *args, **kwargs)
        names = cls._cunorm_arguments
        given = (*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))
        complete = len(given) == len(args) + len(kwargs) == len(names) and not exporting()
        if complete and all(isinstance(t, torch.Tensor) and _plain(t) for t in given):
            found: Known | None = self.__dict__.get(KNOWN)
            plan = None if found is None else found.find(self, *given)
            if found is not None and plan is not None:
                if self._cunorm_copies:
                    given = copied(given, *self._parameters.values())
                return plan.compute(self, found.axes, *given)
        return original.forward(self, *args, **kwargs)

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as what can be made again from the original's class."""
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        state = reduced[2]
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name != KNOWN}
        return (_unpickled, (self._cunorm_original,), state, *reduced[3:])

    def __setstate__(self, state: Any) -> None:
        """Become a swapped norm again, or the original where it is not known here."""
        original = self._cunorm_original
        self.__class__ = original  # type: ignore[assignment]
        self.__setstate__(state)
        found = known(self)
        if isinstance(found, Known):
            become(self, found)


@functools.cache
def swapped_class(original: Any) -> type[Swapped]:
    """Return the class that modules of a class become."""
    names = {
        "__doc__": f"`{original.__qualname__}`, computed by cunorm.",
        "__module__": __name__,
        "_cunorm_original": original,
        "_cunorm_arguments": arguments(original),
    }
    metaclass: Any = type(original)
    new: type[Swapped] = metaclass(f"Cunorm{original.__name__}", (Swapped, original), names)
    return new


def become(module: torch.nn.Module, found: Known, *, copies: bool = False) -> None:
    """Swap a module, of which that is known; `copies` says whether x is copied to be kept.

    A forward of the class may be bound on the instance, where accelerate's hooks keep it.
    """
    original: Any = type(module)
    exchange(module, swapped_class(original), found)
    if copies:
        vars(module)["_cunorm_copies"] = True


def exchange(module: torch.nn.Module, new: Any, found: Any) -> None:
    """Give a module a class derived from its own, and what is known of it."""
    _rebind(module, type(module), new)
    module.__class__ = new
    vars(module)[KNOWN] = found


def restore(module: Any) -> None:
    """Make a swapped module what it was."""
    original = module._cunorm_original
    _rebind(module, type(module), original)
    module.__class__ = original
    vars(module).pop(KNOWN, None)
    for name in ("_cunorm_copies", "_cunorm_call"):
        vars(module).pop(name, None)


def bound_forward(module: torch.nn.Module) -> str | None:
    """Return the name of the attribute of a module whose value is the forward that is called last.

    That is ``_old_forward`` where accelerate has put hooks around it. Without any attribute that is
    "", and None where the forward of the instance is not known to end in that of the class.
    """
    state = vars(module)
    if "forward" not in state:
        return ""
    hooked = "_hf_hook" in state and "_old_forward" in state
    for name in ("forward", *(["_old_forward"] if hooked else [])):
        if _is_bound(state[name], module, type(module)):
            return name
    return None


def _rebind(module: torch.nn.Module, old: Any, new: Any) -> None:
    for name in ("forward", "_old_forward"):
        if _is_bound(vars(module).get(name), module, old):
            vars(module)[name] = types.MethodType(new.forward, module)


def _is_bound(method: Any, module: torch.nn.Module, cls: Any) -> bool:
    return (
        isinstance(method, types.MethodType)
        and method.__self__ is module
        and method.__func__ is cls.forward
    )


def _plain(x: torch.Tensor) -> bool:
    """Return whether a tensor is of the kind and on the devices that the ops take."""
    return x.layout == torch.strided and (x.is_cuda or x.is_cpu or x.is_meta)


def _unpickled(original: Any) -> torch.nn.Module:
    """Return an empty module, which knows what to become when it has its state."""
    cls: type[torch.nn.Module] = swapped_class(original)
    return cls.__new__(cls)
