"""PTX over rows of 16 bytes, for tests of what arrives later: copies and mbarriers."""

import numpy as np
from one_instruction import entry, start

from cunorm.simgpu.memory.space import GlobalMemory

HEAD = """
  .reg .b64 %q<20>; .reg .b32 %i<10>; .reg .pred %p<8>; .reg .b32 %r<20>; .reg .b64 %t<9>;
  .shared .align 16 .b8 tile[2048]; .shared .align 8 .b8 bar[16];
  ld.param.u64 %q0, [p]; ld.param.u64 %q1, [o]; mov.u32 %i0, %tid.x; mov.u32 %i1, bar;
  mov.u32 %i2, tile; setp.eq.u32 %p0, %i0, 0;
  mad.wide.u32 %q2, %i0, 16, %q0; mad.lo.u32 %i3, %i0, 16, %i2; mad.wide.u32 %q3, %i0, 4, %q1;
"""
INIT = "@%p0 mbarrier.init.shared.b64 [%i1], 64; bar.sync 0;"
STORE = "st.global.u32 [%q3], %r0; ret;"


def run(body, threads=64, target=90, data=None, **options):
    """Run PTX over 64 rows of 16 bytes; every thread stores one word."""
    memory = GlobalMemory(1 << 30)
    given = np.arange(256, dtype=np.uint32) + 1 if data is None else data
    source, out = memory.allocate(given.nbytes), memory.allocate(4 * threads)
    source.data[:] = given.view(np.uint8)
    text = entry(HEAD + body, ["p", "o"]).replace("sm_90", f"sm_{target}")
    start(
        text, "k", (1, 1, 1), (threads, 1, 1), [source.address, out.address], memory=memory,
        **options,
    )  # fmt: skip
    return out.data.view(np.uint32).copy()


FIRST_WORDS = np.arange(64) * 4 + 1
