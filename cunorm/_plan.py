"""Which forward kernel serves a row, and how its columns are shared out.

Pure, from N, the dtypes and the architecture. `_plan_backward` does the same for backward kernels.
A plan never looks at the number of rows, at alignment or at strides. The kernel gives column c to
the same lane, in the same order, whatever those are, and so a row has the same bits alone and in a
batch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cache

WARP = 32
PACKET_BYTES = 16
# A lane asks for up to four packets, 64 bytes, before it needs the first: enough bytes in flight to
# cover DRAM latency at half occupancy, in 16 registers.
PACKETS_IN_FLIGHT = 4
# Longer rows stay with 512 lanes, which keep more packets each. Two such blocks share an SM while
# their shared memory lasts, and one loads while the other sums or stores. A block of 1024 would
# have 64 registers a lane and none to spare: at four packets LayerNorm spilled up to 458 bytes.
MOST_LANES = 512
# Where shared memory is too small for the rest of a row, a lane takes more packets into registers,
# up to 36 of the 128 that each of 512 lanes may have; with 40 they spilled up to 16 bytes. With a
# residual there is no room for them: nine packets spilled 276 bytes, and to read again what was
# just written to L2 costs less.
MOST_PACKETS = 9
# Rows that share a warp come 128 threads a block: the smallest block that fills an SM (16 blocks of
# 128 are the 2048 threads of sm_80 and sm_90, 8 the 1024 of sm_75).
THREADS_OF_SHARED_BLOCK = 128

# Shared memory that a block may have (CUDA C++ Programming Guide, "Technical Specifications per
# Compute Capability"), and what sums and the ends of shifted rows take of it. What is not listed
# gets what every device has.
SHARED_BYTES = {
    75: 64 << 10,
    80: 163 << 10,
    86: 99 << 10,
    87: 163 << 10,
    89: 99 << 10,
    90: 227 << 10,
    100: 227 << 10,
    103: 227 << 10,
    120: 99 << 10,
    121: 99 << 10,
}
SHARED_BYTES_ELSEWHERE = 48 << 10
SUMS_BYTES = 3 << 10

# Each block costs an SM this much more than it may have itself.
RESERVED_BYTES = 1 << 10

# Where blocks can form clusters, they share a row before its shared memory keeps a second block off
# the SM. Eight blocks are what every such device allows; past them a block takes all the shared
# memory that it may have.
CLUSTER_ARCHS = (90, 100, 103)
MOST_BLOCKS = 8

# The four dtypes by their names in NumPy and ml_dtypes: size in bytes and type in CUDA C.
ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
C_TYPE = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
}


def accumulator(dtype: str) -> str:
    """Return the dtype of sums and statistics for data of `dtype`."""
    return "float64" if dtype == "float64" else "float32"


@dataclass(frozen=True)
class Plan:
    """One kernel, specialised for one kind of row.

    Attributes
    ----------
    kernel : str
        The entry point.
    source : str
        The file in kernels/ that has it.
    row : str
        The dtype of the row that is normalised.
    cols : int
        N, the number of columns of a row.
    lanes : int
        Threads of a block that share a row: 4, 8 or a multiple of 32. Rows that do not start on 16
        bytes need whole warps to be read in 16-byte accesses; from 528 bytes on they have one.
    packets : int
        16-byte packets that each lane keeps in registers.
    cluster : int
        Blocks that share a row.
    shared : int
        Packets that each lane keeps in shared memory after those. What is left of a longer row is
        read again.
    rows : int
        Rows that share a block.
    defines : tuple of (str, str or int)
        What the kernel is compiled with.
    """

    kernel: str
    source: str
    row: str
    cols: int
    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int
    defines: tuple[tuple[str, str | int], ...]

    @property
    def vec(self) -> int:
        """Columns of a packet."""
        return PACKET_BYTES // ITEMSIZE[self.row]

    @property
    def accumulator(self) -> str:
        """The dtype of sums and statistics."""
        return accumulator(self.row)

    @property
    def shared_bytes(self) -> int:
        """Bytes of dynamic shared memory of a block."""
        return self.shared * self.lanes * PACKET_BYTES

    @property
    def block(self) -> tuple[int, int]:
        """The block's shape: lanes of a row, then rows."""
        return (self.lanes, self.rows)

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid that covers `rows` rows."""
        return (-(-rows // self.rows) * self.cluster,)


def _half_of_shared_bytes(arch: int) -> int:
    """Return the bytes that a block may have if another like it is to share its SM."""
    of_sm = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) + RESERVED_BYTES
    return of_sm // 2 - RESERVED_BYTES


@dataclass(frozen=True)
class Share:
    """How a row is shared out: see the attributes of `Plan` of the same names."""

    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int


def _share(cols: int, dtype: str, arch: int, *, residual: bool) -> Share:
    """Share out rows of `cols` elements of `dtype`.

    ============================  =====================================================
    16-byte packets of a row      what keeps them
    ============================  =====================================================
    up to 16, 32, 128             4, 8 or 32 lanes, up to 4 packets each in registers
    up to 2048                    up to 512 lanes, up to 4 packets each in registers
    while two blocks fit an SM    512 lanes: 4 packets in registers, the others in shared
    more, where there are some    a cluster of up to 8 such blocks
    more                          all the shared memory and up to 9 packets in registers
    more                          what is left over is read again
    ============================  =====================================================
    """
    packets = max(1, cols * ITEMSIZE[dtype] // PACKET_BYTES)  # whole ones; the tail is apart
    if packets <= WARP * PACKETS_IN_FLIGHT:
        lanes = 4 if packets <= 16 else 8 if packets <= 32 else WARP
        return Share(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes)
    warps = -(-packets // (WARP * PACKETS_IN_FLIGHT))
    lanes = min(warps * WARP, MOST_LANES)
    turn = lanes * PACKET_BYTES

    cluster = 1
    if arch in CLUSTER_ARCHS:
        beside = PACKETS_IN_FLIGHT + (_half_of_shared_bytes(arch) - SUMS_BYTES) // turn
        cluster = min(-(-packets // (lanes * beside)), MOST_BLOCKS)
    turns = -(-packets // (lanes * cluster))
    room = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) - SUMS_BYTES
    shared = min(max(turns - PACKETS_IN_FLIGHT, 0), room // turn)
    registers = turns - shared
    if registers > (PACKETS_IN_FLIGHT if residual else MOST_PACKETS):
        registers = PACKETS_IN_FLIGHT  # what is left over is read again
    return Share(lanes, cluster, registers, shared, 1)


def _plan(
    kernel: str,
    source: str,
    cols: int,
    x: str,
    residual: str | None,
    arch: int,
    defines: dict[str, str | int],
) -> Plan:
    row = residual or x
    share = _share(cols, row, arch, residual=residual is not None)
    common: dict[str, str | int] = {
        "X_TYPE": C_TYPE[x],
        "ROW_TYPE": C_TYPE[row],
        "HAS_RESIDUAL": int(residual is not None),
        "COLS": cols,
    }
    common |= {name.upper(): number for name, number in asdict(share).items()}
    shared_bytes = share.shared * share.lanes * PACKET_BYTES + SUMS_BYTES
    common["ALONE"] = int(shared_bytes > _half_of_shared_bytes(arch))
    return Plan(kernel, source, row, cols, **asdict(share), defines=(*(common | defines).items(),))


def parameter(name: str, dtype: str | None, x_dtype: str) -> dict[str, str | int]:
    return {f"{name}_TYPE": C_TYPE[dtype or x_dtype], f"HAS_{name}": int(dtype is not None)}


@cache
def rms_norm_fwd(
    cols: int,
    x: str,
    gamma: str | None,
    *,
    cast_before: bool,
    gamma_offset: bool,
    arch: int,
    residual: str | None = None,
) -> Plan:
    """Plan RMSNorm forward for rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N, at least 1.
    x : str
        The dtype of x and y.
    gamma : str or None
        The dtype of gamma, None where there is none.
    cast_before : bool
        Whether the normalised value is rounded to x's dtype before gamma multiplies. Data that is
        not rounded, or that gamma does not multiply, has one kernel for both.
    gamma_offset : bool
        Whether an offset is added to gamma.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    residual : str or None
        The dtype of residual and of the sum that is normalised, None where there is no residual.

    Returns
    -------
    Plan
    """
    rounds = ITEMSIZE[x] == 2 and gamma is not None
    return _plan(
        "rms_norm_fwd" if residual is None else "add_rms_norm",
        "rms_norm.cu",
        cols,
        x,
        residual,
        arch,
        parameter("GAMMA", gamma, x)
        | {"CAST_BEFORE": int(cast_before and rounds), "GAMMA_OFFSET": int(gamma_offset)},
    )


@cache
def layer_norm_fwd(
    cols: int,
    x: str,
    gamma: str | None,
    beta: str | None,
    *,
    arch: int,
    residual: str | None = None,
) -> Plan:
    """Plan LayerNorm forward for rows of `cols` elements.

    Parameters
    ----------
    cols : int
        N, at least 1.
    x : str
        The dtype of x and y.
    gamma, beta : str or None
        The dtypes of gamma and beta, None where there is none.
    arch : int
        The architecture, like 90: how much shared memory a block may have.
    residual : str or None
        The dtype of residual and of the sum that is normalised, None where there is no residual.

    Returns
    -------
    Plan
    """
    return _plan(
        "layer_norm_fwd" if residual is None else "add_layer_norm",
        "layer_norm.cu",
        cols,
        x,
        residual,
        arch,
        parameter("GAMMA", gamma, x) | parameter("BETA", beta, x),
    )
