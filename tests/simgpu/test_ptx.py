"""PTX text: modules, variables, scopes, literals, lines."""

import struct

import pytest

from cunorm.simgpu import faults
from cunorm.simgpu.ptx import module as ptx
from cunorm.simgpu.ptx.declarations import number
from cunorm.simgpu.ptx.statements import split

HEAD = ".version 8.8\n.target sm_90\n.address_size 64\n"


def test_a_kernel_says_what_a_launch_needs():
    module = ptx.parse(
        HEAD
        + """
    .visible .entry k(.param .align 8 .b8 box[24], .param .u32 n,
      .param .u64 .ptr .global .align 16 p)
    .maxntid 64, 2, 1 .minnctapersm 2
    { .shared .align 16 .b8 tile[100]; .shared .align 8 .b8 rest[8]; .local .align 8 .b8 depot[40];
      .reg .b32 %r<3>; mov.u32 %r1, tile; mov.u32 %r2, rest; ret; }"""
    )
    kernel = module.functions["k"]
    assert [(p.name, p.size, p.alignment) for p in kernel.parameters] == [
        ("box", 24, 8), ("n", 4, 4), ("p", 8, 8),
    ]  # fmt: skip
    assert kernel.max_threads == 128
    assert kernel.shared_bytes == 112  # 100, aligned to 8, and 8 more
    assert kernel.local_bytes == 40
    assert module.target == 90


def test_limits_that_are_not_written_are_the_devices():
    kernel = ptx.parse(HEAD + ".entry k() { ret; }").functions["k"]
    assert (kernel.max_threads, kernel.shared_bytes, kernel.local_bytes) == (1024, 0, 0)
    assert kernel.parameters == ()


def test_each_kernel_counts_the_shared_memory_it_uses():
    module = ptx.parse(
        HEAD
        + """
    .shared .align 4 .b8 a[16]; .shared .align 4 .b8 b[64];
    .func f() { .reg .b32 %r; mov.u32 %r, b; ret; }
    .entry uses_a() { .reg .b32 %r; mov.u32 %r, a; ret; }
    .entry calls_f() { call f; ret; }
    .entry neither() { ret; }"""
    )
    sizes = {name: kernel.shared_bytes for name, kernel in module.functions.items()}
    assert sizes == {"uses_a": 16, "calls_f": 64, "neither": 0}


def test_kernels_may_name_their_shared_memory_alike():
    module = ptx.parse(
        HEAD
        + """
    .entry small() { .shared .b32 tile[2]; .reg .b32 %r; mov.u32 %r, tile; ret; }
    .entry large() { .shared .b32 tile[9]; .reg .b32 %r; mov.u32 %r, tile; ret; }"""
    )
    sizes = {name: kernel.shared_bytes for name, kernel in module.functions.items()}
    assert sizes == {"small": 8, "large": 36}


def test_variables_carry_their_bytes():
    variables = ptx.parse(
        HEAD
        + """
    .visible .global .align 4 .u32 zeros[3];
    .global .align 2 .b8 octets[4] = {1, 0xFF, 3};
    .const .align 8 .f64 half = 0d3FE0000000000000;
    .global .align 4 .s32 grid[2][2] = {1, -2, 3, 4};
    .global .align 4 .f32 open[] = {0f3F800000, 0fBF800000};"""
    ).globals
    assert variables["zeros"].initial == bytes(12)
    assert variables["octets"].initial == b"\x01\xff\x03\x00"
    assert (variables["half"].space, variables["half"].initial) == ("const", struct.pack("<d", 0.5))
    assert variables["grid"].initial == struct.pack("<4i", 1, -2, 3, 4)
    assert variables["open"].initial == struct.pack("<2f", 1, -1)
    assert variables["octets"].alignment == 2


def test_scopes_may_reuse_names():
    kernel = ptx.parse(
        HEAD
        + """
    .entry k() { .reg .b32 %r<4>; .reg .pred p;
      { .reg .pred p; setp.eq.u32 p, %r1, %r2; @p bra inner; inner: ret; }
      setp.ne.u32 p, %r1, %r2; @!p bra inner; inner: ret; }"""
    ).functions["k"]
    first, branch, label, _, second, other, outer, _ = kernel.statements
    assert first.operands[0] != second.operands[0] == "p"
    assert branch.guard == first.operands[0]
    assert branch.operands[0] == label.operands[0] != outer.operands[0]
    assert (other.guard, other.negated) == ("p", True)
    assert kernel.register_type(first.operands[0]) == "pred"
    assert kernel.register_type("%r3") == "b32"
    assert kernel.register_type("%x") is None


def test_lines_count_through_comments_and_loc_gives_the_source():
    kernel = ptx.parse(
        HEAD
        + """.file 1 "norm.cu"
    /* two
       lines */ // and one; with { braces }
    .entry k() {
      .loc 1 42 7
      ret; }
    .section .debug_str { .b8 0 }"""
    ).functions["k"]
    (statement,) = kernel.statements
    assert (statement.line, statement.source) == (9, "norm.cu:42")


def test_operands_split_outside_brackets():
    assert split("{%r1, %r2}, [%rd1+8], (a, b), 3") == ("{%r1, %r2}", "[%rd1+8]", "(a, b)", "3")
    assert split("") == ()


@pytest.mark.parametrize(
    ("text", "kind", "wanted"),
    [
        ("0f3F800000", "f32", struct.pack("<f", 1)),
        ("0d3FF0000000000000", "f64", struct.pack("<d", 1)),
        ("0f3F800000", "b32", struct.pack("<f", 1)), ("1.5", "f32", struct.pack("<f", 1.5)),
        ("-1", "s16", b"\xff\xff"), ("0xFFFFFFFFU", "u32", b"\xff" * 4),
        ("017", "u32", b"\x0f\0\0\0"),
        ("0b101", "u8", b"\x05"), ("4294967295", "s32", b"\xff" * 4), ("0", "u64", bytes(8)),
    ],
)  # fmt: skip
def test_literals(text, kind, wanted):
    assert number(text, kind) == wanted


@pytest.mark.parametrize("text", ["abc", "1.5.2", "0fXX", "--1x"])
def test_what_is_no_literal_is_refused(text):
    with pytest.raises(faults.UnknownInstruction):
        number(text, "u32")


def test_an_unknown_directive_is_refused_with_its_line():
    with pytest.raises(faults.UnknownInstruction, match="line 4"):
        ptx.parse(HEAD + ".texref t;")
