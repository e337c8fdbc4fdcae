"""What the assembler makes of the kernels: nothing in local memory, and enough at work at once.

NVRTC assembles each kernel here, for real architectures and without a device, and it is built again
as on hardware where registers do not do. By default a sample that has the most to keep, of which a
run of the whole suite takes a sixtieth: a change of kernels/ runs them all by hand.
`pytest tests/slow/test_registers.py --every-kernel` takes some two hours.
"""

from __future__ import annotations

import random
import re
from collections import defaultdict

import plans
import pytest
from cuda import pathfinder
from cupy_backends.cuda.libs import nvrtc

from cunorm import _plan
from cunorm._launch import kernels
from cunorm._plan.split import MOST_LANES

pytestmark = pytest.mark.slow("619 kernels that the assembler takes seconds for", shares=120)

ARCHS = [75, 80, 86, 89, 90, 100, 120]
OPS = ["rms_norm_fwd", "add_rms_norm", "layer_norm_fwd", "add_layer_norm"]
BACKWARD = ["rms_norm_bwd", "layer_norm_bwd"]
WITH_DRESIDUAL = [*BACKWARD, "add_layer_norm_bwd"]
ACCESS = ["ALIGNED", "SHIFTED"]
DTYPES = [
    ("float16", "float16"),
    ("float16", "float32"),
    ("bfloat16", "bfloat16"),
    ("bfloat16", "float32"),
    ("float32", "float32"),
    ("float64", "float64"),
]
# Rows in registers, whose lanes have the fewest of them; rows partly in shared memory; and rows
# that are read again, whose sums of columns lie in memory.
BACKWARD_HARDEST = {
    1025: ("float16", "float32", "float64"),
    2531: ("bfloat16", "float32"),
    5294: ("float32",),
    8192: ("float32", "float64"),
    20001: ("bfloat16", "float32", "float64"),
    65536: ("bfloat16", "float32", "float64"),
}
# Mixed 16-bit data keep most in registers, and float32 rows have most packets. Shifted rows take
# more than aligned ones, but those have the fewest registers.
HARDEST = (
    [
        (op, arch, cols, dtype, parameter, "SHIFTED", "ALIGNED")
        for op in OPS
        for arch in ARCHS
        for cols in (1024, 65536)
        for dtype, parameter in (("bfloat16", "float32"), ("float32", "float32"))
    ]
    + [
        (op, arch, cols, "float16", "float16", "ALIGNED", "ALIGNED")
        for op in ("layer_norm_fwd", "add_layer_norm")
        for arch in ARCHS
        for cols in (1024, 4000, 16380, 20000)
    ]
    + [
        # 1024 lanes, of which each has 64 registers for three packets.
        *(("rms_norm_fwd", a, 24576, "float16", "float16", "ALIGNED", "ALIGNED") for a in ARCHS),
        *(
            ("rms_norm_fwd", a, cols, dtype, "float32", "ALIGNED", "ALIGNED")
            for a in (75, 90, 120)
            for cols, dtype in ((24576, "bfloat16"), (12288, "float32"), (6144, "float64"))
        ),
        # Rows that keep most packets in registers, in a block that is alone on a multiprocessor.
        *(
            ("rms_norm_fwd", a, 86013, "bfloat16", "float32", "SHIFTED", "ALIGNED")
            for a in (86, 120)
        ),
        ("rms_norm_fwd", 75, 65541, "float16", "float32", "SHIFTED", "ALIGNED"),
        ("rms_norm_fwd", 80, 59391, "float32", "float32", "SHIFTED", "ELEMENTS"),
        ("layer_norm_fwd", 86, 85999, "bfloat16", "float32", "SHIFTED", "ELEMENTS"),
        ("layer_norm_fwd", 80, 118783, "float16", "float32", "ALIGNED", "ALIGNED"),
        ("layer_norm_fwd", 120, 84425, "float16", "float32", "ALIGNED", "ALIGNED"),
        *(
            ("layer_norm_fwd", 90, 1212411, "float16", "float32", a, "ALIGNED")
            for a in ("ALIGNED", "SHIFTED")
        ),
        # Each spilled once, where few of its neighbours did.
        *(("layer_norm_fwd", 120, 6847, "float16", "float16", a, "ALIGNED") for a in ACCESS),
        ("rms_norm_fwd", 89, 20001, "float16", "float16", "ALIGNED", "ALIGNED"),
        *(("rms_norm_fwd", a, 7193, "float16", "float32", "SHIFTED", "ALIGNED") for a in (80, 90)),
        ("add_rms_norm", 75, 10531, "bfloat16", "bfloat16", "ALIGNED", "ALIGNED"),
        ("add_rms_norm", 75, 65536, "float16", "float16", "ALIGNED", "ALIGNED"),
        ("add_rms_norm", 89, 20001, "float16", "float16", "ALIGNED", "ALIGNED"),
        *(
            ("add_rms_norm", a, 22048, "float16", "float16", "ALIGNED", "ALIGNED")
            for a in (75, 86, 90)
        ),
        ("add_rms_norm", 120, 216337, "bfloat16", "float32", "SHIFTED", "ELEMENTS"),
        *(
            ("add_layer_norm", a, n, "float16", "float16", "ALIGNED", "ALIGNED")
            for a in (80, 86, 90)
            for n in (104, 208)
        ),
        *(
            ("add_layer_norm", a, 200, "float16", "float16", "ALIGNED", "ELEMENTS")
            for a in (86, 89)
        ),
        *(
            ("add_layer_norm", a, n, "float32", "float32", "ALIGNED", "ALIGNED")
            for a, n in ((90, 9320), (90, 11504), (120, 15467))
        ),
        *(
            (op, a, 64, "bfloat16", "bfloat16", "ALIGNED", "ALIGNED")
            for op in ("layer_norm_fwd", "add_layer_norm")
            for a in (75, 90, 120)
        ),
        ("add_layer_norm", 120, 262144, "bfloat16", "float32", "SHIFTED", "ALIGNED"),
        ("layer_norm_bwd", 90, 2531, "bfloat16", "float32", "ALIGNED", "ELEMENTS"),
        *(
            ("layer_norm_bwd", 100, n, "float16", "float32", "ALIGNED", "ALIGNED")
            for n in (2048, 4096)
        ),
        ("layer_norm_bwd", 100, 33461, "bfloat16", "float32", "SHIFTED", "ALIGNED"),
        *(
            ("layer_norm_bwd", a, 16380, "bfloat16", "float32", "SHIFTED", "ALIGNED")
            for a in (86, 89)
        ),
    ]
    + [
        # Parameters that come one element at a time, each with its own condition.
        (op, arch, cols, dtype, dtype, access, "ELEMENTS")
        for op in OPS
        for arch in (75, 90)
        for cols, access in ((1024, "ALIGNED"), (5120, "SHIFTED"), (65536, "SHIFTED"))
        for dtype in ("bfloat16", "float32")
    ]
    + [
        (op, arch, cols, dtype, dtype, "SHIFTED", "ALIGNED")
        for op in BACKWARD
        for arch in ARCHS
        if arch != 89  # which has the plans of 86, and kernels much like its
        for cols, dtypes in BACKWARD_HARDEST.items()
        for dtype in dtypes
    ]
    + [
        # Beside what those keep, what a gate has multiplied, and the gate's sums.
        ("add_layer_norm_bwd", arch, cols, dtype, "float32", access, "ALIGNED")
        for arch in (75, 90, 120)
        for cols, access in ((1024, "ALIGNED"), (1025, "SHIFTED"), (20001, "SHIFTED"))
        for dtype in ("bfloat16", "float32")
    ]
    + [
        # Heads that are turned back: one whose lane has all partners, and the most of a token.
        ("rms_norm_rope_bwd", arch, cols, dtype, "float32", access, "ELEMENTS")
        for arch in (75, 90, 120)
        for cols, access in ((128, "ALIGNED"), (6144, "SHIFTED"))
        for dtype in ("bfloat16", "float32")
    ]
)
REGISTERS = 65536  # of a multiprocessor, everywhere
THREADS = {75: 1024, 80: 2048, 86: 1536, 89: 1536, 90: 2048, 100: 2048, 120: 1536}
# Where registers leave room for less than half of those threads, this is why that is enough: the
# bytes that the threads there are have asked for, before they wait for the first, are what memory
# delivers to a multiprocessor in the 0.7 us that a load takes (Little's law). In KiB, from the
# bandwidth and the multiprocessors of T4, A100, RTX 3090, RTX 4090, H100, B200 and RTX 5090.
# B200 would want 37: kernels with fewer have the choice between that and local memory.
ENOUGH = {75: 6, 80: 13, 86: 8, 89: 6, 90: 18, 100: 22, 120: 8}


def pytest_generate_tests(metafunc):
    if "of_parameters" not in metafunc.fixturenames:
        return
    every = metafunc.config.getoption("--every-kernel")
    metafunc.parametrize(
        ("op", "arch", "cols", "dtype", "parameter", "access", "of_parameters"),
        every_kernel() if every else HARDEST,
    )


def every_kernel():
    """Return each op, architecture, kind of data and of access for each way of keeping a row."""
    return [
        (op, arch, cols, dtype, parameter, access, of_parameters)
        for op in OPS + BACKWARD
        for arch in ARCHS
        for dtype, parameter in DTYPES
        for cols in sizes(op, arch, dtype, parameter)
        for access in ACCESS
        for of_parameters in ("ALIGNED", "ELEMENTS")
    ]


def sizes(op, arch, dtype, parameter):
    """Return a length for each way of keeping a row, with whole packets only and with a tail.

    One is drawn, the same every time, among those that keep most packets in registers.
    """
    ways = defaultdict(list)
    for turn in range(1, 480):
        for odd in (0, 1, 3, 5):
            cols = int(1.03**turn) * 8 + odd
            plan = plan_of(op, arch, cols, dtype, parameter)
            split = plan.split
            kept = (split.packets + split.shared) * split.lanes * split.cluster
            read_again, tail = cols // plan.vec > kept, cols % plan.vec > 0
            lanes = split.lanes if split.lanes <= 32 or split.lanes == MOST_LANES else "warps"
            many = split.packets > _plan.PACKETS_IN_FLIGHT
            way = (lanes, many, split.shared > 0, plan.alone, split.cluster > 1, read_again, tail)
            ways[way].append((split.packets, cols))
    draw = random.Random(f"{op} {arch} {dtype} {parameter}")
    return [
        draw.choice([cols for packets, cols in found if packets == max(found)[0]])
        for found in ways.values()
    ]


def plan_of(op, arch, cols, dtype, parameter):
    if op == "rms_norm_rope_bwd":
        return plans.rms_norm_rope_bwd(cols, dtype, parameter, arch=arch)
    if op == "add_layer_norm_bwd":
        return plans.add_layer_norm_bwd(cols, dtype, parameter, arch=arch)
    if op == "rms_norm_bwd":
        return plans.rms_norm_bwd(
            cols, dtype, parameter, gamma_offset=True, dresidual=True, arch=arch
        )
    if op == "layer_norm_bwd":
        return plans.layer_norm_bwd(cols, dtype, parameter, dresidual=True, arch=arch)
    residual = dtype if op.startswith("add_") else None
    if "rms_norm" in op:
        return plans.rms_norm(
            cols,
            dtype,
            parameter,
            arch=arch,
            residual=residual,
        )
    return plans.layer_norm(cols, dtype, parameter, parameter, arch=arch, residual=residual)


def reach_of(plan, access, of_parameters, levels):
    if access == "SHIFTED" and plan.split.lanes < 32:
        access = "ELEMENTS"  # as _launch chooses
    named = [(name, access) for name in plan.of_rows]
    named += [(name, of_parameters) for name in plan.parameters]
    if "partial" in plan.arrays:
        named.append(("partial", "ALIGNED"))
    by_row = ()
    if "positions" in plan.arrays:
        by_row = ("cos", "sin", "positions")
        named.append(("positions", "SCALAR"))
    # 2^32 rows of more than some 256 bytes are more than any device holds.
    return _plan.Reach((*named,), levels, plan.split.lanes < 8, by_row)


def assemble(unit, name, arch):
    """Return registers, and bytes of local memory, those spilled among them."""
    options = [
        "--std=c++17",
        "-ftz=true",
        "--ptxas-options=-v",
        f"-arch=sm_{arch}",
        f"-I{kernels.folder()}",
        f"-I{pathfinder.find_nvidia_header_directory('cudart')}",
    ]
    program = nvrtc.createProgram(unit, f"{name}.cu", [], [])
    try:
        nvrtc.compileProgram(program, options)
        log = nvrtc.getProgramLog(program)
    finally:
        nvrtc.destroyProgram(program)
    found = (r"Used (\d+) registers", r"(\d+) bytes stack", r"(\d+) bytes spill stores")
    registers, *local = (int(re.search(pattern, log)[1]) for pattern in found)
    return registers, max(local)


def as_built(plan, reach):
    """Return the try that hardware would take, its registers and its bytes of local memory."""
    for attempt in plan.tries(reach):
        registers, local = assemble(plan.unit(reach, attempt), plan.kernel, plan.arch)
        if local == 0:
            break
    return attempt, registers, local


def test_a_kernel_fits_its_registers(op, arch, cols, dtype, parameter, access, of_parameters):
    plan = plan_of(op, arch, cols, dtype, parameter)
    # Contiguous rows have kernels of their own, with less to keep and fewer conditions.
    levels = random.Random(f"{op} {arch} {cols} {access} {of_parameters}").choice((1, 3))
    reach = reach_of(plan, access, of_parameters, levels)
    plan = plans.served(plan, aligned=reach.all_aligned)
    attempt, registers, local = as_built(plan, reach)
    assert local == 0
    # Allocated in units of 8 for each thread; a block that asks for more would not start.
    of_thread, block = -(-registers // 8) * 8, plan.split.lanes * plan.split.rows
    assert of_thread * block <= REGISTERS
    threads = min(REGISTERS // (of_thread * block) * block, THREADS[arch])
    if op in BACKWARD and access == "SHIFTED":
        # They wait for x before they ask for dy, so that less is in flight than is asked below.
        assert threads >= max(256 // block, 1) * block
    arrays = 2 if op.startswith("add_") or "bwd" in op else 1
    if op in WITH_DRESIDUAL and dtype in ("float16", "bfloat16"):
        arrays = 3  # dresidual is asked for with x and dy
    at_once = min(plan.split.packets, attempt.at_once)
    in_flight = threads * at_once * _plan.PACKET_BYTES * arrays
    if (op, arch, cols, dtype) == ("layer_norm_bwd", 100, 20001, "float64"):
        # With two packets at once its 168 registers lack 8 bytes, and so it asks for one.
        assert in_flight < ENOUGH[arch] * 1024
        return
    assert threads >= THREADS[arch] / 2 or in_flight >= ENOUGH[arch] * 1024


@pytest.mark.parametrize("access", ACCESS)
@pytest.mark.parametrize(("dtype", "parameter"), [DTYPES[0], DTYPES[3], DTYPES[4]])
@pytest.mark.parametrize("cols", [4096, 8192])
@pytest.mark.parametrize("arch", [75, 90, 120])
@pytest.mark.parametrize("op", OPS)
def test_a_kernel_of_few_rows_fits_its_registers(op, arch, cols, dtype, parameter, access):
    many = plan_of(op, arch, cols, dtype, parameter)
    few = plans.served(many, rows=8, aligned=access == "ALIGNED")
    assert few.few
    _, _, local = as_built(few, reach_of(few, access, "ALIGNED", 1))
    assert local == 0
