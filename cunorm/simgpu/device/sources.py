"""Lines of CUDA source, for faults to show."""

from __future__ import annotations

import linecache
from dataclasses import replace

from .. import faults
from ..ptx.module import GIVEN, Function
from ..ptx.statements import Statement
from . import assembler

_LONGEST = 100  # characters of a line that are shown


def placed(place: faults.Place, at: Statement, function: Function) -> faults.Place:
    """Return a place with a statement of a kernel in it, and with its line of source."""
    text = None if at.source is None else _line(at.source, function)
    return replace(place, ptx_line=at.line, ptx_text=at.text, source=at.source, source_text=text)


def _line(source: str, function: Function) -> str | None:
    """Return a line of what CuPy compiled, or of a file where that is on this machine."""
    file, _, number = source.rpartition(":")
    if file == GIVEN:
        lines = (assembler.source_of(function) or "").splitlines()
        text = lines[int(number) - 1] if int(number) <= len(lines) else ""
    else:
        path = function.module.paths.get(file, "")
        linecache.checkcache(path)
        text = linecache.getline(path, int(number))
    text = text.strip()
    return (text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "...") or None
