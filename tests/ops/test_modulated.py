"""What may follow a norm or stand beside its residual: the bits of the norm and of operators.

Each operator's result is worked out by NumPy, which rounds once, as CuPy's kernels do; of float16
and bfloat16, for which NumPy has no common type, it is float32.
"""

from itertools import product

import cupy
import numpy as np
import pytest
from arrays import EVERY, NARROW, assert_matches, bits, random
from kinds import IN_TURNS, covering, these

import cunorm
from cunorm import _reference
from cunorm._reference import DTYPES
from cunorm._selfcheck.layouts import GUARD, around, place

NORMS = ["rms_norm", "layer_norm"]
# A sub-warp; a warp; a block; shared memory; a cluster. Few rows have an odd length, and so start
# anywhere: their kernels compile in up to 7 s.
COLS = [96, 768, 4096, 20_000, 70_000]
# Of x (2, 3, N): as of an adaLN's samples, tokens, layers, heads, rows, and of x itself.
BROADCASTS = {
    "columns": lambda n: (n,),
    "a sample's columns": lambda n: (2, 1, n),
    "a token's columns": lambda n: (3, n),
    "every element": lambda n: (2, 3, n),
    "a number a sample": lambda n: (2, 1, 1),
    "a number a row": lambda n: (2, 3, 1),
    "one number": lambda n: (),
    "one number on three axes": lambda n: (1, 1, 1),
}


def promoted(a, b):
    if a != b and a.itemsize == b.itemsize:
        return DTYPES["float32"]
    return max(a, b, key=lambda dtype: dtype.itemsize)


def operate(operator, a, b):
    """Return what an operator makes of two arrays: exact in float64 but for its one rounding."""
    dtype = promoted(a.dtype, b.dtype)
    wide = np.float64 if dtype == np.float64 else np.float32
    return operator(a.astype(wide), b.astype(wide)).astype(dtype)


def modulated(n, scale, shift, offset):
    if scale is not None:
        factor = operate(np.add, scale, np.asarray(offset, scale.dtype)) if offset else scale
        n = operate(np.multiply, n, factor)
    return n if shift is None else operate(np.add, n, shift)


def strided(a, how):
    """Return an operand on the device: as it is, or as a slice that starts off 16 bytes."""
    if how == "packed" or a.ndim == 0:
        return cupy.asarray(a)
    table = np.zeros((*a.shape[:-1], 3 * a.shape[-1] + 1), a.dtype)
    table[..., 1 : a.shape[-1] + 1] = a
    return cupy.asarray(table)[..., 1 : a.shape[-1] + 1]


# What a kernel is compiled for, and the operands' numbers.
MODULATED = {
    "norm": NORMS,
    "cols": COLS,
    "dtype": NARROW,
    "scale_dtype": [None, *NARROW],
    "shift_dtype": [None, *NARROW],
    "scale_as": ["columns", "a sample's columns", "every element", "a number a row"],
    "shift_as": ["columns", "a sample's columns", "every element", "a number a row"],
    "offset": [1.0, 0.0, 0.3],
    "how": ["packed", "sliced"],
    "layout": ["contiguous", "base + 1 element", "row-strided"],
    "parameters": [0, 1],
    "as_operators": [False, True],
}
OFF_16_BYTES = {"cols": [96, 769, 3072, 4096, 20001, 400_003]} | {
    axis: list(BROADCASTS) for axis in ("scale_as", "shift_as")
}


def always_modulated():
    """Yield points of which each pair occurs, but of long rows only such as start on 16 bytes."""
    odd = ("columns", "a sample's columns", 1.0, "packed", "contiguous")
    yield "rms_norm", 769, "bfloat16", "float32", "float16", *odd, 1, False
    yield "layer_norm", 769, "float32", "bfloat16", "float32", *odd, 0, True
    short = MODULATED | {"cols": COLS[:3]}
    yield from covering(short.values(), "short rows")
    whole = MODULATED | {"cols": COLS[3:], "how": ["packed"], "layout": ["contiguous"]}
    fewer = {"shift_dtype": [None, "bfloat16"], "shift_as": ["columns", "a number a row"]}
    fewer["scale_as"] = ["a sample's columns", "every element"]
    yield from covering((whole | fewer).values(), "long rows")


@these(
    ",".join(MODULATED),
    list(always_modulated()),
    list(covering((MODULATED | OFF_16_BYTES).values(), "off 16 bytes")),
    "rows that start anywhere compile in up to 7 s; KINDS has them, without operands",
)
def test_a_modulated_norm_has_the_bits_of_its_parts(
    norm,
    cols,
    dtype,
    scale_dtype,
    shift_dtype,
    scale_as,
    shift_as,
    offset,
    how,
    layout,
    parameters,
    as_operators,
):
    rows = random((2, 3, cols), dtype, scale=2)
    gammas = [cupy.asarray(random(cols, dtype, seed=3, scale=0.3, shift=1))] * parameters
    scale, shift = (
        None if of is None else random(BROADCASTS[kind](cols), of, seed=seed)
        for seed, (of, kind) in enumerate([(scale_dtype, scale_as), (shift_dtype, shift_as)], 4)
    )
    given = {
        name: strided(a, how) for name, a in (("scale", scale), ("shift", shift)) if a is not None
    }
    fwd = getattr(cunorm, f"{norm}_fwd")
    n, *statistics = fwd(cupy.asarray(rows), *gammas)
    expected = modulated(n.get(), scale, shift, offset)
    as_dtype = expected.dtype if as_operators else rows.dtype
    x = place(rows, layout)[1]
    y, *own = fwd(x, *gammas, **given, scale_offset=offset, dtype=as_dtype.name)
    assert bits(y) == bits(expected.astype(as_dtype))
    assert [bits(a) for a in own] == [bits(a) for a in statistics]


@IN_TURNS
@pytest.mark.parametrize("scale_as", BROADCASTS)
def test_operands_may_broadcast_each_in_its_own_way(scale_as):
    x = cupy.asarray(random((2, 3, 96), "float16", scale=2))
    n = cunorm.rms_norm(x).get()
    scale = random(BROADCASTS[scale_as](96), "float16", seed=4)
    for shift_as, shape in BROADCASTS.items():
        shift = random(shape(96), "float32", seed=5)
        y = cunorm.rms_norm(x, scale=cupy.asarray(scale), shift=cupy.asarray(shift))
        expected = modulated(n, scale, shift, 1.0).astype(x.dtype)
        assert bits(y) == bits(expected), shift_as
    h = cunorm.add_rms_norm(x, x, gate=cupy.asarray(scale))[1]
    assert bits(h) == bits(operate(np.add, x.get(), operate(np.multiply, scale, x.get())))


GATED = {
    "norm": NORMS,
    "cols": COLS[:4],
    "dtype": NARROW,
    "residual_dtype": NARROW,
    "gate_dtype": NARROW,
    "gate_as": MODULATED["scale_as"],
    "how": ["packed", "sliced"],
    "layout": ["contiguous", "base + 1 element", "strided heads"],
}
GATED_OFF_16_BYTES = {"cols": [96, 769, 4096, 20001], "gate_as": list(BROADCASTS)}


def always_gated():
    """Yield points of which each pair occurs, but of long rows only such as start on 16 bytes."""
    odd = ("a sample's columns", "packed", "contiguous")
    yield "rms_norm", 769, "bfloat16", "float32", "float16", *odd
    yield from covering((GATED | {"cols": COLS[:3]}).values(), "short rows")
    whole = GATED | {"cols": COLS[3:4], "how": ["packed"], "layout": ["contiguous"]}
    yield from covering((whole | {"gate_as": GATED["gate_as"][:2]}).values(), "long rows")


@these(
    ",".join(GATED),
    list(always_gated()),
    list(covering((GATED | GATED_OFF_16_BYTES).values(), "off 16 bytes")),
    "rows that start anywhere compile in up to 7 s; KINDS has them, without a gate",
)
def test_a_gate_multiplies_x_before_the_residual_is_added(
    norm, cols, dtype, residual_dtype, gate_dtype, gate_as, how, layout
):
    x, residual = random((2, 3, cols), dtype), random((2, 3, cols), residual_dtype, seed=1)
    gate = random(BROADCASTS[gate_as](cols), gate_dtype, seed=2)
    given = [place(a, layout)[1] for a in (x, residual)]
    y, h, *_ = getattr(cunorm, f"add_{norm}_fwd")(*given, gate=strided(gate, how))
    expected = operate(np.add, residual, operate(np.multiply, gate, x)).astype(residual.dtype)
    assert bits(h) == bits(expected)
    of_h = getattr(cunorm, norm)(h) if dtype == residual_dtype else None
    assert of_h is None or bits(y) == bits(of_h)


def test_rounding_once_at_the_end_is_of_everything():
    x, scale, shift = (random((4, 768), "float16", seed=seed) for seed in range(3))
    given = [cupy.asarray(a) for a in (x, scale, shift)]
    y, rstd = cunorm.rms_norm_fwd(given[0], scale=given[1], shift=given[2], cast="after")
    wide = x.astype(np.float32) * rstd.get()[:, None]
    wide = wide * (scale.astype(np.float32) + np.float32(1)) + shift.astype(np.float32)
    assert bits(y) == bits(wide.astype(np.float16))


@pytest.mark.slow("a row that fills shared memory on any device, seven times")
@pytest.mark.parametrize("cols", [1_300_005])
def test_seven_arrays_off_16_bytes_leave_room_for_rows_in_shared_memory(cols):
    arrays = [random((1, cols), "float16", seed=seed) for seed in range(5)]
    x, residual, gate, scale, shift = (place(a, "base + 1 element")[1] for a in arrays)
    out, residual_out = (place(np.zeros_like(a), "base + 1 element")[1] for a in arrays[:2])
    beside = {"gate": gate, "scale": scale, "shift": shift}
    y, h = cunorm.add_rms_norm(x, residual, **beside, out=out, residual_out=residual_out)
    assert bits(h) == bits(operate(np.add, arrays[1], operate(np.multiply, arrays[2], arrays[0])))
    assert bits(y) == bits(modulated(cunorm.rms_norm(h).get(), *arrays[3:], 1.0))


@pytest.mark.parametrize("norm", NORMS)
def test_a_weight_by_head_is_a_scale_without_an_offset(norm):
    x = cupy.asarray(random((5, 4, 128), "bfloat16"))
    weights = random((4, 128), "bfloat16", seed=1)
    y = getattr(cunorm, norm)(x, scale=cupy.asarray(weights), scale_offset=0.0)
    for head in range(4):
        own = getattr(cunorm, norm)(x[:, head], cupy.asarray(weights[head]))
        if norm == "rms_norm":
            assert bits(y[:, head]) == bits(own)
        else:  # whose gamma multiplies before the rounding
            n = getattr(cunorm, norm)(x[:, head]).get()
            assert bits(y[:, head]) == bits(operate(np.multiply, n, weights[head]))


@IN_TURNS
@pytest.mark.parametrize(
    ("dtype", "cols"),
    [("float16", 4096), ("float32", 96), ("float32", 769), ("float64", 96)],
)
def test_layer_norm_adds_gamma_offset(dtype, cols):
    """LayerNorm1P of Nemotron stores its weight less one."""
    x, gamma, beta = (random(s, dtype, seed=i) for i, s in enumerate([(4, cols), cols, cols]))
    given = [cupy.asarray(a) for a in (x, gamma, beta)]
    y, mean, rstd = cunorm.layer_norm_fwd(*given, gamma_offset=1.0)
    for outputs, expected in (
        ((y, mean, rstd), _reference.layer_norm_fwd(x, gamma, beta, gamma_offset=1.0)),
        (
            cunorm.layer_norm_fwd(*given[:2], gamma_offset=1.0),
            _reference.layer_norm_fwd(x, gamma, gamma_offset=1.0),
        ),
    ):
        for actual, want in zip(outputs, expected, strict=True):
            assert_matches(actual, want)
    dy = random((4, cols), dtype, seed=5)
    made = cunorm.layer_norm_bwd(cupy.asarray(dy), *given[:2], mean, rstd, gamma_offset=1.0)
    expected = _reference.layer_norm_bwd(dy, x, gamma, mean.get(), rstd.get(), gamma_offset=1.0)
    for actual, want in zip(made, expected, strict=True):
        assert_matches(actual, want)


EVERY_NORM = ["rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"]


@these(
    "norm,dtype,out_dtype,cols",
    [(*point, 96) for point in covering((EVERY_NORM, EVERY, EVERY), "cast")]
    + [("layer_norm", "bfloat16", "float32", 771)],
    list(product(EVERY_NORM, EVERY, EVERY, [96, 771])),
    "the others of a product; rows that start anywhere compile in seconds",
)
def test_y_may_have_any_dtype_and_is_the_norm_cast_to_it(norm, dtype, out_dtype, cols):
    rows = [cupy.asarray(random((3, cols), dtype, seed=seed)) for seed in range(2)]
    given = rows if norm.startswith("add") else rows[:1]
    plain = getattr(cunorm, norm)(*given)
    cast = getattr(cunorm, norm)(*given, dtype=out_dtype)
    y, of_plain = (a[0] if isinstance(a, tuple) else a for a in (cast, plain))
    expected = _reference.round_to(of_plain.get().astype(np.float64), DTYPES[out_dtype])
    assert bits(y) == bits(expected.astype(DTYPES[out_dtype]))
    layout = "row-strided" if cols == 96 else "base + 1 element"  # which has a kernel of its own
    whole, view = place(np.zeros((3, cols), DTYPES[out_dtype]), layout)
    result = getattr(cunorm, norm)(*given, out=view)
    assert (result[0] if isinstance(result, tuple) else result) is view
    assert bits(view) == bits(y)
    assert (around(whole, view.shape, layout).astype(np.float64) == GUARD).all()


@pytest.mark.parametrize("number", [2, 0.1, np.float32(0.3)])
def test_numbers_have_the_bits_that_cupys_operators_give_them(number):
    x = cupy.asarray(random((4, 128), "float16"))
    n = cunorm.rms_norm(x)
    assert bits(cunorm.rms_norm(x, scale=number)) == bits(n * float(number + 1.0))
    assert bits(cunorm.rms_norm(x, shift=float(number))) == bits(n + float(number))
    once = cunorm.rms_norm(x, scale=number, cast="after", dtype="float32")
    assert bits(once) == bits(cunorm.rms_norm(x, cast="after", dtype="float32") * (1 + number))
    _, h = cunorm.add_rms_norm(x, x, gate=float(number))
    assert bits(h) == bits(x + float(number) * x)


def test_operands_that_step_on_four_levels_are_copied():
    table = cupy.asarray(random((2, 3, 4, 5, 64), "float16"))
    x = cupy.asarray(random((5, 4, 3, 2, 64), "float16", seed=1))
    scale = table.transpose(3, 2, 1, 0, 4)[:, :, ::2][:, :, :1]
    n = cunorm.rms_norm(x)
    assert bits(cunorm.rms_norm(x, scale=scale)) == bits(n * (scale + 1))


def test_a_row_has_the_same_bits_alone_as_in_a_batch():
    x = cupy.asarray(random((5, 9, 770), "bfloat16"))
    scale = cupy.asarray(random((5, 1, 770), "float32", seed=1))
    whole = cunorm.layer_norm(x, scale=scale, shift=scale)
    alone = cunorm.layer_norm(x[3, 7], scale=scale[3, 0], shift=scale[3, 0])
    assert bits(whole[3, 7]) == bits(alone)


def test_a_repeated_call_sees_other_operands_and_other_outputs():
    x = cupy.asarray(random((2, 3, 64), "float32"))
    for seed in range(3):
        scale = cupy.asarray(random((2, 1, 64), "float32", seed=seed))
        out = cupy.empty_like(x)
        y = cunorm.rms_norm(x, scale=scale, shift=scale, out=out)
        assert y is out
        assert bits(y) == bits(cunorm.rms_norm(x) * (scale + 1) + scale)
    with pytest.raises(ValueError, match="out must not overlap scale"):
        cunorm.rms_norm(x, scale=out[:, :1], shift=scale, out=out)


X = cupy.ones((4, 3, 64), "float16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"scale": cupy.ones(63, "float16")},
            ValueError,
            "scale must broadcast to the shape",
        ),
        ({"scale": cupy.ones((1, 4, 3, 64), "float16")}, ValueError, "scale must broadcast to the"),
        ({"shift": cupy.ones((4, 1), "float16")}, ValueError, r"shift must .* but has \(4, 1\)"),
        ({"scale": cupy.ones(64, "float64")}, TypeError, "scale must be float16, .* where x is fl"),
        ({"scale": cupy.ones(64, "int32")}, TypeError, "scale must be float16, .* but is int32"),
        ({"scale": [1.0]}, TypeError, "scale must be a cupy.ndarray, a number or None, but is a l"),
        ({"scale": True}, TypeError, "scale must be a real number, but is a bool"),
        (
            {"scale": np.ones(64, "f4")},
            TypeError,
            "scale must be a cupy.ndarray, a number or None",
        ),
        ({"scale_offset": "1"}, TypeError, "scale_offset must be a real number, but is a str"),
        (
            {"scale_offset": np.inf},
            ValueError,
            "scale_offset must be finite in float32",
        ),
        (
            {"out": X, "scale": X[:, :1]},
            ValueError,
            "out must not overlap scale",
        ),
        ({"dtype": "int8"}, TypeError, "dtype must be float16, .* or float64, but is int8"),
    ],
)
def test_wrong_operands_are_refused_by_name_and_nothing_is_written(change, error, message):
    before = bits(X)
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm(X, **change)
    assert bits(X) == before
