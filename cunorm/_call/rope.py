"""Ops on heads that are normalised and rotated: checked, allocated, planned and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cupy

from .. import _check, _plan
from .._families import OPS
from .._launch import kernels, launches
from .._launch import rope as launch
from .._plan import accumulator
from . import forward, remembered

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays

    # The axes of a row, the kernel's arrays by their names there, and what those are in the call.
    Side = tuple[int, Arrays, dict[str, str]]

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
        try:
            planned = _planned(sides, settings)
        except _plan.TooLong:
            for side in sides:
                _in_parts(*side, settings, enqueue=enqueue)
        else:
            if planned:
                done = launch.forward(planned, _scalars(settings), enqueue=enqueue)
    return complete, done


rope = remembered.remembered(work)


def _sides(op: Op, arrays: Arrays, settings: Mapping[str, Any]) -> Iterator[Side]:
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


def _planned(sides: Sequence[Side], settings: Mapping[str, Any]) -> list[launch.Heads]:
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
) -> _plan.HeadsPlan:
    x = taken["x"]
    rotary = _plan.Rotary(
        x.shape[-1],
        2 * taken["cos"].shape[-1],
        settings["interleaved"],
        settings["norm_first"] and norm,
        norm,
    )
    return _plan.heads(
        launches.cols(x, axes),
        rotary,
        tuple((name, a.dtype.name) for name, a in taken.items()),
        kernels.arch(x.device.id),
        block,
        gamma_offset=bool(settings["gamma_offset"]),
        cast=settings["cast"],
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
    gamma = taken.pop("gamma", None)
    if gamma is None:
        gamma = cupy.ones(x.shape[x.ndim - axes :], x.dtype)
    dtype = x.dtype
    if settings["cast"] == "after":
        dtype = accumulator(x.dtype.name)
    elif not settings["norm_first"]:
        dtype = _plan.promoted(x.dtype.name, taken["cos"].dtype.name)
    between = y if y.dtype == dtype else cupy.empty(x.shape, dtype)

    def rotate(source: cupy.ndarray, to: cupy.ndarray) -> None:
        arrays = taken | {"x": source, "y": to}
        heads = launch.Heads(_plan_of(1, arrays, settings, norm=False), 1, arrays, names)
        launch.forward([heads], _scalars(settings), enqueue=enqueue)

    def normalise(source: cupy.ndarray, to: cupy.ndarray) -> None:
        op = OPS["rms_norm"]
        options = tuple(settings.get(option.name, option.default) for option in op.options)
        given = dict.fromkeys(op.slots) | {"x": source, "gamma": gamma, "y": to}
        forward.work(op, given, options, enqueue=enqueue)

    steps = (normalise, rotate) if settings["norm_first"] else (rotate, normalise)
    steps[0](x, between)
    steps[1](between, y)


def _scalars(settings: Mapping[str, Any]) -> dict[str, float]:
    return {name: settings[name] for name in ("eps", "gamma_offset")}
