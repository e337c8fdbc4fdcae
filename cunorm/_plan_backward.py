"""Which backward kernel serves a row, how its columns are shared out, and its persistent grid.

Pure, like `_plan`, whose rules hold here too. The grid alone looks at the number of rows: which
rows a block adds up follows from that and from the device's multiprocessors.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

from ._plan import (
    C_TYPE,
    ITEMSIZE,
    PACKET_BYTES,
    PACKETS_IN_FLIGHT,
    SHARED_BYTES,
    SHARED_BYTES_ELSEWHERE,
    SUMS_BYTES,
    THREADS_OF_SHARED_BLOCK,
    WARP,
    Plan,
    Share,
    accumulator,
    parameter,
)

# A persistent backward kernel keeps x, dy, dresidual, what is made of them, and sums of columns: 2
# packets of 16 bits for each lane, or 4 wider ones. On an SM stay 512 threads, whose 128 registers
# hold that of 16-bit rows, and 48 KiB of x, dy and dresidual are on their way. Wider rows spilled
# up to 48 bytes there; they have 384 threads of 168 registers, and 72 KiB on their way. So have
# rows that more than 256 lanes share, with packets in shared memory: 512 lanes spilled up to 272
# bytes. The assembler of sm_120 takes more registers: shifted rows spilled up to 44 bytes in these.
# By architecture: threads that an SM holds of 16-bit rows, and of others, which is also most lanes.
RESIDENT_THREADS = {120: (384, 256), 121: (384, 256)}
RESIDENT_THREADS_ELSEWHERE = (512, 384)
# Each block writes and reads again a row of sums, so it should have more rows of data than that.
GROUPS_OF_BLOCK = 8
# 32 lanes read 128 bytes of sums at once; 16 warps share out up to some hundred rows of them.
SUM_COLUMNS, SUM_SLICES = 32, 16


@dataclass(frozen=True)
class BackwardPlan(Plan):
    """One backward kernel, specialised for one kind of row.

    Attributes
    ----------
    shared_packet_bytes : int
        Bytes of shared memory for each packet of x kept there: dy's and the sums' are beside it.
    resident_threads : int
        Threads that a multiprocessor should hold at once.
    """

    shared_packet_bytes: int
    resident_threads: int

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return self.shared * self.lanes * self.shared_packet_bytes

    @property
    def pitch(self) -> int:
        """From one row of the blocks' sums to the next: PITCH of kernels/parameter_sums.cuh."""
        return -(-self.cols // 4) * 4

    def persistent_grid(self, rows: int, multiprocessors: int) -> tuple[int]:
        """Return the grid of a launch, whose block b takes groups b, b + blocks, ...

        A group is `self.rows` neighbouring rows. There is one block for each multiprocessor, and
        more, up to `resident_threads` threads on each, while every block has at least
        `GROUPS_OF_BLOCK` groups; never more blocks than groups.
        """
        groups = -(-rows // self.rows)
        most = multiprocessors * max(1, self.resident_threads // (self.lanes * self.rows))
        return (min(groups, max(multiprocessors, min(groups // GROUPS_OF_BLOCK, most))),)


@dataclass(frozen=True)
class ColumnSums:
    """The kernel that adds up what the blocks of a backward kernel leave.

    Attributes
    ----------
    kernel, source, defines, shared_bytes
        As those of a `Plan`.
    block : tuple of int
        Columns, and slices of the rows.
    """

    kernel: str
    source: str
    block: tuple[int, int]
    defines: tuple[tuple[str, str | int], ...]
    shared_bytes: int = 0

    def grid(self, cols: int, parameters: int) -> tuple[int, int]:
        """Return the grid that covers `cols` columns of each parameter."""
        return (-(-cols // self.block[0]), parameters)


def _share(cols: int, dtype: str, arch: int, parameters: int) -> tuple[Share, int]:
    """Share out rows of a backward pass; return that and a shared packet's bytes with its sums.

    As in `_plan._share`, but for the sums of columns that registers keep too, and without clusters:
    what registers and shared memory cannot keep is read again.
    """
    packets = max(1, cols * ITEMSIZE[dtype] // PACKET_BYTES)
    most = 2 if ITEMSIZE[dtype] == 2 else PACKETS_IN_FLIGHT
    sums = PACKET_BYTES // ITEMSIZE[dtype] * ITEMSIZE[accumulator(dtype)]
    beside = 2 * PACKET_BYTES + parameters * sums
    if packets <= WARP * most:
        lanes = 4 if packets <= 4 * most else 8 if packets <= 8 * most else WARP
        return Share(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes), beside
    _, most_lanes = RESIDENT_THREADS.get(arch, RESIDENT_THREADS_ELSEWHERE)
    lanes = min(-(-packets // (WARP * most)) * WARP, most_lanes)
    turns = -(-packets // lanes)
    room = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) - SUMS_BYTES
    shared = min(max(turns - most, 0), room // (lanes * beside))
    return Share(lanes, 1, min(turns, most), shared, 1), beside


def _plan(
    kernel: str,
    cols: int,
    x: str,
    gamma: str | None,
    arch: int,
    parameters: int,
    flags: dict[str, int],
) -> BackwardPlan:
    share, beside = _share(cols, x, arch, parameters if flags["SUMS"] else 0)
    defines: dict[str, str | int] = {"X_TYPE": C_TYPE[x], "ROW_TYPE": C_TYPE[x], "COLS": cols}
    defines |= {name.upper(): number for name, number in asdict(share).items()}
    of_narrow, of_wide = RESIDENT_THREADS.get(arch, RESIDENT_THREADS_ELSEWHERE)
    resident = of_narrow if ITEMSIZE[x] == 2 else of_wide
    defines["RESIDENT_THREADS"] = resident
    defines |= parameter("GAMMA", gamma, x) | flags
    return BackwardPlan(
        kernel,
        f"{kernel}.cu",
        x,
        cols,
        **asdict(share),
        defines=(*defines.items(),),
        shared_packet_bytes=beside,
        resident_threads=resident,
    )


def _flags(gamma: str | None, sums: bool, dresidual: bool) -> dict[str, int]:
    return {"HAS_DRESIDUAL": int(dresidual), "SUMS": int(sums and gamma is not None)}


@cache
def rms_norm_bwd(
    cols: int,
    x: str,
    gamma: str | None,
    *,
    gamma_offset: bool,
    dresidual: bool,
    arch: int,
    sums: bool = True,
) -> BackwardPlan:
    """Plan RMSNorm backward for rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N, at least 1.
    x : str
        The dtype of x, dy, dx and dresidual.
    gamma : str or None
        The dtype of gamma and dgamma, None where there is none.
    gamma_offset : bool
        Whether an offset is added to gamma.
    dresidual : bool
        Whether a second gradient is added to dx.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    sums : bool
        Whether dgamma is wanted; there is none without a gamma.

    Returns
    -------
    BackwardPlan
    """
    flags = _flags(gamma, sums, dresidual) | {"GAMMA_OFFSET": int(gamma_offset)}
    return _plan("rms_norm_bwd", cols, x, gamma, arch, 1, flags)


@cache
def layer_norm_bwd(
    cols: int, x: str, gamma: str | None, *, dresidual: bool, arch: int, sums: bool = True
) -> BackwardPlan:
    """Plan LayerNorm backward for rows of `cols` elements: see `rms_norm_bwd`."""
    flags = _flags(gamma, sums, dresidual) | {"GAMMA_OFFSET": 0}
    return _plan("layer_norm_bwd", cols, x, gamma, arch, 2, flags)


@cache
def column_sums(x: str, gamma: str) -> ColumnSums:
    """Plan the sums of what blocks left of dgamma and dbeta, by the dtypes of x and gamma."""
    return ColumnSums(
        "column_sums",
        "column_sums.cu",
        (SUM_COLUMNS, SUM_SLICES),
        (
            ("GAMMA_TYPE", C_TYPE[gamma]),
            ("ACC_TYPE", C_TYPE[accumulator(x)]),
            ("COLUMNS", SUM_COLUMNS),
            ("SLICES", SUM_SLICES),
        ),
    )
