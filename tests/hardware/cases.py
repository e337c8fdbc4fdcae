"""Which calls are timed, and beside which other systems."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain

from cunorm._bench import cases as bench_cases
from cunorm._plan import ITEMSIZE

from .session import DRY

SHORT = {"float16": "f16", "bfloat16": "bf16", "float32": "f32", "float64": "f64"}
EVERYONE = ("torch", "compile", "liger", "quack", "flashinfer")
SOME = ("torch", "liger", "quack", "flashinfer")


@dataclass(frozen=True)
class Case(bench_cases.Case):
    """A call of `python -m cunorm bench`.

    Attributes
    ----------
    group : str
        What it is measured for.
    peers : tuple of str
        Which systems join, beside cunorm and copies.
    dresidual : bool
        Not of a backward one: peers lack it.
    """

    dresidual: bool = False
    group: str = ""
    peers: tuple[str, ...] = ()

    def __str__(self) -> str:
        warm = " warm" if self.warm else ""
        quant = f" {self.quant}" if self.quant else ""
        return f"{self.op}{quant} {SHORT[self.dtype]} {self.rows}x{self.cols}{warm}"


def rows_of(mib: int, cols: int, dtype: str) -> int:
    """Return how many rows make so many MiB of x."""
    return max(1, (mib << 20) // (cols * ITEMSIZE[dtype]))


def sized(
    op: str,
    dtype: str,
    cols: int,
    group: str,
    peers: tuple[str, ...] = (),
    mib: int = 128,
    quant: str | None = None,
) -> Case:
    """Return a case of so many MiB of x."""
    rows = rows_of(mib, cols, dtype)
    return Case(op, dtype, cols, rows, group=group, peers=peers, quant=quant)


def few_rows(case: Case, rows: int = 3) -> Case:
    """Return the same call on few rows, to compile its kernels or for a dry run."""
    return replace(case, rows=min(case.rows, rows))


def _main() -> Iterator[Case]:
    """Bfloat16 RMSNorm and what else models use, against everyone."""
    for cols in (4096, 1024, 8192, 16384, 768, 2048, 5120, 256, 128, 32768, 65536):
        yield sized("rms_norm", "bfloat16", cols, "main", EVERYONE)
    for cols in (4096, 8192, 1024, 16384):
        for op in ("add_rms_norm", "layer_norm"):
            yield sized(op, "bfloat16", cols, "main", EVERYONE)


def _decode() -> Iterator[Case]:
    """Few rows of data in L2, where launches and latency are all."""
    for rows in (1, 4, 16, 64):
        for op, cols in (("rms_norm", 4096), ("add_rms_norm", 8192)):
            yield Case(op, "bfloat16", cols, rows, group="decode", peers=SOME, warm=True)


def _backward() -> Iterator[Case]:
    for op in bench_cases.BACKWARD_OPS:
        for cols in (4096, 1024, 8192, 16384, 768, 256):
            yield sized(op, "bfloat16", cols, "backward", EVERYONE, mib=96)
        for cols in (4096, 1024):
            yield sized(op, "float32", cols, "backward", SOME, mib=96)


def _heads() -> Iterator[Case]:
    """Queries and keys of a prompt; 32 heads of queries each token."""
    for cols in (128, 64, 256):
        yield sized("qk_norm_rope", "bfloat16", cols, "heads", ("torch", "compile"))
    yield sized("rms_norm_rope", "bfloat16", 128, "heads", ("torch", "compile"))
    yield Case("qk_norm_rope", "bfloat16", 128, 32, group="heads", peers=("torch",), warm=True)


def _codes() -> Iterator[Case]:
    """Activations of 8 and 4 bits; a norm without codes of the same N is among the main cases."""
    for cols in (4096, 1024, 8192, 769):
        for quant in ("fp8_row", "int8_row"):
            peers = ("torch", "compile")
            yield sized("rms_norm_quant", "bfloat16", cols, "codes", peers, quant=quant)
    for quant in ("deepseek", "mxfp8", "nvfp4"):
        for cols in (4096, 1024):
            yield sized("rms_norm_quant", "bfloat16", cols, "codes", quant=quant)
    for op in bench_cases.CODE_OPS[1:]:
        for cols in (4096, 1024):
            yield sized(op, "bfloat16", cols, "codes", ("torch", "compile"), quant="fp8_row")


def _long() -> Iterator[Case]:
    """Rows that clusters share."""
    for dtype in ("bfloat16", "float32"):
        for cols in (131072, 262144, 65536):
            for op in ("rms_norm", "layer_norm"):
                yield sized(op, dtype, cols, "long", SOME)


def _odd() -> Iterator[Case]:
    """Rows that start anywhere."""
    for cols in (769, 1025, 4097, 5125, 65537):
        for dtype in ("bfloat16", "float32"):
            yield sized("rms_norm", dtype, cols, "odd", SOME)
    for op in ("layer_norm", "add_rms_norm"):
        yield sized(op, "bfloat16", 4097, "odd", SOME)


def _dtypes() -> Iterator[Case]:
    for dtype in ("float32", "float16"):
        for cols in (4096, 1024, 128, 16384, 32768):
            yield sized("rms_norm", dtype, cols, "dtypes", ("torch", "liger", "fuse"))
    for cols in (4096, 1024):
        yield sized("layer_norm", "float16", cols, "dtypes", ("torch", "liger", "fuse"))
        yield sized("layer_norm", "float32", cols, "dtypes", SOME)
        yield sized("add_layer_norm", "bfloat16", cols, "dtypes", ("torch", "compile"))
        yield sized("add_layer_norm", "float32", cols, "dtypes", ("torch",))


def _sizes() -> Iterator[Case]:
    """From a prompt to a batch: a launch's start and end weigh less and less; then more N."""
    for mib in (1, 4, 16, 64, 256, 512):
        yield sized("rms_norm", "bfloat16", 4096, "sizes", SOME, mib)
    for cols in (512, 1536, 3072, 6144, 7168, 12288):
        yield sized("rms_norm", "bfloat16", cols, "more N", ("torch", "quack"))


def cases() -> list[Case]:
    """Return every case, the most telling first: what the budget does not reach is left out.

    A dry run has one of each op, scheme and its systems, on few rows.
    """
    groups = (
        *(_main(), _decode(), _backward(), _heads(), _codes()),
        *(_long(), _odd(), _dtypes(), _sizes()),
    )
    found = list(dict.fromkeys(chain(*groups)))
    if not DRY:
        return found
    small = (few_rows(case) for case in found if case.cols <= 1024)
    return list({(case.op, case.quant, case.peers): case for case in small}.values())
