"""Dask arrays of CuPy chunks: norms of rows, lazily, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import repr as abridged
from typing import Any

import cupy
import numpy as np

import cunorm

from .. import _check
from .._families import Op
from .._plan import accumulator
from .._typing import Arrays


def lazy(op: Op, arrays: Arrays, options: tuple[object, ...]) -> Any:
    """Check everything that can be checked now, and return y as a dask array; launch nothing.

    Parameters
    ----------
    op : Op
        One of those that are `_families.LAZY`.
    arrays : mapping
        The op's arrays by their names in the kernel: `x` is a dask array. Parameters are CuPy
        arrays, whose contents of now count, or dask arrays in one chunk, or None.
    options : tuple
        The op's options, in its order.

    Returns
    -------
    dask.array.Array
        Of x's shape, chunks, dtype and chunk type.

    Raises
    ------
    TypeError, ValueError
        As the op on CuPy arrays; also where chunks are not CuPy arrays or cut a row.
    """
    from dask.array import map_blocks

    x = arrays["x"]
    parameters = {name: arrays[name] for name in op.parameters}
    if arrays["y"] is not None:
        raise TypeError("out must be None where x is a dask array: y is made when it is computed")
    for name in (*op.operands, *op.sums):
        if arrays[name] is not None:
            raise TypeError(
                f"{name} must be None where x is a dask array: dask's own operators do the same"
            )
    _of_cupy_chunks("x", x._meta)
    _check.rows("x", x)
    for name, value in parameters.items():
        if _check.is_dask(value):
            _of_cupy_chunks(name, value._meta)
            _in_one_chunk(name, value)
        elif value is not None:
            _check.array(name, value)
    cut = _cut_axes(x, parameters)
    settings = _check.options(op, options, arrays)
    given = [None if p is None else _in_host_memory(p) for p in parameters.values()]
    y_dtype = settings.pop("dtype") or x.dtype
    del settings["count"]
    meta = cupy.empty((0,) * x.ndim, y_dtype)
    if cut:
        return _of_parts(op, x, given, settings, meta)
    return map_blocks(  # type: ignore[no-untyped-call]
        *(_of_chunk, op.name, y_dtype, x, *given),
        token=op.name,
        dtype=y_dtype,
        meta=meta,
        **settings,
    )


def _of_parts(
    op: Op, x: Any, parameters: list[Any], settings: Mapping[str, Any], meta: cupy.ndarray
) -> Any:
    """Return y of rows whose columns several chunks have: by the sums of all of them."""
    from dask.array import asarray, map_blocks

    (kind,) = op.sums
    sizes = x.chunks[-1]
    lead = x.chunks[:-1]
    dtype = accumulator(x.dtype.name)
    of_part = {"dtype": dtype, "meta": cupy.empty((0,) * (x.ndim + 1), dtype)}
    ones, two = (1,) * len(sizes), (2,)
    sums = map_blocks(  # type: ignore[no-untyped-call]
        *(_sums_of_part, x),
        kind=kind,
        chunks=(*lead, ones, two),
        new_axis=x.ndim,
        **of_part,
    )
    sums = map_blocks(  # type: ignore[no-untyped-call]
        *(_sums_of_parts, sums.rechunk({x.ndim - 1: -1})),
        kind=kind,
        counts=sizes,
        chunks=(*lead, (1,), two),
        **of_part,
    )
    columns = [None if p is None else asarray(p).rechunk((sizes,)) for p in parameters]  # type: ignore[no-untyped-call]
    return map_blocks(  # type: ignore[no-untyped-call]
        *(_of_part, op.name, meta.dtype, kind, sum(sizes), x, sums[..., 0], sums[..., 1], *columns),
        token=op.name,
        dtype=meta.dtype,
        meta=meta,
        **settings,
    )


def _sums_of_part(x: Any, kind: Any) -> cupy.ndarray:
    """Return two numbers for each row of a chunk: moments, or squares and nothing."""
    _of_cupy_chunks("x", x)
    sums = cunorm.row_sums(x, kind=kind)
    if kind == "squares":
        sums = cupy.stack((sums, cupy.zeros_like(sums)), -1)
    return sums[..., None, :]


def _sums_of_parts(sums: Any, kind: str, counts: tuple[int, ...]) -> cupy.ndarray:
    """Return those of the rows of all chunks."""
    with sums.device:
        if kind == "squares":
            return sums.sum(-2, keepdims=True)
        return cunorm.combine_moments(cupy.moveaxis(sums, -2, 0), counts)[..., None, :]


def _of_part(
    op: str,
    y_dtype: Any,
    kind: str,
    count: int,
    x: Any,
    first: Any,
    second: Any,
    *parameters: Any,
    **settings: Any,
) -> cupy.ndarray:
    """Return y of one chunk of columns, on its device."""
    first, second, *columns = _beside(x, first, second, *parameters)
    with x.device:
        sums = first[..., 0] if kind == "squares" else cupy.concatenate((first, second), -1)
    given = {kind: sums, "count": count}
    return getattr(cunorm, op)(x, *columns, dtype=y_dtype, **given, **settings)


def _in_host_memory(parameter: Any) -> Any:
    """Return a parameter as it is to travel: to workers with any device, and as it is now.

    Workers hand each other NumPy arrays of every dtype, but CuPy arrays only where numba is
    installed, and those of bfloat16 without their dtype.
    """
    if _check.is_dask(parameter):
        meta = np.empty((0,) * parameter.ndim, parameter.dtype)
        return parameter.map_blocks(cupy.asnumpy, dtype=parameter.dtype, meta=meta)
    return parameter.get()


def _of_chunk(op: str, y_dtype: Any, x: Any, *parameters: Any, **settings: Any) -> cupy.ndarray:
    """Return y of one chunk, on its device."""
    return getattr(cunorm, op)(x, *_beside(x, *parameters), dtype=y_dtype, **settings)


def _beside(x: Any, *parameters: Any) -> list[Any]:
    """Return parameters on the device of x, wherever they are."""
    _of_cupy_chunks("x", x)
    with x.device:
        return [None if p is None else cupy.asarray(p) for p in parameters]


def _of_cupy_chunks(name: str, chunk: object) -> None:
    if not isinstance(chunk, cupy.ndarray):
        raise TypeError(
            f"{name} must have chunks of cupy.ndarray, but has chunks of "
            f"{_check.type_name(chunk)}: {name}.map_blocks(cupy.asarray) moves them"
        )


def _in_one_chunk(name: str, value: Any) -> None:
    if math.prod(value.numblocks) != 1:
        raise ValueError(
            f"{name} must be in one chunk, but has chunks {abridged(value.chunks)}: "
            f"{name}.rechunk(-1) makes it so"
        )


def _cut_axes(x: Any, parameters: Mapping[str, Any]) -> bool:
    """Return whether chunks cut rows; refuse those that cut them along one of several axes.

    And refuse an x whose number of columns nobody knows yet.
    """
    given = [p for p in parameters.values() if p is not None]
    reach = max((p.ndim for p in given), default=int(x.numblocks[-1] > 1))
    if any(math.isnan(n) for n in x.shape[x.ndim - reach :]):
        along = "the axes of gamma and beta" if given else "the axis that they cut"
        raise ValueError(
            f"x must have chunks of known sizes along {along}, but has chunks "
            f"{abridged(x.chunks)}: x.compute_chunk_sizes() finds them"
        )
    axes = _check.normalised_axes(x, **parameters)
    normalised = range(x.ndim - axes, x.ndim)
    cut = {axis: x.chunks[axis] for axis in normalised if x.numblocks[axis] > 1}
    if cut and axes > 1:
        raise ValueError(
            f"x must be in one chunk along each normalised axis, {list(normalised)}, but has "
            + " and ".join(
                f"chunks {abridged(sizes)} along axis {axis}" for axis, sizes in cut.items()
            )
            + f": x.rechunk({dict.fromkeys(cut, -1)}) makes it so"
        )
    return bool(cut)
