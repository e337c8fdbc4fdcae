"""A launch of one PTX kernel, counted."""

from __future__ import annotations

import struct

from one_instruction import entry

from cunorm.simgpu.device import tables as device
from cunorm.simgpu.execution import launch
from cunorm.simgpu.memory.space import GlobalMemory
from cunorm.simgpu.profiler.profile import Observer, Profile
from cunorm.simgpu.ptx import module as ptx

DECLARED = """
  .reg .pred %p<9>; .reg .b16 %h<9>; .reg .b32 %r<40>; .reg .b64 %q<20>; .reg .f32 %f<9>;
  .reg .f64 %d<9>;
"""
HELD = ".extern .shared .align 16 .b8 held[];"  # the dynamic shared memory
# %r0 is the thread, %q0 the array. What every kernel of `count` executes before its body:
PRELUDE = "mov.u32 %r0, %tid.x; ld.param.u64 %q0, [x];"
PRELUDE_OPCODES = {"mov.u32": 1, "ld.param.u64": 1, "ret": 1}


def count(
    body,
    *,
    grid=1,
    block=32,
    nbytes=1 << 16,
    shared=0,
    arch=90,
    memory=None,
    chains=False,
    cluster=1,
):
    """Return the counters of a kernel with one array `x` of this many bytes."""
    memory = memory or GlobalMemory(1 << 34)
    array = memory.allocate(nbytes)
    text = entry(f"{DECLARED}{PRELUDE}{body} ret;", ["x"], top=HELD)
    text = text.replace(".target sm_90", f".target sm_{arch}")
    if cluster > 1:
        text = text.replace(")\n{", f")\n.reqnctapercluster {cluster}, 1, 1\n{{")
    function = ptx.parse(text).functions["k"]
    profile = Profile(registers=False, chains=chains)
    launch.run(
        function, (grid, 1, 1), (block, 1, 1), shared, [struct.pack("<Q", array.address)],
        memory=memory, device=device.make(arch), symbols={}, observer=Observer([profile]),
    )  # fmt: skip
    (counters,) = profile.launches
    return counters


def added(counters, warps=1):
    """Return the opcodes that the body added to the prelude."""
    rest = dict(counters.opcodes)
    for opcode, each in PRELUDE_OPCODES.items():
        rest[opcode] -= each * warps
    return {opcode: number for opcode, number in rest.items() if number}
