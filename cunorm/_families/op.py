"""What an op is made of: arguments, results, where its rows come from, a family; and an op."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from operator import itemgetter
from typing import Any


@dataclass(frozen=True)
class Option:
    """A number or a word that an op takes.

    Attributes
    ----------
    name : str
        What users call it.
    default : float, str, bool or None
        What holds where it is left out; its type is that of PyTorch's operator. `Parameter.empty`
        of what is not left out.
    check : str
        What `_check.OPTIONS` refuses a wrong value by.
    number : bool
        Whether the kernel takes the value among the numbers of its last argument.
    compiled : function or None
        What the kernel is compiled for, of the value; None where it does not matter.
    backward : bool
        Whether the backward op takes it too.
    keyword : bool
        Whether it is given by name alone.
    """

    name: str
    default: Any
    check: str
    number: bool = False
    compiled: Callable[[Any], object] | None = None
    backward: bool = False
    keyword: bool = True


# That of y. What writes over its input has its dtype.
DTYPE = Option("dtype", None, check="dtype")


@dataclass(frozen=True)
class Input:
    """An array that an op reads; whether it may be None, and is given by name alone."""

    name: str
    optional: bool = False
    keyword: bool = False


@dataclass(frozen=True)
class Operand(Input):
    """An array that broadcasts against x, and may be a number."""

    optional: bool = True
    keyword: bool = True


@dataclass(frozen=True)
class Indices(Input):
    """An array of integers."""


@dataclass(frozen=True)
class Output:
    """An array of rows that an op writes, and that a user may give.

    Attributes
    ----------
    name : str
        Its name in the kernel.
    argument : str
        What users call it.
    like : str
        The input whose shape and dtype it has, and which it may overwrite.
    of_any_dtype : bool
        Whether its dtype may be another, as the option `dtype` or what the user gives has it.
    """

    name: str
    argument: str
    like: str
    of_any_dtype: bool = False


Y = Output("y", "out", "x", of_any_dtype=True)


@dataclass(frozen=True)
class Source:
    """Where the row that is normalised comes from.

    Attributes
    ----------
    name : str
        A type of the kernels.
    prefix : str
        What the names of its ops begin with.
    reads : tuple of str
        Arrays of rows: x, and what is brought together with it.
    writes : tuple of Output
        What is written beside y. The last one is what was normalised.
    operands : tuple of Operand
        What may take part beside.
    y : Output
        What becomes of the row.
    """

    name: str
    prefix: str
    reads: tuple[str, ...]
    writes: tuple[Output, ...]
    operands: tuple[Operand, ...] = ()
    y: Output = Y


@dataclass(frozen=True)
class Family:
    """A norm: what it computes, keeps and takes.

    Attributes
    ----------
    name : str
        The stem of ops, kernels, definitions and tests.
    statistic, epilogue : str
        Types of the kernels: what is computed of a row, and what follows the normalised value. Each
        has a definition of that name in `_reference` and in `torch/_cpu.py`.
    saves : tuple of str
        The statistics that ``*_fwd`` returns and ``*_bwd`` takes.
    parameters : tuple of str
        Arrays of one row. The first multiplies, and the backward op takes it; beta is added.
    options : tuple of Option or Operand
        What else is given, in the order of arguments, from `eps` on.
    sources : tuple of Source
        Where its rows may come from.
    has_gradient : bool
        Whether there are backward ops, one for each source.
    given : tuple of Input or Option
        What may stand for the sums over a row: an array, and the number of columns that it is of.
    """

    name: str
    statistic: str
    epilogue: str
    saves: tuple[str, ...]
    parameters: tuple[str, ...]
    options: tuple[Option | Operand, ...]
    sources: tuple[Source, ...] = ()
    has_gradient: bool = True
    given: tuple[Input | Option, ...] = ()

    @property
    def eps(self) -> float:
        """What `eps` is where it is left out."""
        return next(float(o.default) for o in self.options if isinstance(o, Option))


@dataclass(frozen=True, eq=False)
class Op:
    """An op; compared by identity, which costs a call nothing.

    Attributes
    ----------
    name : str
        What users call it.
    norm : str
        The op of `cunorm.torch` that does the same with a gradient.
    family : Family
        The norm.
    source : Source
        Where the rows that are normalised come from.
    keeps : bool
        Whether it returns the family's statistics.
    is_backward : bool
        Whether it returns gradients.
    arguments : tuple of Input or Option
        What is given, in order. The results that a user may give follow.
    reads : tuple of str
        Arrays of rows that are read.
    parameters : tuple of str
        Arrays of one row that are read.
    operands : tuple of str
        Arrays that broadcast against x. A backward op returns the gradients of those that are
        given.
    writes : tuple of Output
        Arrays of rows that are written and that a user may give.
    returns : tuple of str
        The arrays that are returned.
    leader : str
        The array whose device and library are those of a call; of a backward op it is the one that
        was normalised.
    """

    name: str
    norm: str
    family: Family
    source: Source
    keeps: bool
    is_backward: bool
    arguments: tuple[Input | Option, ...]
    reads: tuple[str, ...]
    parameters: tuple[str, ...]
    operands: tuple[str, ...]
    writes: tuple[Output, ...]
    returns: tuple[str, ...]
    leader: str = "x"

    def returned(self, given: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the names of what is returned: gradients of operands where those are given."""
        if not self.is_backward:
            return self.returns
        return (*self.returns, *(f"d{name}" for name in self.operands if given[name] is not None))

    def results(self, given: Mapping[str, Any], made: Mapping[str, Any]) -> Any:
        """Return what a call returns, of all of its arrays: one, or a tuple of them."""
        return itemgetter(*self.returned(given))(made)

    @cached_property
    def slots(self) -> tuple[str, ...]:
        """The names, in the kernel, of the arrays among the arguments, results last."""
        inputs = (a.name for a in self.arguments if isinstance(a, Input))
        return (*inputs, *(output.name for output in self.writes))

    @cached_property
    def results_given(self) -> dict[str, str]:
        """What results that a user may give are called, by their names in the kernel."""
        return {output.name: output.argument for output in self.writes}

    @cached_property
    def rows(self) -> tuple[str, ...]:
        """Arrays of rows by their names in the kernel: what is read, then what is written."""
        written = self.gradients if self.is_backward else (output.name for output in self.writes)
        return (*self.reads, *written)

    @cached_property
    def of_tensors(self) -> tuple[Input | Option, ...]:
        """The arguments that the op of `cunorm.torch` takes."""
        return tuple(a for a in self.arguments if a not in self.family.given)

    @cached_property
    def of_tensors_in_place(self) -> tuple[Input | Option, ...]:
        """The arguments of the one that writes over its input, whose dtype that has."""
        return tuple(a for a in self.of_tensors if a is not DTYPE)

    @cached_property
    def sums(self) -> tuple[str, ...]:
        """What may be given in place of the sums over a row."""
        return tuple(a.name for a in self.arguments if a in self.family.given[:1])

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the arguments."""
        return tuple(a.name for a in self.arguments)

    @cached_property
    def options(self) -> tuple[Option, ...]:
        """The numbers and words among the arguments."""
        return tuple(a for a in self.arguments if isinstance(a, Option))

    @cached_property
    def indices(self) -> tuple[str, ...]:
        """The arrays of integers among the arguments."""
        return tuple(a.name for a in self.arguments if isinstance(a, Indices))

    @cached_property
    def totals(self) -> tuple[str, ...]:
        """The sums over all rows that a backward op returns, one for each parameter."""
        return tuple(f"d{name}" for name in self.family.parameters) if self.is_backward else ()

    @cached_property
    def gradients(self) -> tuple[str, ...]:
        """The arrays of rows that a backward op returns."""
        return tuple(name for name in self.returns if name not in self.totals)
