"""Every check of an argument, and every message that a user can get.

Types and dtypes raise TypeError; shapes, layouts and values raise ValueError. A message names the
argument, what it must be and what it was. All checks come before anything is written.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from numbers import Real
from typing import TYPE_CHECKING, Any

import numpy as np

from ._described import Described
from ._families import ARGUMENTS, LAZY, OPTIONAL, Op
from ._plan import ITEMSIZE, accumulator
from ._rows import steps_on_itself

if TYPE_CHECKING:
    import cupy

    from ._typing import Arrays

CASTS = ("before", "after")
RESULTS = tuple(ARGUMENTS.values())  # that a user may give


def type_name(value: object) -> str:
    """Return the name of a value's type, with its module unless that is builtins."""
    kind = type(value)
    return (
        kind.__qualname__
        if kind.__module__ == "builtins"
        else f"{kind.__module__}.{kind.__qualname__}"
    )


def is_dask(value: object) -> bool:
    """Return whether a value is a dask array, without importing dask: who has one, imported it."""
    kind = getattr(sys.modules.get("dask.array"), "Array", ())
    return isinstance(value, kind)


def array(name: str, value: object) -> None:
    """Refuse what is neither a CuPy array of whole elements nor the description of another."""
    if isinstance(value, Described):
        return
    import cupy

    if not isinstance(value, cupy.ndarray):
        wanted = "cupy.ndarray or None" if name in (*OPTIONAL, *RESULTS) else "cupy.ndarray"
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


def _same_device(name: str, value: cupy.ndarray, like: cupy.ndarray, twin: str = "x") -> None:
    if value.device.id != like.device.id:
        raise ValueError(
            f"{name} must be on the device of {twin}, {like.device.id}, but is on {value.device.id}"
        )


def _parameter_dtype(name: str, value: Any, x: Any) -> None:
    x_dtype = x.dtype.name
    allowed = ("float64", "float32") if x_dtype == "float64" else ("float16", "bfloat16", "float32")
    if value.dtype.name not in allowed:
        raise TypeError(
            f"{name} must be {', '.join(allowed[:-1])} or {allowed[-1]} where x is {x_dtype}, "
            f"but is {value.dtype.name}"
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
            _same_device(name, value, x)
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
        _parameter_dtype(name, value, x)
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


def real(name: str, value: object) -> float:
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a real number, but is a {type_name(value)}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{name} must be finite, but is too large for a float") from None


def eps(value: object, x: Any, name: str = "eps") -> float:
    """Refuse an eps that is not a finite number from 0 up, in the precision it is added in."""
    number = real(name, value)
    if not 0 <= number <= _largest(x):
        raise ValueError(
            f"{name} must be finite and not negative in {accumulator(x.dtype.name)}, but is {value}"
        )
    return number


def _gamma_offset(name: str, value: object, arrays: Arrays) -> float:
    """Refuse an offset that is not finite as it is added, or that has no gamma to be added to."""
    number, x = real(name, value), arrays["x"]
    if not abs(number) <= _largest(x):
        raise ValueError(f"{name} must be finite in {accumulator(x.dtype.name)}, but is {value}")
    if arrays["gamma"] is None and number != 0:
        raise ValueError(f"{name} must be 0 where gamma is None, but is {value}")
    return number


def _largest(x: Any) -> float:
    """Return the largest number in which rows of x are computed."""
    return float(np.finfo(accumulator(x.dtype.name)).max)


def cast(value: object, name: str = "cast") -> str:
    """Refuse a cast that is neither of its two words."""
    if not isinstance(value, str):
        raise TypeError(f"{name} must be 'before' or 'after', but is a {type_name(value)}")
    if value not in CASTS:
        raise ValueError(f"{name} must be 'before' or 'after', but is {value!r}")
    return value


# By `Option.check`: from an option's name, its value and the arrays of a call to the value as a
# kernel takes it.
OPTIONS: dict[str, Callable[[str, Any, Arrays], Any]] = {
    "eps": lambda name, value, arrays: eps(value, arrays["x"], name),
    "gamma_offset": _gamma_offset,
    "cast": lambda name, value, _arrays: cast(value, name),
    "sums": lambda _name, value, _arrays: bool(value),
}


def options(op: Op, values: tuple[object, ...], arrays: Arrays) -> dict[str, Any]:
    """Check the options of a call, and return them by name."""
    given = zip(op.options, values, strict=True)
    return {o.name: OPTIONS[o.check](o.name, value, arrays) for o, value in given}


def _addend(name: str, value: Any, x: cupy.ndarray) -> None:
    """Refuse what cannot be added to x."""
    data(name, value)
    x_dtype, dtype = x.dtype.name, value.dtype.name
    if (x_dtype == "float64") != (dtype == "float64"):
        allowed = "float64" if x_dtype == "float64" else "float16, bfloat16 or float32"
        raise TypeError(f"{name} must be {allowed} where x is {x_dtype}, but is {dtype}")
    if value.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, but has {value.shape}")
    _same_device(name, value, x)


def like_x(name: str, value: Any, x: cupy.ndarray) -> None:
    """Refuse a gradient that has not x's dtype, shape and device."""
    array(name, value)
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have the dtype of x, {x.dtype.name}, but has {value.dtype.name}"
        )
    if value.shape != x.shape:
        raise ValueError(f"{name} must have the shape of x, {x.shape}, but has {value.shape}")
    _same_device(name, value, x)


def statistic(name: str, value: Any, x: cupy.ndarray, axes: int) -> None:
    """Refuse a mean or rstd that is not one number a row, as the forward op returns it."""
    array(name, value)
    dtype, shape = accumulator(x.dtype.name), x.shape[: x.ndim - axes]
    if value.dtype.name != dtype:
        raise TypeError(
            f"{name} must be {dtype} where x is {x.dtype.name}, but is {value.dtype.name}"
        )
    if value.shape != shape:
        raise ValueError(f"{name} must have one number a row, {shape}, but has {value.shape}")
    _same_device(name, value, x)


def forward(op: Op, arrays: Arrays, values: tuple[object, ...]) -> tuple[int, dict[str, Any]]:
    """Check what a forward op reads, and return how many axes are normalised, and the options."""
    x = arrays["x"]
    data("x", x)
    for name in op.reads[1:]:
        _addend(name, arrays[name], x)
    axes = parameters(x, **{name: arrays[name] for name in op.parameters})
    return axes, options(op, values, arrays)


def backward(op: Op, arrays: Arrays, values: tuple[object, ...]) -> tuple[int, dict[str, Any]]:
    """Check what a backward op reads, and return how many axes are normalised, and the options."""
    x = arrays["x"]
    data("x", x)
    like_x("dy", arrays["dy"], x)
    axes = parameters(x, **{name: arrays[name] for name in op.parameters})
    for name in op.family.saves:
        statistic(name, arrays[name], x, axes)
    settings = options(op, values, arrays)
    if arrays["dresidual"] is not None:
        like_x("dresidual", arrays["dresidual"], x)
    return axes, settings


def outputs(op: Op, arrays: Arrays) -> None:
    """Refuse results that are given and cannot be written, or not without harm: see `written`."""
    parameters = {name: arrays[name] for name in op.parameters}
    for index, output in enumerate(op.writes):
        others = {name: arrays[name] for name in op.reads if name != output.like}
        others |= {other.argument: arrays[other.name] for other in op.writes[index + 1 :]}
        given, like = arrays[output.name], arrays[output.like]
        written(output.argument, given, output.like, like, **others, **parameters)


def written(
    name: str, value: Any, twin: str, like: cupy.ndarray, **others: cupy.ndarray | None
) -> None:
    """Refuse an array that cannot hold a result, or whose memory is not its own or its twin's.

    Parameters
    ----------
    name : str
        The argument's name.
    value : object
        What the user gave; None is fine.
    twin : str
        The name of the input of the same shape and dtype that it may overwrite.
    like : cupy.ndarray
        That input. The result may be the same memory laid out the same, and no other overlap.
    **others : cupy.ndarray or None
        The other arrays that the kernel reads or writes, by name.
    """
    if value is None:
        return
    for argument, memory in {name: value, **others}.items():
        if memory is not None:
            array(argument, memory)
    if value.dtype != like.dtype:
        raise TypeError(
            f"{name} must have the dtype of {twin}, {like.dtype.name}, but has {value.dtype.name}"
        )
    if value.shape != like.shape:
        raise ValueError(
            f"{name} must have the shape of {twin}, {like.shape}, but has {value.shape}"
        )
    _same_device(name, value, like, twin)
    if steps_on_itself(value.shape, tuple(s // value.itemsize for s in value.strides)):
        raise ValueError(
            f"{name} must not overlap itself, but has strides {value.strides} "
            f"for shape {value.shape}"
        )
    if not _is_same(value, like) and _overlap(value, like):
        raise ValueError(
            f"{name} must be {twin} itself or not overlap it, but shares part of its memory: "
            f"{name} is at {value.data.ptr:#x} with strides {value.strides}, "
            f"{twin} at {like.data.ptr:#x} with strides {like.strides}"
        )
    for other, memory in others.items():
        if memory is not None and _overlap(value, memory):
            raise ValueError(
                f"{name} must not overlap {other}, but shares memory with it: "
                f"{name} is at {value.data.ptr:#x}, {other} at {memory.data.ptr:#x}"
            )


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
