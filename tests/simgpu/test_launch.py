"""Launches: extents, special registers, arguments, limits."""

import numpy as np
import pytest
from one_instruction import entry, start

from cunorm.simgpu import faults
from cunorm.simgpu.execution import launch, setup
from cunorm.simgpu.memory.space import GlobalMemory

SPECIAL = """
  .reg .b64 %q<4>; .reg .b32 %r<20>; ld.param.u64 %q0, [o];
  mov.u32 %r1, %tid.x; mov.u32 %r2, %tid.y; mov.u32 %r3, %tid.z; mov.u32 %r4, %ctaid.x;
  mov.u32 %r5, %ctaid.y; mov.u32 %r6, %ctaid.z; mov.u32 %r7, %ntid.x; mov.u32 %r8, %ntid.y;
  mov.u32 %r9, %ntid.z; mov.u32 %r10, %nctaid.x; mov.u32 %r11, %nctaid.y;
  mad.lo.u32 %r12, %r3, %r8, %r2; mad.lo.u32 %r12, %r12, %r7, %r1;
  mad.lo.u32 %r13, %r6, %r11, %r5; mad.lo.u32 %r13, %r13, %r10, %r4;
  mul.lo.u32 %r14, %r7, %r8; mul.lo.u32 %r14, %r14, %r9; mad.lo.u32 %r15, %r13, %r14, %r12;
  mov.u32 %r16, SPECIAL; mad.wide.u32 %q1, %r15, 4, %q0; st.global.u32 [%q1], %r16; ret;
"""


def special(name, grid, block):
    memory = GlobalMemory(1 << 30)
    count = int(np.prod(grid) * np.prod(block))
    out = memory.allocate(4 * count)
    start(
        entry(SPECIAL.replace("SPECIAL", name), ["o"]),
        "k",
        grid,
        block,
        [out.address],
        memory=memory,
    )
    return out.data.view(np.uint32).reshape(*grid[::-1], *block[::-1])


@pytest.mark.parametrize(
    ("grid", "block"),
    [
        ((1, 1, 1), (1, 1, 1)),
        ((5, 3, 2), (7, 3, 2)),
        ((700, 1, 1), (96, 1, 1)),
        ((2, 200, 1), (33, 1, 4)),
    ],
)
def test_every_thread_knows_its_place(grid, block):
    wanted = np.indices((*grid[::-1], *block[::-1]))
    for at, name in enumerate(["%ctaid.z", "%ctaid.y", "%ctaid.x", "%tid.z", "%tid.y", "%tid.x"]):
        np.testing.assert_array_equal(special(name, grid, block), wanted[at], err_msg=name)
    for at, axis in enumerate("xyz"):
        assert (special(f"%ntid.{axis}", grid, block) == block[at]).all()
        assert (special(f"%nctaid.{axis}", grid, block) == grid[at]).all()
    thread = np.arange(np.prod(block)).reshape(block[::-1])
    lane = thread % 32
    for name, value in {
        "%laneid": lane, "%warpid": thread // 32, "%lanemask_eq": 1 << lane,
        "%lanemask_lt": (1 << lane) - 1, "%lanemask_le": (2 << lane) - 1,
        "%lanemask_gt": 0xFFFFFFFF & -(2 << lane), "%lanemask_ge": 0xFFFFFFFF & -(1 << lane),
    }.items():  # fmt: skip
        assert (special(name, grid, block) == value).all(), name


def test_more_blocks_than_one_batch_all_run():
    blocks = 3 * launch.LANES // 64 + 5
    np.testing.assert_array_equal(
        special("%ctaid.x", (blocks, 1, 1), (64, 1, 1))[0, 0, :, 0, 0, 0], np.arange(blocks)
    )


def test_clocks_go_forward():
    memory = GlobalMemory(1 << 20)
    out = memory.allocate(8)
    body = """.reg .b64 %q<4>; .reg .b32 %r<4>; ld.param.u64 %q0, [o]; mov.u32 %r0, %clock;
      add.u32 %r2, %r0, 1; bar.sync 0; mov.u32 %r1, %clock;
      st.global.v2.u32 [%q0], {%r0, %r1}; ret;"""
    start(entry(body, ["o"]), "k", (1, 1, 1), (1, 1, 1), [out.address], memory=memory)
    before, after = out.data.view(np.uint32)
    assert after > before


def attempt(grid=(1, 1, 1), block=(1, 1, 1), arguments=(0,), directives=""):
    text = entry("ret;", ["o"]).replace("\n{", f"\n{directives}\n{{", 1)
    start(text, "k", grid, block, list(arguments), memory=GlobalMemory(1 << 20))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": (1025, 1, 1)}, "1025 threads a block, of 1024"),
        ({"block": (64, 2, 1), "directives": ".maxntid 64, 1, 1"}, "128 threads a block, of 64"),
        ({"grid": (0, 1, 1)}, "grid"),
        ({"block": (1, 0, 1)}, "block"),
        ({"arguments": ()}, "parameters of"),
        ({"arguments": (0, 0)}, "parameters of"),
        ({"arguments": (b"1234",)}, "bytes"),
    ],
)
def test_impossible_launches_are_refused(options, message):
    with pytest.raises(faults.LaunchError, match=message) as caught:
        attempt(**options)
    assert caught.value.place.kernel == "k"


def test_possible_launches_are_not_refused():
    attempt(block=(1024, 1, 1))
    attempt(block=(64, 1, 1), directives=".maxntid 64, 1, 1")


def test_a_kernel_is_decoded_once():
    from cunorm.simgpu.ptx import module as ptx

    function = ptx.parse(entry("ret;")).functions["k"]
    assert setup.program_of(function) is setup.program_of(function)


def test_a_trap_ends_the_launch():
    with pytest.raises(faults.Trap):
        start(entry("trap;"), "k", (1, 1, 1), (1, 1, 1), [], memory=GlobalMemory(1 << 20))


def test_a_variable_without_an_address_is_refused():
    body = ".reg .b64 %q; mov.u64 %q, table; ret;"
    with pytest.raises(faults.LaunchError, match="table"):
        start(
            entry(body, top=".global .u32 table;"),
            "k",
            (1, 1, 1),
            (1, 1, 1),
            [],
            memory=GlobalMemory(1 << 20),
        )
