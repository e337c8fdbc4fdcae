"""Gradients of heads that are normalised and rotated."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import cupy

from .. import _check, _plan
from .._families import OPS
from .._launch import backward as of_backward
from .._launch import kernels, launches
from .._launch import rope as launch
from .._plan import accumulator
from . import planned, remembered, segmented
from .rope import of_row, rotary, rotate

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays

READ = ("x", "dy", "gamma", "cos", "sin", "positions")


def work(
    op: Op, arrays: Arrays, options: tuple[object, ...], *, enqueue: bool = True
) -> tuple[Arrays, tuple[Launch, ...]]:
    """Return the arrays with those that were made, and what was launched."""
    settings = _check.rope_backward(op, arrays, options)
    x, gamma = arrays["x"], arrays["gamma"]
    complete = {**arrays, "dgamma": None}
    done: tuple[Launch, ...] = ()
    with x.device:
        complete["dx"] = cupy.empty(x.shape, x.dtype)
        if gamma is not None and settings["sums"]:
            make = cupy.empty if x.size > 0 else cupy.zeros
            complete["dgamma"] = make(gamma.shape, gamma.dtype)
        if x.size > 0:
            axes, taken = of_row(complete, settings)
            plan = _of_one_kernel(op, axes, taken, settings)
            if plan is None:
                _in_parts(axes, taken, settings, enqueue=enqueue)
            else:
                complete["partial"], done = _in_one(
                    op, plan, axes, taken, settings, enqueue=enqueue
                )
    return complete, done


rope_backward = remembered.remembered(work)


def _of_one_kernel(
    op: Op, axes: int, taken: Arrays, settings: Mapping[str, Any]
) -> _plan.BackwardPlan | None:
    """Return the kernel that turns back on the way, None where gradients come in parts.

    They do where heads were rotated first, where each has a gamma, and where registers do not keep
    a row.
    """
    if not settings["norm_first"] or ("gamma" in taken and taken["gamma"].ndim != axes):
        return None
    x = taken["x"]
    try:
        return _plan.backward(
            op,
            launches.cols(x, axes),
            planned.dtypes(taken, (name for name in READ if name in taken)),
            kernels.arch(x.device.id),
            sums=settings["sums"],
            gamma_offset=bool(settings["gamma_offset"]),
            rotary=rotary(taken, settings, back=True),
        )
    except _plan.TooLong:
        return None


def _in_one(
    op: Op,
    plan: _plan.BackwardPlan,
    axes: int,
    taken: Arrays,
    settings: Mapping[str, Any],
    *,
    enqueue: bool,
) -> tuple[cupy.ndarray | None, tuple[Launch, ...]]:
    """Enqueue the kernel and that of its sums; return the blocks' sums, and what was launched."""
    dgamma, partial = taken.get("dgamma"), None
    if dgamma is not None:
        (blocks,) = plan.grid(taken["x"].size // plan.cols)
        partial = cupy.empty((blocks, plan.pitch), plan.accumulator)
    complete = {**taken, "partial": partial}
    scalars = {name: settings[name] for name in plan.scalars}
    main, as_given = launch.backward(plan, axes, complete, scalars, enqueue=enqueue)
    done = [main]
    if dgamma is not None:
        sums = of_backward.column_sums(plan, dgamma, len(op.totals), main.grid[0], "partial")
        if enqueue:
            sums.enqueue(complete.get(name) for name in sums.arrays)
        done.append(sums)
    return partial, tuple(done) if as_given else ()


def _in_parts(axes: int, taken: Arrays, settings: Mapping[str, Any], *, enqueue: bool) -> None:
    """Turn back and differentiate the norm one after the other, in the accumulator between."""
    x, dy, dx = taken["x"], taken["dy"], taken["dx"]
    acc = accumulator(x.dtype.name)

    def wide(a: cupy.ndarray) -> cupy.ndarray:
        """Return the same numbers in the accumulator, which has all of them."""
        return a.astype(acc, copy=False) if enqueue else cupy.empty(a.shape, acc)

    def turn(a: cupy.ndarray, to: cupy.ndarray, *, cast: str, back: bool) -> cupy.ndarray:
        rotate(a, to, taken, {**settings, "cast": cast}, enqueue=enqueue, back=back)
        return to

    if settings["norm_first"]:
        dn = turn(dy, cupy.empty(x.shape, acc), cast="after", back=True)
        made = dx if dx.dtype == acc else cupy.empty(x.shape, acc)
        _of_norm(axes, taken | {"x": wide(x), "dy": dn, "dx": made}, settings, enqueue=enqueue)
        if made is not dx and enqueue:
            dx[...] = made
    else:
        dtype = _plan.promoted(x.dtype.name, taken["cos"].dtype.name)
        v = turn(x, cupy.empty(x.shape, dtype), cast="before", back=False)
        dv = cupy.empty(x.shape, acc)
        of_v = taken | {"x": wide(v), "dy": wide(dy), "dx": dv}
        _of_norm(axes, of_v, settings, enqueue=enqueue)
        turn(dv, dx, cast="after", back=True)


def _of_norm(axes: int, taken: Arrays, settings: Mapping[str, Any], *, enqueue: bool) -> None:
    """Write the gradients of the norm of x. To rows, gammas that differ by head are a scale."""
    op = OPS["rms_norm_bwd"]
    arrays = dict.fromkeys(("gamma", "dgamma", "dresidual")) | taken
    gamma, total = arrays["gamma"], arrays["dgamma"]
    own = {**settings, "scale_offset": 1.0}
    if gamma is None or gamma.ndim == axes:
        planned.backward(op, arrays, axes, own, enqueue=enqueue)
        return
    own |= {"scale_offset": settings["gamma_offset"], "gamma_offset": 0.0}
    arrays |= {"gamma": None, "dgamma": None}
    made, _ = segmented.backward(op, arrays, axes, own, {"scale": gamma}, enqueue=enqueue)
    if total is not None and enqueue:
        total[...] = made["dscale"]
