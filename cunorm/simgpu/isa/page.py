"""The table of PTX instructions as a page: ``python -m cunorm.simgpu --instructions``."""

from __future__ import annotations

from ..device.tables import ARCHITECTURES
from . import FORMS

HEAD = """\
# PTX that the software GPU executes

Each form below is run by tests against an independent computation, with every word that may stand
in it. A word in brackets may be left out, and of words between bars one stands there; not all of
them go together, as in the PTX ISA itself. What no form spells raises `UnknownInstruction` when a
thread reaches it: nothing is guessed.

This page is written by `python -m cunorm.simgpu --instructions`.
"""
TITLES = {
    "integer": "Integer arithmetic",
    "bits": "Logic, shifts and bit fields",
    "floating": "float32 and float64 arithmetic",
    "half": "float16 and bfloat16 arithmetic",
    "approximate": "Approximate functions",
    "convert": "Conversions",
    "compare": "Comparisons and selections",
    "move": "Moves and addresses",
    "access": "Loads, stores and prefetches",
    "atomics": "Atomics",
    "collective": "Across the lanes of a warp",
    "control": "Branches, barriers and fences",
    "cluster": "Thread-block clusters",
    "asynchronous": "Asynchronous copies",
    "mbarrier": "mbarrier objects",
}


def spelled(pattern: str) -> str:
    """Return a form as the PTX ISA writes opcodes: ``add[.rn|.rz][.ftz].f32``."""
    word, *fields = pattern.split()
    parts = [word]
    for item in fields:
        choices = item.strip("[]").partition(":")[0].replace("=", "::").split("|")
        dotted = "|".join(f".{choice}" for choice in choices)
        if item.startswith("["):
            parts.append(f"[{dotted}]")
        else:
            parts.append(f"({dotted})" if len(choices) > 1 else dotted)
    return "".join(parts)


def page() -> str:
    """Return the page in markdown, a table for each family of instructions."""
    forms = [form for several in FORMS.values() for form in several]
    parts = [HEAD]
    for family, title in TITLES.items():
        mine = [form for form in forms if form.build.__module__ == f"{__package__}.{family}"]
        rows = sorted((spelled(form.pattern), form.since) for form in mine)
        parts.append(f"\n## {title}\n\n| form | from |\n|---|---|\n")
        for form, since in rows:
            first = f"sm_{since}" if since > ARCHITECTURES[0] else "all"
            escaped = form.replace("|", "\\|")
            parts.append(f"| `{escaped}` | {first} |\n")
    return "".join(parts)
