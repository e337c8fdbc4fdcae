"""What is known of a model's rotation of heads: of its function, and of the tables given to that.

Both are known by their results on a few numbers, on the CPU: bit for bit, or not at all.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from ._heads import turned

NARROW = (torch.float32, torch.bfloat16, torch.float16)
COLUMNS = 16  # of the heads that a function is tried on
LAYERS = ("full_attention", "sliding_attention")  # which some tables are of


class Rotation(NamedTuple):
    """How `qk_norm_rope` computes what a function does.

    `of` are the dtypes of heads and tables for which it has the function's bits, each with
    whether a part of a head's columns may be rotated.
    """

    interleaved: bool
    of: frozenset[tuple[torch.dtype, torch.dtype, bool]]

    def takes(self, heads: torch.Tensor, cos: torch.Tensor) -> bool:
        """Return whether it is known for such heads and such tables."""
        return (heads.dtype, cos.dtype, cos.shape[-1] < heads.shape[-1]) in self.of


def rotation(function: Callable[..., Any], options: tuple[tuple[str, Any], ...]) -> Rotation | None:
    """Return what a function of queries, keys and tables does, called with options; None if no op.

    Queries and keys are of shape (B, H, T, d), tables of shape (B, T, R), each half the other.
    """
    try:
        return _rotation(function, options)
    except TypeError:  # an option without a hash
        return None


@functools.cache
def _rotation(
    function: Callable[..., Any], options: tuple[tuple[str, Any], ...]
) -> Rotation | None:
    for interleaved in (False, True):
        of = frozenset(
            (heads, tables, partial)
            for heads, tables in itertools.product(NARROW, NARROW)
            for partial in (False, True)
            if _has_the_bits(function, dict(options), interleaved, heads, tables, partial)
        )
        if of:
            return Rotation(interleaved, of)
    return None


def _has_the_bits(
    function: Callable[..., Any],
    options: dict[str, Any],
    interleaved: bool,
    dtype: torch.dtype,
    of_tables: torch.dtype,
    partial: bool,
) -> bool:
    numbers = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, heads, 5, COLUMNS, generator=numbers).to(dtype) for heads in (3, 2))
    rotated = COLUMNS // 2 if partial else COLUMNS
    # Cosines and sines of no angles: a function that needs c * c + s * s = 1 is another one.
    cos, sin = (torch.randn(2, 5, rotated // 2, generator=numbers).to(of_tables) for _ in range(2))
    try:
        with torch.no_grad():
            made = function(q, k, torch.cat((cos, cos), -1), torch.cat((sin, sin), -1), **options)
    except Exception:  # anyone's function, which may refuse such dtypes or so few columns
        return False
    if not isinstance(made, tuple) or len(made) != 2:
        return False
    return all(
        isinstance(y, torch.Tensor)
        and y.dtype == dtype
        and torch.equal(
            y.transpose(1, 2), turned(x.transpose(1, 2), cos, sin, interleaved=interleaved)
        )
        for y, x in zip(made, (q, k), strict=True)
    )


def tables(model: torch.nn.Module) -> tuple[set[tuple[torch.dtype, torch.dtype]], str]:
    """Return the dtypes of what makes a model's cosines and sines, and why it is not known.

    A pair is that of hidden states and of the tables made for them. Where all modules that make
    tables make such that have one half twice, there is no reason. The attention cannot see which of
    them it is given, so that one alone which is not known is reason enough.
    """
    found: set[tuple[torch.dtype, torch.dtype]] = set()
    makers = [module for module in model.modules() if _may_make_tables(module)]
    for module in makers:
        made = _made(module)
        if not made and "rot" in type(module).__name__.lower():
            return set(), f"it is not known what {type(module).__qualname__} makes"
        for x, cos, sin in made:
            if any(not _is_one_half_twice(table) for table in (cos, sin)):
                return set(), f"the tables of {type(module).__qualname__} are not one half twice"
            found.add((x, cos.dtype))
    if not found:
        return set(), "no module of the model is known to make its cosines and sines"
    return found, ""


def _may_make_tables(module: torch.nn.Module) -> bool:
    """Return whether to run a module for its tables: it has numbers, and nothing that is learnt."""
    held = vars(module)
    return bool(held["_buffers"]) and not (held["_parameters"] or held["_modules"])


def _made(module: torch.nn.Module) -> list[tuple[torch.dtype, torch.Tensor, torch.Tensor]]:
    """Return the tables that a copy of a module makes, by the dtype of hidden states."""
    buffers = [buffer for buffer in vars(module)["_buffers"].values() if buffer is not None]
    if not buffers or buffers[0].is_meta:
        return []
    try:
        names = list(inspect.signature(module.forward).parameters)
    except (TypeError, ValueError):
        return []
    found = []
    layers: tuple[tuple[str, ...], ...] = tuple((kind,) for kind in LAYERS) if names[2:] else ((),)
    positions = torch.arange(3, 10, device=buffers[0].device)
    ways = itertools.product((positions[None], positions.expand(3, 1, -1)), (*layers, ()))
    for (at, layer), dtype in itertools.product(ways, NARROW):
        x = torch.zeros(1, len(positions), 1, dtype=dtype, device=positions.device)
        try:
            with torch.no_grad():
                made = copy.deepcopy(module)(x, at, *layer)
        except Exception:  # anyone's module, which makes something else of something else
            continue
        if isinstance(made, tuple) and len(made) == 2 and all(map(_is_table, made)):
            found.append((dtype, *made))
    return found


def _is_table(made: Any) -> bool:
    return isinstance(made, torch.Tensor) and made.is_floating_point() and made.ndim >= 2


def _is_one_half_twice(table: torch.Tensor) -> bool:
    half = table.shape[-1] // 2
    return table.shape[-1] % 2 == 0 and torch.equal(table[..., :half], table[..., half:])
