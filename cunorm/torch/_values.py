"""What the tensors of a traced forward stand for: x, a statistic, a row that is normalised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import torch

Shape = tuple[int, ...]


class Differs(Exception):
    """A forward does what the ops do not; the message says what."""


@dataclass(frozen=True)
class Data:
    """x, in any dtype that holds it.

    Less the mean of its row, where that is given; times a gate, by the name of its activation.
    """

    row: Shape | None = None
    gate: str | None = None
    words: ClassVar[str] = "x"


@dataclass(frozen=True)
class Gate:
    """The other input, after an activation."""

    activation: str = "none"
    words: ClassVar[str] = "its second argument"


@dataclass(frozen=True)
class Square:
    """The squares of `Data`."""

    of: Data
    words: ClassVar[str] = "the squares"


@dataclass(frozen=True)
class Total:
    """The sum of the squares of a row."""

    row: Shape
    of: Data
    words: ClassVar[str] = "the sum of squares"


@dataclass(frozen=True)
class Mean:
    """The mean of a row."""

    row: Shape
    words: ClassVar[str] = "the mean"


@dataclass(frozen=True)
class MeanSquare:
    """The mean square of a row, or its variance."""

    row: Shape
    of: Data
    words: ClassVar[str] = "the mean square"


@dataclass(frozen=True)
class Shifted:
    """The mean square and eps."""

    row: Shape
    of: Data
    eps: float
    words: ClassVar[str] = "the mean square"


@dataclass(frozen=True)
class Root:
    """The root of `Shifted`."""

    row: Shape
    of: Data
    eps: float
    words: ClassVar[str] = "the root"


@dataclass(frozen=True)
class Rstd:
    """One over the `Root`."""

    row: Shape
    of: Data
    eps: float
    words: ClassVar[str] = "rstd"


@dataclass(frozen=True)
class Parameter:
    """A parameter or buffer of the module, after casts to dtypes and additions of numbers."""

    name: str
    shape: Shape
    changes: tuple[torch.dtype | float, ...] = ()

    @property
    def words(self) -> str:
        """How a message calls it."""
        return f"the {self.name}"


@dataclass(frozen=True)
class Round:
    """A step: round to a dtype."""

    dtype: torch.dtype


@dataclass(frozen=True)
class Multiply:
    """A step: multiply, and round to a dtype."""

    by: Parameter
    dtype: torch.dtype


@dataclass(frozen=True)
class Add:
    """A step: add, and round to a dtype."""

    by: Parameter
    dtype: torch.dtype


@dataclass(frozen=True)
class Times:
    """A step: multiply by the gate, and round to a dtype."""

    activation: str
    dtype: torch.dtype


Step = Round | Multiply | Add | Times


@dataclass(frozen=True)
class Normal:
    """Rows that are normalised, in the dtype of their statistics, and the steps since."""

    row: Shape
    of: Data
    eps: float
    dtype: torch.dtype
    steps: tuple[Step, ...] = ()
    words: ClassVar[str] = "a normalised row"

    @property
    def centred(self) -> bool:
        """Whether the mean of the row was subtracted."""
        return self.of.row is not None

    @property
    def is_gated(self) -> bool:
        """Whether a gate multiplies."""
        return self.of.gate is not None or any(isinstance(step, Times) for step in self.steps)

    @property
    def precision(self) -> torch.dtype:
        """The narrowest dtype that is known to hold it."""
        return self.steps[-1].dtype if self.steps else self.dtype


@dataclass(frozen=True)
class Unused:
    """What must not be used: a second result, or one that gradients do not flow through."""

    words: str


class Result(NamedTuple):
    """What an operation gives."""

    value: Any
    shape: Shape
    dtype: torch.dtype
    is_view: bool = False
    is_expanded: bool = False


Statistic = (Total, Mean, MeanSquare, Shifted, Root, Rstd)


def narrowed(given: torch.dtype, to: torch.dtype) -> bool:
    """Return whether a cast rounds."""
    return torch.promote_types(given, to) != to


def name_of(dtype: torch.dtype) -> str:
    """Return what a message calls a dtype."""
    return str(dtype).removeprefix("torch.")
