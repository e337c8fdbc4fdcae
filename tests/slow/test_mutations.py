"""Deliberate mistakes in copies of kernels/: each must give a wrong result or a fault.

A mistake is a replacement of text, so that what it does can be read beside what was there. Its
probe is a line of `python -m cunorm check`, or a case of the other tests in the same form; every
probe passes on the kernels as they are.
"""

import math
import shutil
from functools import partial

import cupy
import numpy as np
import pytest
from arrays import random

import cunorm
from cunorm import _quant_reference, _reference, simgpu
from cunorm._call import remembered
from cunorm._launch import kernels
from cunorm._selfcheck import checks, rope
from cunorm._selfcheck.checks import Check, Outcome

pytestmark = [
    pytest.mark.slow(
        "builds kernels/ with a mistake each time: about the tests, not about the kernels",
        shares=20,
    ),
    pytest.mark.simgpu,  # on hardware these would write wherever they happen to
]


def far_from_zero(check):
    """LayerNorm of 1000 + noise, in float32."""
    x = random(check.shape, check.dtype, shift=1000)
    off = ~_reference.layer_norm(x).accepts(cunorm.layer_norm(cupy.asarray(x)).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def out_of_range(check):
    """RMSNorm and LayerNorm of rows whose squares leave float32's range, at either end."""
    x = random(check.shape, check.dtype, scale=float(check.where))
    off = ~getattr(_reference, check.op)(x, eps=0).accepts(
        getattr(cunorm, check.op)(cupy.asarray(x), eps=0).get()
    )
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def far_apart(check):
    """RMSNorm of rows more than 2^31 elements apart."""
    x = random((2, 128), check.dtype)
    buffer = cupy.empty(2**31 + 128, check.dtype)
    buffer[:128], buffer[2**31 :] = cupy.asarray(x[0]), cupy.asarray(x[1])
    rows = cupy.lib.stride_tricks.as_strided(buffer, x.shape, (2**31 * x.itemsize, x.itemsize))
    off = ~_reference.rms_norm(x).accepts(cunorm.rms_norm(rows).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def warps_out_of_step(check):
    """RMSNorm where lanes of a warp are ordered by ``__syncwarp`` alone."""
    x = random(check.shape, check.dtype)
    with simgpu.warp_races():
        off = ~_reference.rms_norm(x).accepts(cunorm.rms_norm(cupy.asarray(x)).get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def heads_out_of_step(check):
    """RoPE of heads whose lanes hand packets over, ordered by ``__syncwarp`` alone."""
    with simgpu.warp_races():
        return rope.measure(check)


def backward(check, **options):
    """Every gradient of a backward op, with a second gradient of x."""
    x, dy, dresidual = (random(check.shape, check.dtype, seed=seed) for seed in range(3))
    gamma = random(check.shape[-1], check.dtype, seed=3)
    x_on_device, gamma_on_device = cupy.asarray(x), cupy.asarray(gamma)
    forward = getattr(cunorm, check.op.replace("bwd", "fwd"))
    kept = forward(x_on_device, gamma_on_device)[1:]
    actual = getattr(cunorm, check.op)(
        *(cupy.asarray(dy), x_on_device, gamma_on_device, *kept),
        dresidual=cupy.asarray(dresidual),
        **options,
    )
    expected = getattr(_reference, check.op)(
        *(dy, x, gamma, *(k.get() for k in kept)), dresidual=dresidual, **options
    )
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def gated_first(check):
    """RMSNorm of rows that their gates have multiplied."""
    x, gate = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    y = cunorm.rms_norm_gated(cupy.asarray(x), cupy.asarray(gate), gate_first=True)
    off = ~_reference.rms_norm_gated(x, gate, gate_first=True).accepts(y.get())
    return Outcome(math.nan, math.nan, [f"{off.sum()} elements off"] if off.any() else [])


def beside(check):
    """A norm with a scale, a shift and a gate, each of them as the check says."""
    shape = {"columns": check.shape[-1:], "rows": check.shape, "numbers": (check.shape[0], 1)}
    given = {
        name: random(shape[check.where], check.dtype, seed=seed)
        for seed, name in enumerate(("scale", "shift", "gate"), 2)
    }
    x, residual = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    on_device = {name: cupy.asarray(a) for name, a in given.items()}
    actual = cunorm.add_rms_norm(cupy.asarray(x), cupy.asarray(residual), **on_device)
    expected = _reference.add_rms_norm(x, residual, **given)
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def modulated(check):
    """The gradients of a norm whose scale and shift are those of samples."""
    x, dy = (random(check.shape, check.dtype, seed=seed) for seed in range(2))
    gamma, beta = (random(check.shape[-1], check.dtype, seed=seed) for seed in (2, 3))
    scale = random((check.shape[0], 1, check.shape[-1]), check.dtype, seed=4)
    given = [cupy.asarray(a) for a in (dy, x, gamma)]
    kept = cunorm.layer_norm_fwd(*given[1:])[1:]
    beside = {"scale": scale, "shift": scale, "beta": beta}
    actual = cunorm.layer_norm_bwd(
        *given, *kept, **{name: cupy.asarray(a) for name, a in beside.items()}
    )
    expected = _reference.layer_norm_bwd(dy, x, gamma, *(k.get() for k in kept), **beside)
    off = sum((~e.accepts(a.get())).sum() for a, e in zip(actual, expected, strict=True))
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def given_sums(check):
    """Norms of rows by sums that are given, which are their own."""
    x = random(check.shape, check.dtype, shift=1)
    row = cupy.asarray(x)
    squares, moments = cunorm.row_sums(row), cunorm.row_sums(row, kind="moments")
    off = 0
    for y, expected in (
        (
            cunorm.rms_norm(row, squares=squares, count=check.shape[-1]),
            _reference.rms_norm(x),
        ),
        (
            cunorm.layer_norm(row, moments=moments, count=check.shape[-1]),
            _reference.layer_norm(x),
        ),
    ):
        off += (~expected.accepts(y.get())).sum()
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


def codes(check):
    """Codes of rows that start anywhere, their scales, and what lies between the rows."""
    x = cupy.asarray(random(check.shape, check.dtype, scale=3))
    quant, (rows, cols) = cunorm.Quant.int8_row(), check.shape
    gap = (
        16 + (cols + 1) % 2
    )  # rows are an odd number of bytes apart, and start on each of a sector
    whole = cupy.full((rows, cols + gap), 85, "int8")
    _, scale = cunorm.rms_norm_quant(x, quant=quant, out=whole[:, :cols])
    codes, scales = _quant_reference.quantize(cunorm.rms_norm(x).get(), quant)
    expected = np.pad(codes, ((0, 0), (0, gap)), constant_values=85)
    off = (whole.get() != expected).sum() + (scale.get() != scales).sum()
    return Outcome(math.nan, math.nan, [f"{off} elements off"] if off else [])


BACKWARD = [
    Check("rms_norm_bwd", "float32", (300, 1024), "backward", backward),
    Check("layer_norm_bwd", "float16", (300, 769), "backward", backward),
    Check("layer_norm_bwd", "float32", (70, 40), "backward", backward),
    Check("rms_norm_bwd", "float16", (2, 20000), "backward", backward),
    Check("layer_norm_bwd", "float32", (2, 40000), "backward", backward),
    Check("rms_norm_bwd", "bfloat16", (5, 96), "offset", partial(backward, gamma_offset=1.0)),
]
PROBES = {str(check): check for check in checks.grid()} | {
    "1000 + noise": Check("layer_norm", "float32", (2, 769), "1000 + noise", far_from_zero),
    **{
        f"{op} of {size}": Check(op, "float32", (3, 96), size, out_of_range)
        for op in ("rms_norm", "layer_norm")
        for size in ("1e30", "1e-20")
    },
    "rms_norm of 1e30 in warps": Check("rms_norm", "float32", (3, 4096), "1e30", out_of_range),
    "codes of 769 columns": Check("rms_norm_quant", "float16", (32, 769), "codes", codes),
    "codes of 3080 columns": Check("rms_norm_quant", "float16", (32, 3080), "codes", codes),
    "a cluster": Check("layer_norm", "float16", (1, 150_000), "1.0", out_of_range),
    "2^31 apart": Check("rms_norm", "float16", (2, 128), "2^31 apart", far_apart),
    "rms_norm_gated of 700,000 columns": Check(
        "rms_norm_gated", "float16", (1, 700_000), "read again", gated_first
    ),
    "rms_norm_gated of 769 columns": Check(
        "rms_norm_gated", "float16", (7, 769), "packs of 8 bytes", gated_first
    ),
    "warps out of step": Check("rms_norm", "float16", (3, 769), "out of step", warps_out_of_step),
    "heads out of step": Check(
        "qk_norm_rope", "bfloat16", (3, 4, 96), "contiguous", heads_out_of_step
    ),
}
BESIDE = [
    Check("add_rms_norm", "float16", (5, 7), "numbers", beside),
    Check("add_rms_norm", "float16", (3, 769), "columns", beside),
    Check("add_rms_norm", "float16", (3, 20000), "rows", beside),
]
SEVERAL = [
    Check("layer_norm_bwd", "float32", (3, 70, 40), "modulated", modulated),
    Check("layer_norm", "float32", (5, 96), "given sums", given_sums),
]
PROBES |= {str(check): check for check in (*BACKWARD, *BESIDE, *SEVERAL)}

# What goes wrong, where, what stands there, what is put there, and the probe that must notice.
MUTATIONS = [
    (
        "off-by-one bound: the row ends a column late",
        "place.cuh",
        "TAIL = COLS % VEC;",
        "TAIL = COLS % VEC + 1;",
        "rms_norm_fwd float32 (37, 7) contiguous",
    ),
    (
        "off-by-one bound: the last column is left out",
        "place.cuh",
        "turn * S::ROW_LANES + lane < S::TAIL;",
        "turn * S::ROW_LANES + lane < S::TAIL - 1;",
        "layer_norm_fwd float16 (3, 5125) contiguous",
    ),
    (
        "off-by-one bound: the row past the last is read",
        "place.cuh",
        "min(row, rows.count - 1)",
        "row",
        "rms_norm_fwd float32 (37, 128) contiguous",
    ),
    (
        "off-by-one bound: the row past the last has columns in a backward pass",
        "place.cuh",
        "row < end",
        "true",
        "rms_norm_bwd bfloat16 (5, 96) offset",
    ),
    (
        "wrong tail mask: a column of the tail is stored as a packet",
        "stream.cuh",
        "store<false>(row + column, pack, 1);",
        "store<false>(row + column, pack, VEC);",
        "rms_norm_fwd float32 (37, 7) contiguous",
    ),
    (
        "missing order in a warp: the seam is read before it is there",
        "shift.cuh",
        "      if (lane_ < UNITS) reinterpret_cast<Unit*>(seam_)[lane_] = unit;\n"
        "      __syncwarp();\n",
        "      if (lane_ < UNITS) reinterpret_cast<Unit*>(seam_)[lane_] = unit;\n",
        "warps out of step",
    ),
    (
        "missing order in a warp: the seam is stored before it is whole",
        "shift.cuh",
        "write_seam() {\n    __syncwarp();\n",
        "write_seam() {\n",
        "warps out of step",
    ),
    (
        "missing barrier: sums of other warps are read before they are written",
        "tree.cuh",
        "      __syncthreads();\n",
        "",
        "rms_norm_fwd float32 (3, 4096) contiguous",
    ),
    (
        "divergent barrier: only the warps that write wait",
        "tree.cuh",
        "      __syncthreads();\n",
        "      if (threadIdx.x % 32 == 0) __syncthreads();\n",
        "layer_norm_fwd float32 (3, 4096) contiguous",
    ),
    (
        "wrong stride: rows taken to be contiguous",
        "place.cuh",
        "place.index.level[level] * stride.level[level]",
        "place.index.level[level] * S::COLS",
        "layer_norm float16 (3, 769) row-strided",
    ),
    (
        "wrong stride: packets one lane closer",
        "place.cuh",
        "TURN_COLS = SPAN * VEC;",
        "TURN_COLS = (SPAN - 1) * VEC;",
        "rms_norm_fwd float64 (3, 1024) contiguous",
    ),
    (
        "wrong stride: offsets of 32 bits",
        "place.cuh",
        "  long long bytes = 0;",
        "  int bytes = 0;",
        "2^31 apart",
    ),
    (
        "lanes share their places in shared memory",
        "row.cuh",
        "(turn - S::PACKETS) * S::LANES + threadIdx.x",
        "(turn - S::PACKETS) * S::LANES",
        "layer_norm_fwd float16 (3, 20000) contiguous",
    ),
    (
        "shifted rows: the words of the next chunk come from the wrong turn",
        "shift.cuh",
        "at_end ? around.word[w] : own.word[w]",
        "own.word[w]",
        "rms_norm float32 (3, 769) base + 1 element",
    ),
    (
        "shifted rows: a share stores a whole chunk at its end",
        "shift.cuh",
        "chunk + static_cast<int>(lane_) < packets_",
        "chunk + static_cast<int>(lane_) <= packets_",
        "rms_norm_fwd float32 (3, 5125) contiguous",
    ),
    (
        "shifted rows: packs of 8 bytes are shifted as those of 16",
        "shift.cuh",
        "BITS = BYTES == 8 ? 3 : 4;",
        "BITS = 4;",
        "rms_norm_gated of 769 columns",
    ),
    (
        "shifted rows: what is shifted by half a chunk stays behind",
        "shift.cuh",
        "FIRST = AHEAD ? UNITS / 2 : 0;",
        "FIRST = AHEAD ? UNITS / 2 - sizeof(E) / UNIT : 0;",
        "rms_norm float32 (3, 769) base + 1 element",
    ),
    (
        "shifted rows: half a word too few",
        "shift.cuh",
        "joined.word[w] = BYTES % 4 == 0",
        "joined.word[w] = BYTES % 2 == 0",
        "layer_norm bfloat16 (3, 769) base + 1 element",
    ),
    (
        "shifted rows: the seam is read before all lanes have brought it",
        "shift.cuh",
        "if (lane_ < UNITS) reinterpret_cast",
        "if (lane_ < UNITS - 1) reinterpret_cast",
        "rms_norm float32 (3, 769) base + 1 element",
    ),
    (
        "shifted rows: the end of a share is stored from its beginning",
        "shift.cuh",
        "seam_ + (is_of_end() && !is_joined)",
        "seam_",
        "rms_norm_fwd float32 (3, 5125) contiguous",
    ),
    (
        "missing eps",
        "statistic.cuh",
        "mul(mul(eps, scale), scale) : eps);",
        "mul(mul(eps, scale), scale) : Acc(0));",
        "rms_norm float64 (3, 769) row-strided",
    ),
    (
        "missing step of the butterfly",
        "reduce.cuh",
        "if constexpr (WIDTH > 1) {",
        "if constexpr (WIDTH > 2) {",
        "rms_norm_fwd bfloat16 (3, 769) contiguous",
    ),
    (
        "shared memory read past its end",
        "tree.cuh",
        "first + i < OF_BLOCK ? sums()[(first + i) * KINDS + kind] : 0",
        "sums()[(first + i) * KINDS + kind]",
        "layer_norm_fwd float16 (3, 20000) contiguous",
    ),
    (
        "aligned access whatever the alignment",
        "packet.cuh",
        "if (ALIGNED && present == COUNT)",
        "if (present == COUNT)",
        "rms_norm float32 (3, 769) base + 1 element",
    ),
    (
        "missing rounding before gamma",
        "epilogue.cuh",
        "void packet(int, Values<S>& value) const { unpack(round_to<E>(value), value); }",
        "void packet(int, Values<S>& value) const {}",
        "rms_norm bfloat16 (3, 769) float32 gamma",
    ),
    (
        "unbiased variance",
        "statistic.cuh",
        "const Acc square = mul(about[1], PER_COLUMN<S>);",
        "const Acc square = mul(about[1], Acc(1.0 / (S::COLS - 1)));",
        "layer_norm float32 (3, 769) row-strided",
    ),
    (
        "missing correction of the mean",
        "statistic.cuh",
        "shift = mul(-correction, rstd);",
        "shift = 0;",
        "1000 + noise",
    ),
    (
        "missing rescue of rows that overflow",
        "statistic.cuh",
        "lost = out_of_range<typename S::T>(mean_square);",
        "lost = exponent_word(mean_square) < Numeric<typename S::T>::SMALLEST;",
        "rms_norm of 1e30",
    ),
    (
        "missing rescue of rows that underflow",
        "packet.cuh",
        ">= N::INFINITE - N::SMALLEST",
        ">= N::INFINITE - N::SMALLEST && exponent_word(mean_square) >= N::SMALLEST",
        "rms_norm of 1e-20",
    ),
    (
        "missing rescue of rows that overflow, in LayerNorm",
        "statistic.cuh",
        "if (lost) made = {",
        "if (false) made = {",
        "layer_norm of 1e30",
    ),
    (
        "rows that underflow are scaled down, as those that overflow",
        "packet.cuh",
        "1 / N::RESCUE : N::RESCUE",
        "N::RESCUE : N::RESCUE",
        "layer_norm of 1e-20",
    ),
    (
        "backward: sums of the next row are written where others still read",
        "gradient.cuh",
        "    buffer ^= 1;\n",
        "",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: sums of a block's rows are added up before they are written",
        "column_sums.cuh",
        "write(kind, sums[threadIdx.y]);\n        __syncthreads();",
        "write(kind, sums[threadIdx.y]);",
        "layer_norm_bwd float32 (70, 40) backward",
    ),
    (
        "backward: the last row of a block is left out",
        "column_sums.cuh",
        "for (int row = 1; row < S::ROWS; ++row)",
        "for (int row = 1; row < S::ROWS - 1; ++row)",
        "layer_norm_bwd float32 (70, 40) backward",
    ),
    (
        "backward: missing mean of products",
        "gradient.cuh",
        "fma_rn(-normal[i], mean_of_products_, centred)",
        "centred",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: missing mean of gradients",
        "gradient.cuh",
        "sub(weighted[i], mean_of_gradient_)",
        "weighted[i]",
        "layer_norm_bwd float16 (300, 769) backward",
    ),
    (
        "backward: missing second gradient",
        "gradient.cuh",
        "fma_rn(inner, rstd, beside)",
        "mul(inner, rstd)",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: the last slice of the blocks is left out",
        "column_sums.cuh",
        "slice < SLICES;",
        "slice < SLICES - 1;",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: sums of columns begin with something in registers",
        "column_sums.cuh",
        "in_registers_[S::PACKETS][HELD][S::VEC] = {};",
        "in_registers_[S::PACKETS][HELD][S::VEC] = {{{1}}};",
        "layer_norm_bwd float32 (70, 40) backward",
    ),
    (
        "backward: sums of columns begin with whatever shared memory holds",
        "column_sums.cuh",
        "put(kind, turn, zeros);",
        "if (turn >= S::KEPT) put(kind, turn, zeros);",
        "rms_norm_bwd float16 (2, 20000) backward",
    ),
    (
        "backward: sums of columns begin with whatever memory holds",
        "column_sums.cuh",
        "put(kind, turn, zeros);",
        "if (turn < S::KEPT) put(kind, turn, zeros);",
        "layer_norm_bwd float32 (2, 40000) backward",
    ),
    (
        "backward: the sum of the last column of the tail is left out",
        "column_sums.cuh",
        "if (tail < S::TAIL) row",
        "if (tail < S::TAIL - 1) row",
        "layer_norm_bwd float16 (300, 769) backward",
    ),
    (
        "backward: sums of shared memory are never written",
        "column_sums.cuh",
        "turn < S::KEPT; ++turn) {\n          Values<S> sums;",
        "turn < S::PACKETS; ++turn) {\n          Values<S> sums;",
        "rms_norm_bwd float16 (2, 20000) backward",
    ),
    (
        "backward: the last column of dgamma is left out",
        "column_sums.cuh",
        "exists = column < extent.cols;",
        "exists = column < extent.cols - 1;",
        "layer_norm_bwd float16 (300, 769) backward",
    ),
    (
        "backward: the sums of the last block are not read",
        "column_sums.cuh",
        "b < extent.blocks;",
        "b < extent.blocks - 1;",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: dbeta is read where dgamma is",
        "column_sums.cuh",
        "partial + blockIdx.y * extent.blocks * extent.pitch + column",
        "partial + column",
        "layer_norm_bwd float32 (70, 40) backward",
    ),
    (
        "backward: dresidual is added after dx is rounded",
        "gradient.cuh",
        "return fma_rn(inner, rstd, beside);",
        "Values<S> dx = {mul(inner, rstd)}; unpack(round_to<typename S::T>(dx), dx); "
        "return add(dx[0], beside);",
        "layer_norm_bwd float16 (300, 769) backward",
    ),
    (
        "backward: gamma of the tail is that of the column before",
        "gradient.cuh",
        "weight_.column(column, weighted);",
        "weight_.column(column - 1, weighted);",
        "layer_norm_bwd float16 (300, 769) backward",
    ),
    (
        "gamma_offset is forgotten",
        "epilogue.cuh",
        "factor[i] = add(factor[i], offset_);",
        "",
        "rms_norm_bwd bfloat16 (5, 96) offset",
    ),
    (
        "backward: a block begins with the group after its first",
        "gradient.cuh",
        "group = own.block; group",
        "group = own.block + 1; group",
        "rms_norm_bwd float32 (300, 1024) backward",
    ),
    (
        "backward: x that was left over is read a turn late",
        "pairs.cuh",
        "unpack(x_.again(turn), x);",
        "unpack(x_.again(turn - 1), x);",
        "layer_norm_bwd float32 (2, 40000) backward",
    ),
    (
        "the first block of a cluster stands for all",
        "tree.cuh",
        "in_block(&of_block[kind], rank)",
        "in_block(&of_block[kind], 0)",
        "a cluster",
    ),
    (
        "of two sums a lane gives the one that it keeps",
        "reduce.cuh",
        "upper ? value[i] : value[i + HALF];",
        "upper ? value[i + HALF] : value[i];",
        "layer_norm float16 (3, 769) row-strided",
    ),
    (
        "odd columns of a leaf are in the next one too",
        "tree.cuh",
        "even = odd = 0;",
        "even = 0;",
        "rms_norm float32 (3, 4096) as of many rows",
    ),
    (
        "missing barrier: sums are written again while other warps read them",
        "statistic.cuh",
        "if constexpr (S::WARPS > 1) __syncthreads();",
        "",
        "rms_norm of 1e30 in warps",
    ),
    (
        "codes off 16 bytes: late lanes store what they have just made",
        "codes.cuh",
        "is_late_ ? chunk_before_.word[w] : chunk.word[w]",
        "chunk.word[w]",
        "codes of 769 columns",
    ),
    (
        "codes off 16 bytes: the last sector's come from one packet",
        "codes.cuh",
        "(end_ - past_) / BYTES, rest)",
        "(end_ - past_) / BYTES - 1, 0)",
        "codes of 769 columns",
    ),
    (
        "codes off 16 bytes: a turn without a packet takes the place of the last",
        "codes.cuh",
        "if (place_.has_packet(turn)) packet_before_",
        "packet_before_",
        "codes of 3080 columns",
    ),
    (
        "codes off 16 bytes: a share within a sector is stored past its end",
        "codes.cuh",
        "lane_ >= past_ && lane_ < end_",
        "lane_ >= past_",
        "codes of 3080 columns",
    ),
    (
        "shifted rows: the ends of h are never stored",
        "source.cuh",
        "void finish() { h_.finish(); }",
        "void finish() {}",
        "add_layer_norm float16 (3, 769) base + 1 element",
    ),
    (
        "gamma of the tail is that of the first column",
        "epilogue.cuh",
        "multiply_rounded(round_to<E>(value), gamma_.column(column))",
        "multiply_rounded(round_to<E>(value), gamma_.column(0))",
        "rms_norm float16 (3, 769) row-strided",
    ),
    (
        "beta of every packet is that of the first",
        "epilogue.cuh",
        "gamma_.packet(turn), beta_.packet(turn)",
        "gamma_.packet(turn), beta_.packet(0)",
        "layer_norm float32 (3, 769) row-strided",
    ),
    (
        "the tail is left out of the sums",
        "row.cuh",
        "term(tail_[turn], tree.columns(0));",
        "term(Acc(0), tree.columns(0));",
        "rms_norm_fwd float32 (37, 7) contiguous",
    ),
    (
        "rescued rows: what is left of the mean has the other sign",
        "statistic.cuh",
        "sub(scaled.center, mean), scaled.correction",
        "add(scaled.center, mean), scaled.correction",
        "layer_norm of 1e-20",
    ),
    (
        "backward: x is taken about a mean of the other sign",
        "statistic.cuh",
        "mul(sub(value[i], mean), rstd)",
        "mul(add(value[i], mean), rstd)",
        "layer_norm_bwd float32 (70, 40) backward",
    ),
    (
        "a gate: far above 0 its exponential leaves the range",
        "gate.cuh",
        "const bool is_far = g < -64;",
        "const bool is_far = g > -64;",
        "rms_norm_gated_fwd float32 (3, 7) contiguous",
    ),
    (
        "a gate: the exponential has the other sign",
        "gate.cuh",
        "exp_of(is_far ? g : -g)",
        "exp_of(g)",
        "rms_norm_gated_fwd float16 (3, 1025) contiguous",
    ),
    (
        "a gate that comes first: a row that is read again is not gated",
        "gate.cuh",
        "return product(x_.again(turn), gate_.again(turn));",
        "return product(x_.again(turn), x_.again(turn));",
        "rms_norm_gated of 700,000 columns",
    ),
    (
        "a number for a row: the tail takes it from its column",
        "operand.cuh",
        "A::ACCESS == SCALAR ? 0 : column",
        "column",
        "add_rms_norm float16 (5, 7) numbers",
    ),
    (
        "an operand: past registers the first packet is read each time",
        "operand.cuh",
        "operand_.read(turn, turn + 1, packet);",
        "operand_.read(0, 1, packet);",
        "add_rms_norm float16 (3, 20000) rows",
    ),
    (
        "an operand: scale and its offset are not rounded",
        "epilogue.cuh",
        "unpack(round_to<Sum>(factor), factor);",
        "",
        "add_rms_norm float16 (3, 769) columns",
    ),
    (
        "a gate of x is not rounded before the residual is added",
        "source.cuh",
        "unpack(round_to<Product>(x), x);",
        "",
        "add_rms_norm float16 (3, 769) columns",
    ),
    (
        "post-norm: the second norm takes the first one's eps and sum",
        "post_norm.cuh",
        "Statistic::of(row, eps_of_h)",
        "Statistic::of(x, eps_of_h)",
        "rms_norm_add_rms_norm_fwd float32 (3, 128) contiguous",
    ),
    (
        "post-norm: the second sum uses memory that the first one's is read from",
        "post_norm.cuh",
        "const Row<Sum, Statistic::PASSES, Statistic::PASSES> row",
        "const Row<Sum, Statistic::PASSES> row",
        "rms_norm_add_rms_norm_fwd float32 (3, 20000) contiguous",
    ),
    (
        "post-norm: a column of the tail is not normalised",
        "post_norm.cuh",
        "if (own != column) return;",
        "return;",
        "rms_norm_add_rms_norm_fwd float32 (3, 7) contiguous",
    ),
    (
        "gate: the slope of silu is that of sigmoid",
        "gate_gradient.cuh",
        "mul(s, fma_rn(g, sub(Acc(1), s), Acc(1)))",
        "mul(s, sub(Acc(1), s))",
        "rms_norm_gated_bwd float32 (3, 128) contiguous",
    ),
    (
        "gate: its gradient forgets gamma",
        "gate_gradient.cuh",
        "weight.packet(turn, t);",
        "",
        "rms_norm_gated_bwd float32 (3, 4096) contiguous",
    ),
    (
        "gate: a packet that registers have no room for is multiplied by the one before",
        "gate_gradient.cuh",
        "multiply(gate_.again(turn), x, dy, beside);",
        "multiply(gate_.again(turn - 1), x, dy, beside);",
        "rms_norm_gated_bwd float32 (3, 20000) contiguous",
    ),
    (
        "segments: the last row of each is left out",
        "gradient.cuh",
        "first, first + segments.rows}",
        "first, first + segments.rows - 1}",
        "layer_norm_bwd float32 (3, 70, 40) modulated",
    ),
    (
        "segments: all have the first one's scale",
        "gradient.cuh",
        "bytes_after(operand, segment_of_block(segments) * pitch)",
        "operand",
        "layer_norm_bwd float32 (3, 70, 40) modulated",
    ),
    (
        "segments: the gradient of scale forgets beta",
        "segment_sums.cuh",
        "made = fma_rn(element<Acc>(with.beta + column), sum[1], made);",
        "{}",
        "layer_norm_bwd float32 (3, 70, 40) modulated",
    ),
    (
        "given sums: each row has the moments of half a row further",
        "given_sums.cuh",
        "sums.moments + 2 * place.row",
        "sums.moments + place.row",
        "layer_norm float32 (5, 96) given sums",
    ),
    (
        "given sums: the squared differences are a mean",
        "given_sums.cuh",
        "mul(variance, typename S::Acc(S::COLS))",
        "variance",
        "layer_norm float32 (5, 96) given sums",
    ),
    (
        "a pair is turned the other way",
        "rotation.cuh",
        "!= BACK ? -s[at] : s[at]",
        "!= BACK ? s[at] : -s[at]",
        "rms_norm_rope float32 (3, 4, 128) contiguous",
    ),
    (
        "a pair of 16 bits is turned the other way",
        "rotation.cuh",
        "is_first ? 0x80008000u : 0u",
        "is_first ? 0u : 0x80008000u",
        "qk_norm_rope bfloat16 (3, 4, 128) row-strided",
    ),
    (
        "columns past the rotated ones are rotated too",
        "rotation.cuh",
        "if (H::R < H::D && column >= H::R) return;",
        "",
        "rms_norm_rope float16 (3, 4, 96) half of the columns",
    ),
    (
        "missing order in a warp: partners are read before they are there",
        "heads.cuh",
        "      __syncwarp();\n",
        "",
        "heads out of step",
    ),
    (
        "the statistic of heads is not saved",
        "rope.cuh",
        "if (here.is_first_lane()) statistic.save(statistics, here.row);",
        "",
        "rms_norm_rope_fwd float32 (3, 4, 128) contiguous",
    ),
    (
        "gradients of heads are turned on, not back",
        "rotation.cuh",
        "!= BACK",
        "!= false",
        "rms_norm_rope_bwd float32 (3, 4, 96) contiguous",
    ),
    (
        "gradients of heads: each packet of dy is the first",
        "rope_gradient.cuh",
        "packet<Acc>(kept, turn)",
        "packet<Acc>(kept, 0)",
        "rms_norm_rope_bwd float32 (3, 4, 96) contiguous",
    ),
    (
        "every token is at the first position",
        "rotation.cuh",
        "table.first + position_ * table.stride.level[2]",
        "table.first",
        "rms_norm_rope float64 (3, 4, 128) in place",
    ),
]


@pytest.fixture(autouse=True)
def fresh_kernels():
    remembered.clear()
    yield
    remembered.clear()


@pytest.mark.parametrize(
    ("file", "before", "after", "probe"),
    [pytest.param(*rest, id=name) for name, *rest in MUTATIONS],
)
def test_a_mistake_in_a_kernel_is_noticed(tmp_path, monkeypatch, file, before, after, probe):
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    text = (copy / file).read_text()
    assert before in text, "the kernel has changed: say the mistake anew"
    (copy / file).write_text(text.replace(before, after))
    monkeypatch.setattr(kernels, "folder", lambda: copy)
    faults = PROBES[probe].run().faults
    assert faults
    # A mutant that does not compile proves nothing about the tests.
    assert "CompileException" not in faults[0], faults[0]


@pytest.mark.parametrize("probe", sorted({probe for *_, probe in MUTATIONS}))
def test_the_kernels_as_they_are_pass_the_same_probes(probe):
    assert PROBES[probe].run().faults == []


def test_a_mistake_that_changes_nothing_is_not_noticed(tmp_path, monkeypatch):
    # Otherwise copying the kernels and pointing the library at the copy might be the fault.
    copy = shutil.copytree(kernels.folder(), tmp_path / "kernels")
    monkeypatch.setattr(kernels, "folder", lambda: copy)
    assert PROBES["rms_norm float32 (3, 769) row-strided"].run().faults == []
