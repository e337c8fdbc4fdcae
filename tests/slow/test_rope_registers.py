"""What the assembler makes of the kernels of heads: nothing in local memory, on any architecture.

As test_registers.py, of the heads that models have.
"""

from __future__ import annotations

import pytest
from test_registers import ARCHS, REGISTERS, assemble

from cunorm import _plan

pytestmark = pytest.mark.slow("84 kernels that the assembler takes seconds for", shares=60)

# Columns of a row and of its heads, of x and of cos, and what else is chosen.
HEADS = [
    (64, 64, "bfloat16", "bfloat16", {}),
    (128, 128, "bfloat16", "bfloat16", {}),
    (128, 128, "bfloat16", "float32", {}),
    (128, 128, "float16", "bfloat16", {"interleaved": True}),
    (128, 128, "bfloat16", "float32", {"norm_first": False}),
    (256, 256, "float32", "float32", {}),
    (80, 80, "bfloat16", "float32", {}),
    (192, 192, "float16", "float32", {}),
    (100, 100, "bfloat16", "float32", {}),
    (5120, 128, "bfloat16", "float32", {}),
    (16384, 128, "bfloat16", "bfloat16", {}),
    (8192, 128, "bfloat16", "float32", {"norm_first": False}),
]


def of(cols, head, x, cos, arch, *, interleaved=False, norm_first=True):
    rotary = _plan.Rotary(head, head, interleaved, norm_first)
    dtypes = {"y": x, "x": x, "gamma": "float32", "cos": cos, "sin": cos, "positions": "int64"}
    return _plan.heads(cols, rotary, tuple(dtypes.items()), arch, gamma_offset=True, cast="before")


@pytest.mark.parametrize("arch", ARCHS)
@pytest.mark.parametrize(("cols", "head", "x", "cos", "chosen"), HEADS)
def test_a_kernel_of_q_and_k_fits_its_registers(cols, head, x, cos, chosen, arch):
    side = of(cols, head, x, cos, arch, **chosen)
    by_row = ("cos", "sin", "positions")
    access = [(name, "SCALAR" if name == "positions" else "ALIGNED") for name in side.arrays]
    reach = _plan.Reach(tuple(access), 3, by_row=by_row)
    plan, reaches = _plan.RopePlan((side, side)), (reach, reach)
    for attempt in plan.tries(reaches):
        registers, local = assemble(plan.unit(reaches, attempt), plan.kernel, arch)
        if local == 0:
            break
    assert local == 0
    lanes, rows = plan.block
    assert -(-registers // 8) * 8 * lanes * rows <= REGISTERS
