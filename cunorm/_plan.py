"""Which kernel serves a row, and how its columns are shared out.

Pure, from N, the dtypes and the architecture.
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
# up to 40 of the 128 that each of 512 lanes may have. With a residual there is no room for them:
# nine packets spilled 276 bytes, and to read again what was just written to L2 costs less.
MOST_PACKETS = 10
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

# Where blocks can form clusters, they share a row before its shared memory keeps a second block off
# the SM: half of its 228 KiB, less 1 KiB that each block costs. Eight blocks are what every such
# device allows; past them a block takes all the shared memory that it may have.
CLUSTER_ARCHS = (90, 100, 103)
MOST_BLOCKS = 8
HALF_OF_SHARED_BYTES = 113 << 10

# A persistent backward kernel keeps x, dy and sums of columns. Packets take 16 registers each in
# 16 bits (LayerNorm's 24), and 12 (16) in wider dtypes: so 2 packets a lane, or 4. 512 threads of
# 128 registers spilled up to 272 bytes; 384 threads have 168 each, where only 4 packets of 16 bits
# spilled, up to 56 bytes, and still 24 or 48 KiB of x and dy are on their way.
RESIDENT_THREADS = 384
# Each block writes and reads again a row of sums, so it should have more rows of data than that.
GROUPS_OF_BLOCK = 8
# 32 lanes read 128 bytes of sums at once; 16 warps share out up to some hundred rows of them.
SUM_COLUMNS, SUM_SLICES = 32, 16

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
    shared_packet_bytes : int
        Bytes of shared memory for each packet kept there, with what is kept beside it.
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
    shared_packet_bytes: int = PACKET_BYTES

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
        return self.shared * self.lanes * self.shared_packet_bytes

    @property
    def block(self) -> tuple[int, int]:
        """The block's shape: lanes of a row, then rows."""
        return (self.lanes, self.rows)

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid that covers `rows` rows."""
        return (-(-rows // self.rows) * self.cluster,)

    def persistent_grid(self, rows: int, multiprocessors: int) -> tuple[int]:
        """Return the grid of a backward kernel, whose block b takes groups b, b + blocks, ...

        A group is `self.rows` neighbouring rows. There is one block for each multiprocessor, and
        more, up to `RESIDENT_THREADS` threads on each, while every block has at least
        `GROUPS_OF_BLOCK` groups; never more blocks than groups.
        """
        groups = -(-rows // self.rows)
        most = multiprocessors * max(1, RESIDENT_THREADS // (self.lanes * self.rows))
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


@dataclass(frozen=True)
class _Share:
    """How a row is shared out: see the attributes of `Plan` of the same names."""

    lanes: int
    cluster: int
    packets: int
    shared: int
    rows: int


def _share(cols: int, dtype: str, arch: int, *, residual: bool) -> _Share:
    """Share out rows of `cols` elements of `dtype`.

    ============================  =====================================================
    16-byte packets of a row      what keeps them
    ============================  =====================================================
    up to 16, 32, 128             4, 8 or 32 lanes, up to 4 packets each in registers
    up to 2048                    up to 512 lanes, up to 4 packets each in registers
    while two blocks fit an SM    512 lanes: 4 packets in registers, the others in shared
    more, where there are some    a cluster of up to 8 such blocks
    more                          all the shared memory and up to 10 packets in registers
    more                          what is left over is read again
    ============================  =====================================================
    """
    packets = max(1, cols * ITEMSIZE[dtype] // PACKET_BYTES)  # whole ones; the tail is apart
    if packets <= WARP * PACKETS_IN_FLIGHT:
        lanes = 4 if packets <= 16 else 8 if packets <= 32 else WARP
        return _Share(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes)
    warps = -(-packets // (WARP * PACKETS_IN_FLIGHT))
    lanes = min(warps * WARP, MOST_LANES)
    turn = lanes * PACKET_BYTES

    cluster = 1
    if arch in CLUSTER_ARCHS:
        beside = PACKETS_IN_FLIGHT + (HALF_OF_SHARED_BYTES - SUMS_BYTES) // turn
        cluster = min(-(-packets // (lanes * beside)), MOST_BLOCKS)
    turns = -(-packets // (lanes * cluster))
    room = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) - SUMS_BYTES
    shared = min(max(turns - PACKETS_IN_FLIGHT, 0), room // turn)
    registers = turns - shared
    if registers > (PACKETS_IN_FLIGHT if residual else MOST_PACKETS):
        registers = PACKETS_IN_FLIGHT  # what is left over is read again
    return _Share(lanes, cluster, registers, shared, 1)


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
    return Plan(kernel, source, row, cols, **asdict(share), defines=(*(common | defines).items(),))


def _parameter(name: str, dtype: str | None, x_dtype: str) -> dict[str, str | int]:
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
        _parameter("GAMMA", gamma, x)
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
        _parameter("GAMMA", gamma, x) | _parameter("BETA", beta, x),
    )


def _share_backward(cols: int, dtype: str, arch: int, parameters: int) -> tuple[_Share, int]:
    """Share out rows of a backward pass; return that and a shared packet's bytes with its sums.

    As in `_share`, but for the sums of columns that registers keep too, and without clusters: what
    registers and shared memory cannot keep is read again.
    """
    packets = max(1, cols * ITEMSIZE[dtype] // PACKET_BYTES)
    most = 2 if ITEMSIZE[dtype] == 2 else PACKETS_IN_FLIGHT
    sums = PACKET_BYTES // ITEMSIZE[dtype] * ITEMSIZE[accumulator(dtype)]
    beside = 2 * PACKET_BYTES + parameters * sums
    if packets <= WARP * most:
        lanes = 4 if packets <= 4 * most else 8 if packets <= 8 * most else WARP
        return _Share(lanes, 1, -(-packets // lanes), 0, THREADS_OF_SHARED_BLOCK // lanes), beside
    lanes = min(-(-packets // (WARP * most)) * WARP, RESIDENT_THREADS)
    turns = -(-packets // lanes)
    room = SHARED_BYTES.get(arch, SHARED_BYTES_ELSEWHERE) - SUMS_BYTES
    shared = min(max(turns - most, 0), room // (lanes * beside))
    return _Share(lanes, 1, min(turns, most), shared, 1), beside


def _plan_backward(
    kernel: str,
    cols: int,
    x: str,
    gamma: str | None,
    arch: int,
    parameters: int,
    flags: dict[str, int],
) -> Plan:
    share, beside = _share_backward(cols, x, arch, parameters if gamma is not None else 0)
    defines: dict[str, str | int] = {"X_TYPE": C_TYPE[x], "ROW_TYPE": C_TYPE[x], "COLS": cols}
    defines |= {name.upper(): number for name, number in asdict(share).items()}
    defines |= _parameter("GAMMA", gamma, x) | flags
    return Plan(
        kernel,
        f"{kernel}.cu",
        x,
        cols,
        **asdict(share),
        defines=(*defines.items(),),
        shared_packet_bytes=beside,
    )


@cache
def rms_norm_bwd(
    cols: int, x: str, gamma: str | None, *, gamma_offset: bool, dresidual: bool, arch: int
) -> Plan:
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

    Returns
    -------
    Plan
    """
    flags = {"GAMMA_OFFSET": int(gamma_offset), "HAS_DRESIDUAL": int(dresidual)}
    return _plan_backward("rms_norm_bwd", cols, x, gamma, arch, 1, flags)


@cache
def layer_norm_bwd(cols: int, x: str, gamma: str | None, *, dresidual: bool, arch: int) -> Plan:
    """Plan LayerNorm backward for rows of `cols` elements: see `rms_norm_bwd`."""
    flags = {"GAMMA_OFFSET": 0, "HAS_DRESIDUAL": int(dresidual)}
    return _plan_backward("layer_norm_bwd", cols, x, gamma, arch, 2, flags)


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
