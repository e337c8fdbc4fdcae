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
    line = "" if at.source is None else _line(at.source, function).rstrip()
    text = line.lstrip()
    column = at.column - 1 - (len(line) - len(text))
    # Of a line the compiler gives the first statement's column alone, whichever one it is.
    alone = text.count(";") < 2 and 0 <= column < min(len(text), _LONGEST - 3)
    shown = text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
    return replace(
        place,
        ptx_line=at.line,
        ptx_text=at.text,
        source=at.source,
        source_text=shown or None,
        source_column=column if alone else None,
    )


def _line(source: str, function: Function) -> str:
    """Return a line of what CuPy compiled, or of a file where that is on this machine."""
    file, _, number = source.rpartition(":")
    if file == GIVEN:
        lines = (assembler.source_of(function) or "").splitlines()
        return lines[int(number) - 1] if int(number) <= len(lines) else ""
    path = function.module.paths.get(file, "")
    linecache.checkcache(path)
    return linecache.getline(path, int(number))
