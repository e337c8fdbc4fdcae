"""Which class the profiler counts a PTX instruction under.

=====================  =============================================================================
class                  instructions
=====================  =============================================================================
integer                integer arithmetic, logic, shifts, bit fields, comparisons and selections of
                       integers and untyped bits, ``isspacep``, ``mapa``
predicate              ``and``, ``or``, ``xor`` and ``not`` of predicates
float16                arithmetic, comparison and selection in float16 or bfloat16, packed or not
float32, float64       the same in float32 and in float64, IEEE division and square root among them
special                approximate functions: ``rcp``, ``rsqrt``, ``sqrt``, ``ex2``, ``lg2``,
                       ``sin``, ``cos``, ``tanh``, ``div.approx``, ``div.full``
conversion             ``cvt``
move                   ``mov`` and ``cvta``, which the assembler mostly folds away
load, store, atomic    by state space, as in ``load global``; ``atomic`` counts ``red`` as well;
                       "generic" is what names no space, whichever its addresses are in
copy                   ``cp.async`` and its groups
control                branches, calls, returns, ``trap``, ``nanosleep``, ``griddepcontrol``
fence                  ``membar``, ``fence``
prefetch               ``prefetch`` and its relatives
collective             shuffles, votes, matches, ``redux``, ``bar.warp.sync``, ``activemask``
barrier                barriers of a block and of a cluster, ``mbarrier``
=====================  =============================================================================
"""

from __future__ import annotations

import functools

from .. import isa

_PRECISION = {
    "f16": "float16",
    "f16x2": "float16",
    "bf16": "float16",
    "bf16x2": "float16",
    "f32": "float32",
    "f64": "float64",
}
_BY_TYPE = ("integer", "float", "double", "half", "division", "logic", "compare")
_BY_FAMILY = {
    "special": "special",
    "convert": "conversion",
    "branch": "control",
    "collective": "collective",
    "collective_free": "collective",
    "barrier": "barrier",
}
_BY_WORD = {
    "mov": "move",
    "cvta": "move",
    "isspacep": "integer",
    "mapa": "integer",
    "getctarank": "integer",
    "membar": "fence",
    "fence": "fence",
    "prefetch": "prefetch",
    "prefetchu": "prefetch",
    "applypriority": "prefetch",
    "discard": "prefetch",
    "createpolicy": "integer",
    "trap": "control",
    "pmevent": "control",
    "nanosleep": "control",
    "griddepcontrol": "control",
    "mbarrier": "barrier",
    "cp": "copy",
    "red": "atomic",
}
# What the assembler mostly folds away, so that totals are also given without it.
FOLDED = ("mov", "cvta")


@functools.cache
def class_of(opcode: str) -> str:
    """Return the class of an opcode; LookupError for one that the profiler does not know."""
    found = isa.find(opcode)
    if found is None:
        raise LookupError(f"no PTX form spells {opcode}")
    family, fields = found[0].family, found[1]
    word, *rest = opcode.split(".")
    if family in ("load", "store", "atomic"):
        return f"{family} {(fields.get('space') or 'generic').partition('::')[0]}"
    if family in _BY_FAMILY:
        return _BY_FAMILY[family]
    if family in _BY_TYPE:
        # `slct` alone ends in another type than that of its values.
        kind = rest[-2] if word == "slct" else rest[-1]
        return "predicate" if kind == "pred" else _PRECISION.get(kind, "integer")
    if word in _BY_WORD:
        return _BY_WORD[word]
    raise LookupError(f"the profiler knows no class for {opcode}, of the family {family}")
