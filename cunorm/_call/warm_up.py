"""Kernels built ahead of the calls that need them.

What a call needs follows from the shapes, strides, dtypes, alignment and device of its arrays. So
an op's own way is gone here, from its checks to its built kernels, with arrays that have all of
that but no memory, and nothing is launched.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import prod
from numbers import Integral
from typing import Any

import cupy
import numpy as np
from cupy.cuda import runtime

from .. import _check
from .._families import ALL_OPS, BETA, QUANTISED, ROPE_OPS, Input, Op
from .._launch import kernels
from .._plan import accumulator
from .._typing import Arrays
from . import backward, forward, quantised, rope, rope_backward

# What CuPy's own allocations start on.
ALIGNMENT = 512


def warm_up(
    op: str,
    shapes: Iterable[Sequence[int]],
    dtypes: Iterable[Any],
    *,
    residual: Any = "x",
    gamma: Any = "x",
    beta: Any = "x",
    gate: Any = "x",
    cos: Any = "x",
    positions: Any = None,
    dresidual: bool = False,
    devices: Iterable[int] | None = None,
    **options: Any,
) -> None:
    """Build the kernels of calls to come, so that none of those waits for a compiler.

    For each of `shapes` with each of `dtypes` on each of `devices`, the kernels of `op` are
    compiled, or read from CuPy's disk cache, and loaded. Nothing is launched, and no array is made.

    Parameters
    ----------
    op : str
        The name of an op of `cunorm`: "rms_norm", "layer_norm_bwd", ... An op, its ``*_fwd`` form
        and that of `cunorm.torch` share their kernels.
    shapes : iterable of tuple of int
        Shapes of x; normalised axes count as one. The length of rows makes a kernel, or two: one
        for as many rows as the device has multiprocessors, and one for more. Both are built,
        whichever the shape is of. Where a row of some array is no multiple of 16 bytes, a single
        row has a kernel of its own, too, which is built if the shape is of one. Of `rms_norm_rope`
        and `qk_norm_rope`, shapes of x and of q, (..., H, d), all of whose columns are rotated; k
        has as many heads. A single token or head has a kernel of its own there, too.
    dtypes : iterable of dtype
        Dtypes of x, by name, or NumPy's or PyTorch's.
    residual, gamma, beta, gate, cos : dtype or None
        What the calls have these in, where `op` takes them: x's dtype, which is "x", if left out;
        None for no such array. A `gamma2`, q_gamma and k_gamma have gamma's, sin cos's; a sum h
        and its gradients have residual's. The gate of a backward op has one row.
    positions : dtype, optional
        That of positions; None if the calls have none.
    dresidual : bool
        Whether the calls have a `dresidual`.
    devices : iterable of int, optional
        Ids of devices; the current one if left out.
    **options
        What else the calls are given by name: ``cast="after"``, ``sums=False``, `quant`. Each
        `gamma_offset` that is not 0 has the same kernels, and so have schemes of other numbers.

    Raises
    ------
    TypeError
        For an argument of the wrong type or dtype, or one that `op` does not take.
    ValueError
        For a wrong name, shape or device.

    See Also
    --------
    rms_norm : An op whose kernels are compiled at its first call, as those of all.

    Notes
    -----
    Arrays are taken as they come from an allocator: C-contiguous, on 16 bytes. Which memory they
    are, x's own for `out` say, makes no difference. Of rows laid out otherwise, like heads of a
    packed projection, or beside operands that broadcast, call the op itself once, on as few of them
    as show the layout.

    Examples
    --------
    >>> import cunorm
    >>> cunorm.warm_up("add_rms_norm", [(1, 4096)], ["float16", "bfloat16"], gamma="float32")
    """
    if op not in ALL_OPS:
        raise ValueError(f"op must be one of {', '.join(sorted(ALL_OPS))}, but is {op!r}")
    parts = {"residual": residual, "gamma": gamma, "beta": beta, "gate": gate, "cos": cos}
    others = [name for name, value in parts.items() if value != "x"]
    others += ["dresidual"] * dresidual + ["positions"] * (positions is not None)
    _refuse_what_is_not_taken(ALL_OPS[op], others, options)
    extents = [_shape(shape) for shape in _several("shapes", shapes)]
    names = [_check.dtype(dtype, "dtypes").name for dtype in _several("dtypes", dtypes)]
    described = {
        name: value if value is None or value == "x" else _check.dtype(value, name).name
        for name, value in parts.items()
    }
    described["gamma2"] = described["gamma"]
    described["dresidual"] = "x" if dresidual else None
    described["positions"] = None if positions is None else _integers(positions)
    for device in _devices(devices):
        with cupy.cuda.Device(device), cupy.cuda.using_allocator(Addresses(device)):
            for shape in extents:
                for x in names:
                    if op in ROPE_OPS:
                        _build_heads(ALL_OPS[op], shape, x, described, options)
                        continue
                    for rows in _few_and_many(shape, device):
                        _build(ALL_OPS[op], rows, x, described, options)


def _few_and_many(shape: tuple[int, ...], device: int) -> tuple[tuple[int, ...], ...]:
    """Return a shape, and those of few and of many rows like it, if it has any."""
    if 0 in shape:
        return (shape,)
    several = 2  # one row alone is aligned however long it is
    rows = (several, kernels.device(device).multiprocessors + several)
    return (shape, *((count, *shape[-1:]) for count in rows))


def _build(
    op: Op,
    shape: tuple[int, ...],
    x: str,
    described: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> None:
    """Build the kernels of one call on the current device, whose allocator gives no memory."""
    if 0 in shape:
        return  # Such a call launches nothing.
    arrays: Arrays = {output.name: None for output in op.writes}
    if op.leader == "h":
        of_sum = ("dy", "h", *(() if described["dresidual"] is None else ("dresidual",)))
        described = {**described, **dict.fromkeys(of_sum, described["residual"])}
    for argument in op.arguments:
        if isinstance(argument, Input):
            name = argument.name
            dtype = accumulator(x) if name in op.family.saves else described.get(name, "x")
            beside = name in (*op.operands, *op.sums) or (argument is BETA and op.operands)
            if beside and argument.optional:
                dtype = None  # operands, and what their gradients alone need
            extent = _extent(op, name, shape)
            own = x if dtype == "x" else dtype
            arrays[name] = None if own is None else cupy.empty(extent, own)
    of_forward = quantised.work if op.name in QUANTISED else forward.work
    work = backward.work if op.is_backward else of_forward
    values = tuple(options.get(option.name, option.default) for option in op.options)
    work(op, arrays, values, enqueue=False)


def _build_heads(
    op: Op,
    shape: tuple[int, ...],
    x: str,
    described: Mapping[str, str | None],
    options: Mapping[str, Any],
) -> None:
    """Build the kernels of one call on heads, as `_build` does others'."""
    if 0 in shape:
        return
    tokens, heads, cols = shape[:-2], shape[-2:-1], shape[-1:]
    of_gamma, rows = (cols, (*tokens, *heads))
    if options.get("across_heads"):
        of_gamma, rows = ((prod(heads + cols),), tokens)
    table = (*(tokens[-1:] or (1,)), max(1, cols[0] // 2))
    extents = {"gamma": of_gamma, "cos": table, "positions": tokens}
    extents |= dict.fromkeys(op.family.saves, rows)
    described = {**described, **dict.fromkeys(op.family.saves, accumulator(x))}
    arrays: Arrays = {output.name: None for output in op.writes}
    for argument in op.arguments:
        if isinstance(argument, Input):
            name = argument.name
            of = "gamma" if name in op.parameters else "cos" if name == "sin" else name
            dtype = described.get(of, "x")
            own = x if dtype == "x" else dtype
            arrays[name] = None if own is None else cupy.empty(extents.get(of, shape), own)
    values = tuple(options.get(option.name, option.default) for option in op.options)
    (rope_backward if op.is_backward else rope).work(op, arrays, values, enqueue=False)


def _extent(op: Op, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape of an array beside x: of rows, of one row, or of one number a row."""
    if name in (*op.parameters, BETA.name, *op.operands):
        return shape[-1:]
    return shape[:-1] if name in op.family.saves else shape


class Addresses:
    """Gives CuPy addresses of a device where it asks for memory: what is there is not touched."""

    def __init__(self, device: int) -> None:
        self._device = device
        self._next = ALIGNMENT

    def __call__(self, nbytes: int) -> cupy.cuda.MemoryPointer:
        """Allocate, as CuPy asks an allocator to."""
        memory = cupy.cuda.UnownedMemory(self._next, nbytes, None, self._device)
        self._next += -(-nbytes // ALIGNMENT) * ALIGNMENT
        return cupy.cuda.MemoryPointer(memory, 0)


def _refuse_what_is_not_taken(op: Op, given: Iterable[str], options: Iterable[str]) -> None:
    taken = {option.name for option in op.options}
    names = {*op.names, *(("gamma",) if op.parameters else ())}
    names |= {"residual"} if op.leader == "h" else set()  # whose dtype a sum has
    for name in (*(n for n in given if n not in names), *(n for n in options if n not in taken)):
        raise TypeError(f"{name} must be left out where op is {op.name}, which does not take it")


def _several(name: str, values: Any) -> list[Any]:
    if isinstance(values, (str, type)) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a sequence of {name}, but is {values!r}")
    return list(values)


def _integers(positions: Any) -> str:
    """Return the name of a dtype of integers, given by its name, as NumPy's or as PyTorch's."""
    name = str(positions)
    try:
        dtype = np.dtype(name.removeprefix("torch.") if name.startswith("torch.") else positions)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iu":
        raise TypeError(f"positions must be a dtype of integers or None, but is {positions!r}")
    return dtype.name


def _shape(shape: Any) -> tuple[int, ...]:
    if not isinstance(shape, Sequence) or not all(isinstance(n, Integral) for n in shape):
        raise TypeError(f"shapes must be of tuples of int, but has {shape!r}")
    if not shape or min(shape) < 0:
        raise ValueError(f"shapes must be of one axis or more, none negative, but has {shape!r}")
    return tuple(int(n) for n in shape)


def _devices(devices: Iterable[int] | None) -> list[int]:
    if devices is None:
        return [runtime.getDevice()]
    ids, count = _several("devices", devices), runtime.getDeviceCount()
    for device in ids:
        if not isinstance(device, Integral):
            raise TypeError(
                f"devices must be of ids of devices, but has a {_check.type_name(device)}"
            )
        if not 0 <= int(device) < count:
            raise ValueError(f"devices must be of ids from 0 to {count - 1}, but has {device}")
    return [int(device) for device in ids]
