"""Norms of rows that are divided: sums of each part, and norms by the sums of all."""

import itertools

import cupy
import numpy as np
import pytest
from arrays import EVERY, bits, random
from kinds import covering, some_of, these

import cunorm
from cunorm._selfcheck.layouts import GUARD, around, place

ROWS = {
    # A sub-warp; a warp; a block; shared memory; a cluster.
    "cols": [96, 768, 4096, 20_000, 70_000],
    "dtype": EVERY,
    "layout": ["contiguous", "row-strided", "strided heads"],
    "gamma": [False, True],
}
OFF_16_BYTES = {"cols": [7, 769, 20_001, 1_300_005], "layout": ["contiguous", "base + 1 element"]}


def shape(cols):
    return (1, 2, cols) if cols > 100_000 else (2, 3, cols)


@these(
    ",".join(ROWS),
    list(covering((ROWS | {"cols": [96, 768, 4096]}).values(), "short")),
    [
        *covering(ROWS.values(), "whole packets"),
        *covering((ROWS | OFF_16_BYTES).values(), "off 16 bytes"),
    ],
    "rows that start anywhere compile in up to 7 s",
)
def test_a_norm_by_its_own_squares_has_its_own_bits(cols, dtype, layout, gamma):
    whole, x = place(random(shape(cols), dtype, scale=2), layout)
    weight = [cupy.asarray(random(cols, dtype, seed=1, shift=1))] if gamma else []
    squares = cunorm.row_sums(x)
    assert squares.dtype == ("float64" if dtype == "float64" else "float32")
    made = cunorm.rms_norm_fwd(x, *weight, squares=squares, count=cols)
    assert [bits(a) for a in made] == [bits(a) for a in cunorm.rms_norm_fwd(x, *weight)]
    assert (around(whole, x.shape, layout).astype(np.float64) == GUARD).all()


@pytest.mark.parametrize("dtype", EVERY)
@pytest.mark.parametrize("cols", [96, 4096])
def test_moments_are_those_of_float64(cols, dtype):
    x = random((3, cols), dtype, shift=20)
    moments = cunorm.row_sums(cupy.asarray(x), kind="moments").get()
    wide = x.astype(np.longdouble)
    tight = 1e-13 if dtype == "float64" else 3e-6
    np.testing.assert_allclose(moments[:, 0], wide.mean(1), rtol=tight)
    np.testing.assert_allclose(moments[:, 1], wide.var(1) * cols, rtol=tight)


@some_of([("bfloat16",)], "three parts, of two norms, of each other dtype", dtype=EVERY)
def test_parts_on_several_devices_make_the_norm_of_the_whole(dtype):
    x, gamma, beta = (random(s, dtype, seed=i) for i, s in enumerate([(5, 304), 304, 304]))
    edges = [0, 96, 288, 304]
    count = cupy.cuda.runtime.getDeviceCount()
    parts, squares, moments = [], [], []
    for rank, (first, end) in enumerate(itertools.pairwise(edges)):
        with cupy.cuda.Device(rank % count):
            part = [cupy.asarray(np.ascontiguousarray(a[..., first:end])) for a in (x, gamma, beta)]
            parts.append(part)
            squares.append(cunorm.row_sums(part[0]))
            moments.append(cunorm.row_sums(part[0], kind="moments"))
    total = sum(cupy.asarray(a) for a in squares)
    combined = cunorm.combine_moments(
        cupy.stack([cupy.asarray(a) for a in moments]), np.diff(edges).tolist()
    )
    rms = cunorm.rms_norm(cupy.asarray(x), cupy.asarray(gamma), cast="after").get()
    layer = cunorm.layer_norm(*map(cupy.asarray, (x, gamma, beta))).get()
    close = {"float16": 2e-3, "bfloat16": 2e-2, "float32": 2e-6, "float64": 1e-14}[dtype]
    for (own, weight, bias), first, end in zip(parts, edges, edges[1:], strict=False):
        with own.device:
            sums = {"squares": cupy.asarray(total), "count": 304}
            y = cunorm.rms_norm(own, weight, cast="after", **sums).get()
            wide = np.longdouble
            np.testing.assert_allclose(
                y.astype(wide), rms[:, first:end].astype(wide), rtol=close, atol=close
            )
            y = cunorm.layer_norm(own, weight, bias, moments=cupy.asarray(combined), count=304)
            np.testing.assert_allclose(
                y.get().astype(wide), layer[:, first:end].astype(wide), rtol=close, atol=close
            )


def test_what_follows_a_norm_follows_one_by_given_sums():
    x, scale = cupy.asarray(random((4, 96), "float16")), cupy.asarray(random(96, "float16", seed=1))
    given = {"squares": cunorm.row_sums(x), "count": 96}
    y = cunorm.rms_norm(x, scale=scale, **given, dtype="float32")
    assert bits(y) == bits((cunorm.rms_norm(x) * (scale + 1)).astype("float32"))
    y, mean, rstd = cunorm.layer_norm_fwd(
        x, moments=cupy.asarray([[2.0, 24.0]] * 4, "float32"), count=96, eps=0
    )
    assert bits(mean) == bits(cupy.full(4, 2, "float32"))
    assert bits(rstd) == bits(cupy.full(4, 2, "float32"))
    assert bits(y) == bits(((x.astype("float32") - 2) * 2).astype("float16"))


def test_a_repeated_call_sees_other_sums():
    x = cupy.asarray(random((4, 96), "float32"))
    for factor in (1, 4):
        squares = cunorm.row_sums(x) * factor
        y = cunorm.rms_norm(x, squares=squares, count=96 * factor, eps=0)
        assert bits(y) == bits(cunorm.rms_norm(x, eps=0))
    strided = cupy.stack((squares, squares), 1)[:, 0]
    assert bits(cunorm.rms_norm(x, squares=strided, count=384, eps=0)) == bits(y)


def test_several_axes_are_one_row_and_sums_go_where_they_are_asked():
    x = cupy.asarray(random((4, 3, 32), "float32"))
    out = cupy.empty((4, 2), "float32")
    assert cunorm.row_sums(x, kind="moments", axes=2, out=out) is out
    assert bits(out) == bits(cunorm.row_sums(x.reshape(4, 96), kind="moments"))


def test_rows_without_columns_or_without_rows():
    assert cunorm.row_sums(cupy.empty((0, 8), "float16")).shape == (0,)
    assert cunorm.row_sums(cupy.empty((3, 0), "float16")).tolist() == [0, 0, 0]
    moments = cunorm.row_sums(cupy.empty((2, 0), "float16"), kind="moments").get()
    assert np.isnan(moments[:, 0]).all()
    assert (moments[:, 1] == 0).all()


def test_moments_of_parts_combine_as_chan_says():
    x = random((5, 60), "float64", shift=1e6)
    edges = [0, 1, 20, 60]
    parts = [x[:, a:b] for a, b in itertools.pairwise(edges)]
    moments = cupy.stack([cunorm.row_sums(cupy.asarray(p), kind="moments") for p in parts])
    made = cunorm.combine_moments(moments, cupy.asarray([1, 19, 40])).get()
    wide = x.astype(np.longdouble)
    np.testing.assert_allclose(made[:, 0], wide.mean(1), rtol=1e-15)
    np.testing.assert_allclose(made[:, 1], wide.var(1) * 60, rtol=1e-9)


X = cupy.ones((4, 64), "float16")
SQUARES = cupy.ones(4, "float32")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: cunorm.rms_norm(X, squares=SQUARES), ValueError, "count must be given with squar"),
        (lambda: cunorm.rms_norm(X, count=64), ValueError, "count must be given with squares, and"),
        (lambda: cunorm.layer_norm(X, count=64), ValueError, "count must be given with moments, a"),
        (
            lambda: cunorm.rms_norm(X, squares=SQUARES[:3], count=64),
            ValueError,
            r"squares must have one number a row, \(4,\), but has \(3,\)",
        ),
        (
            lambda: cunorm.rms_norm(X, squares=SQUARES.astype("f8"), count=64),
            TypeError,
            "squares must be float32 where x is float16, but is float64",
        ),
        (
            lambda: cunorm.layer_norm(X, moments=SQUARES, count=64),
            ValueError,
            r"moments must have one number a row, \(4, 2\), but has \(4,\)",
        ),
        (
            lambda: cunorm.rms_norm(X, squares=SQUARES, count=0),
            ValueError,
            "count must be a number of columns, from 1 up, but is 0",
        ),
        (
            lambda: cunorm.rms_norm(X, squares=SQUARES, count=64.0),
            TypeError,
            "count must be an int or None, but is a float",
        ),
        (lambda: cunorm.row_sums(X, kind="sum"), ValueError, "kind must be 'squares' or 'moments'"),
        (lambda: cunorm.row_sums(X, axes=3), ValueError, "axes must be from 1 to the 2 axes of x"),
        (lambda: cunorm.row_sums(X, axes=True), TypeError, "axes must be an int, but is a bool"),
        (lambda: cunorm.row_sums([1.0]), TypeError, "x must be a cupy.ndarray, but is a list"),
        (
            lambda: cunorm.row_sums(X, out=SQUARES.astype("f2")),
            TypeError,
            "out must be float32 where x is float16, but is float16",
        ),
        (
            lambda: cunorm.row_sums(X, out=cupy.ones(8, "f4")[::2]),
            ValueError,
            r"out must be C-contiguous, but has strides \(8,\)",
        ),
        (
            lambda: cunorm.row_sums(X, out=X.ravel()[:8].view("f4")),
            ValueError,
            "out must not overlap x, but shares memory with it",
        ),
        (
            lambda: cunorm.combine_moments(SQUARES.reshape(2, 2), [1]),
            ValueError,
            "counts must have one number for each of the 2 parts of moments, but has the shape",
        ),
        (
            lambda: cunorm.combine_moments(SQUARES.reshape(2, 2), [1, 0]),
            ValueError,
            r"counts must be numbers of columns, from 1 up, but are \[1, 0\]",
        ),
        (
            lambda: cunorm.combine_moments(X, [1]),
            TypeError,
            "moments must be float32 or float64, b",
        ),
        (
            lambda: cunorm.combine_moments(SQUARES, [1]),
            ValueError,
            r"moments must have the shape \(R, ..., 2\), but has \(4,\)",
        ),
    ],
)
def test_wrong_arguments_are_refused_by_name(call, error, message):
    with pytest.raises(error, match=f"^{message}"):
        call()
