"""Sums and products that are carried from one instruction to the next."""

import random

import numpy as np
import pytest
from whole_numbers import bits_of, samples

CHAINS = """
  .reg .b{bits} %a<8>; .reg .b64 %q<8>; .reg .b32 %i;
  ld.param.u64 %q0, [p]; mov.u32 %i, %tid.x;
  mad.wide.u32 %q1, %i, {stride}, %q0;
  ld.global.b{bits} %a0, [%q1]; ld.global.b{bits} %a1, [%q1+{size}];
  ld.global.b{bits} %a2, [%q1+{two}]; ld.global.b{bits} %a3, [%q1+{three}];
  {first}.{kind} %a4, %a0, %a2; {second}.{kind} %a5, %a1, %a3; {third}.{kind} %a6, 0, 0;
  st.global.b{bits} [%q1], %a4; st.global.b{bits} [%q1+{size}], %a5;
  st.global.b{bits} [%q1+{two}], %a6; ret;
"""


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("name", ["add", "sub"])
def test_carry_chains(name, kind):
    from one_instruction import entry, start

    from cunorm.simgpu.memory.space import GlobalMemory

    bits = bits_of(kind)
    size = bits // 8
    draw = random.Random(bits)
    top = (1 << bits) - 1
    rows = [
        [draw.choice((0, 1, top, top - 1, draw.getrandbits(bits))) for _ in range(4)]
        for _ in range(256)
    ]
    memory = GlobalMemory(1 << 20)
    data = memory.allocate(256 * 4 * size)
    words = data.data.view(f"u{size}").reshape(256, 4)
    words[:] = rows
    body = CHAINS.format(bits=bits, kind=kind, size=size, stride=4 * size,
                         two=2 * size, three=3 * size,
                         first=f"{name}.cc", second=f"{name}c.cc", third=f"{name}c")  # fmt: skip
    start(entry(body, ["p"]), "k", (1, 1, 1), (256, 1, 1), [data.address], memory=memory)
    for (a0, a1, b0, b1), got in zip(rows, words.tolist(), strict=True):
        a, b = a1 << bits | a0, b1 << bits | b0
        total = a + b if name == "add" else a - b
        assert got[:3] == [total & top, total >> bits & top, total >> 2 * bits & top]


@pytest.mark.parametrize("last", ["addc", "madc.lo", "madc.hi"])
@pytest.mark.parametrize(("first", "second"), [("lo", "hi"), ("hi", "lo")])
@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_mad_with_carry(kind, first, second, last):
    from one_instruction import entry, start

    from cunorm.simgpu.memory.space import GlobalMemory

    bits = bits_of(kind)
    size, top = bits // 8, (1 << bits) - 1
    columns = samples(kind, 3, 200)
    lanes = len(columns[0])
    memory = GlobalMemory(1 << 20)
    data = memory.allocate(lanes * 4 * size)
    words = data.data.view(f"u{size}").reshape(lanes, 4)
    words[:, :3] = np.array([[value & top for value in column] for column in columns], f"u{size}").T
    operands = "0, 0" if last == "addc" else "%a0, %a1, %a2"
    body = f"""
      .reg .b{bits} %a<8>; .reg .b64 %q<8>; .reg .b32 %i;
      ld.param.u64 %q0, [p]; mov.u32 %i, %tid.x; mad.wide.u32 %q1, %i, {4 * size}, %q0;
      ld.global.b{bits} %a0, [%q1]; ld.global.b{bits} %a1, [%q1+{size}];
      ld.global.b{bits} %a2, [%q1+{2 * size}];
      mad.{first}.cc.{kind} %a3, %a0, %a1, %a2; madc.{second}.cc.{kind} %a4, %a0, %a1, %a2;
      {last}.{kind} %a5, {operands};
      st.global.b{bits} [%q1], %a3; st.global.b{bits} [%q1+{size}], %a4;
      st.global.b{bits} [%q1+{2 * size}], %a5; ret;"""
    start(entry(body, ["p"]), "k", (1, 1, 1), (lanes, 1, 1), [data.address], memory=memory)
    for a, b, c, got in zip(*columns, words.tolist(), strict=True):
        halves = {"lo": a * b & top, "hi": a * b >> bits & top}
        one = halves[first] + (c & top)
        two = halves[second] + (c & top) + (one >> bits)
        three = (halves[last[5:]] + (c & top) if last != "addc" else 0) + (two >> bits)
        assert got[:3] == [one & top, two & top, three & top]
