"""Heads that are normalised and rotated: the bits of the norm and of NumPy's operators."""

import cupy
import numpy as np
import pytest
import torch
import torch_bridge
from arrays import assert_matches, bits, random, to_numpy, to_torch
from kinds import covering, these
from test_modulated import operate

import cunorm
from cunorm import _reference, simgpu
from cunorm._call import remembered
from cunorm._reference import DTYPES
from cunorm._selfcheck.layouts import GUARD, around, place

PAIRS = [
    *(("bfloat16", "bfloat16"), ("bfloat16", "float32"), ("float16", "float16")),
    *(("float16", "bfloat16"), ("float32", "float32"), ("float32", "bfloat16")),
    *(("float64", "float64"), ("float64", "float32")),
]
TOKENS, TABLE = (2, 3), 11  # rows of a table, more than there are tokens
INTEGERS = ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"]


def tables(shape, dtype, seed=7):
    """Return cosines and sines of random angles."""
    angles = np.random.default_rng(seed).uniform(-4, 4, shape)
    return np.cos(angles).astype(DTYPES[dtype]), np.sin(angles).astype(DTYPES[dtype])


def rotated(n, cos, sin, interleaved, rounds=True):
    """Return n with its first columns rotated, each operator's result rounded; or none of them."""
    act = operate if rounds else (lambda operator, a, b: operator(a, b))
    cos, sin = (a if rounds else a.astype(n.dtype) for a in (cos, sin))
    count = 2 * cos.shape[-1]
    pairs = (slice(0, count, 2), slice(1, count, 2))
    if not interleaved:
        pairs = (slice(0, count // 2), slice(count // 2, count))
    a, b = (n[..., pair] for pair in pairs)
    first = act(np.subtract, act(np.multiply, a, cos), act(np.multiply, b, sin))
    second = act(np.add, act(np.multiply, b, cos), act(np.multiply, a, sin))
    y = n.astype(first.dtype)
    y[..., pairs[0]], y[..., pairs[1]] = first, second
    return y


def normalised(x, gamma, across, once):
    """Return the norm of heads, in x's dtype; `once`: with no rounding, in the accumulator's."""
    rows = x.reshape(*x.shape[:-2], -1) if across else x
    if not once:
        if gamma is None or gamma.ndim == 1:
            n = cunorm.rms_norm(cupy.asarray(rows), gamma if gamma is None else cupy.asarray(gamma))
        else:
            n = cunorm.rms_norm(cupy.asarray(rows), scale=cupy.asarray(gamma), scale_offset=0.0)
        return n.get().reshape(x.shape)
    wide = np.float64 if x.dtype == np.float64 else np.float32
    rstd = cunorm.rms_norm_fwd(cupy.asarray(rows))[1].get()[..., None]
    n = rows.astype(wide) * rstd
    return (n if gamma is None else n * gamma.astype(wide)).reshape(x.shape)


def composed(x, gamma, cos, sin, *, interleaved=False, first=True, across=False, once=False):
    """Return the parts of an op one after the other; cos and sin have a row for each token."""
    angles = (cos[..., None, :], sin[..., None, :])
    if first:
        y = rotated(normalised(x, gamma, across, once), *angles, interleaved, not once)
    else:
        wide = np.float64 if x.dtype == np.float64 else np.float32
        v = rotated(x.astype(wide) if once else x, *angles, interleaved, not once)
        y = normalised(v, gamma, across, once)
    return y.astype(x.dtype)


def laid_out(a, layout):
    """Return heads on the device: packed with others, with tokens innermost, off 16 bytes."""
    if layout == "a slice of a projection":
        packed = np.zeros((*a.shape[:-2], 2 * a.shape[-2] + 1, a.shape[-1]), a.dtype)
        packed[..., 1 : a.shape[-2] + 1, :] = a
        return cupy.asarray(packed)[..., 1 : a.shape[-2] + 1, :]
    if layout == "heads before tokens":
        return cupy.asarray(np.ascontiguousarray(a.swapaxes(-2, -3))).swapaxes(-2, -3)
    return place(a, layout)[1]


ROPE = {
    "cols": [64, 80, 96, 128, 192, 256, 512],
    "share": [1, 2, 4],  # of the columns, one in so many is rotated
    "interleaved": [False, True],
    "dtypes": PAIRS,
    "positions": [None, "a row a token", *INTEGERS],
    "layout": ["contiguous", "a slice of a projection", "heads before tokens", "base + 1 element"],
    "first": [True, False],
    "heads": ["each", "a weight each", "across", "no weight"],
    "once": [False, True],
}
# Rows that are no whole packets, or whose halves are none; 770 of 16 bits compile in up to 7 s.
ODD = {"cols": [2, 6, 34, 66, 100, 130, 258, 770]}


def always():
    """Yield points of which each pair occurs, but for those that take seconds."""
    yield from covering((ROPE | {"positions": ROPE["positions"][:4]}).values(), "heads")
    narrow = {"cols": [6, 34, 100, 130], "layout": ROPE["layout"][:3], "positions": [None, "int64"]}
    yield from covering((ROPE | narrow).values(), "odd heads")
    yield 770, 1, False, PAIRS[4], "int16", "contiguous", True, "each", False


@these(
    ",".join(ROPE),
    list(always()),
    list(covering((ROPE | {"cols": ROPE["cols"] + ODD["cols"]}).values(), "all heads")),
    "every integer, and rows that start anywhere, which compile in up to 7 s",
)
def test_rotated_heads_have_the_bits_of_their_parts(
    cols, share, interleaved, dtypes, positions, layout, first, heads, once
):
    dtype, of_angles = dtypes
    x = random((*TOKENS, 3, cols), dtype, scale=2)
    across = heads == "across"
    weights = {"each": (cols,), "a weight each": (3, cols), "across": (3 * cols,), "no weight": None}
    shape = weights[heads]
    gamma = None if shape is None else random(shape, dtype, seed=3, scale=0.3, shift=1)
    pairs = max(1, cols // 2 // share)
    given = {}
    if positions == "a row a token":
        cos, sin = of_token = tables((*TOKENS, pairs), of_angles)
    else:
        cos, sin = tables((TABLE, pairs), of_angles)
        rows = np.arange(3)
        if positions is not None:
            rows = np.random.default_rng(0).integers(0, TABLE, TOKENS).astype(positions)
            given["positions"] = cupy.asarray(rows)
        of_token = cos[rows], sin[rows]
    options = {"interleaved": interleaved, "across": across, "first": first, "once": once}
    expected = composed(x, gamma, *of_token, **options)
    y = cunorm.rms_norm_rope(
        laid_out(x, layout),
        None if gamma is None else cupy.asarray(gamma),
        *map(cupy.asarray, (cos, sin)),
        **given,
        interleaved=interleaved,
        norm_first=first,
        across_heads=across,
        cast="after" if once else "before",
    )
    assert y.dtype == x.dtype
    assert bits(y) == bits(expected)
