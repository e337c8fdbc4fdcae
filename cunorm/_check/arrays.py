"""What an array must be: its type, dtype, shape and device."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import numpy as np

from .._families import LAZY, OPTIONAL, RESULTS
from .._plan import ITEMSIZE, accumulator
from .._words import either, type_name
from .described import Described

if TYPE_CHECKING:
    import cupy


def is_dask(value: object) -> bool:
    """Return whether a value is a dask array, without importing dask: who has one, imported it."""
    kind = getattr(sys.modules.get("dask.array"), "Array", ())
    return isinstance(value, kind)


def array(name: str, value: object, *, or_number: bool = False) -> None:
    """Refuse what is neither a CuPy array of whole elements nor the description of another.

    `or_number` is whether a number, which is none either, would have done.
    """
    if isinstance(value, Described):
        return
    import cupy

    if not isinstance(value, cupy.ndarray):
        may_be_none = name in OPTIONAL | RESULTS
        wanted = either(["cupy.ndarray", *["a number"] * or_number, *["None"] * may_be_none])
        hint = ""
        if isinstance(value, np.ndarray) and name in RESULTS:
            hint = (
                f"; results are on the device: leave {name} out, and cupy.asnumpy(result, "
                f"out={name}) copies one to the host"
            )
        elif isinstance(value, np.ndarray):
            hint = f"; cupy.asarray({name}) copies it to the device"
        elif is_dask(value):
            hint = f"; only {' and '.join(LAZY)} take dask arrays, and then x must be one"
        raise TypeError(f"{name} must be a {wanted}, but is a {type_name(value)}{hint}")
    steps = [step for step, extent in zip(value.strides, value.shape, strict=True) if extent > 1]
    if any(place % value.itemsize for place in (value.data.ptr, *steps)):
        raise ValueError(
            f"{name} must start at and step by multiples of its itemsize, {value.itemsize}, "
            f"but is at {value.data.ptr:#x} with strides {value.strides}"
        )


def data(name: str, value: Any) -> None:
    """Refuse what is not a CuPy array of one of the four dtypes with at least one axis."""
    array(name, value)
    rows(name, value)


def rows(name: str, value: Any) -> None:
    """Refuse an array that is not of one of the four dtypes, or that has no axis."""
    if value.dtype.name not in ITEMSIZE:
        raise TypeError(
            f"{name} must be float16, bfloat16, float32 or float64, but is {value.dtype.name}"
        )
    if value.ndim == 0:
        raise ValueError(f"{name} must have at least one axis, but is 0-dimensional")


def same_device(name: str, value: cupy.ndarray, like: cupy.ndarray, twin: str = "x") -> None:
    """Refuse an array that is not on the device of another."""
    if value.device.id != like.device.id:
        raise ValueError(
            f"{name} must be on the device of {twin}, {like.device.id}, but is on {value.device.id}"
        )


def parameter_dtype(name: str, value: Any, x: Any, of: str = "x") -> None:
    """Refuse a dtype that x, or what `of` names, is not computed with."""
    x_dtype = x.dtype.name
    allowed = ("float64", "float32") if x_dtype == "float64" else ("float16", "bfloat16", "float32")
    if value.dtype.name not in allowed:
        raise TypeError(
            f"{name} must be {either(allowed)} where {of} is {x_dtype}, but is {value.dtype.name}"
        )


def parameters(x: cupy.ndarray, **given: cupy.ndarray | None) -> int:
    """Check gamma and beta against x, and return how many trailing axes they normalise.

    As `normalised_axes`, of CuPy arrays on one device.
    """
    for name, value in given.items():
        if value is not None:
            array(name, value)
    axes = normalised_axes(x, **given)
    for name, value in given.items():
        if value is not None:
            same_device(name, value, x)
    return axes


def normalised_axes(x: Any, **given: Any) -> int:
    """Check dtypes and shapes of gamma and beta, and return how many axes of x they normalise.

    Parameters
    ----------
    x : array
        The data, checked already.
    **given : array or None
        The parameters by name. The first that is there says which axes.

    Returns
    -------
    int
        The number of normalised axes: that of the parameters, 1 where there are none.
    """
    axes = 0
    leader = ""
    for name, value in given.items():
        if value is None:
            continue
        parameter_dtype(name, value, x)
        if leader:
            if value.shape != given[leader].shape:
                raise ValueError(
                    f"{name} must have the shape of {leader}, {given[leader].shape}, "
                    f"but has {value.shape}"
                )
        elif value.ndim == 0 or value.shape != x.shape[-value.ndim :]:
            raise ValueError(
                f"{name} must have the shape of trailing axes of x, whose shape is {x.shape}, "
                f"but has {value.shape}"
            )
        else:
            axes, leader = value.ndim, name
    return axes or 1


def operand(name: str, value: Any, x: cupy.ndarray) -> None:
    """Refuse what does not broadcast against x, or has a dtype that x is not computed with."""
    array(name, value, or_number=True)
    parameter_dtype(name, value, x)
    trailing = x.shape[x.ndim - value.ndim :] if value.ndim <= x.ndim else None
    if trailing is None or any(
        own not in (1, extent) for own, extent in zip(value.shape, trailing, strict=True)
    ):
        raise ValueError(
            f"{name} must broadcast to the shape of x, {x.shape}, but has {value.shape}"
        )
    same_device(name, value, x)


def addend(name: str, value: Any, x: cupy.ndarray, twin: str = "x") -> None:
    """Refuse what cannot be added to x, or to what `twin` names."""
    data(name, value)
    x_dtype, dtype = x.dtype.name, value.dtype.name
    if (x_dtype == "float64") != (dtype == "float64"):
        allowed = "float64" if x_dtype == "float64" else "float16, bfloat16 or float32"
        raise TypeError(f"{name} must be {allowed} where {twin} is {x_dtype}, but is {dtype}")
    if value.shape != x.shape:
        raise ValueError(f"{name} must have the shape of {twin}, {x.shape}, but has {value.shape}")
    same_device(name, value, x, twin)


def like_x(name: str, value: Any, x: cupy.ndarray, twin: str = "x") -> None:
    """Refuse a gradient that has not the dtype, shape and device of x, or of what `twin` names."""
    array(name, value)
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have the dtype of {twin}, {x.dtype.name}, but has {value.dtype.name}"
        )
    if value.shape != x.shape:
        raise ValueError(f"{name} must have the shape of {twin}, {x.shape}, but has {value.shape}")
    same_device(name, value, x, twin)


def statistic(name: str, value: Any, x: cupy.ndarray, shape: tuple[int, ...]) -> None:
    """Refuse a mean or rstd that is not one number a row, as the forward op returns it."""
    array(name, value)
    dtype = accumulator(x.dtype.name)
    if value.dtype.name != dtype:
        raise TypeError(
            f"{name} must be {dtype} where x is {x.dtype.name}, but is {value.dtype.name}"
        )
    if value.shape != shape:
        raise ValueError(f"{name} must have one number a row, {shape}, but has {value.shape}")
    same_device(name, value, x)
