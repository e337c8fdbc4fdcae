"""What the assembler makes of the order in which a kernel asks memory: its own, not that of PTX.

A launch of few rows waits for one latency of memory where the row and all parameters are asked for
before any of them is needed, and for two where they are not. PTX does not say which it will be: the
assembler moves a load behind what waits for another one. NVIDIA's disassembler shows it.
"""

from __future__ import annotations

import importlib.metadata
import re
import subprocess

import plans
import pytest
from cuda import pathfinder
from cupy_backends.cuda.libs import nvrtc

from cunorm import _plan
from cunorm._launch import kernels

PLANS = {
    "rms_norm": lambda cols, arch: plans.rms_norm(cols, "float16", "float16", arch=arch),
    "add_rms_norm": lambda cols, arch: plans.rms_norm(
        cols, "float16", "float16", arch=arch, residual="float16"
    ),
    "layer_norm": lambda cols, arch: plans.layer_norm(
        cols, "float16", "float16", "float16", arch=arch
    ),
    "float32 layer_norm": lambda cols, arch: plans.layer_norm(
        cols, "float32", "float32", "float32", arch=arch
    ),
}
ARITHMETIC = {"HADD2.F32", "FADD", "FMUL", "FFMA"}
SLOW = pytest.mark.slow("another architecture of the same assembler")


def instructions(plan, tmp_path):
    """Return the opcodes of a kernel's machine code, in its order, on arrays in whole packets."""
    reach = _plan.Reach(tuple((n, "ALIGNED") for n in (*plan.of_rows, *plan.parameters)))
    unit = plan.unit(reach, next(plan.tries(reach)))
    options = [
        *("--std=c++17", "-ftz=true", f"-arch=sm_{plan.arch}", f"-I{kernels.folder()}"),
        f"-I{pathfinder.find_nvidia_header_directory('cudart')}",
    ]
    program = nvrtc.createProgram(unit, "kernel.cu", [], [])
    try:
        nvrtc.compileProgram(program, options)
        cubin = tmp_path / "kernel.cubin"
        # CuPy takes the last byte, which is 0, for the end of a string.
        cubin.write_bytes(nvrtc.getCUBIN(program) + bytes(1))
    finally:
        nvrtc.destroyProgram(program)
    files = importlib.metadata.files("nvidia-cuda-nvdisasm")
    (program,) = (file.locate() for file in files if file.name == "nvdisasm")
    text = subprocess.run([program, "-c", cubin], capture_output=True, text=True, check=True).stdout
    return re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z0-9_.]+)", text, re.MULTILINE)


@pytest.mark.parametrize(
    "arch", [90, *(pytest.param(a, marks=SLOW) for a in (75, 80, 86, 89, 100, 120))]
)
@pytest.mark.parametrize("cols", [2048, 4096])
@pytest.mark.parametrize("op", PLANS)
def test_few_rows_and_their_parameters_are_asked_for_before_anything_is_waited_for(
    tmp_path, op, cols, arch
):
    plan = plans.served(PLANS[op](cols, arch), rows=1)
    assert plan.few
    opcodes = instructions(plan, tmp_path)
    loads = [at for at, opcode in enumerate(opcodes) if opcode.startswith("LDG")]
    arrays = len(plan.parameters) + (2 if "add" in op else 1)
    assert len(loads) == arrays * plan.split.packets
    assert not ARITHMETIC.intersection(opcodes[loads[0] : loads[-1]])  # none waits for x there
