"""From an op and the arrays of a call to its kernels: planned, built and launched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _plan
from .._launch import backward as of_backward
from .._launch import kernels
from .._launch import launches as of_forward

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

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
    plan = _plan.forward(
        op,
        of_forward.cols(arrays["x"], axes),
        dtypes_of(arrays, (*op.rows, *op.parameters, *op.operands)),
        kernels.arch(arrays["x"].device.id),
        **chosen_of(op, options),
    )
    numbers = {option.name: options[option.name] for option in op.options if option.number}
    paired = {output.name: output.like for output in op.writes}
    return of_forward.forward(plan, axes, arrays, paired, numbers, enqueue=enqueue)


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
    plan = _plan.backward(
        op,
        of_forward.cols(x, axes),
        dtypes_of(arrays, (*op.reads, *op.parameters)),
        kernels.arch(x.device.id),
        **chosen_of(op, options),
    )
    made = {name: arrays[name] for name in op.returns if arrays[name] is not None}
    partial = of_backward.partial(plan, x, made)
    launches = of_backward.backward(
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


def dtypes_of(arrays: Arrays, names: Iterable[str]) -> tuple[tuple[str, str], ...]:
    """Return the dtypes of the arrays that are there, by name."""
    given = ((name, arrays[name]) for name in names)
    return tuple((name, a.dtype.name) for name, a in given if a is not None)


def chosen_of(op: Op, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the kernel is compiled for, of the options."""
    return {o.name: o.compiled(options[o.name]) for o in op.options if o.compiled is not None}
