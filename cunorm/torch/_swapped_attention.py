"""Classes that known attentions become: the same modules, with norms and rotation in one call."""

from __future__ import annotations

import functools
from typing import Any, ClassVar

import torch

from ._attention import Attention, attention
from ._export import exporting
from ._swapped import KNOWN, exchange

CALL = "_cunorm_call"  # where an attention has its forward with names bound anew


class SwappedAttention(torch.nn.Module):
    """An attention that normalises and rotates by one op, and by its own steps where it cannot."""

    _cunorm_original: ClassVar[type[torch.nn.Module]]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Return what the original's forward does."""
        cls: Any = type(self)
        original = getattr(cls, "_cunorm_original", None)
        if original is None:  # a bound forward that someone kept
            return cls.forward(self, *args, **kwargs)
        found: Attention | None = self.__dict__.get(KNOWN)
        if found is None or exporting() or not found.holds(original, self):
            return original.forward(self, *args, **kwargs)
        return self.__dict__[CALL](self, *args, **kwargs)

    @staticmethod
    def _cunorm_handed_on(x: torch.Tensor) -> torch.Tensor:
        """Return what a norm is given: the rotation normalises it."""
        return x

    def __reduce_ex__(self, protocol: Any) -> Any:
        """Pickle as what can be made again from the original's class."""
        reduced: Any = super().__reduce_ex__(max(int(protocol), 2))
        state = reduced[2]
        if isinstance(state, dict):
            state = {name: value for name, value in state.items() if name not in (KNOWN, CALL)}
        return (_unpickled, (self._cunorm_original,), state, *reduced[3:])

    def __setstate__(self, state: Any) -> None:
        """Become a swapped attention again, or the original where it is not known here."""
        self.__class__ = self._cunorm_original  # type: ignore[assignment]
        self.__setstate__(state)
        found = attention(self)
        if isinstance(found, Attention):
            become_attention(self, found)


@functools.cache
def attention_class(original: Any) -> type[SwappedAttention]:
    """Return the class that attentions of a class become."""
    names = {
        "__doc__": f"`{original.__qualname__}`, normalised and rotated by cunorm.",
        "__module__": __name__,
        "_cunorm_original": original,
    }
    metaclass: Any = type(original)
    new: type[SwappedAttention] = metaclass(
        f"Cunorm{original.__name__}", (SwappedAttention, original), names
    )
    return new


def become_attention(module: torch.nn.Module, found: Attention) -> None:
    """Swap an attention, of which that is known."""
    original: Any = type(module)
    exchange(module, attention_class(original), found)
    vars(module)[CALL] = found.call(module)


def _unpickled(original: Any) -> torch.nn.Module:
    """Return an empty module, which knows what to become when it has its state."""
    cls: type[torch.nn.Module] = attention_class(original)
    return cls.__new__(cls)
