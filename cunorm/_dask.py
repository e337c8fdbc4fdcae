"""Dask arrays of CuPy chunks: norms of rows, lazily, chunk by chunk."""

from __future__ import annotations

import math
from collections.abc import Mapping
from reprlib import repr as abridged
from typing import Any

import cupy
import numpy as np

import cunorm

from . import _check


def lazy(op: str, arrays: Mapping[str, Any], options: tuple[object, ...]) -> Any:
    """Check everything that can be checked now, and return y as a dask array; launch nothing.

    Parameters
    ----------
    op : str
        "rms_norm" or "layer_norm".
    arrays : mapping
        The op's arrays by their names in the kernel: `x` is a dask array. `gamma` and `beta` are
        CuPy arrays, whose contents of now count, or dask arrays in one chunk, or None.
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
    parameters = {name: arrays[name] for name in ("gamma", "beta") if name in arrays}
    if arrays["y"] is not None:
        raise TypeError("out must be None where x is a dask array: y is made when it is computed")
    _of_cupy_chunks("x", x._meta)
    _check.rows("x", x)
    for name, value in parameters.items():
        if _check.is_dask(value):
            _of_cupy_chunks(name, value._meta)
            _in_one_chunk(name, value)
        elif value is not None:
            _check.array(name, value)
    _whole_rows(x, parameters)
    settings = _settings(op, options, x, parameters["gamma"])
    given = [None if p is None else _in_host_memory(p) for p in parameters.values()]
    of_chunk = {"rms_norm": rms_norm, "layer_norm": layer_norm}[op]
    meta = cupy.empty((0,) * x.ndim, x.dtype)
    return map_blocks(of_chunk, x, *given, dtype=x.dtype, meta=meta, **settings)  # type: ignore[no-untyped-call]


def _in_host_memory(parameter: Any) -> Any:
    """Return a parameter as it is to travel: to workers with any device, and as it is now.

    Workers hand each other NumPy arrays of every dtype, but CuPy arrays only where numba is
    installed, and those of bfloat16 without their dtype.
    """
    if _check.is_dask(parameter):
        meta = np.empty((0,) * parameter.ndim, parameter.dtype)
        return parameter.map_blocks(cupy.asnumpy, dtype=parameter.dtype, meta=meta)
    return parameter.get()


def rms_norm(x: Any, gamma: Any, **settings: Any) -> cupy.ndarray:
    """Return y of one chunk, on its device."""
    return cunorm.rms_norm(x, *_beside(x, gamma), **settings)


def layer_norm(x: Any, gamma: Any, beta: Any, **settings: Any) -> cupy.ndarray:
    """Return y of one chunk, on its device."""
    return cunorm.layer_norm(x, *_beside(x, gamma, beta), **settings)


def _beside(x: Any, *parameters: Any) -> list[Any]:
    """Return parameters on the device of x, wherever they are."""
    _of_cupy_chunks("x", x)
    with x.device:
        return [None if p is None else cupy.asarray(p) for p in parameters]


def _settings(op: str, options: tuple[Any, ...], x: Any, gamma: object) -> dict[str, Any]:
    eps, *others = options
    settings: dict[str, Any] = {"eps": _check.eps(eps, x)}
    if op == "rms_norm":
        gamma_offset, cast = others
        settings["gamma_offset"] = _check.gamma_offset(gamma_offset, gamma, x)
        _check.cast(cast)
        settings["cast"] = cast
    return settings


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
