"""Whether a result may be written where it is asked for: what its memory shares with others'."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from .._launch.levels import steps_on_itself
from .arrays import array, rows, same_device

if TYPE_CHECKING:
    from collections.abc import Mapping

    import cupy


def written(
    name: str,
    value: Any,
    twin: str,
    like: cupy.ndarray,
    dtype: np.dtype[Any] | None,
    **others: cupy.ndarray | None,
) -> None:
    """Refuse an array that cannot hold a result, or whose memory is not its own or its twin's.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave.
    twin : str
        The name of the input of the same shape that it may overwrite where the dtype is the same.
    like : cupy.ndarray
        That input. The result may be the same memory laid out the same, and no other overlap.
    dtype : dtype or None
        What it must have; None for any of the four.
    **others : cupy.ndarray or None
        The other arrays that the kernel reads or writes, by name.
    """
    for argument, memory in {name: value, **others}.items():
        if memory is not None:
            array(argument, memory)
    of_shape_and_dtype(name, value, twin, like, dtype)
    not_on_itself(name, value)
    is_same = value.dtype == like.dtype and _is_same(value, like)
    if not is_same and _overlap(value, like):
        raise ValueError(
            f"{name} must be {twin} itself or not overlap it, but shares part of its memory: "
            f"{name} is at {value.data.ptr:#x} with strides {value.strides}, "
            f"{twin} at {like.data.ptr:#x} with strides {like.strides}"
        )
    apart(name, value, others)


def of_shape_and_dtype(name: str, value: Any, twin: str, like: Any, dtype: Any) -> None:
    """Refuse an array that cannot hold a result, wherever it lies: see `written`."""
    if dtype is None:
        rows(name, value)
    elif value.dtype != dtype:
        of = f"of {twin}" if dtype == like.dtype else "that is asked for"
        raise TypeError(
            f"{name} must have the dtype {of}, {dtype.name}, but has {value.dtype.name}"
        )
    if value.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {twin}, {like.shape}, but has {value.shape}"
        )
    same_device(name, value, like, twin)


def not_on_itself(name: str, value: cupy.ndarray) -> None:
    """Refuse an array of which two elements may be one."""
    if steps_on_itself(value.shape, tuple(s // value.itemsize for s in value.strides)):
        raise ValueError(
            f"{name} must not overlap itself, but has strides {value.strides} "
            f"for shape {value.shape}"
        )


def apart(name: str, value: cupy.ndarray, others: Mapping[str, cupy.ndarray | None]) -> None:
    """Refuse an array that shares memory with another one."""
    for other, memory in others.items():
        if memory is not None and _overlap(value, memory):
            raise ValueError(
                f"{name} must not overlap {other}, but shares memory with it: "
                f"{name} is at {value.data.ptr:#x}, {other} at {memory.data.ptr:#x}"
            )


def sums_out(value: Any, x: cupy.ndarray, shape: tuple[int, ...], dtype: str) -> None:
    """Refuse an array that sums over rows cannot be written to as they come."""
    array("out", value)
    if value.dtype.name != dtype:
        raise TypeError(f"out must be {dtype} where x is {x.dtype.name}, but is {value.dtype.name}")
    if value.shape != shape:
        raise ValueError(f"out must have the shape {shape}, but has {value.shape}")
    same_device("out", value, x)
    if not value.flags.c_contiguous:
        raise ValueError(f"out must be C-contiguous, but has strides {value.strides}")
    if _overlap(value, x):
        raise ValueError("out must not overlap x, but shares memory with it")


def laid_out_alike(a: cupy.ndarray, b: cupy.ndarray) -> bool:
    """Return whether arrays of one shape step alike; an axis of one element has no step."""
    axes = zip(a.shape, a.strides, b.strides, strict=True)
    return all(extent == 1 or step == other for extent, step, other in axes)


def _is_same(a: cupy.ndarray, b: cupy.ndarray) -> bool:
    return bool(a.data.ptr == b.data.ptr) and laid_out_alike(a, b)


class _Addresses:
    """What NumPy needs to compare where two arrays lie; it never touches the memory."""

    def __init__(self, a: cupy.ndarray) -> None:
        self.__array_interface__ = {
            "version": 3,
            "shape": a.shape,
            "typestr": f"|V{a.itemsize}",
            "data": (a.data.ptr, False),
            "strides": a.strides,
        }


def _overlap(a: cupy.ndarray, b: cupy.ndarray) -> bool:
    # NumPy compares element by element: interleaved views, like the two halves of each row of a
    # packed buffer, overlap in their bounds only. CuPy would compare allocations, and memory that
    # another library lent may be in two of them.
    return np.shares_memory(np.asarray(_Addresses(a)), np.asarray(_Addresses(b)))
