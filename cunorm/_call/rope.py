"""Ops on heads that are normalised and rotated: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cupy
import numpy as np

from .. import _check, _plan
from .._families import OPS
from .._launch import kernels, launches
from .._launch import rope as launch
from .._plan import accumulator
from . import planned, remembered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays

    # The axes of a row, the kernel's arrays by their names there, and what those are in the call.
    Side = tuple[int, Arrays, dict[str, str]]

TABLES = ("cos", "sin", "positions")
STATISTIC = "rstd"


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
        for statistic, name in zip(_statistics(op), op.reads, strict=True):
            made = _of_each_row(arrays[name], settings) if op.keeps else None
            complete[statistic] = made
        sides = tuple(_sides(op, complete, settings))
        try:
            heads = _heads(sides, settings)
        except _plan.TooLong:
            for side in sides:
                _in_parts(*side, settings, enqueue=enqueue)
        else:
            if heads:
                done = launch.forward(heads, _scalars(settings), enqueue=enqueue)
    return complete, done


rope = remembered.remembered(work)


def _statistics(op: Op) -> tuple[str, ...]:
    """Return a name for the statistic of each array, by which it is returned if it is."""
    return op.returns[len(op.writes) :] if op.keeps else tuple(f"{x}_rstd" for x in op.reads)


def _of_each_row(x: cupy.ndarray, settings: Mapping[str, Any]) -> cupy.ndarray:
    """Return an array for one number of each row of x: NaN where rows have no heads."""
    shape = x.shape[: -2 if settings["across_heads"] else -1]
    dtype = accumulator(x.dtype.name)
    return cupy.empty(shape, dtype) if x.size else cupy.full(shape, np.nan, dtype)


def _sides(op: Op, arrays: Arrays, settings: Mapping[str, Any]) -> Iterator[Side]:
    """Yield, of each array with elements, a row's axes, what a kernel takes, and its names."""
    of_each = zip(op.reads, op.parameters, op.writes, _statistics(op), strict=True)
    for name, gamma, output, statistic in of_each:
        if arrays[name].size > 0:
            names = {"y": output.name, "x": name, "gamma": gamma, STATISTIC: statistic}
            names |= {table: table for table in TABLES}
            yield *of_row({own: arrays[n] for own, n in names.items()}, settings), names


def of_row(arrays: Arrays, settings: Mapping[str, Any]) -> tuple[int, Arrays]:
    """Return how many axes of x are a row, and the arrays that are there as a kernel takes them.

    gamma then has a row's axes. As tables, cos and sin have two, or a row for each token.
    """
    taken = {name: a for name, a in arrays.items() if a is not None}
    x = taken["x"]
    if "positions" not in taken and taken["cos"].ndim == 2:
        rows = slice(x.shape[-3]) if x.ndim > 2 else 0
        taken |= {table: taken[table][rows] for table in ("cos", "sin")}
    if not settings["across_heads"]:
        return 1, taken
    if "gamma" in taken:
        taken["gamma"] = taken["gamma"].reshape(x.shape[-2:])
    return 2, taken


def _heads(sides: Sequence[Side], settings: Mapping[str, Any]) -> list[launch.Heads]:
    """Return what a launch does with each array: a row of each has as many lanes."""
    plans = [_plan_of(axes, taken, settings) for axes, taken, _ in sides]
    block = max((plan.block for plan in plans), default=None)
    return [
        launch.Heads(_plan_of(axes, taken, settings, block), axes, taken, names)
        for axes, taken, names in sides
    ]


def _plan_of(
    axes: int,
    taken: Arrays,
    settings: Mapping[str, Any],
    block: tuple[int, int] | None = None,
    *,
    norm: bool = True,
    back: bool = False,
) -> _plan.HeadsPlan:
    x = taken["x"]
    return _plan.heads(
        launches.cols(x, axes),
        rotary(taken, settings, norm=norm, back=back),
        planned.dtypes(taken, (name for name in taken if name != STATISTIC)),
        kernels.arch(x.device.id),
        block,
        gamma_offset=bool(settings["gamma_offset"]),
        cast=settings["cast"],
    )


def rotary(
    taken: Arrays, settings: Mapping[str, Any], *, norm: bool = True, back: bool = False
) -> _plan.Rotary:
    """Return how the heads of x are rotated."""
    return _plan.Rotary(
        taken["x"].shape[-1],
        2 * taken["cos"].shape[-1],
        settings["interleaved"],
        settings["norm_first"] and norm,
        norm,
        back,
    )


def _in_parts(
    axes: int,
    taken: Arrays,
    names: dict[str, str],
    settings: Mapping[str, Any],
    *,
    enqueue: bool,
) -> None:
    """Normalise and rotate rows that one kernel does not keep, in two."""
    x, y = taken["x"], taken["y"]
    dtype = x.dtype
    if settings["cast"] == "after":
        dtype = accumulator(x.dtype.name)
    elif not settings["norm_first"]:
        dtype = _plan.promoted(x.dtype.name, taken["cos"].dtype.name)
    between = y if y.dtype == dtype else cupy.empty(x.shape, dtype)

    def normalise(source: cupy.ndarray, to: cupy.ndarray) -> None:
        op = OPS["rms_norm"]
        given = {"gamma": None, STATISTIC: None} | taken | {"x": source, "y": to}
        own = {"cast": _plan.cast_of_norm(settings["cast"]), "scale_offset": 1.0, "count": 0.0}
        options = {**settings, **own}
        beside = dict.fromkeys((*op.operands, *op.sums))
        planned.forward(op, given | beside, axes, options, enqueue=enqueue)

    def turn(source: cupy.ndarray, to: cupy.ndarray) -> None:
        rotate(source, to, taken, settings, enqueue=enqueue)

    steps = (normalise, turn) if settings["norm_first"] else (turn, normalise)
    steps[0](x, between)
    steps[1](between, y)


def rotate(
    x: cupy.ndarray,
    y: cupy.ndarray,
    taken: Arrays,
    settings: Mapping[str, Any],
    *,
    enqueue: bool,
    back: bool = False,
) -> None:
    """Rotate heads that are not normalised, as `_in_parts` and gradients have it."""
    arrays = {name: taken[name] for name in TABLES if name in taken} | {"x": x, "y": y}
    plan = _plan_of(1, arrays, settings, norm=False, back=back)
    heads = launch.Heads(plan, 1, arrays, {name: name for name in arrays})
    launch.forward([heads], _scalars(settings), enqueue=enqueue)


def _scalars(settings: Mapping[str, Any]) -> dict[str, float]:
    return {name: settings.get(name, 0.0) for name in ("eps", "gamma_offset")}
