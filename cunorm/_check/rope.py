"""What heads, their angles and positions must be."""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from .._plan import ITEMSIZE, accumulator
from .arrays import array, data, like_x, parameter_dtype, same_device, statistic
from .memory import written
from .options import options

if TYPE_CHECKING:
    import cupy

    from .._families import Op
    from .._typing import Arrays

# Of a head, for it to stay in the registers of a block.
MOST_BYTES = 32 << 10


def rope(op: Op, arrays: Arrays, values: tuple[object, ...]) -> dict[str, Any]:
    """Check all that an op on heads is given, and return its options by name."""
    leader = arrays[op.leader]
    settings: dict[str, Any] = {}
    for name, gamma in zip(op.reads, op.parameters, strict=True):
        x = arrays[name]
        _heads(name, x)
        if name != op.leader:
            _beside(name, x, op.leader, leader)
        settings = options(op, values, {"x": x, "gamma": arrays[gamma]})
        if arrays[gamma] is not None:
            _gamma(gamma, arrays[gamma], name, x, settings["across_heads"])
        _tables(arrays, name, x)
    _angles(arrays, op.leader, leader)
    _outputs(op, arrays)
    return settings


def rope_backward(op: Op, arrays: Arrays, values: tuple[object, ...]) -> dict[str, Any]:
    """Check all that a backward op on heads is given, and return its options by name."""
    x, gamma = arrays["x"], arrays["gamma"]
    _heads("x", x)
    like_x("dy", arrays["dy"], x)
    settings = options(op, values, arrays)
    across_heads = settings["across_heads"]
    if gamma is not None:
        _gamma("gamma", gamma, "x", x, across_heads)
    _tables(arrays, "x", x)
    _angles(arrays, "x", x)
    statistic("rstd", arrays["rstd"], x, x.shape[: -2 if across_heads else -1])
    return settings


def _tables(arrays: Arrays, name: str, x: cupy.ndarray) -> None:
    """Refuse tables that are no arrays, or not such as rotate heads of x's dtype."""
    for table in ("cos", "sin"):
        array(table, arrays[table])
        parameter_dtype(table, arrays[table], x, name)
        same_device(table, arrays[table], x, name)


def _angles(arrays: Arrays, name: str, x: cupy.ndarray) -> None:
    """Refuse tables and positions that do not go together, or with the tokens of x."""
    cos, positions = arrays["cos"], arrays["positions"]
    _sin(arrays["sin"], cos)
    _columns(cos, name, x)
    if positions is None:
        _rows(cos, name, x)
    else:
        _positions(positions, cos, name, x)


def _heads(name: str, x: Any) -> None:
    data(name, x)
    if x.ndim < 2:
        raise ValueError(
            f"{name} must have an axis of heads and one of their columns, but has shape {x.shape}"
        )
    if x.shape[-1] % 2:
        raise ValueError(f"{name} must have an even number of columns, but has {x.shape[-1]}")
    if x.shape[-1] * ITEMSIZE[accumulator(x.dtype.name)] > MOST_BYTES:
        raise ValueError(
            f"{name} must have heads of at most {MOST_BYTES >> 10} KiB in "
            f"{accumulator(x.dtype.name)}, but has {x.shape[-1]} columns"
        )


def _beside(name: str, k: cupy.ndarray, leader: str, q: cupy.ndarray) -> None:
    """Refuse heads that are not of the same tokens, or have another number of columns."""
    if (*k.shape[:-2], k.shape[-1]) != (*q.shape[:-2], q.shape[-1]):
        raise ValueError(
            f"{name} must have the shape of {leader}, {q.shape}, but for the number of heads, "
            f"but has {k.shape}"
        )
    same_device(name, k, q, leader)


def _gamma(name: str, gamma: Any, of: str, x: cupy.ndarray, across_heads: bool) -> None:
    array(name, gamma)
    parameter_dtype(name, gamma, x, of)
    heads, cols = x.shape[-2:]
    if across_heads:
        if gamma.shape != (heads * cols,):
            raise ValueError(
                f"{name} must have the columns of all heads of {of}, ({heads * cols},), where "
                f"across_heads is True, but has shape {gamma.shape}"
            )
    elif gamma.shape not in ((cols,), (heads, cols)):
        raise ValueError(
            f"{name} must have the columns of {of}, ({cols},), or those of each head, "
            f"({heads}, {cols}), but has shape {gamma.shape}"
        )
    same_device(name, gamma, x, of)


def _sin(sin: cupy.ndarray, cos: cupy.ndarray) -> None:
    if sin.dtype != cos.dtype:
        raise TypeError(
            f"sin must have the dtype of cos, {cos.dtype.name}, but has {sin.dtype.name}"
        )
    if sin.shape != cos.shape:
        raise ValueError(f"sin must have the shape of cos, {cos.shape}, but has {sin.shape}")


def _columns(cos: cupy.ndarray, name: str, x: cupy.ndarray) -> None:
    """Refuse tables of more columns than there are pairs in a head."""
    pairs = x.shape[-1] // 2
    cols = cos.shape[-1] if cos.ndim else 0
    if not 1 <= cols <= pairs:
        raise ValueError(
            f"cos must have a column for each pair that is rotated, from 1 to {pairs} where "
            f"{name} has {x.shape[-1]} columns, but has shape {cos.shape}"
        )


def _rows(cos: cupy.ndarray, name: str, x: cupy.ndarray) -> None:
    """Refuse tables that have no row for each token."""
    tokens = x.shape[:-2]
    if cos.ndim == 2:
        count = tokens[-1] if tokens else 1
        if cos.shape[0] < count:
            raise ValueError(
                f"cos must have a row for each of {count} tokens where positions is None, but has "
                f"shape {cos.shape}"
            )
        if cos.shape[0] == prod(tokens) != count:
            raise ValueError(
                f"cos must have rows for {count} positions, or be of shape "
                f"{(*tokens, cos.shape[1])} with one for each token, where positions is None, but "
                f"{cos.shape} may mean either: give positions, or cos[:{count}]"
            )
    elif not _broadcasts(cos.shape[:-1], tokens):
        raise ValueError(
            f"cos must be a table of rows, or have one for each token of {name}, "
            f"{(*tokens, cos.shape[-1])}, but has shape {cos.shape}"
        )


def _positions(positions: Any, cos: cupy.ndarray, name: str, x: cupy.ndarray) -> None:
    array("positions", positions)
    if positions.dtype.kind not in "iu":
        raise TypeError(f"positions must be of integers, but is {positions.dtype.name}")
    tokens = x.shape[:-2]
    if not _broadcasts(positions.shape, tokens):
        raise ValueError(
            f"positions must broadcast to the tokens of {name}, {tokens}, but has shape "
            f"{positions.shape}"
        )
    if cos.ndim != 2 or (cos.shape[0] == 0 and positions.size):
        raise ValueError(
            "cos must be a table of a row for each position where positions are given, but has "
            f"shape {cos.shape}"
        )
    same_device("positions", positions, x, name)


def _broadcasts(shape: tuple[int, ...], to: tuple[int, ...]) -> bool:
    try:
        return np.broadcast_shapes(shape, to) == to
    except ValueError:
        return False


def _outputs(op: Op, arrays: Arrays) -> None:
    """Refuse results that are given and cannot be written, or not without harm: see `written`."""
    beside = {name: arrays[name] for name in (*op.parameters, "cos", "sin", "positions")}
    for index, output in enumerate(op.writes):
        given, like = arrays[output.name], arrays[output.like]
        if given is None:
            continue
        others = {name: arrays[name] for name in op.reads if name != output.like}
        others |= {other.argument: arrays[other.name] for other in op.writes[index + 1 :]}
        written(output.argument, given, output.like, like, like.dtype, **others, **beside)
