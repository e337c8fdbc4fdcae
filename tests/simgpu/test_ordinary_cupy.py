"""A page of ordinary CuPy: array calls as a user writes them, each with NumPy's answer.

The data are chosen so that most answers are exact: their floats are quarters below 8, which float32
adds and multiplies without rounding, in any order. Nothing here needs the software GPU.
"""

import cupy
import numpy as np
import pytest

RANDOM = np.random.default_rng(0)


def quarters(*shape, dtype=np.float32):
    return (RANDOM.integers(-31, 32, shape) / 4).astype(dtype)


X = quarters(7, 11)
Y = quarters(3, 4, 5, dtype=np.float64)
Z = quarters(8, 16, dtype=np.float64)  # its means have no remainder
V = quarters(37)
A, B = RANDOM.integers(-50, 50, (2, 6, 9)).astype(np.int32)
MASK = RANDOM.random((5, 8)) > 0.5
HOLES = X.copy()
HOLES[::2, ::3] = np.nan
C = (quarters(5, 6) + 1j * quarters(5, 6)).astype(np.complex64)
WIDE = quarters(600, 300)


def changed(m, array, change):
    """Return a copy of an array on which `change` was called."""
    own = m.array(array)
    change(own)
    return own


# In each, `m` is the module (NumPy or CuPy) and `a` brings a host array to it.
REDUCTIONS = {
    "sum": lambda m, a: a(X).sum(),
    "sum over two axes, kept": lambda m, a: a(Y).sum(axis=(0, 2), keepdims=True),
    "sum of many": lambda m, a: a(WIDE).sum(),
    "sum of columns": lambda m, a: a(WIDE).sum(axis=0),
    "sum of rows": lambda m, a: a(WIDE).sum(axis=1),
    "sum into float64": lambda m, a: a(X).sum(axis=0, dtype=np.float64),
    "sum of bytes": lambda m, a: a(A).astype(np.int8).sum(),
    "sum of halves": lambda m, a: a(X).astype(np.float16).sum(axis=1),
    "sum of complex": lambda m, a: a(C).sum(axis=0),
    "sum of nothing": lambda m, a: a(X)[:, :0].sum(axis=1),
    "prod": lambda m, a: (a(A)[:3] % 5 + 1).prod(axis=0),
    "mean": lambda m, a: a(Z).mean(axis=0),
    "var": lambda m, a: a(Z).var(),
    "var of rows": lambda m, a: a(Z).var(axis=-1),
    "max": lambda m, a: a(Y).max(axis=-1),
    "min": lambda m, a: a(WIDE).min(axis=0),
    "max with a NaN": lambda m, a: a(HOLES).max(axis=0),
    "ptp": lambda m, a: m.ptp(a(Y), axis=-1),
    "argmax": lambda m, a: a(Y).argmax(),
    "argmax of columns": lambda m, a: a(WIDE).argmax(axis=0),
    "argmin of the middle axis": lambda m, a: a(Y).argmin(axis=1),
    "any": lambda m, a: a(MASK).any(axis=0),
    "all": lambda m, a: a(MASK).all(axis=1, keepdims=True),
    "count_nonzero": lambda m, a: m.count_nonzero(a(MASK), axis=0),
    "nansum": lambda m, a: m.nansum(a(HOLES), axis=0),
    "nanprod": lambda m, a: m.nanprod(m.sign(a(HOLES)), axis=1),
    "nanmax": lambda m, a: m.nanmax(a(HOLES), axis=0),
    "nanargmin": lambda m, a: m.nanargmin(a(HOLES)[1:], axis=0),
    "trace": lambda m, a: m.trace(a(A)),
    "vdot": lambda m, a: m.vdot(a(X), a(X)),
    "tensordot over everything": lambda m, a: m.tensordot(a(X), a(X), 2),
}

CHOOSING = {
    "where": lambda m, a: m.where(a(MASK), 1.5, -2),
    "where, positions": lambda m, a: m.where(a(MASK))[1],
    "argwhere": lambda m, a: m.argwhere(a(X) > 2),
    "nonzero": lambda m, a: m.nonzero(a(A) % 3)[0],
    "take": lambda m, a: m.take(a(X), m.asarray([3, -1, 0]), axis=1),
    "take_along_axis": lambda m, a: m.take_along_axis(a(X), a(np.arange(7)[:, None]), axis=1),
    "put": lambda m, a: changed(m, X, lambda x: m.put(x, m.asarray([3, -1]), m.asarray([5.0, 6]))),
    "putmask": lambda m, a: changed(m, X, lambda x: m.putmask(x, x > 0, -x)),
    "place": lambda m, a: changed(m, X, lambda x: m.place(x, x > 0, a(V)[:3])),
    "copyto": lambda m, a: changed(m, X, lambda x: m.copyto(x, m.float32(5), where=x > 0)),
    "fill_diagonal": lambda m, a: changed(m, X, lambda x: m.fill_diagonal(x, 5)),
    "choose": lambda m, a: m.choose(m.asarray([2, 0, 1]), a(Y)[:, 0, :3]),
    "clip": lambda m, a: m.clip(a(X), -1, 2.5),
    "select": lambda m, a: m.select([a(X) > 1, a(X) > 0], [a(X), -a(X)], 7),
    "piecewise": lambda m, a: m.piecewise(a(X), [a(X) > 1, a(X) < 0], [1, 2, 3]),
    "compress": lambda m, a: m.compress(a(MASK)[:, 0], a(MASK), axis=0),
    "extract": lambda m, a: m.extract(a(X) > 0, a(X)),
    "one element": lambda m, a: a(X)[3, -2],
    "a slice with steps": lambda m, a: a(X)[::-2, 1::3],
    "an ellipsis and a new axis": lambda m, a: a(Y)[..., None, ::2],
    "rows by number": lambda m, a: a(X)[m.asarray([1, 5, -1])],
    "pairs of numbers": lambda m, a: a(X)[m.asarray([[1], [5]]), m.asarray([2, 3])],
    "numbers between slices": lambda m, a: a(Y)[:, m.asarray([1, 2, 0]), 1:3],
    "elements by mask": lambda m, a: a(X)[a(X) > 1],
    "rows by mask": lambda m, a: a(MASK)[a(MASK)[:, 0]],
    "set a slice": lambda m, a: changed(m, X, lambda x: x.__setitem__((slice(1, 3), 2), 9)),
    "set rows": lambda m, a: changed(m, X, lambda x: x.__setitem__(m.asarray([1, 5]), a(X)[:2])),
    "set by mask": lambda m, a: changed(m, X, lambda x: x.__setitem__(x > 0, -x[x > 0])),
    "add.at": lambda m, a: changed(m, A[0], lambda x: m.add.at(x, m.asarray([1, 1, 2]), 5)),
    "maximum.at": lambda m, a: changed(
        m, X[0], lambda x: m.maximum.at(x, m.asarray([1, 1, 2]), a(V)[:3])
    ),
    "put_along_axis": lambda m, a: changed(
        m, X, lambda x: m.put_along_axis(x, a(np.arange(7)[:, None]), 9, axis=1)
    ),
}

SHAPES = {
    "concatenate": lambda m, a: m.concatenate([a(X), a(X) * 2], axis=1),
    "concatenate two dtypes": lambda m, a: m.concatenate([a(A), a(X)[:6, :9]]),
    "stack": lambda m, a: m.stack([a(X), -a(X)], axis=1),
    "dstack": lambda m, a: m.dstack([a(X), -a(X)]),
    "tile": lambda m, a: m.tile(a(X), (2, 3)),
    "repeat": lambda m, a: m.repeat(a(X), 3, axis=1),
    "repeat, each its number": lambda m, a: m.repeat(a(X), [1, 0, 2, 3, 1, 1, 1], axis=0),
    "roll": lambda m, a: m.roll(a(X), (3, -2), axis=(0, 1)),
    "flip": lambda m, a: m.flip(a(Y), axis=(0, 2)) + 0,
    "rot90": lambda m, a: m.rot90(a(X)).copy(),
    "transpose": lambda m, a: a(Y).transpose(2, 0, 1).copy(),
    "Fortran order": lambda m, a: m.array(a(X), order="F") * 2,
    "reshape a transpose": lambda m, a: a(X).T.reshape(7, 11),
    "broadcast": lambda m, a: a(Y)[:, :1] + a(Y)[1, 2] * a(Y)[:, :, :1],
    "broadcast_to": lambda m, a: m.broadcast_to(a(V), (3, 37)) - 1,
    "pad": lambda m, a: m.pad(a(X), ((1, 2), (3, 0)), mode="constant", constant_values=4),
    "pad by reflection": lambda m, a: m.pad(a(X), 2, mode="reflect"),
    "diff": lambda m, a: m.diff(a(A), n=2, axis=1),
    "meshgrid": lambda m, a: m.meshgrid(m.arange(3), m.arange(4))[1],
    "tril": lambda m, a: m.tril(a(X), -1),
    "triu": lambda m, a: m.triu(a(X), 2),
    "tri": lambda m, a: m.tri(4, 5, 1),
    "tril_indices": lambda m, a: a(X)[m.tril_indices(7)],
    "eye": lambda m, a: m.eye(4, 5, 1),
    "diag": lambda m, a: m.diag(a(V), 1),
    "diagonal": lambda m, a: m.diagonal(a(X), 1) * 2,
    "arange": lambda m, a: m.arange(10, 0, -3),
    "linspace": lambda m, a: m.linspace(0, 2, 17),
    "indices": lambda m, a: m.indices((3, 4)),
    "full_like": lambda m, a: m.full_like(a(X), 2.5, dtype=np.int16),
    "split": lambda m, a: m.split(a(A), 3, axis=1)[1] * 2,
    "append": lambda m, a: m.append(a(X), a(V)),
    "delete": lambda m, a: m.delete(a(X), [1, 2], axis=0),
    "view of the bits": lambda m, a: a(X).view(np.int32) ^ 1,
    "bytes": lambda m, a: (m.abs(a(X)) * 30).astype(np.uint8),
    "packbits": lambda m, a: m.packbits(a(MASK)),
    "unpackbits": lambda m, a: m.unpackbits(m.arange(9, dtype=np.uint8)),
    "einsum, transposed": lambda m, a: m.einsum("ijk->kij", a(Y)),
    "einsum, a diagonal": lambda m, a: m.einsum("ii->i", a(X)[:, :7]),
    "einsum, row sums": lambda m, a: m.einsum("ij->i", a(X)),
    "einsum, outer": lambda m, a: m.einsum("i,j->ij", a(V), a(V)),
    "einsum, elementwise": lambda m, a: m.einsum("ij,ij->ij", a(X), a(X)),
    "outer": lambda m, a: m.outer(a(V), a(V)),
    "kron": lambda m, a: m.kron(a(A)[:2, :2], a(B)[:2, :3]),
    "cross": lambda m, a: m.cross(a(Y)[0, :, :3], a(Y)[1, :, :3]),
    "a matrix product of integers": lambda m, a: a(A) @ a(B).T,
    "convolve integers": lambda m, a: m.convolve(a(A)[0], a(B)[0, :4]),
}

SCANS = {
    "cumsum": lambda m, a: m.cumsum(a(V)),
    "cumsum of many": lambda m, a: m.cumsum(a(WIDE)),
    "cumsum of rows": lambda m, a: m.cumsum(a(X), axis=1),
    "cumsum of columns": lambda m, a: m.cumsum(a(X), axis=0),
    "cumprod": lambda m, a: m.cumprod(m.sign(a(V)) * 2),
    "nancumsum": lambda m, a: m.nancumsum(a(HOLES)),
    "searchsorted": lambda m, a: m.searchsorted(a(np.sort(V)), a(X)),
    "searchsorted from the right": lambda m, a: m.searchsorted(a(np.sort(V)), a(V), side="right"),
    "digitize": lambda m, a: m.digitize(a(X), m.asarray([-1.0, 0, 1])),
    "bincount": lambda m, a: m.bincount(a(A).ravel() + 50),
    "bincount with weights": lambda m, a: m.bincount(a(A).ravel() + 50, weights=a(B).ravel() / 4),
    "histogram": lambda m, a: m.histogram(a(X), bins=7)[0],
    "histogram in two dimensions": lambda m, a: m.histogram2d(a(X)[0], a(X)[1], bins=4)[0],
    "nan_to_num": lambda m, a: m.nan_to_num(a(HOLES)),
    "around": lambda m, a: m.around(a(X), 1),
    "frexp": lambda m, a: m.frexp(a(X))[1],
    "modf": lambda m, a: m.modf(a(X))[0],
    "ldexp": lambda m, a: m.ldexp(a(X), 3),
    "divmod": lambda m, a: m.divmod(a(A), 7)[1],
    "isclose": lambda m, a: m.isclose(a(X), a(X) + 1e-9),
    "array_equal": lambda m, a: m.array_equal(a(X), a(X)),
    "apply_along_axis": lambda m, a: m.apply_along_axis(lambda row: row.max(), 1, a(A)),
    "a comparison chain": lambda m, a: ((a(X) > -2) & ~(a(X) >= 2)) | (a(X) == 5),
    "arithmetic in place": lambda m, a: changed(
        m, A, lambda x: (x.__iadd__(3), x.__imul__(2), x.__ifloordiv__(5), x.__ixor__(1))
    ),
    "a mixture of dtypes": lambda m, a: a(A)[:5, :8] * a(MASK) + a(Y)[0, 0, 0],
}


def both(call):
    found = cupy.asnumpy(call(cupy, cupy.asarray))
    return found, np.asarray(call(np, np.asarray))


@pytest.mark.slow("a kernel of CuPy's own each, or two")
@pytest.mark.parametrize(
    "call",
    [
        pytest.param(call, id=name)
        for calls in (REDUCTIONS, CHOOSING, SHAPES, SCANS)
        for name, call in calls.items()
    ],
)
def test_the_call_has_numpys_answer(call):
    found, expected = both(call)
    assert found.dtype == expected.dtype
    np.testing.assert_array_equal(found, expected, strict=True)


# What rounds, with how often it does on the way to a result: each rounding moves it by at most half
# a unit in the last place of the largest intermediate, and NumPy's own result by as much.
ROUNDED = {
    "mean": (lambda m, a: a(X).mean(axis=1), 2),
    "std": (lambda m, a: a(Z).std(axis=0, ddof=1), 2),
    "average": (lambda m, a: m.average(a(X), axis=1, weights=m.arange(1, 12)), 2),
    "nanmean": (lambda m, a: m.nanmean(a(HOLES), axis=0), 2),
    "gradient": (lambda m, a: m.gradient(a(Y), 3.0, axis=1), 2),
    "norm": (lambda m, a: m.linalg.norm(a(X), axis=1), 1),
    "polyval": (lambda m, a: m.polyval(m.asarray([1.0, 2, 3]), a(X)), 4),
    "interp": (lambda m, a: m.interp(a(X), m.asarray([-4.0, 0, 3]), m.asarray([3.0, 4, 9])), 4),
    "logspace": (lambda m, a: m.logspace(0, 3, 7), 4),
    "sinc": (lambda m, a: m.sinc(a(V)), 4),
    "angle": (lambda m, a: m.angle(a(C)), 3),
    "absolute of complex": (lambda m, a: m.abs(a(C)), 2),
    "quotient of complex": (lambda m, a: a(C)[:2] / a(C)[2:4], 6),
    "sum of thirds": (lambda m, a: (a(X) / 3).sum(axis=1), 12),
    "softmax": (
        lambda m, a: m.exp(a(X) - a(X).max(1, keepdims=True)) / m.exp(a(X) - a(X).max(1)[:, None])
        .sum(axis=1, keepdims=True),
        16,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", ROUNDED)
def test_what_rounds_is_as_close_as_its_roundings_allow(name):
    call, roundings = ROUNDED[name]
    found, expected = both(call)
    assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
    tolerance = roundings * np.finfo(expected.dtype).eps * np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance)


def test_a_user_can_mix_views_without_copies():
    x = cupy.zeros((4, 6), np.float32)
    rows, column = x[1:3], x[:, 2]
    rows += 1
    column *= 5
    x.T[5] = 7
    expected = np.zeros((4, 6), np.float32)
    expected[1:3] += 1
    expected[:, 2] *= 5
    expected[:, 5] = 7
    np.testing.assert_array_equal(x.get(), expected)
