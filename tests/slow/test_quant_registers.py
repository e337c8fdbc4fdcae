"""What the assembler makes of quantised kernels: nothing in local memory, on any architecture."""

import pytest
from test_registers import ARCHS, REGISTERS, assemble

from cunorm import Quant, _plan
from cunorm._families import QUANTISED

pytestmark = pytest.mark.slow("98 kernels that the assembler takes seconds for", shares=60)

SCHEMES = {
    "fp8 row": Quant.fp8_row(),
    "int8 static": Quant.int8_static(1),
    "deepseek": Quant.deepseek(),
    "mxfp8": Quant.mxfp8(),
    "nvfp4": Quant.nvfp4(1),
}
# A warp; a block; rows in shared memory in part; a cluster, or all of shared memory.
COLS = (1024, 4096, 20_480, 65_536)
CASES = [
    (op, arch, cols, dtype, scheme, "ALIGNED")
    for i, arch in enumerate(ARCHS)
    for j, cols in enumerate(COLS)
    for op, dtype, scheme in (
        (("rms_norm_quant", "add_layer_norm_quant")[(i + j) % 2], "bfloat16", "fp8 row"),
        (list(QUANTISED)[(i + j) % 4], "float16", list(SCHEMES)[(i + 2 * j) % 5]),
        (list(QUANTISED)[(i + 3 * j) % 4], "float32", list(SCHEMES)[(2 * i + j) % 5]),
    )
]
# Rows that start anywhere.
CASES += [
    ("layer_norm_quant", arch, cols, "bfloat16", "fp8 row", "SHIFTED")
    for arch in ARCHS
    for cols in (5137, 65_535)
]


def plan_of(op, arch, cols, dtype, quant):
    of = dict.fromkeys((*QUANTISED[op].reads, *QUANTISED[op].parameters), dtype)
    of["gamma"] = "float32"
    of["q"] = "int8" if quant.format == "int8" else "uint8"
    if "residual" in of:
        of["residual_out"] = dtype
    chosen = {"gamma_offset": False, "cast": "before"}
    return _plan.quantised(QUANTISED[op], cols, tuple(of.items()), arch, quant=quant, **chosen)


@pytest.mark.parametrize(("op", "arch", "cols", "dtype", "scheme", "access"), CASES)
def test_a_quantised_kernel_fits_its_registers(op, arch, cols, dtype, scheme, access):
    plan = plan_of(op, arch, cols, dtype, SCHEMES[scheme])
    of_q = "STAGGERED" if access == "SHIFTED" else access
    named = [(name, of_q if name == "q" else access) for name in plan.of_rows]
    named += [(name, "ALIGNED") for name in plan.parameters]
    reach = _plan.Reach((*named,))
    for attempt in plan.tries(reach):
        registers, local = assemble(plan.unit(reach, attempt), plan.kernel, arch)
        if local == 0:
            break
    assert local == 0
    assert -(-registers // 8) * 8 * plan.split.lanes * plan.split.rows <= REGISTERS
