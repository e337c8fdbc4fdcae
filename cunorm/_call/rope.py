"""Ops on heads that are normalised and rotated: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cupy

from .. import _check, _plan
from .._launch import kernels, launches
from .._launch import rope as launch
from . import remembered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays

TABLES = ("cos", "sin", "positions")


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
    settings = _check.rope(op, arrays, options)
    complete = dict(arrays)
    done: tuple[Launch, ...] = ()
    with arrays[op.leader].device:
        for output in op.writes:
            if arrays[output.name] is None:
                like = arrays[output.like]
                complete[output.name] = cupy.empty(like.shape, like.dtype)
        sides = tuple(_sides(op, complete, settings))
        if sides:
            scalars = {name: settings[name] for name in ("eps", "gamma_offset")}
            done = launch.forward(_planned(sides, settings), scalars, enqueue=enqueue)
    return complete, done


rope = remembered.remembered(work)


def _sides(
    op: Op, arrays: Arrays, settings: Mapping[str, Any]
) -> Iterator[tuple[int, Arrays, dict[str, str]]]:
    """Yield, of each array with elements, the axes of a row, and what the kernel takes and reads.

    As tables, cos and sin have two axes, or a row for each token.
    """
    for name, gamma, output in zip(op.reads, op.parameters, op.writes, strict=True):
        x = arrays[name]
        if x.size == 0:
            continue
        names = {"y": output.name, "x": name, "gamma": gamma} | {table: table for table in TABLES}
        taken = {own: arrays[n] for own, n in names.items() if arrays[n] is not None}
        if "positions" not in taken and taken["cos"].ndim == 2:
            tokens = x.shape[-3] if x.ndim > 2 else 1
            taken |= {table: taken[table][:tokens] for table in ("cos", "sin")}
            if x.ndim == 2:
                taken |= {table: taken[table][0] for table in ("cos", "sin")}
        axes = 1
        if settings["across_heads"]:
            axes = 2
            if "gamma" in taken:
                taken["gamma"] = taken["gamma"].reshape(x.shape[-2:])
        yield axes, taken, names


def _planned(
    sides: tuple[tuple[int, Arrays, dict[str, str]], ...], settings: Mapping[str, Any]
) -> list[launch.Heads]:
    """Return what a launch does with each array: a row of each has as many lanes."""
    plans = [_plan_of(axes, taken, settings) for axes, taken, _ in sides]
    block = max(plan.block for plan in plans)
    made = []
    for (axes, taken, names), plan in zip(sides, plans, strict=True):
        if plan.block != block:
            plan = _plan_of(axes, taken, settings, block)
        made.append(launch.Heads(plan, axes, taken, names))
    return made


def _plan_of(
    axes: int,
    taken: Arrays,
    settings: Mapping[str, Any],
    block: tuple[int, int] | None = None,
) -> _plan.HeadsPlan:
    x = taken["x"]
    rotary = _plan.Rotary(
        x.shape[-1],
        2 * taken["cos"].shape[-1],
        settings["interleaved"],
        settings["norm_first"],
    )
    plan = _plan.heads(
        launches.cols(x, axes),
        rotary,
        tuple((name, a.dtype.name) for name, a in taken.items()),
        kernels.arch(x.device.id),
        block,
        gamma_offset=bool(settings["gamma_offset"]),
        cast=settings["cast"],
    )
    if plan is None:
        raise NotImplementedError
    return plan
