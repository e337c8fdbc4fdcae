"""Quantised norms: codes and scales of the kernel's own y, as defined, without a tolerance."""

import contextlib
import io
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import cupy
import numpy as np
import pytest
from arrays import EVERY, NARROW, bits, random
from kinds import IN_TURNS, covering, some_of, these

import cunorm
from cunorm import Quant, _quant_reference, simgpu
from cunorm._quant import buffer_shape, codes_dtype, codes_shape, scales_dtype, strides
from cunorm._reference import DTYPES
from cunorm._selfcheck.layouts import GUARD, around, place

OF_ROWS = {
    "fp8 static": Quant.fp8_static(0.02),
    "fp8 row": Quant.fp8_row(),
    "int8 static": Quant.int8_static(0.03),
    "int8 row": Quant.int8_row(),
    "e5m2 row": Quant("e5m2"),
    "e5m2 row, bounded": Quant("e5m2", floor=2.0, ceiling=3.0, layout="columns"),
    "int8 row, e8m0": Quant("int8", scale="e8m0", layout="packed"),
}
OF_GROUPS = {
    "deepseek": Quant.deepseek(),
    "deepseek, e8m0": Quant.deepseek(e8m0=True),
    "mxfp8": Quant.mxfp8(),
    "mxfp8, rows": Quant.mxfp8(layout="rows"),
    "mxfp4": Quant.mxfp4(),
    "nvfp4": Quant.nvfp4(800.0),
    "nvfp4, columns": Quant.nvfp4(0.01, layout="columns"),
    "int8 of 64": Quant("int8", group=64, ceiling=1.5, minimum=0.001),
}
SCHEMES = OF_ROWS | OF_GROUPS
NORMS = ["rms_norm", "layer_norm", "add_rms_norm", "add_layer_norm"]
PAIRS = [
    *(("float16", "float16"), ("float16", "float32"), ("bfloat16", "bfloat16")),
    *(("bfloat16", "float32"), ("float32", "float32"), ("float32", "bfloat16")),
]
LAYOUTS = ["contiguous", "base + 1 element", "row-strided", "strided heads"]
# A sub-warp; a warp; a block; shared memory; a cluster.
COLS = [128, 768, 4096, 20_480, 70_016]


def operands(norm, cols, dtype, parameter, rows=(2, 3)):
    """Return arrays for a norm: rows, then parameters, with an outlier in each second row."""
    shape = (1, 2, cols) if cols > 20_000 else (*rows, cols)
    x = random(shape, dtype, scale=2)
    x[:, ::2, cols // 3] = 90
    residual = [random(shape, dtype, seed=1)] if norm.startswith("add") else []
    count = 2 if norm.endswith("layer_norm") else 1
    parameters = [random(cols, parameter, seed=2 + i, shift=1 - i) for i in range(count)]
    return [x, *residual], parameters


def first(result):
    return result[0] if isinstance(result, tuple) else result


def memory(scale, quant, shape):
    """Return all of the memory of scales, with what fills them up."""
    return cupy.ndarray(buffer_shape(quant, shape), scale.dtype, scale.data)


def assert_is_definition(q, scale, y, quant):
    """Compare every bit, those that fill up scales too."""
    codes, buffer = _quant_reference.codes_and_buffer(y, quant)
    assert (q.dtype, q.shape) == (codes.dtype, codes.shape)
    assert bits(q) == bits(codes)
    _, own = _quant_reference.quantize(y, quant)
    assert (scale.dtype, scale.shape) == (own.dtype, own.shape)
    assert scale.size == 0 or scale.strides == own.strides
    assert bits(memory(scale, quant, y.shape)) == bits(buffer)


QUANTISED = {
    "norm": NORMS,
    "cols": COLS,
    "dtypes": PAIRS,
    "layout": LAYOUTS,
    "scheme": list(SCHEMES),
}


def always():
    """Yield points of which each pair occurs, but of long rows only such as start on 16 bytes."""
    yield "add_rms_norm", 768, PAIRS[3], LAYOUTS[1], "fp8 row"
    yield "layer_norm", 4096, PAIRS[4], LAYOUTS[1], "mxfp8"
    aligned = {"layout": [LAYOUTS[0], *LAYOUTS[2:]], "dtypes": [PAIRS[1], *PAIRS[3:5]]}
    yield from covering((QUANTISED | aligned | {"cols": COLS[:3]}).values(), "short rows")
    fewer = {"layout": LAYOUTS[:1], "dtypes": PAIRS[2:3], "norm": NORMS[:3:2]}
    schemes = {"scheme": ["fp8 row", "deepseek", "mxfp8", "nvfp4"]}
    yield from covering((QUANTISED | fewer | schemes | {"cols": COLS[3:]}).values(), "long rows")


def slow():
    """Yield points of rows of any length, which may start anywhere."""
    odd = {"cols": [7, 211, 1025, 5137, 20_001], "scheme": list(OF_ROWS)}
    yield from covering((QUANTISED | odd).values(), "off 16 bytes")
    yield from covering(QUANTISED.values(), "all of them")


EVERY_OTHER = list(always())


@these(
    ",".join(QUANTISED),
    EVERY_OTHER[::2],
    [*EVERY_OTHER[1::2], *slow()],
    "a kernel each; rows that start anywhere take seconds",
)
def test_codes_and_scales_are_those_of_the_kernels_own_y(norm, cols, dtypes, layout, scheme):
    quant = SCHEMES[scheme]
    rows, parameters = operands(norm, cols, *dtypes)
    given = [*(place(a, layout)[1] for a in rows), *map(cupy.asarray, parameters)]
    y, *others = _tuple(getattr(cunorm, norm)(*given))
    op = getattr(cunorm, f"{norm}_quant")
    q, scale, *own = op(*given, quant=quant)
    assert_is_definition(q, scale, y.get(), quant)
    assert [bits(a) for a in own] == [bits(a) for a in others]


def _tuple(result):
    return result if isinstance(result, tuple) else (result,)


@these(
    "cols,dtype,scheme",
    [
        *((7, "float16", "fp8 row"), (1, "float32", "int8 row"), (211, "bfloat16", "int8 row")),
        *((1025, "float32", "fp8 static"), (5137, "float32", "e5m2 row, bounded")),
        *((96, "bfloat16", "mxfp4"), (16, "float16", "nvfp4"), (32, "float32", "mxfp8, rows")),
        *((64, "float16", "int8 of 64"), (160, "float32", "nvfp4"), (128, "float32", "deepseek")),
    ],
    [(1025, "bfloat16", "fp8 row"), (20_001, "float16", "int8 row"), (150_016, "float16", "mxfp4")],
    "rows that start anywhere take seconds",
)
def test_rows_may_have_any_length_that_groups_divide(cols, dtype, scheme):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random((5, cols), dtype, scale=3))
    assert_is_definition(*cunorm.rms_norm_quant(x, quant=quant), cunorm.rms_norm(x).get(), quant)
    assert_is_definition(*cunorm.quantize(x, quant), x.get(), quant)


def extreme(dtype):
    """Return rows of 256 columns of each kind that a scale has to get right."""
    info = {"float16": (-14, 15, 10), "bfloat16": (-126, 127, 7), "float32": (-126, 127, 23)}
    least, most, mantissa = info[dtype]
    rng = np.random.default_rng(7)
    normal = rng.standard_normal(256)
    rows = [np.zeros(256), -np.zeros(256), np.full(256, 0.7), np.where(np.arange(256) == 77, 9, 0)]
    for special in (np.inf, -np.inf, np.nan, -np.nan):
        rows += [np.where(np.arange(256) == 130, special, normal), np.full(256, special)]
    rows += [np.where(normal > 0, np.inf, np.nan), np.where(normal > 0, -0.0, np.nan)]
    # amax at Q * 2^k, at neighbours of it, and of each power of two.
    for q in (448.0, 57344.0, 127.0, 6.0, 1.0):
        for k in (-9, 0, 3):
            for step in (0, 1, -1):
                row = normal.clip(-3, 3) / 3
                row[11] = 1 + (step if step > 0 else step / 2) * 2.0**-mantissa
                rows.append(row * q * 2.0**k)
    # Rows of any size down to subnormal numbers, and rows that span all sizes.
    rows += [normal / 4 * 2.0**e for e in range(least - mantissa, most, 1 if most < 99 else 7)]
    rows += [rng.choice([-1, 1], 256) * 2.0 ** rng.uniform(least - mantissa, most, 256)]
    with np.errstate(over="ignore", under="ignore"):
        return np.stack(rows).astype(np.float64).astype(DTYPES[dtype])


LIMITED = {
    "below every floor": Quant("e4m3", floor=3e38, group=16),
    "above every ceiling": Quant("e4m3", ceiling=1e-37, group=16),
    "least ceiling": Quant("e5m2", ceiling=1e-44, group=16),
    "a minimum of groups": Quant("int8", minimum=1.0, group=32),
    "static subnormal": Quant.fp8_static(1e-40),
    "static huge": Quant.int8_static(1e38),
    "static e5m2": Quant("e5m2", static=1.0),
    "static e2m1": Quant("e2m1", static=0.7),
    "e2m1 of floats": Quant("e2m1", group=16),
    "no floor": Quant("e4m3", group=16),
    "nvfp4 of a large factor": Quant.nvfp4(2.0**118),
    "nvfp4 of a small factor": Quant.nvfp4(1e-44),
    "e5m2 of powers of two": Quant("e5m2", group=64, scale="e8m0", layout="columns"),
    "e4m3 scales of a row": Quant("e4m3", scale="e4m3", global_scale=3.0),
}


def in_turns(values):
    """Return each of the schemes with a value, one after the other of them."""
    return [(scheme, values[i % len(values)]) for i, scheme in enumerate([*SCHEMES, *LIMITED])]


@some_of(
    in_turns(NARROW),
    "the others of a product",
    scheme=[*SCHEMES, *LIMITED],
    dtype=NARROW,
)
def test_rows_of_every_kind_are_as_defined(scheme, dtype):
    quant = (SCHEMES | LIMITED)[scheme]
    y = extreme(dtype)
    assert_is_definition(*cunorm.quantize(cupy.asarray(y), quant), y, quant)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("quant", [Quant.fp8_static(1), Quant("e5m2", static=0.3),
                                   Quant.int8_static(0.7), Quant("e2m1", static=3)])  # fmt: skip
def test_every_16_bit_number_has_the_code_that_is_defined(dtype, quant):
    y = np.arange(65536, dtype=np.uint16).view(DTYPES[dtype]).reshape(256, 256)
    assert_is_definition(*cunorm.quantize(cupy.asarray(y), quant), y, quant)


def near_ties(s, codes):
    """Return float32 numbers whose quotient by s is next to a tie of two neighbouring codes."""
    middles = (codes[1:].astype(np.float64) + codes[:-1]) / 2
    with np.errstate(over="ignore", under="ignore"):
        at = (middles * np.float64(s)).astype(np.float32)
    return np.concatenate([at, *(np.nextafter(at, np.float32(to)) for to in (np.inf, -np.inf))])


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "int8", "e2m1"])
def test_quotients_are_correctly_rounded(format):
    """A product with the reciprocal is not, nor is a flushed one: ties become other codes."""
    codes = np.arange(256, dtype=np.uint8 if format != "int8" else np.int8)
    codes = codes[:16:2] * 17 if format == "e2m1" else codes
    values = _quant_reference._numbers(codes, Quant(format, static=1))
    values = np.unique(values[np.isfinite(values)])
    rng = np.random.default_rng(3)
    scales = [*rng.uniform(1, 2, 12), 1e-40, 3e-45, 2.0**-126, 1e-30, 1e30, 2.0**110, 1 / 3]
    for s in np.asarray(scales, np.float32):
        y = near_ties(s, values)
        y = np.resize(y[np.isfinite(y)], (1, 1024))
        quant = Quant(format, static=float(s))
        assert_is_definition(*cunorm.quantize(cupy.asarray(y), quant), y, quant)


def test_a_quotient_is_that_of_division_where_a_reciprocal_is_furthest_off():
    """Pairs whose exact quotient is as close as can be to the middle of two float32 numbers."""
    rng = np.random.default_rng(5)
    pairs = []
    while len(pairs) < 40:
        divisor = int(rng.integers(1 << 22, 1 << 23)) * 2 + 1
        middle = pow(divisor, -1, 1 << 24) | 1 << 24
        whole = (middle * divisor - 1) >> 24
        if middle & 1 and whole.bit_length() == 24:
            assert abs(Fraction(whole, divisor) * 2**24 - middle) * divisor == 1
            pairs.append((whole, divisor))
    for whole, divisor in pairs:
        s = float(divisor) / 2**23
        y = np.full((1, 16), whole, np.float32) * np.float32(2) ** np.arange(-20, -4).astype("f4")
        quant = Quant("int8", static=s)
        assert_is_definition(*cunorm.quantize(cupy.asarray(y), quant), y, quant)


def guarded(shape, dtype, steps=None, before=16, after=64):
    """Return a poisoned buffer and a view of it, of a shape and strides in elements."""
    size = np.dtype(dtype).itemsize
    steps = steps or tuple(np.cumprod([1, *shape[:0:-1]])[::-1])
    span = 1 + sum((n - 1) * step for n, step in zip(shape, steps, strict=True))
    whole = cupy.full((before + span + after) * size, 0xAB, "uint8")
    own = whole[before * size :].view(dtype)
    view = cupy.ndarray(shape, dtype, own.data, tuple(step * size for step in steps))
    return whole, view


@pytest.mark.parametrize("rows", [1, 3, 4, 5, 127, 128, 130])
@pytest.mark.parametrize("scheme", ["deepseek", "deepseek, e8m0", "mxfp8", "nvfp4", "mxfp8, rows",
                                    "e5m2 row, bounded", "int8 row, e8m0"])  # fmt: skip
def test_what_fills_up_scales_is_zero_and_nothing_else_is_touched(scheme, rows):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random((rows, 640), "bfloat16"))
    whole, scale = guarded(buffer_shape(quant, x.shape), scales_dtype(quant))
    given = cupy.ndarray(
        _quant_reference.quantize(x.get(), quant)[1].shape,
        scale.dtype,
        scale.data,
        tuple(step * scale.itemsize for step in strides(quant, x.shape)),
    )
    around_q, q = guarded(codes_shape(quant, x.shape), codes_dtype(quant))
    made = cunorm.rms_norm_quant(x, quant=quant, out=q, scale_out=given)
    assert made[0] is q
    assert made[1] is given
    assert_is_definition(q, given, cunorm.rms_norm(x).get(), quant)
    for buffer, a in ((whole, scale), (around_q, q)):
        beside = np.delete(buffer.get(), np.arange(16 * a.itemsize, 16 * a.itemsize + a.nbytes))
        assert (beside == 0xAB).all()


# A warp, with and without a tail; two and three; four, of which the last has one packet.
ON_ANY_BYTE = [
    *(("float16", 513, Quant.fp8_row()), ("float32", 512, Quant.int8_static(0.03))),
    *(("float32", 519, Quant("e5m2")), ("float16", 2179, Quant.int8_row())),
    *(("bfloat16", 3083, Quant.fp8_static(0.02)), ("float32", 1543, Quant.fp8_row())),
    *(("float16", 776, Quant("e2m1", static=0.5)), ("float16", 512, Quant.mxfp8("rows"))),
]


@IN_TURNS
@pytest.mark.parametrize(("dtype", "cols", "quant"), ON_ANY_BYTE)
def test_codes_start_on_any_byte_and_nothing_beside_them_is_touched(dtype, cols, quant):
    x = cupy.asarray(random((32, cols), dtype, scale=3))
    shape = codes_shape(quant, x.shape)
    gap = 3 + shape[-1] % 2  # rows an odd number of bytes apart start on each byte of a sector
    whole, q = guarded(shape, codes_dtype(quant), (shape[-1] + gap, 1))
    _, scale = cunorm.rms_norm_quant(x, quant=quant, out=q)
    assert_is_definition(q, scale, cunorm.rms_norm(x).get(), quant)
    q[...] = 0
    rows = whole.get()[16:-64]
    rows = np.append(rows, np.full(gap, 0xAB, "uint8")).reshape(32, -1)
    assert (whole.get()[:16] == 0xAB).all()
    assert (rows[:, shape[-1] :] == 0xAB).all()
    assert (whole.get()[-64:] == 0xAB).all()


@IN_TURNS
@pytest.mark.parametrize("scheme", ["fp8 row", "mxfp8, rows", "mxfp4", "int8 static"])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_codes_may_be_written_anywhere_and_y_beside_them(scheme, dtype):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random((4, 3, 96), dtype))
    y = cunorm.rms_norm(x)
    shape = codes_shape(quant, x.shape)
    for layout in LAYOUTS:
        whole, q = place(np.zeros(shape, codes_dtype(quant)), layout)
        y_whole, y_out = place(np.zeros(x.shape, x.dtype), layout)
        made, scale = cunorm.rms_norm_quant(x, quant=quant, out=q, y_out=y_out)
        assert made is q
        assert_is_definition(q, scale, y.get(), quant)
        assert bits(y_out) == bits(y)
        assert (around(whole, shape, layout) == GUARD).all()
        assert (around(y_whole, x.shape, layout) == GUARD).all()
    q, scale = cunorm.rms_norm_quant(x, quant=quant, y_out=x)
    assert bits(x) == bits(y)
    assert_is_definition(q, scale, y.get(), quant)


def test_arrays_that_step_otherwise_are_copied():
    quant = Quant.mxfp8()
    table = cupy.asarray(random((2, 3, 4, 5, 128), "float16"))
    x = table.transpose(3, 2, 1, 0, 4)[:, ::2, :, :, ::2]
    y = cunorm.rms_norm(x).get()
    for layout in ("contiguous", "transposed"):
        whole, q = place(np.zeros(x.shape, np.uint8), layout)
        assert_is_definition(*cunorm.rms_norm_quant(x, quant=quant, out=q), y, quant)
        assert (around(whole, x.shape, layout) == GUARD).all()


@pytest.mark.parametrize("quant", [Quant.fp8_static(2), Quant.fp8_row()])
def test_scales_may_not_overwrite_what_is_read_on_any_call(quant):
    x = cupy.asarray(random((5, 1), "float32"))
    scale = cupy.empty((5, 1) if quant.static is None else (), "float32")
    for _ in range(2):
        made = cunorm.quantize(x, quant, scale_out=scale)
        assert_is_definition(*made, x.get(), quant)
    with pytest.raises(ValueError, match="scale_out must not overlap x"):
        cunorm.rms_norm_quant(x, quant=quant, scale_out=x if quant.static is None else x[0, 0])


@pytest.mark.slow("a row that fills shared memory on any device")
@pytest.mark.parametrize("dtype", ["float16"])
def test_y_may_be_written_over_rows_that_are_read_again(dtype):
    x = cupy.asarray(random((1, 1_300_096), dtype))
    y = cunorm.rms_norm(x)
    for quant in (Quant.fp8_row(), Quant.mxfp8()):
        own = x.copy()
        q, scale = cunorm.rms_norm_quant(own, quant=quant, y_out=own)
        assert bits(own) == bits(y)
        assert_is_definition(q, scale, y.get(), quant)


@some_of(
    [("add_rms_norm", "bfloat16", "float32"), ("add_layer_norm", "float32", "float16")],
    "the others of a product",
    norm=NORMS[2:],
    dtype=NARROW,
    residual=NARROW,
)
def test_a_sum_is_written_and_quantised_as_rounded(norm, dtype, residual):
    x, r = (cupy.asarray(random((4, 768), d, seed=i)) for i, d in enumerate((dtype, residual)))
    y, h = getattr(cunorm, norm)(x, r, gate=0.5)
    op = getattr(cunorm, f"{norm}_quant")
    for quant in (Quant.fp8_row(), Quant.nvfp4(30.0)):
        q, scale, own = op(x, r, gate=0.5, quant=quant)
        assert bits(own) == bits(h)
        assert_is_definition(q, scale, y.get(), quant)
        stream = r.copy()
        made = op(x, stream, gate=0.5, quant=quant, residual_out=stream)
        assert made[2] is stream
        assert [bits(a) for a in made] == [bits(a) for a in (q, scale, h)]


@pytest.mark.parametrize("cast", ["before", "after"])
@pytest.mark.parametrize("offset", [0.0, 1.0])
def test_options_are_those_of_the_norm(cast, offset):
    x, gamma = cupy.asarray(random((3, 256), "float16")), cupy.asarray(random(256, "float16"))
    options = {"eps": 0.1, "gamma_offset": offset, "cast": cast}
    y = cunorm.rms_norm(x, gamma, **options)
    quant = Quant.mxfp8()
    assert_is_definition(*cunorm.rms_norm_quant(x, gamma, **options, quant=quant), y.get(), quant)


@pytest.mark.parametrize("scheme", ["fp8 row", "deepseek", "mxfp8", "nvfp4"])
def test_a_row_has_the_same_bits_alone_in_a_batch_and_on_every_run(scheme):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random((9, 5, 768), "bfloat16"))
    q, scale = cunorm.rms_norm_quant(x, quant=quant)
    for _ in range(9):
        again = cunorm.rms_norm_quant(x, quant=quant)
        assert [bits(a) for a in again] == [bits(q), bits(scale)]
    alone, _ = cunorm.rms_norm_quant(x[7, 3], quant=quant)
    assert bits(alone) == bits(q[7, 3])


@IN_TURNS
@pytest.mark.simgpu
@pytest.mark.parametrize("scheme", ["fp8 row", "fp8 static", "mxfp8", "mxfp4", "deepseek"])
@pytest.mark.parametrize("cols", [4096, 20_480])
def test_rows_are_read_once_and_codes_written_once(scheme, cols):
    quant = SCHEMES[scheme]
    x, residual = (cupy.asarray(random((16, cols), "bfloat16", seed=seed)) for seed in range(2))
    made = [a.copy() for a in cunorm.add_rms_norm_quant(x, residual, quant=quant)[::2]]
    with simgpu.profile(registers=False) as profile:
        cunorm.add_rms_norm_quant(x, residual, quant=quant, out=made[0], residual_out=made[1])
    (launch,) = profile.launches
    arrays = {array.address: array for array in launch.arrays}
    read = [arrays[a.data.ptr].loads for a in (x, residual)]
    written = [arrays[a.data.ptr].stores for a in made]
    for traffic, a in zip(read + written, (x, residual, *made), strict=True):
        assert traffic.bytes == a.nbytes
        assert traffic.requested_per_distinct == 1


@IN_TURNS
@pytest.mark.simgpu
@pytest.mark.parametrize(("dtype", "cols", "scheme", "most"), [
    ("float16", 513, "fp8 row", 1.13), ("bfloat16", 775, "int8 static", 1.09),
    ("float16", 3083, "e5m2 row", 1.06), ("float32", 513, "int8 row", 1.13),
    ("float32", 2049, "fp8 static", 1.09),
])  # fmt: skip
def test_codes_off_16_bytes_ask_for_few_more_sectors(dtype, cols, scheme, most):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random((32, cols), dtype))
    q, _ = cunorm.rms_norm_quant(x, quant=quant)
    with simgpu.profile(registers=False) as profile:
        cunorm.rms_norm_quant(x, quant=quant, out=q)
    (launch,) = profile.launches
    (traffic,) = (array.stores for array in launch.arrays if array.address == q.data.ptr)
    assert traffic.bytes == q.nbytes
    assert traffic.sectors * 32 <= most * q.nbytes


def test_a_captured_call_is_replayed_on_new_rows():
    quant = Quant.mxfp8()
    x, q, scale = (
        cupy.zeros((5, 256), "float16"),
        cupy.empty((5, 256), "u1"),
        cupy.empty(1024, "u1"),
    )
    cunorm.rms_norm_quant(x, quant=quant, out=q, scale_out=scale)
    stream = cupy.cuda.Stream(non_blocking=True)
    cupy.cuda.Device().synchronize()
    with stream:
        stream.begin_capture()
        cunorm.rms_norm_quant(x, quant=quant, out=q, scale_out=scale)
        graph = stream.end_capture()
    x[...] = cupy.asarray(random(x.shape, "float16"))
    cupy.cuda.get_current_stream().synchronize()
    graph.launch(stream)
    stream.synchronize()
    assert_is_definition(q, scale, cunorm.rms_norm(x).get(), quant)


# Quantises rows of every kind with every scheme, and prints a digest of all bits.
PROGRAM = """
import hashlib, sys
sys.path[:0] = sys.argv[1:]
import cupy, cunorm
from arrays import bits
from test_quant import LIMITED, SCHEMES, extreme
for dtype, schemes in (("float16", SCHEMES), ("float32", LIMITED)):
    y = cupy.asarray(extreme(dtype))
    for name, quant in schemes.items():
        digest = hashlib.sha256(b"".join(map(bits, cunorm.rms_norm_quant(y, quant=quant))))
        print(dtype, name, digest.hexdigest())
"""


@pytest.mark.simgpu
@pytest.mark.slow("two processes, each of which compiles and runs 29 kernels")
@pytest.mark.parametrize("arch", ["sm_75", "sm_89"])
def test_architectures_with_and_without_conversions_have_the_same_bits(arch):
    """From sm_89 on there are instructions for 8 bits; this process has a device that has them."""
    here = Path(__file__).parent
    command = [sys.executable, "-m", "cunorm.simgpu", "--arch", arch, "-c", PROGRAM]
    run = subprocess.run(
        [*command, str(here), str(here.parent)], capture_output=True, text=True, check=True
    )
    with contextlib.redirect_stdout(io.StringIO()) as told, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["-c", str(here), str(here.parent)])
        exec(PROGRAM, {})
    assert run.stdout == told.getvalue()


def test_a_repeated_call_sees_other_arrays():
    quant = Quant.deepseek()
    for seed in range(3):
        x = cupy.asarray(random((5, 256), "float16", seed=seed))
        out = cupy.empty((5, 256), "uint8")
        q, scale = cunorm.rms_norm_quant(x, quant=quant, out=out)
        assert q is out
        assert_is_definition(q, scale, cunorm.rms_norm(x).get(), quant)
    with pytest.raises(ValueError, match="out must not overlap x"):
        cunorm.rms_norm_quant(x, quant=quant, out=x.view("uint8")[:, :256])
    scales = cupy.empty((5, 1), "float32")
    cunorm.rms_norm_quant(x, quant=Quant.fp8_row(), out=out, scale_out=scales)
    cunorm.rms_norm_quant(x, quant=Quant.fp8_row(), out=out, scale_out=scales)
    inside = out.view("float32").ravel()[:5].reshape(5, 1)
    with pytest.raises(ValueError, match="must not overlap"):
        cunorm.rms_norm_quant(x, quant=Quant.fp8_row(), out=out, scale_out=inside)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("shape", [(0, 128), (2, 0), (0, 0), (3, 0, 128), (128,)])
def test_arrays_of_no_elements_and_of_one_row(scheme, shape):
    quant = SCHEMES[scheme]
    x = cupy.asarray(random(shape, "float32"))
    assert_is_definition(*cunorm.rms_norm_quant(x, quant=quant), cunorm.rms_norm(x).get(), quant)


@some_of(in_turns(EVERY), "the others of a product", scheme=[*SCHEMES, *LIMITED], dtype=EVERY)
def test_codes_stand_for_numbers_as_defined(scheme, dtype):
    quant = (SCHEMES | LIMITED)[scheme]
    y = extreme("float32").reshape(-1, 2, 256)[:64]
    q, scale = cunorm.quantize(cupy.asarray(y), quant)
    made = cunorm.dequantize(q, scale, quant, dtype)
    expected = _quant_reference.dequantize(q.get(), scale.get(), quant, DTYPES[dtype])
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made.get().astype("f8"), expected.astype("f8"), strict=True)


@pytest.mark.parametrize("format", ["e4m3", "e5m2", "e2m1", "int8"])
def test_every_code_stands_for_its_number(format):
    quant = Quant(format, static=1.0)
    codes = np.arange(256, dtype=np.uint8).view(codes_dtype(quant)).reshape(4, 64)
    numbers = cunorm.dequantize(cupy.asarray(codes), cupy.ones((), "f4"), quant, "float32").get()
    expected = _quant_reference._numbers(codes, quant)
    np.testing.assert_array_equal(numbers, expected)
    assert (np.signbit(numbers) == np.signbit(expected))[~np.isnan(expected)].all()


def test_codes_and_scales_that_are_views_are_dequantised_as_they_lie():
    quant = Quant.deepseek()
    q, scale = cunorm.quantize(cupy.asarray(random((6, 4, 256), "float32")), quant)
    whole = cunorm.dequantize(q, scale, quant, "float16")
    part = cunorm.dequantize(q[::2, 1:3], scale[::2, 1:3], quant, "float16")
    assert bits(part) == bits(cupy.ascontiguousarray(whole[::2, 1:3]))


def test_quantisation_is_within_half_a_step():
    y = random((64, 512), "float32")
    for quant, step in (
        (Quant.int8_row(), 1 / 254),
        (Quant.mxfp8(), 1 / 16),
        (Quant.mxfp4(), 1 / 3),
    ):
        q, scale = cunorm.quantize(cupy.asarray(y), quant)
        back = cunorm.dequantize(q, scale, quant, "float32").get()
        bound = step * np.abs(y) if quant.format != "int8" else 0
        largest = (
            np.abs(y).reshape(64, -1, quant.group or 512).max(-1).repeat(quant.group or 512, 1)
        )
        assert (np.abs(back - y) <= np.maximum(bound, step * largest)).all()


X = cupy.ones((4, 3, 128), "float16")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"quant": "fp8"}, TypeError, "quant must be a cunorm.Quant, but is a str"),
        ({"quant": None}, TypeError, "quant must be a cunorm.Quant, but is a NoneType"),
        ({"x": X[..., :100]}, ValueError, "x must have a multiple of 32 columns .* but has 100"),
        (
            {"x": X[..., :100], "quant": Quant("e2m1", static=1)},
            ValueError,
            "x must have a multiple of 8 columns with format='e2m1', but has 100",
        ),
        ({"x": X.astype("float64")}, TypeError, "x must be float16, .* with quant, but is float64"),
        ({"x": X.astype("int32")}, TypeError, "x must be float16, .* but is int32"),
        (
            {"gamma": cupy.ones((3, 128), "float16")},
            ValueError,
            "gamma must have one axis with quant, but has 2",
        ),
        ({"out": X}, TypeError, "out must be uint8 with this quant, but is float16"),
        ({"out": X[0].view("uint8")}, ValueError, r"out must have shape \(4, 3, 128\) with"),
        ({"out": np.ones(3)}, TypeError, "out must be a cupy.ndarray or None, but is a numpy"),
        (
            {"out": cupy.broadcast_to(cupy.zeros(128, "uint8"), X.shape)},
            ValueError,
            "out must not overlap itself",
        ),
        ({"out": X.view("uint8")[..., ::2]}, ValueError, "out must not overlap x, but shares mem"),
        ({"scale_out": cupy.ones(512, "int8")}, TypeError, "scale_out must be uint8 with this"),
        (
            {"scale_out": cupy.ones((12, 4), "uint8")},
            ValueError,
            r"scale_out must have shape \(512,",
        ),
        ({"scale_out": cupy.ones(1024, "uint8")[::2]}, ValueError, "scale_out must have strides"),
        ({"scale_out": cupy.ones(514, "uint8")[2:]}, ValueError, "scale_out must start on 4 bytes"),
        ({"scale_out": X.view("uint8").ravel()[:512]}, ValueError, "scale_out must not overlap x"),
        ({"y_out": X.astype("float32")}, TypeError, "y_out must have the dtype of x, float16"),
        ({"y_out": X[:2]}, ValueError, "y_out must have the shape of x"),
        ({"y_out": X[::-1]}, ValueError, "y_out must be x itself or not overlap it"),
        ({"eps": -1.0}, ValueError, "eps must be finite and not negative"),
        ({"cast": "never"}, ValueError, "cast must be 'before' or 'after', but is 'never'"),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_written(change, error, message):
    given = {"x": X, "quant": Quant.mxfp8()} | change
    before = bits(X)
    with pytest.raises(error, match=f"^{message}"):
        cunorm.rms_norm_quant(**given)
    assert bits(X) == before


def test_scales_in_columns_need_room_for_what_fills_them_up():
    quant = Quant.deepseek()
    x = cupy.ones((5, 256), "float16")
    memory = cupy.cuda.UnownedMemory(cupy.empty(64, "f4").data.ptr, 13 * 4, x, x.device.id)
    start = cupy.cuda.MemoryPointer(memory, 0)
    scale = cupy.ndarray((5, 2), "float32", start, (4, 32))
    with pytest.raises(ValueError, match=r"^scale_out must have room for 64 bytes, .* after 52$"):
        cunorm.rms_norm_quant(x, quant=quant, scale_out=scale)
    with pytest.raises(
        ValueError, match=r"^scale_out must have strides \(4, 32\) where layout is "
    ):
        cunorm.rms_norm_quant(x, quant=quant, scale_out=cupy.empty((5, 2), "float32"))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"q": cupy.ones((4, 128), "int8")}, TypeError, "q must be uint8 with this quant"),
        (
            {"q": cupy.ones((4, 100), "uint8")},
            ValueError,
            "q must have codes of a multiple of 32 c",
        ),
        ({"q": cupy.ones((), "uint8")}, ValueError, "q must have at least one axis"),
        ({"q": np.ones((4, 128), "u1")}, TypeError, "q must be a cupy.ndarray, but is a numpy"),
        ({"scale": cupy.ones(512, "f4")}, TypeError, "scale must be uint8 with this quant"),
        ({"scale": cupy.ones((4, 4), "u1")}, ValueError, r"scale must have shape \(512,\) with"),
        ({"quant": 3}, TypeError, "quant must be a cunorm.Quant, but is a int"),
        ({"dtype": "int8"}, TypeError, "dtype must be float16, .* but is int8"),
        ({"dtype": None}, TypeError, "dtype must be float16, .* but is None"),
    ],
)
def test_what_cannot_be_dequantised_is_refused(change, error, message):
    q, scale = cupy.ones((4, 128), "uint8"), cupy.ones(512, "uint8")
    given = {"q": q, "scale": scale, "quant": Quant.mxfp8(), "dtype": "float32"} | change
    with pytest.raises(error, match=f"^{message}"):
        cunorm.dequantize(**given)
