"""Which kernel serves a row, and how its columns are shared out: pure, from N and the dtypes alone.

A plan never looks at the number of rows, at alignment or at strides. The kernel gives column c to
the same lane, in the same order, whatever those are, and so a row has the same bits alone and in a
batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

WARP = 32
PACKET_BYTES = 16
# A lane asks for up to four packets, 64 bytes, before it needs the first: enough bytes in flight to
# cover DRAM latency at half occupancy, in 16 to 32 registers.
PACKETS_IN_FLIGHT = 4
# Past four packets for each of 1024 lanes the lanes take more, up to half of the 64 registers that
# each has.
MOST_PACKETS = 8
MOST_LANES = 1024
# Rows that share a warp come 128 threads a block: the smallest block that fills an SM (16 blocks of
# 128 are the 2048 threads of sm_80 and sm_90, 8 the 1024 of sm_75).
THREADS_OF_SHARED_BLOCK = 128

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
        Threads that share a row: 4, 8, 16 or a multiple of 32.
    packets : int
        16-byte packets that each lane keeps in registers; 0 where the row is too long for them and
        is read again.
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
    packets: int
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
    def block(self) -> tuple[int, int]:
        """The block's shape: lanes of a row, then rows."""
        return (self.lanes, self.rows)

    def grid(self, rows: int) -> tuple[int]:
        """Return the grid that covers `rows` rows."""
        return (-(-rows // self.rows),)


def _share(cols: int, dtype: str) -> tuple[int, int, int]:
    """Return lanes a row, packets a lane and rows a block for rows of `cols` elements."""
    packets = -(-cols * ITEMSIZE[dtype] // PACKET_BYTES)
    if packets > MOST_LANES * MOST_PACKETS:
        return MOST_LANES, 0, 1
    if packets > WARP * PACKETS_IN_FLIGHT:
        warps = min(-(-packets // (WARP * PACKETS_IN_FLIGHT)), MOST_LANES // WARP)
        lanes = warps * WARP
        return lanes, -(-packets // lanes), 1
    lanes = 4
    while lanes * PACKETS_IN_FLIGHT < packets:
        lanes *= 2
    return lanes, -(-packets // lanes), THREADS_OF_SHARED_BLOCK // lanes


def _plan(
    kernel: str,
    source: str,
    cols: int,
    x: str,
    residual: str | None,
    defines: dict[str, str | int],
) -> Plan:
    row = residual or x
    lanes, packets, rows = _share(cols, row)
    shared: dict[str, str | int] = {
        "X_TYPE": C_TYPE[x],
        "ROW_TYPE": C_TYPE[row],
        "HAS_RESIDUAL": int(residual is not None),
        "COLS": cols,
        "LANES": lanes,
        "PACKETS": packets,
        "ROWS": rows,
    }
    return Plan(kernel, source, row, cols, lanes, packets, rows, tuple((shared | defines).items()))


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
        _parameter("GAMMA", gamma, x)
        | {"CAST_BEFORE": int(cast_before and rounds), "GAMMA_OFFSET": int(gamma_offset)},
    )


@cache
def layer_norm_fwd(
    cols: int, x: str, gamma: str | None, beta: str | None, *, residual: str | None = None
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
        _parameter("GAMMA", gamma, x) | _parameter("BETA", beta, x),
    )
