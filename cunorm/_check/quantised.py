"""What ops that return codes are given, and where codes and scales may be written."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from .._quant import (
    CODES_OF_BYTE,
    Quant,
    buffer_shape,
    codes_dtype,
    codes_shape,
    scales_dtype,
    scales_shape,
    strides,
)
from .arrays import array, same_device
from .memory import apart, laid_out_alike, not_on_itself, written

if TYPE_CHECKING:
    import cupy

    from .._families import Op
    from .._typing import Arrays

WORD_BYTES = 4  # by which scales of several groups are filled up


def rows(name: str, x: Any, quant: Quant) -> None:
    """Refuse rows that cannot be quantised so; `x` is checked already."""
    if x.dtype.name == "float64":
        raise TypeError(f"{name} must be float16, bfloat16 or float32 with quant, but is float64")
    # A packet has up to 8 columns: codes that share a byte come from one.
    cols, group = x.shape[-1], quant.group or (8 if CODES_OF_BYTE[quant.format] > 1 else 1)
    if cols % group:
        of = f"group={group}" if quant.group else f"format={quant.format!r}"
        raise ValueError(
            f"{name} must have a multiple of {group} columns with {of}, but has {cols}"
        )


def one_axis(arrays: Arrays, parameters: tuple[str, ...]) -> None:
    """Refuse parameters of several axes: a scale is for columns of the last one."""
    for name in parameters:
        a = arrays[name]
        if a is not None and a.ndim != 1:
            raise ValueError(f"{name} must have one axis with quant, but has {a.ndim}")


def outputs(op: Op, arrays: Arrays, quant: Quant, x: cupy.ndarray) -> None:
    """Refuse results that are given and cannot be written, or not without harm."""
    called = {output.name: output.argument for output in op.writes}
    for name, argument in called.items():
        if arrays[name] is not None:
            array(argument, arrays[name])
    q, scales = arrays["q"], arrays["scales"]
    memory = {called.get(name, name): arrays[name] for name in op.slots}
    if q is not None:
        _codes(q, quant, x)
        apart("out", q, _without(memory, "out"))
    if scales is not None:
        _scales(scales, quant, x)
        whole = memory["scale_out"] = buffer(scales, quant, x.shape)
        apart("scale_out", whole, _without(memory, "scale_out"))
    for output in op.writes:
        value, like = arrays[output.name], arrays[output.like]
        if value is not None and output.name not in ("q", "scales"):
            others = _without(memory, output.argument, output.like)
            written(output.argument, value, output.like, like, like.dtype, **others)


def codes_and_scales(q: Any, scale: Any, quant: Quant) -> tuple[int, ...]:
    """Check what is to become numbers, and return their shape."""
    array("q", q)
    array("scale", scale)
    if q.ndim == 0:
        raise ValueError("q must have at least one axis, but is 0-dimensional")
    shape = (*q.shape[:-1], int(q.shape[-1]) * CODES_OF_BYTE[quant.format])
    _is("q", q, codes_dtype(quant), q.shape)
    if shape[-1] % (quant.group or 1):
        raise ValueError(
            f"q must have codes of a multiple of {quant.group} columns with group={quant.group}, "
            f"but has those of {shape[-1]}"
        )
    _is("scale", scale, scales_dtype(quant), scales_shape(quant, shape))
    same_device("scale", scale, q, "q")
    return shape


def buffer(scales: cupy.ndarray, quant: Quant, shape: tuple[int, ...]) -> cupy.ndarray:
    """Return the memory that scales are written to, with what fills it up."""
    import cupy

    return cupy.ndarray(buffer_shape(quant, shape), scales.dtype, scales.data)


def _without(memory: Arrays, *names: str) -> Arrays:
    return {name: a for name, a in memory.items() if name not in names}


def _codes(q: cupy.ndarray, quant: Quant, x: cupy.ndarray) -> None:
    _is("out", q, codes_dtype(quant), codes_shape(quant, x.shape))
    same_device("out", q, x)
    not_on_itself("out", q)


def _scales(scales: cupy.ndarray, quant: Quant, x: cupy.ndarray) -> None:
    shape = scales_shape(quant, x.shape)
    _is("scale_out", scales, scales_dtype(quant), shape)
    same_device("scale_out", scales, x)
    steps = tuple(step * scales.itemsize for step in strides(quant, x.shape))
    if scales.size and not laid_out_alike(scales, _Steps(steps)):
        raise ValueError(
            f"scale_out must have strides {steps} where layout is {quant.layout!r}, "
            f"but has {scales.strides}"
        )
    if quant.layout == "swizzled" and scales.data.ptr % WORD_BYTES:
        raise ValueError(
            f"scale_out must start on {WORD_BYTES} bytes where layout is 'swizzled', "
            f"but is at {scales.data.ptr:#x}"
        )
    if quant.layout in ("columns", "packed"):
        _has_room(scales, quant, x.shape)


def _has_room(scales: cupy.ndarray, quant: Quant, shape: tuple[int, ...]) -> None:
    """Refuse scales whose last column cannot be filled up, past what the array shows."""
    needed = prod(buffer_shape(quant, shape)) * scales.itemsize
    room = scales.data.mem.ptr + scales.data.mem.size - scales.data.ptr
    if room < needed:
        raise ValueError(
            f"scale_out must have room for {needed} bytes, with the rows that fill up its last "
            f"column, but its memory ends after {room}"
        )


class _Steps:
    """What an array of some strides is compared with."""

    def __init__(self, strides: tuple[int, ...]) -> None:
        self.strides = strides


def _is(name: str, value: Any, dtype: str, shape: tuple[int, ...]) -> None:
    if value.dtype.name != dtype:
        raise TypeError(f"{name} must be {dtype} with this quant, but is {value.dtype.name}")
    if value.shape != shape:
        raise ValueError(f"{name} must have shape {shape} with this quant, but has {value.shape}")
