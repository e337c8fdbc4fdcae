"""Integer arithmetic against Python's own integers."""

import pytest
from whole_numbers import BINARY, WHOLE, as_type, bits_of, check, samples


def truncated(a, b):
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("name", BINARY)
def test_arithmetic_wraps(name, kind):
    check(f"{name}.{kind}", kind, BINARY[name], samples(kind, 2), [kind] * 2)


@pytest.mark.parametrize("kind", WHOLE)
def test_mul_hi_is_the_upper_half(kind):
    check(f"mul.hi.{kind}", kind, lambda a, b: a * b >> bits_of(kind), samples(kind, 2), [kind] * 2)


@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32"])
def test_wide_products_are_whole(kind):
    wide = f"{kind[0]}{2 * bits_of(kind)}"
    check(f"mul.wide.{kind}", wide, lambda a, b: a * b, samples(kind, 2), [kind] * 2)
    columns = [*samples(kind, 2), samples(wide, 1, 500)[0]]
    columns = [column[: min(map(len, columns))] for column in columns]
    check(f"mad.wide.{kind}", wide, lambda a, b, c: a * b + c, columns, [kind, kind, wide])


@pytest.mark.parametrize("kind", WHOLE)
def test_mad_adds_to_either_half(kind):
    columns = samples(kind, 3)
    check(f"mad.lo.{kind}", kind, lambda a, b, c: a * b + c, columns, [kind] * 3)
    high = lambda a, b, c: (a * b >> bits_of(kind)) + c  # noqa: E731
    check(f"mad.hi.{kind}", kind, high, columns, [kind] * 3)
    check(f"sad.{kind}", kind, lambda a, b, c: abs(a - b) + c, columns, [kind] * 3)


@pytest.mark.parametrize("kind", WHOLE)
def test_division_truncates(kind):
    a, b = samples(kind, 2)
    pairs = [(x, y) for x, y in zip(a, b, strict=True) if y]
    columns = list(zip(*pairs, strict=True))
    check(f"div.{kind}", kind, truncated, columns, [kind] * 2)
    check(f"rem.{kind}", kind, lambda x, y: x - truncated(x, y) * y, columns, [kind] * 2)


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_abs_and_neg_wrap_at_the_least(kind):
    check(f"abs.{kind}", kind, abs, samples(kind, 1), [kind])
    check(f"neg.{kind}", kind, lambda a: -a, samples(kind, 1), [kind])


def test_saturating_sums():
    clamp = lambda value: max(-(1 << 31), min((1 << 31) - 1, value))  # noqa: E731
    check("add.sat.s32", "s32", lambda a, b: clamp(a + b), samples("s32", 2), ["s32"] * 2)
    check("sub.sat.s32", "s32", lambda a, b: clamp(a - b), samples("s32", 2), ["s32"] * 2)


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_products_of_24_bits(kind):
    def low24(a):
        a &= 0xFFFFFF
        return a - (1 << 24) if kind == "s32" and a >> 23 else a

    columns = samples(kind, 3)
    for part, shift in (("lo", 0), ("hi", 16)):
        product = lambda a, b, s=shift: low24(a) * low24(b) >> s  # noqa: E731
        check(f"mul24.{part}.{kind}", kind, product, columns[:2], [kind] * 2)
        check(
            f"mad24.{part}.{kind}",
            kind,
            lambda a, b, c, p=product: p(a, b) + c,
            columns,
            [kind] * 3,
        )


@pytest.mark.parametrize("first", ["u32", "s32"])
@pytest.mark.parametrize("second", ["u32", "s32"])
def test_dot_products_of_bytes(first, second):
    def piece(value, at, width, kind):
        return as_type(value >> at * width, f"{kind[0]}{width}")

    def dp4a(a, b, c):
        return sum(piece(a, i, 8, first) * piece(b, i, 8, second) for i in range(4)) + c

    kinds = [first, second, "s32" if "s32" in (first, second) else "u32"]
    columns = [samples(kind, 3)[at] for at, kind in enumerate(kinds)]
    check(f"dp4a.{first}.{second}", kinds[2], dp4a, columns, kinds)
    for part, offset in (("lo", 0), ("hi", 2)):

        def dp2a(a, b, c, offset=offset):
            terms = (piece(a, i, 16, first) * piece(b, i + offset, 8, second) for i in range(2))
            return sum(terms) + c

        check(f"dp2a.{part}.{first}.{second}", kinds[2], dp2a, columns, kinds)


@pytest.mark.parametrize("kind", ["u16x2", "s16x2"])
@pytest.mark.parametrize("name", ["add", "min", "max"])
def test_pairs_of_16_bits(name, kind):
    half = kind.removesuffix("x2")

    def both(a, b):
        low = BINARY[name](as_type(a, half), as_type(b, half))
        high = BINARY[name](as_type(a >> 16, half), as_type(b >> 16, half))
        return as_type(low, "u16") | as_type(high, "u16") << 16

    check(f"{name}.{kind}", "b32", both, samples("u32", 2), ["b32"] * 2)


def test_mad_hi_saturates():
    def saturated(a, b, c):
        return max(-(1 << 31), min((1 << 31) - 1, (a * b >> 32) + c))

    check("mad.hi.sat.s32", "s32", saturated, samples("s32", 3), ["s32"] * 3)


@pytest.mark.parametrize("name", ["min", "max"])
def test_relu_extremes_are_not_negative(name):
    choose = {"min": min, "max": max}[name]
    relu = lambda a, b: max(0, choose(a, b))  # noqa: E731
    check(f"{name}.relu.s32", "s32", relu, samples("s32", 2), ["s32"] * 2)

    def both(a, b):
        low = relu(as_type(a, "s16"), as_type(b, "s16"))
        return low | relu(as_type(a >> 16, "s16"), as_type(b >> 16, "s16")) << 16

    check(f"{name}.relu.s16x2", "b32", both, samples("u32", 2), ["b32"] * 2)
