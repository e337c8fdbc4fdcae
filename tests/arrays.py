"""Arrays for the tests: random inputs of every dtype, PyTorch's view of them, and comparisons."""

import ml_dtypes
import numpy as np
import torch

from cunorm._reference import DTYPES, Expected

NARROW = ["float16", "bfloat16", "float32"]
EVERY = [*NARROW, "float64"]


def each_size(sizes):
    """Return pairs of a dtype and a size: all sizes in two of the dtypes, every other in the rest.

    How a row is kept follows from N and the bytes of an element, a conversion from the dtype alone.
    """
    halves = {"bfloat16": sizes[::2], "float64": sizes[::2]}
    return [(dtype, cols) for dtype in EVERY for cols in halves.get(dtype, sizes)]


# Columns of float16 rows that no architecture can keep; the second row does not start on 16 bytes.
READ_TWICE = 1_300_005


def random(shape, dtype, *, seed=0, scale=1.0, shift=0.0):
    """Return normally distributed numbers, drawn in float64 and rounded to `dtype`."""
    rng = np.random.default_rng([seed, *np.atleast_1d(shape)])
    return (rng.standard_normal(shape) * scale + shift).astype(DTYPES[dtype])


def to_torch(array):
    """Return the array as a tensor over the same memory, bfloat16 included."""
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def to_numpy(tensor):
    """Return the tensor as an array over the same memory, bfloat16 included."""
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()


def bits(array):
    """Return the bytes of an array on the device or the host: equal where every bit is."""
    host = array.get() if hasattr(array, "get") else array
    return np.ascontiguousarray(host).tobytes()


def assert_matches(actual, expected: Expected):
    """Compare every element with the definition, within its own tolerance."""
    assert actual.shape == expected.value.shape
    assert actual.dtype == expected.dtype
    host = actual.get()
    off = ~expected.accepts(host)
    if off.any():
        first = tuple(np.argwhere(off)[0])
        raise AssertionError(
            f"{off.sum()} of {off.size} elements off, the worst by {expected.ulps(host).max():.3g} "
            f"ulps; the first at {first}: {host[first]!r}, not {expected.value[first]!r}"
        )
