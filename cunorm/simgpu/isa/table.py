"""The table of forms, which the families of instructions fill.

A form is written as the ISA writes it, with spaces for dots (and ``=`` for ``::``):
``"add [rn|rz:round] [ftz] f32|f64:type"``. A word in brackets may be missing, ``a|b`` is a choice,
``:name`` names the field; what no form spells out is unknown and raises when a lane reaches it.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Form:
    """One row of the table: how it is written, what it is for, and who builds it."""

    pattern: str
    family: str
    build: Callable[..., Any]
    decodes: bool  # `build` reads the operands itself, from (builder, statement)
    since: int  # the first architecture that has it

    @functools.cached_property
    def fields(self) -> list[tuple[str, bool, frozenset[str]]]:
        """The fields in their order: their names, whether they may be missing, and their words."""
        found = []
        for item in self.pattern.split()[1:]:
            words, _, name = item.strip("[]").partition(":")
            # `::` stands in cache and scope names, so the field's name follows the last lone colon.
            choices = frozenset(words.replace("=", "::").split("|"))
            name = re.sub("[^A-Za-z0-9_]", "_", name or words)
            found.append((name, item.startswith("["), choices))
        return found

    def match(self, words: list[str], at: int = 0) -> dict[str, str | None] | None:
        """Return the words of each field from the one at a place on; None for another form's."""
        if at == len(self.fields):
            return None if words else {}
        name, optional, choices = self.fields[at]
        if words and words[0] in choices:
            rest = self.match(words[1:], at + 1)
            if rest is not None:
                return {name: words[0], **rest}
        rest = self.match(words, at + 1) if optional else None
        return None if rest is None else {name: None, **rest}


@dataclass(frozen=True)
class Pure:
    """A function of operand arrays alone, with the PTX types of its results and operands."""

    function: Callable[..., Any]
    targets: tuple[str, ...]
    sources: tuple[str, ...]


FORMS: dict[str, list[Form]] = {}


def form(pattern: str, family: str, *, decodes: bool = False, since: int = 0) -> Callable[..., Any]:
    """Enter the decorated builder into the table under `pattern`."""

    def enter(build: Callable[..., Any]) -> Callable[..., Any]:
        entry = Form(pattern, family, build, decodes, since)
        FORMS.setdefault(pattern.split()[0], []).append(entry)
        return build

    return enter


@functools.cache
def find(opcode: str) -> tuple[Form, dict[str, str | None]] | None:
    """Return the form that spells `opcode`, with its fields, or None where there is none."""
    head, *words = opcode.split(".")
    for entry in FORMS.get(head, ()):
        fields = entry.match(words)
        if fields is not None:
            return entry, fields
    return None


@functools.cache
def pure(opcode: str) -> tuple[Form, Pure] | None:
    """Return the built function of a form that is one, or None."""
    found = find(opcode)
    if found is None or found[0].decodes:
        return None
    built = found[0].build(**found[1])
    return None if built is None else (found[0], built)
