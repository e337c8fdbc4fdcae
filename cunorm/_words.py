"""Words of errors: what a value was, and what it must be."""

from __future__ import annotations

from collections.abc import Iterable
from types import NoneType
from typing import Any


def type_name(value: object) -> str:
    """Return the name of a value's type, with its module unless that is builtins."""
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def either(choices: Iterable[str]) -> str:
    """Return "a, b or c"."""
    *others, last = choices
    return f"{', '.join(others)} or {last}" if others else last


def word(value: Any, name: str, words: tuple[str | None, ...]) -> str | None:
    """Refuse what is none of an option's words, of which None may be one."""
    if isinstance(value, (str, NoneType)) and value in words:
        return value
    must = f"{name} must be {either(map(repr, words))}, but is "
    if isinstance(value, str):
        raise ValueError(f"{must}{value!r}")
    raise TypeError(f"{must}a {type_name(value)}")
