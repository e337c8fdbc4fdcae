"""One operation of a decoded kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .statements import Statement


class Op:
    """One operation: a function from source slots to target slots.

    Attributes
    ----------
    function : callable
        Of the operands' arrays; of (batch, op, lanes, operands...) where it is not pure.
    sources, targets : tuple of int
        Register slots.
    guard : int
        The slot of the predicate it stands under, -1 for none; `negated` as written.
    family : str
        Its class, for counters.
    """

    __slots__ = (
        "family",
        "function",
        "guard",
        "negated",
        "pure",
        "sources",
        "statement",
        "targets",
    )

    def __init__(
        self,
        function: Callable[..., Any],
        sources: tuple[int, ...],
        targets: tuple[int, ...],
        guard: int,
        negated: bool,
        pure: bool,
        statement: Statement,
    ) -> None:
        self.function = function
        self.sources = sources
        self.targets = targets
        self.guard = guard
        self.negated = negated
        self.pure = pure
        self.statement = statement
        self.family = "unknown"
