"""From an op and the arrays of a call to its kernels: planned, built and launched.

The one place that knows which plan, and which launch, serves an op.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _plan
from .._launch import backward as launch_backward
from .._launch import kernels
from .._launch import launches as launch_forward

if TYPE_CHECKING:
    from collections.abc import Mapping

    import cupy

    from .._families import Op
    from .._launch.launches import Launch
    from .._typing import Arrays


def forward(
    op: Op, arrays: Arrays, axes: int, options: Mapping[str, Any], *, enqueue: bool
) -> tuple[Launch, ...]:
    """Enqueue the kernel of a forward op on the current stream.

    Parameters
    ----------
    op : Op
        The op.
    arrays : mapping of str to cupy.ndarray or None
        All of its arrays by their names in the kernel, with those that it writes.
    axes : int
        How many trailing axes are a row.
    options : mapping of str to object
        The options by name, as the checks return them.
    enqueue : bool
        Whether the kernel is to run, and not only to be built.

    Returns
    -------
    tuple of Launch
        What may be launched again for the next arrays of the same kind.
    """
    x = arrays["x"]
    chosen = _chosen(op, options)
    if "cast" in chosen:
        chosen["cast_before"] = chosen.pop("cast") == "before"
    residual = arrays["residual"] if "residual" in op.reads else None
    plan = getattr(_plan, f"{op.family.name}_fwd")(
        launch_forward.cols(x, axes),
        x.dtype.name,
        *(launch_forward.dtype_name(arrays[name]) for name in op.parameters),
        arch=kernels.arch(x.device.id),
        residual=launch_forward.dtype_name(residual),
        **chosen,
    )
    return launch_forward.forward(
        plan,
        axes,
        {output.name: arrays[output.name] for output in op.writes},
        {name: arrays[name] for name in op.family.saves},
        {name: arrays[name] for name in op.reads},
        {name: arrays[name] for name in op.parameters},
        {option.name: options[option.name] for option in op.options if option.number},
        enqueue=enqueue,
    )


def backward(
    op: Op, arrays: Arrays, axes: int, options: Mapping[str, Any], *, enqueue: bool
) -> tuple[cupy.ndarray | None, tuple[Launch, ...]]:
    """Enqueue the kernels of a backward op: as `forward`.

    Returns
    -------
    partial : cupy.ndarray or None
        The array that was made for the sums of columns of each block.
    launches : tuple of Launch
        As of `forward`.
    """
    x = arrays["x"]
    (weight,) = op.parameters
    plan = getattr(_plan, op.name)(
        launch_forward.cols(x, axes),
        x.dtype.name,
        launch_forward.dtype_name(arrays[weight]),
        dresidual=arrays["dresidual"] is not None,
        arch=kernels.arch(x.device.id),
        **_chosen(op, options),
    )
    made = {name: arrays[name] for name in op.returns if arrays[name] is not None}
    partial = launch_backward.partial(plan, x, made)
    launches = launch_backward.backward(
        plan,
        axes,
        made,
        partial,
        {name: arrays[name] for name in op.reads if arrays[name] is not None},
        arrays[weight],
        {name: arrays[name] for name in op.family.saves},
        options.get("gamma_offset", 0.0),
        enqueue=enqueue,
    )
    return partial, launches


def _chosen(op: Op, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the kernel is compiled for, of the options."""
    return {o.name: o.compiled(options[o.name]) for o in op.options if o.compiled is not None}
