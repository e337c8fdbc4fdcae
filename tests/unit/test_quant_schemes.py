"""`Quant`, its presets and their layouts; and the definition, against cases by hand."""

import pickle

import ml_dtypes
import numpy as np
import pytest

import cunorm
from cunorm import Quant
from cunorm._quant import buffer_shape, codes_shape, scales_shape, strides
from cunorm._quant_reference import codes_and_buffer, dequantize, quantize


def test_a_scheme_is_a_value():
    quant = Quant.nvfp4(3)
    assert quant == Quant("e2m1", group=16, scale="e4m3", layout="swizzled", global_scale=3.0)
    assert hash(quant) == hash(Quant.nvfp4(np.float32(3)))
    assert pickle.loads(pickle.dumps(quant)) == quant
    with pytest.raises(AttributeError):
        quant.group = 32


def test_presets_are_what_they_are_named_after():
    assert Quant.fp8_static(0.5) == Quant("e4m3", static=0.5)
    assert Quant.fp8_row() == Quant("e4m3", minimum=1 / (448 * 512))
    assert Quant.int8_static(0.5) == Quant("int8", static=0.5)
    assert Quant.int8_row() == Quant("int8", minimum=2**-23)
    assert Quant.deepseek() == Quant("e4m3", group=128, layout="columns", floor=1e-4)
    packed = Quant("e4m3", group=128, scale="e8m0", layout="packed", floor=1e-4)
    assert Quant.deepseek(e8m0=True) == packed
    assert Quant.mxfp8() == Quant("e4m3", group=32, scale="e8m0", layout="swizzled")
    assert Quant.mxfp8(layout="rows") == Quant("e4m3", group=32, scale="e8m0")
    assert Quant.mxfp4() == Quant("e2m1", group=32, scale="e8m0", layout="swizzled")


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"format": "e3m4"}, ValueError, "format must be 'e4m3', 'e5m2', 'int8' or 'e2m1', but is"),
        ({"format": None}, TypeError, "format must be 'e4m3', .* but is a NoneType"),
        ({"group": 48}, ValueError, "group must be 16, 32, 64, 128 or None, but is 48"),
        ({"group": 32.0}, TypeError, "group must be an int or None, but is a float"),
        ({"group": True}, TypeError, "group must be an int or None, but is a bool"),
        ({"scale": "bfloat16"}, ValueError, "scale must be 'float32', 'e8m0' or 'e4m3', but is"),
        (
            {"layout": "tiles"},
            ValueError,
            "layout must be 'rows', .* or 'swizzled', but is 'tiles'",
        ),
        ({"floor": -1}, ValueError, "floor must be finite and not negative in float32, but is -1"),
        ({"minimum": "0"}, TypeError, "minimum must be a real number, but is a str"),
        ({"minimum": float("nan")}, ValueError, "minimum must be finite and not negative"),
        ({"ceiling": 0}, ValueError, "ceiling must be finite and greater than 0 in float32"),
        ({"ceiling": 1e39}, ValueError, "ceiling must be finite and greater than 0 in float32"),
        ({"static": 1e-50}, ValueError, "static must be finite and greater than 0 in float32"),
        ({"static": True}, TypeError, "static must be a real number, but is a bool"),
        ({"static": 1, "group": 32}, ValueError, "group must be None where static is given, but"),
        ({"static": 1, "floor": 1}, ValueError, "floor must be 0.0 where static is given, but"),
        ({"static": 1, "layout": "columns"}, ValueError, "layout must be 'rows' where static is"),
        ({"layout": "packed"}, ValueError, "scale must be 'e8m0' where layout is 'packed', but is"),
        ({"layout": "swizzled"}, ValueError, "scale must be 'e8m0' or 'e4m3' where layout is 'sw"),
        ({"scale": "e8m0", "minimum": 1}, ValueError, "minimum must be 0 where scale is 'e8m0', b"),
        ({"scale": "e4m3"}, ValueError, "global_scale must be a number where scale is 'e4m3', but"),
        ({"global_scale": 2}, ValueError, "global_scale must be None where scale is 'float32', bu"),
        (
            {"scale": "e4m3", "global_scale": 2.0**119},
            ValueError,
            r"global_scale must be at most 2\*\*118, but is",
        ),
    ],
)
def test_what_is_no_scheme_is_refused(given, error, message):
    with pytest.raises(error, match=f"^{message}"):
        Quant(**{"format": "e4m3"} | given)


SHAPES = [
    (Quant.fp8_static(1), (3, 5, 256), (3, 5, 256), (), ()),
    (Quant.fp8_row(), (3, 5, 256), (3, 5, 256), (3, 5, 1), (3, 5, 1)),
    (Quant.deepseek(), (3, 5, 256), (3, 5, 256), (3, 5, 2), (2, 16)),
    (Quant.deepseek(), (256,), (256,), (2,), (2, 4)),
    (Quant.deepseek(True), (17, 640), (17, 640), (17, 2), (2, 20)),
    (Quant.mxfp8(), (129, 160), (129, 160), (2 * 2 * 512,), (2 * 2 * 512,)),
    (Quant.nvfp4(1), (2, 2, 64), (2, 2, 32), (512,), (512,)),
]


@pytest.mark.parametrize(("quant", "shape", "codes", "scales", "buffer"), SHAPES)
def test_shapes_of_codes_and_scales(quant, shape, codes, scales, buffer):
    assert codes_shape(quant, shape) == codes
    assert scales_shape(quant, shape) == scales
    assert buffer_shape(quant, shape) == buffer
    made = quantize(np.ones(shape, np.float32), quant)
    assert [a.shape for a in made] == [codes, scales]
    assert made[1].strides == tuple(s * made[1].itemsize for s in strides(quant, shape))


def test_scales_in_columns_step_by_rows_filled_up_to_four():
    y = np.arange(1, 6, dtype=np.float32)[:, None] * np.repeat([1, 10], 128)[None].astype("f4")
    _, scale = quantize(y, Quant.deepseek())
    assert scale.strides == (4, 8 * 4)
    assert np.array_equal(scale, y[:, ::128] / np.float32(448))
    _, buffer = codes_and_buffer(y, Quant.deepseek())
    assert (buffer[:, 5:] == 0).all()


def test_packed_scales_are_bytes_of_a_word_the_first_one_low():
    y = np.repeat(2.0 ** np.arange(5), 128)[None].astype(np.float32) * 448
    _, scale = quantize(y, Quant.deepseek(e8m0=True))
    assert scale.shape == (1, 2)
    assert [hex(word) for word in scale[0]] == ["0x8281807f", "0x83"]


def test_swizzled_scales_are_tiles_of_128_rows_and_four_groups():
    rows, groups = 130, 6
    exponents = np.arange(rows)[:, None] % 50 + np.arange(groups)[None]
    y = np.repeat(2.0**exponents, 32, axis=1).astype(np.float32) * 448
    _, scale = quantize(y, Quant.mxfp8())
    for m in range(256):
        for k in range(8):
            at = ((m // 128) * 2 + k // 4) * 512 + m % 32 * 16 + m % 128 // 32 * 4 + k % 4
            is_there = m < rows and k < groups
            assert scale[at] == (127 + exponents[m, k] if is_there else 0)


def e8m0(amax):
    return int(quantize(np.full((1, 32), amax, np.float32), Quant.mxfp8("rows"))[1][0, 0])


def test_e8m0_scales_are_rounded_up():
    for k in (-100, -1, 0, 5):
        exact = np.float32(448) * np.float32(2) ** k
        assert e8m0(exact) == 127 + k
        assert e8m0(np.nextafter(exact, np.float32(0))) == 127 + k
        assert e8m0(exact * np.float32(1 + 2**-23)) == 128 + k
    assert e8m0(0) == 0
    assert e8m0(1e-45) == 0  # a 448th of it is none
    assert e8m0(1e-40) == 1
    assert e8m0(np.inf) == 255


def codes(y, quant):
    return quantize(np.asarray([y], np.float32), quant)[0][0].tolist()


def test_codes_by_hand():
    special = [0, -0.0, 1, -1, 448, 449, 1e9, -np.inf, np.nan, -np.nan, 2**-9, 2**-10, 3 * 2**-10]
    expected = [0, 128, 0x38, 0xB8, 126, 126, 126, 254, 127, 127, 1, 0, 2]
    assert codes(special, Quant.fp8_static(1)) == expected
    special = [0, -0.0, 0.5, 1.5, -2.5, 126.5, 127.6, -128, np.inf, np.nan]
    assert codes(special, Quant.int8_static(1)) == [0, 0, 0, 2, -2, 126, 127, -127, 127, 0]
    pairs = [0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, -6.1, np.nan, -np.nan]
    low_first = [(0, 2), (2, 4), (4, 6), (6, 15), (7, 7)]
    expected = [low | high << 4 for low, high in low_first]
    assert codes(pairs, Quant("e2m1", static=1)) == expected
    assert codes([57344, 61440, np.inf, 2**-16, 2**-17], Quant("e5m2", static=1)) == [
        *(0x7B, 0x7B, 0x7B, 1, 0)
    ]


def test_scales_that_are_zero_give_the_code_zero_and_keep_nan():
    y = [0.0, -0.0, np.nan]
    assert codes(y, Quant("e4m3")) == [0, 0, 127]
    assert codes([-0.0] * 16, Quant.nvfp4(1.0)) == [0] * 8
    assert codes([-0.0], Quant.fp8_row()) == [128]  # whose scale is not


def test_infinity_is_the_largest_and_nan_is_ignored():
    y = np.asarray([[1, -2, np.nan, np.inf], [1, -2, np.nan, 0]], np.float32)
    q, scale = quantize(y, Quant.fp8_row())
    assert scale[:, 0].tolist() == [np.inf, float(np.float32(2) / np.float32(448))]
    assert q.tolist() == [[0, 128, 127, 127], [118, 254, 127, 0]]


def test_bounds_are_of_the_largest_number_and_of_the_scale():
    y = np.asarray([[0.1], [1.0], [10.0]], np.float32)
    q, scale = quantize(y, Quant("int8", floor=0.5, ceiling=5.0))
    assert np.array_equal(scale[:, 0], np.asarray([0.5, 1, 5], "f4") / np.float32(127))
    assert q[:, 0].tolist() == [25, 127, 127]
    _, scale = quantize(y, Quant("int8", minimum=0.01))
    assert np.array_equal(scale[:2, 0], np.asarray([0.01, 0.01], "f4"))


def test_nvfp4_by_hand():
    y = np.full((1, 16), 3.0, np.float32)
    q, scale = quantize(y, Quant.nvfp4(16.0, layout="rows"))
    assert scale.view(ml_dtypes.float8_e4m3fn)[0, 0] == 8  # 3 / 6 * 16
    assert q.tolist() == [[0x77] * 8]  # 3 * (16 / 8) = 6
    back = dequantize(q, scale, Quant.nvfp4(16.0, layout="rows"), np.float32)
    assert np.array_equal(back, y)


def test_quant_needs_no_cupy():
    assert cunorm.Quant is Quant
    assert Quant.__module__ == "cunorm._quant"
