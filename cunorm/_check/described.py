"""What `_check.py` asks of arrays, of those that are not CuPy's: cupy is not imported for them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Named:
    """A name of a dtype, or the id of a device, where an array has the thing itself."""

    name: str

    @property
    def id(self) -> str:
        """The name, as that of a device."""
        return self.name

    @property
    def kind(self) -> str:
        """What NumPy calls the kind of a dtype: i or u of integers."""
        return self.name[0] if "int" in self.name else "f"


@dataclass(frozen=True)
class Described:
    """What the checks of what is read ask of an array."""

    shape: tuple[int, ...]
    dtype: Named
    device: Named

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.shape)


@dataclass(frozen=True)
class Memory:
    """Where an array starts."""

    ptr: int


@dataclass(frozen=True)
class Placed(Described):
    """What `written` asks of an array, too: where its elements lie, in bytes."""

    strides: tuple[int, ...]
    itemsize: int
    data: Memory
