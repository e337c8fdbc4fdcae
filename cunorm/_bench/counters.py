"""What the software GPU counts of a call: exact, the same in every run, and never a time."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

from .. import simgpu
from .cases import EVERY_OP, Case, arrays, call

# Every array of rows that a case has: each has a field of its name in `Counters`.
ROWS = tuple(dict.fromkeys(n for op in EVERY_OP for n in Case(op, "float32", 1, 1).names))
SECTOR = 32  # bytes that memory moves at a time
PACKETS_OF_WARP = 32 * 16  # bytes: a packet of 16 for each lane of a warp
# Compiling takes most of the time, and each process compiles on its own: few cases are
# not worth starting them, and many of them take much memory.
FEW_CASES, MOST_PROCESSES = 12, 8


@dataclass(frozen=True)
class Counters:
    """The counters of a call; None for what the op does not have.

    Attributes
    ----------
    op, dtype, cols, rows, offset
        The case.
    arch : int
        The architecture, like 90.
    x, residual, gate, y, residual_out, dy, dresidual, dx : float or None
        Sectors requested of an array, loaded or stored, over the least: its bytes / 32.
    gamma : float
        The same of gamma over x's least: 1 is once a row, which the caches answer. beta is alike.
    sectors_per_request : float
        Of x: 16 where each lane of a warp loads 16 neighbouring bytes.
    instructions_per_packet : float
        PTX warp instructions but for ``mov`` and ``cvta``, which the assembler folds away, over the
        launch's packets: a packet is 16 bytes of x for each of a warp's 32 lanes, or of queries and
        keys.
    barriers_per_row : float
        Barriers of a block, over rows.
    registers, spill_bytes : int or None
        Of a thread, from the assembler; None where it does not say.
    occupancy : float
        Warps that a multiprocessor holds, of the most that it can.
    reads : float
        How often the row is read: bytes loaded of x, and of h where there is one, over x's.
    sums : float or None
        Of a backward pass: bytes of its blocks' sums, written and read again, over x's.
    sums_instructions : float or None
        The instructions of the kernel that adds those up, over x's packets; the other figures are
        those of the kernel before it.
    quant : str or None
        Of codes, the scheme.
    q, k, q_out, k_out : float or None
        As of x: queries and keys; of codes, q is those.
    """

    op: str
    dtype: str
    cols: int
    rows: int
    offset: int
    arch: int
    x: float | None
    residual: float | None
    y: float | None
    residual_out: float | None
    gamma: float
    sectors_per_request: float
    instructions_per_packet: float
    barriers_per_row: float
    registers: int | None
    spill_bytes: int | None
    occupancy: float
    reads: float
    gate: float | None = None
    dy: float | None = None
    dresidual: float | None = None
    dx: float | None = None
    sums: float | None = None
    sums_instructions: float | None = None
    quant: str | None = None
    q: float | None = None
    k: float | None = None
    q_out: float | None = None
    k_out: float | None = None

    @property
    def ratios(self) -> list[float]:
        """What is requested of each array of rows, over the least."""
        ratios = (getattr(self, name) for name in ROWS)
        return [ratio for ratio in ratios if ratio is not None]

    @property
    def share(self) -> float:
        """Sectors that the rows must move, of those that were requested."""
        return len(self.ratios) / sum(self.ratios)


def count(case: Case) -> Counters:
    """Call the op once and return what was counted."""
    from .._call import remembered

    given = arrays(case)
    with simgpu.profile() as profile, nullcontext() if case.few else remembered.by(None):
        made = call(case, given)
    launch, *adding_up = profile.launches
    by_address = {array.address: array for array in launch.arrays}
    if case.is_backward:
        given["dx"] = made[0]
    counted = {
        name: by_address[array.base.data.ptr if array.base is not None else array.data.ptr]
        for name, array in given.items()  # a view's allocation begins before its first row
        if name in (*case.names, *case.parameters)
    }
    normalised = case.kind.reads if case.is_of_heads else ("x",)
    first, weight = normalised[0], case.parameters[0]
    packets = sum(map(case.bytes_of, normalised)) / PACKETS_OF_WARP
    requested = {
        name: (array.loads.sectors + array.stores.sectors)
        / ((case.bytes_of(name) if name in case.names else case.x_bytes) / SECTOR)
        for name, array in counted.items()
    }
    read = (counted[name].loads.bytes for name in (first, "residual_out") if name in counted)
    sums, sums_instructions = _of_sums(adding_up, by_address, case)
    resources = launch.resources
    return Counters(
        op=case.op,
        dtype=case.dtype,
        cols=case.cols,
        rows=case.rows,
        offset=case.offset,
        arch=launch.arch,
        **{name: requested.get(name) for name in ROWS},
        gamma=requested[weight],
        quant=case.quant,
        sectors_per_request=counted[first].loads.sectors_per_request,
        instructions_per_packet=launch.instructions_unfolded / packets,
        barriers_per_row=launch.barriers / case.rows,
        registers=resources.registers,
        spill_bytes=resources.spill_stores,
        occupancy=launch.occupancy.share,
        reads=sum(read) / case.x_bytes,
        sums=sums,
        sums_instructions=sums_instructions,
    )


def _of_sums(
    adding_up: Sequence[Any], by_address: dict[int, Any], case: Case
) -> tuple[float | None, float | None]:
    """Return `Counters.sums` and `sums_instructions` of the launches after the first."""
    if not adding_up:
        return None, None
    (launch,) = adding_up
    (sums,) = (array for array in launch.arrays if array.loads.sectors)
    moved = by_address[sums.address].stores.bytes + sums.loads.bytes
    packets = case.x_bytes / PACKETS_OF_WARP
    return moved / case.x_bytes, launch.instructions_unfolded / packets


def count_all(cases: Sequence[Case]) -> Iterator[Counters]:
    """Yield the counters of cases in their order, counted by several processes if they are many."""
    processes = min(_cores(), MOST_PROCESSES)
    if processes == 1 or len(cases) <= FEW_CASES:
        yield from map(count, cases)
        return
    import cupy

    arch = int(cupy.cuda.Device().compute_capability)
    with ProcessPoolExecutor(processes, get_context("spawn"), _install, (arch,)) as pool:
        yield from pool.map(count, cases)


def _cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _install(arch: int) -> None:
    """Give a new process the software GPU, unless it was started with it.

    Ctrl-C reaches every process of a terminal, and the first of them ends the others.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if not simgpu.installed():
        simgpu.install(arch)
