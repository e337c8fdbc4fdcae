# mypy: disable-error-code="no-any-return"
"""What quantised results mean: the definition, in NumPy's float32 and the formats of ml_dtypes.

Every bit is defined, so that kernels are held to it without a tolerance: of y as a kernel rounded
it, codes and scales are these. NumPy's float32 is IEEE's, subnormal numbers included.
"""

from __future__ import annotations

from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from ._quant import CODES_OF_BYTE, LARGEST, Quant, buffer_shape, from_buffer, groups, padded_rows

Array = npt.NDArray[Any]

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
FORMATS = {
    "e4m3": E4M3,
    "e5m2": np.dtype(ml_dtypes.float8_e5m2),
    "e2m1": np.dtype(ml_dtypes.float4_e2m1fn),
}
NOT_A_NUMBER = {"e4m3": 0x7F, "e5m2": 0x7F, "e2m1": 7, "int8": 0}


def quantize(y: Array, quant: Quant) -> tuple[Array, Array]:
    """Return codes and scales of the rows of an array of float16, bfloat16 or float32."""
    codes, buffer = codes_and_buffer(y, quant)
    return codes, from_buffer(quant, buffer, y.shape[:-1])


def codes_and_buffer(y: Array, quant: Quant) -> tuple[Array, Array]:
    """Return the same with the whole memory of the scales, in C order: see `from_buffer`."""
    rows = prod(y.shape[:-1])
    of_row = groups(quant, y.shape[-1])
    with np.errstate(all="ignore"):
        data = y.astype(np.float32).reshape(rows, of_row, -1 if y.size else 0)
        stored, quotient = _scaled(data, quant)
        codes = _codes(quotient, quant).reshape(y.shape)
    if CODES_OF_BYTE[quant.format] == 2:
        codes = codes[..., ::2] | codes[..., 1::2] << 4
    if quant.static is not None:
        return codes, np.array(quant.static, np.float32)
    return codes, _laid_out(stored, quant, y.shape)


def dequantize(q: Array, scale: Array, quant: Quant, dtype: Any) -> Array:
    """Return the numbers that codes stand for, times their scales: in float32, then as `dtype`."""
    numbers = _numbers(q, quant)
    rows, of_row = prod(numbers.shape[:-1]), groups(quant, numbers.shape[-1])
    parts = numbers.reshape(rows, of_row, -1 if numbers.size else 0)
    with np.errstate(all="ignore"):
        factors = _factors(_gathered(scale, quant, rows, of_row), quant)
        made: Array = (parts * factors[..., None]).reshape(numbers.shape).astype(dtype)
    return made


def _scaled(data: Array, quant: Quant) -> tuple[Array, Array]:
    """Return scales as they are stored, and what is rounded to codes, of [row, group, column]."""
    if quant.static is not None:
        given = np.float32(quant.static)
        return given.reshape(1, 1), data / given
    largest = np.fmax.reduce(np.abs(data), axis=2, initial=np.float32(0), keepdims=True)
    largest = np.maximum(largest, np.float32(quant.floor))
    if quant.ceiling is not None:
        largest = np.minimum(largest, np.float32(quant.ceiling))
    ratio = largest / np.float32(LARGEST[quant.format])
    nothing = np.abs(data) * np.float32(0)  # of s = 0: +0, but NaN of what is not finite
    if quant.scale == "e8m0":
        bits = ratio.view(np.uint32)
        stored = ((bits >> 23) + (bits << 9 != 0)).astype(np.uint8)
        quotient = data / stored.view(E8M0).astype(np.float32)
    elif quant.scale == "e4m3":
        given = np.float32(quant.global_scale)
        s = np.minimum(ratio * given, np.float32(448)).astype(E4M3)
        stored, s = s.view(np.uint8), s.astype(np.float32)
        quotient = np.where(s == 0, nothing, data * (given / s))
    else:
        stored = np.maximum(ratio, np.float32(quant.minimum))
        quotient = np.where(stored == 0, nothing, data / stored)
    return stored[..., 0], quotient


def _codes(quotient: Array, quant: Quant) -> Array:
    most = np.float32(LARGEST[quant.format])
    clamped = np.clip(quotient, -most, most)
    is_number = ~np.isnan(quotient)
    if quant.format == "int8":
        return np.rint(np.where(is_number, clamped, 0)).astype(np.int8)
    codes = np.where(is_number, clamped, 0).astype(FORMATS[quant.format]).view(np.uint8)
    return np.where(is_number, codes, np.uint8(NOT_A_NUMBER[quant.format]))


def _laid_out(stored: Array, quant: Quant, shape: tuple[int, ...]) -> Array:
    """Return the memory of scales that are [row, group], with zeros where it is filled up."""
    if quant.layout == "rows":
        return stored.reshape(buffer_shape(quant, shape))
    rows, of_row = stored.shape
    more = -of_row % 4 if quant.layout != "columns" else 0
    padded = np.pad(stored, ((0, padded_rows(quant, rows) - rows), (0, more)))
    if quant.layout == "columns":
        return padded.T.copy()
    if quant.layout == "packed":
        return np.ascontiguousarray(padded).view("<u4").T.copy()
    tiles = padded.reshape(padded.shape[0] // 128, 4, 32, padded.shape[1] // 4, 4)
    return tiles.transpose(0, 3, 2, 1, 4).reshape(-1)


def _gathered(scale: Array, quant: Quant, rows: int, of_row: int) -> Array:
    """Return scales as [row, group]."""
    if quant.static is not None:
        return scale.reshape(1, 1)
    if quant.layout == "swizzled":
        words = -(-of_row // 4)
        tiles = scale.reshape(-(-rows // 128), words, 32, 4, 4).transpose(0, 3, 2, 1, 4)
        return tiles.reshape(tiles.shape[0] * 128, words * 4)[:rows, :of_row]
    table = scale.reshape(rows, scale.shape[-1])
    if quant.layout == "packed":
        return np.ascontiguousarray(table).view(np.uint8)[:, :of_row]
    return table


def _factors(stored: Array, quant: Quant) -> Array:
    if quant.scale == "float32":
        return stored
    if quant.scale == "e8m0":
        return np.ascontiguousarray(stored).view(E8M0).astype(np.float32)
    numbers = np.ascontiguousarray(stored).view(E4M3).astype(np.float32)
    return numbers / np.float32(quant.global_scale)


def _numbers(q: Array, quant: Quant) -> Array:
    if quant.format == "int8":
        return q.astype(np.float32)
    if CODES_OF_BYTE[quant.format] == 2:
        q = np.stack((q & 0xF, q >> 4), -1).reshape(*q.shape[:-1], -1 if q.size else 0)
    return q.view(FORMATS[quant.format]).astype(np.float32)
