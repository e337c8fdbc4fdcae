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
    _whole_rows(x, parameters)
    settings = _check.options(op, options, arrays)
    given = [None if p is None else _in_host_memory(p) for p in parameters.values()]
    y_dtype = settings.pop("dtype") or x.dtype
    del settings["count"]
    meta = cupy.empty((0,) * x.ndim, y_dtype)
    return map_blocks(  # type: ignore[no-untyped-call]
        *(_of_chunk, op.name, y_dtype, x, *given),
        token=op.name,
        dtype=y_dtype,
        meta=meta,
        **settings,
    )


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


def _whole_rows(x: Any, parameters: Mapping[str, Any]) -> None:
    """Refuse an x whose chunks cut a row, or whose number of columns nobody knows yet."""
    given = [p for p in parameters.values() if p is not None]
    reach = max((p.ndim for p in given), default=0)
    if any(math.isnan(n) for n in x.shape[x.ndim - reach :]):
        raise ValueError(
            "x must have chunks of known sizes along the axes of gamma and beta, but has chunks "
            f"{abridged(x.chunks)}: x.compute_chunk_sizes() finds them"
        )
    axes = _check.normalised_axes(x, **parameters)
    normalised = range(x.ndim - axes, x.ndim)
    cut = {axis: x.chunks[axis] for axis in normalised if x.numblocks[axis] > 1}
    if cut:
        raise ValueError(
            f"x must be in one chunk along each normalised axis, {list(normalised)}, but has "
            + " and ".join(
                f"chunks {abridged(sizes)} along axis {axis}" for axis, sizes in cut.items()
            )
            + f": x.rechunk({dict.fromkeys(cut, -1)}) makes it so"
        )
