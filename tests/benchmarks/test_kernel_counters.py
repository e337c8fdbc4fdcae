"""What the kernels move and execute, held against the promises and against what was measured last.

    pytest tests/benchmarks/test_kernel_counters.py --benchmark-json=counters.json

counters.csv has every forward op, dtype and N, counters_backward.csv the backward ops, and
counters_fused.csv what is fused with a norm, as publish.py measured them. Here some are measured
again, each with its counters in `extra_info`; the benchmark's own times are those of the simulator
and say nothing of a GPU.
"""

import dataclasses

import chains
import fused
import fused_calls
import publish
import pytest
from kinds import covering

from cunorm._bench import cases
from cunorm._bench.cases import Case
from cunorm._bench.counters import count
from cunorm._bench.report import is_aligned

STORED = {(m.op, m.dtype, m.cols, m.rows, m.offset): m for m in publish.stored()}
BACKWARD = {(m.op, m.dtype, m.cols, m.rows, 0): m for m in publish.stored(publish.BACKWARD_CSV)}
INSTRUCTIONS = {
    (m.op, m.dtype, m.cols, m.offset): m.instructions_per_packet for m in STORED.values()
}
# Requested sectors over the floor. A row of odd N shares a sector with its neighbour at each end,
# and a warp asks for one more where its lanes' 512 bytes begin within a sector: 1 in 16, and for
# N = 769 in float16, of 48 sectors, two more.
MOST_ALIGNED, MOST_SHIFTED = 1.02, 1.15
# What the first try that is counted keeps in local memory; hardware's is built anew with a block
# fewer, and keeps nothing (test_registers.py).
SPILLED_AT_FIRST = {("layer_norm", "bfloat16", 64): 4, ("add_layer_norm", "bfloat16", 64): 8}
# Another release of NVRTC may spell a kernel a little differently.
SLACK = 1.03
# Every op and dtype meets a row of a block, of a cluster, and one that is shifted, those of a
# sample in pairs; RMSNorm in float16 all that are in the file.
SAMPLED = (4096, 262144, 769)
PAIRS = set(covering((cases.OPS, cases.DTYPES, SAMPLED), "counters"))
SLOW = pytest.mark.slow(
    "2 MiB in a kernel of its own; each pair of op, dtype and N is counted", shares=30
)
SAMPLE = [
    pytest.param(case, marks=() if case[:3] in PAIRS and not case[4] else SLOW)
    for case in STORED
    if case[:2] == ("rms_norm", "float16") or (case[2] in SAMPLED and not case[4])
]
# Of a backward pass every dtype meets a row of a block, and float16 all that are in the file.
BACKWARD_SAMPLE = [
    pytest.param(case, marks=() if case[2] == 4096 else SLOW)
    for case in BACKWARD
    if case[1] == "float16" or case[2] == 4096
]
# The only rows of that file that registers and shared memory do not keep, with their sums, and how
# often they are read.
READ_AGAIN = {("rms_norm_bwd", "float64", 16384): 1.26, ("layer_norm_bwd", "float64", 16384): 1.4}


FUSED = {(c.call, c.cols): c for c in fused.read(publish.FUSED_CSV)}
# x and gate in packs of 8 bytes share more sectors with their neighbours: if each turn of a warp
# began on a sector, that would be 1.11, for 16 % more instructions and no byte less of memory. Of
# 128 columns four lanes have 16 bytes of 4-bit codes at a time, half a sector.
FUSED_MOST = {
    ("rms_norm_gated(x, gate_of_rows, gamma, gate_first=True)", 769): 1.18,
    ("rms_norm_quant(x, gamma, quant=nvfp4)", 128): 2.0,
}


def name(case):
    op, dtype, cols, _, offset = case
    return f"{op}-{dtype}-{cols}" + ("+1" if offset else "")


def holds(counters):
    """Assert what is promised of every launch."""
    most = MOST_ALIGNED if is_aligned(counters) else MOST_SHIFTED
    assert 1 <= publish.worst_ratio(counters) <= most
    assert counters.reads == pytest.approx(1, abs=0.005)
    assert 0 < counters.sectors_per_request <= 17
    case = (counters.op, counters.dtype, counters.cols)
    assert counters.spill_bytes <= SPILLED_AT_FIRST.get(case, 0)


@pytest.mark.parametrize("case", STORED, ids=name)
def test_the_stored_counters_keep_the_promises(case):
    holds(STORED[case])


def test_the_stored_counters_are_those_of_the_whole_grid_on_sm_90():
    grid = cases.grid(publish.OPS, cases.DTYPES, None, None, True, 2 << 20)
    assert [Case(*case) for case in STORED] == list(grid)
    assert {counters.arch for counters in STORED.values()} == {90}


def backward_holds(counters):
    """Assert what is promised of every backward launch."""
    reads = READ_AGAIN.get((counters.op, counters.dtype, counters.cols), 1)
    assert 1 <= publish.worst_ratio(counters) <= reads
    assert 1 <= counters.reads <= reads
    assert counters.dresidual == counters.dx == 1
    assert counters.sectors_per_request == 16
    assert counters.spill_bytes == 0


@pytest.mark.parametrize("case", BACKWARD, ids=name)
def test_the_stored_counters_of_the_backward_pass_keep_the_promises(case):
    backward_holds(BACKWARD[case])


def test_the_stored_counters_of_the_backward_pass_are_those_of_the_whole_grid_on_sm_90():
    grid = cases.grid(
        cases.BACKWARD_OPS,
        publish.BACKWARD_DTYPES,
        publish.BACKWARD_COLS,
        None,
        False,
        2 << 20,
    )
    assert [Case(*case) for case in BACKWARD] == list(grid)
    assert {counters.arch for counters in BACKWARD.values()} == {90}


@pytest.mark.simgpu
@pytest.mark.parametrize("case", BACKWARD_SAMPLE, ids=name)
def test_counters_of_the_backward_pass(benchmark, case):
    counters = benchmark.pedantic(count, (Case(*case),), rounds=1)
    benchmark.extra_info.update(dataclasses.asdict(counters))
    if counters.arch != BACKWARD[case].arch:
        pytest.skip(f"promised of sm_{BACKWARD[case].arch}; counted on sm_{counters.arch}")
    backward_holds(counters)
    for name in ("instructions_per_packet", "sums", "sums_instructions"):
        assert getattr(counters, name) <= getattr(BACKWARD[case], name) * SLACK


@pytest.mark.parametrize(("op", "dtype", "cols"), publish.OTHERS)
def test_other_systems_execute_more_instructions(op, dtype, cols):
    figures = [figure for figure in publish.OTHERS[op, dtype, cols] if figure is not None]
    own = INSTRUCTIONS[op, dtype, cols, 0]
    assert own < min(figures) * 0.85


@pytest.mark.simgpu
@pytest.mark.parametrize("case", SAMPLE, ids=name)
def test_counters(benchmark, case):
    counters = benchmark.pedantic(count, (Case(*case),), rounds=1)
    benchmark.extra_info.update(dataclasses.asdict(counters))
    if counters.arch != STORED[case].arch:
        pytest.skip(f"promised of sm_{STORED[case].arch}; counted on sm_{counters.arch}")
    holds(counters)
    assert counters.instructions_per_packet <= STORED[case].instructions_per_packet * SLACK


def fused_holds(counted):
    """Assert what is promised of what is fused with a norm."""
    most = MOST_SHIFTED if counted.cols == fused_calls.OFF_16_BYTES else MOST_ALIGNED
    assert 1 <= counted.sectors <= FUSED_MOST.get((counted.call, counted.cols), most)


def test_the_stored_counters_of_fused_ops_keep_the_promises():
    assert list(FUSED) == list(fused_calls.GRID)
    assert {counted.arch for counted in FUSED.values()} == {90}
    for counted in FUSED.values():
        fused_holds(counted)


@pytest.mark.simgpu
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, marks=SLOW, id=f"{case[0]}-{case[1]}") for case in fused_calls.GRID],
)
def test_counters_of_fused_ops(case):
    counted = fused.count(fused_calls.GRID[case], case[1])
    if counted.arch != FUSED[case].arch:
        pytest.skip(f"promised of sm_{FUSED[case].arch}; counted on sm_{counted.arch}")
    fused_holds(counted)
    assert counted.instructions_per_packet <= FUSED[case].instructions_per_packet * SLACK


CHAINS = {dataclasses.astuple(c)[:5]: c for c in chains.read(publish.CHAINS_CSV)}
# Where both an aligned row and one off 16 bytes have other chains than in a kernel of many rows.
CHAINS_SAMPLE = [point for point in CHAINS if point[:3] == ("layer_norm", "float16", 4096)]


@pytest.mark.simgpu
@pytest.mark.parametrize("point", CHAINS_SAMPLE, ids=lambda point: " ".join(map(str, point)))
def test_chains(point):
    counted = chains.count(*point)
    assert counted.weight <= CHAINS[point].weight * SLACK
    assert counted.lanes == CHAINS[point].lanes


def test_few_rows_wait_no_longer_than_by_the_kernel_of_many_and_for_memory_once():
    assert list(CHAINS) == list(chains.GRID)
    for *kind, built in CHAINS:
        few, many = (CHAINS[(*kind, each)] for each in ("few", "many"))
        assert few.weight <= many.weight, (kind, built)
        assert few.loads == 1 or few.weight == many.weight, kind  # in shared memory in part


def test_the_page_shows_the_stored_counters():
    _, shown, _ = publish.split(publish.PAGE.read_text("utf-8"))
    stored = (list(of.values()) for of in (STORED, BACKWARD, FUSED, CHAINS))
    assert shown == publish.section(*stored)
