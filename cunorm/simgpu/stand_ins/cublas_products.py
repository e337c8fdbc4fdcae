"""cuBLAS's products of matrices: float16 and bfloat16 are multiplied and summed in float32."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import blas
from .blas import named, typed
from .cublas_context import (
    CONSTANTS,
    LIBRARY,
    NOT_SUPPORTED,
    Context,
    CUBLASError,
    Scalar,
    require,
    stored,
)
from .host import Call, not_emulated
from .operand import Operand, matrix

DType = np.dtype[Any]

# What is computed in: cublasComputeType_t, or a cudaDataType as before CUDA 11. The "fast" ones
# allow less than float32, and float32 is allowed.
_FLOAT = {CONSTANTS[f"CUBLAS_COMPUTE_32F{kind}"] for kind in ("", "_PEDANTIC")}
_FLOAT |= {CONSTANTS[f"CUBLAS_COMPUTE_32F_FAST_{kind}"] for kind in ("16F", "16BF", "TF32")}
_DOUBLE = {CONSTANTS[f"CUBLAS_COMPUTE_64F{kind}"] for kind in ("", "_PEDANTIC")}
# CUDA_R_8I, twice, and CUDA_R_32I: what integers are multiplied and added as.
_BYTES = (3, 3, 10)
_INTEGER = {10, *(CONSTANTS[f"CUBLAS_COMPUTE_32I{kind}"] for kind in ("", "_PEDANTIC"))}
_FLOAT |= {0, 4}  # CUDA_R_32F, CUDA_C_32F
_DOUBLE |= {1, 5}  # CUDA_R_64F, CUDA_C_64F

# Of A and B to C: what is computed in.
_ALLOWED = {
    ("float16", "float16"): "f",
    ("float16", "float32"): "f",
    ("bfloat16", "bfloat16"): "f",
    ("bfloat16", "float32"): "f",
    ("float32", "float32"): "f",
    ("complex64", "complex64"): "F",
    ("float64", "float64"): "d",
    ("complex128", "complex128"): "D",
}


class Products:
    """gemm in all its forms.

    Parameters
    ----------
    context : Context
        Its handles.
    """

    def __init__(self, context: Context) -> None:
        self._context = context

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        return {
            **typed("cublas", "{}gemm", self._gemm),
            **typed("cublas", "{}gemmBatched", self._gemm_batched),
            **typed("cublas", "{}gemmStridedBatched", self._gemm_strided),
            "sgemmEx": named("sgemmEx", self._sgemm_ex),
            "gemmEx": named("gemmEx", self._gemm_ex),
            "gemmStridedBatchedEx": named("gemmStridedBatchedEx", self._gemm_strided_ex),
        }

    def _run(
        self, handle: int, function: str, ops: tuple[int, int], operands: tuple[Operand, ...],
        scales: tuple[int, int], compute: DType,
    ) -> None:  # fmt: skip
        alpha, beta = self._scalars(handle, scales, compute)

        def run(call: Call) -> None:
            _multiply(call, ops, operands, alpha, beta, compute)

        self._context.call(handle, function, run)

    def _scalars(
        self, handle: int, scales: tuple[int, int], compute: DType
    ) -> tuple[Scalar, Scalar]:
        alpha, beta = scales
        scalar = self._context.scalar
        return scalar(handle, "alpha", alpha, compute), scalar(handle, "beta", beta, compute)

    def _gemm(
        self, function: str, dtype: DType, handle: int, transa: int, transb: int,
        m: int, n: int, k: int, alpha: int, A: int, lda: int, B: int, ldb: int,
        beta: int, C: int, ldc: int,
    ) -> None:  # fmt: skip
        ops = (transa, transb)
        operands = _operands(ops, (m, n, k), (A, lda), (B, ldb), (C, ldc), (dtype,) * 3)
        self._run(handle, function, ops, operands, (alpha, beta), dtype)

    def _gemm_batched(
        self, function: str, dtype: DType, handle: int, transa: int, transb: int,
        m: int, n: int, k: int, alpha: int, Aarray: int, lda: int, Barray: int, ldb: int,
        beta: int, Carray: int, ldc: int, batchCount: int,
    ) -> None:  # fmt: skip
        ops = (transa, transb)
        like = _operands(ops, (m, n, k), (0, lda), (0, ldb), (0, ldc), (dtype,) * 3)
        alpha_of, beta_of = self._scalars(handle, (alpha, beta), dtype)

        def run(call: Call) -> None:
            pointers = zip("ABC", (Aarray, Barray, Carray), like, strict=True)
            stacks = [
                call.batch(name, address, batchCount, each) for name, address, each in pointers
            ]
            for operands in zip(*stacks, strict=True):
                _multiply(call, ops, operands, alpha_of, beta_of, dtype)

        self._context.call(handle, function, run)

    def _gemm_strided(
        self, function: str, dtype: DType, handle: int, transa: int, transb: int,
        m: int, n: int, k: int, alpha: int, A: int, lda: int, strideA: int,
        B: int, ldb: int, strideB: int, beta: int, C: int, ldc: int, strideC: int,
        batchCount: int,
    ) -> None:  # fmt: skip
        ops = (transa, transb)
        operands = _operands(ops, (m, n, k), (A, lda), (B, ldb), (C, ldc), (dtype,) * 3)
        stacked = _stacked(operands, (strideA, strideB, strideC), batchCount)
        self._run(handle, function, ops, stacked, (alpha, beta), dtype)

    def _sgemm_ex(
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
        A: int, Atype: int, lda: int, B: int, Btype: int, ldb: int, beta: int,
        C: int, Ctype: int, ldc: int,
    ) -> None:  # fmt: skip
        ops = (transa, transb)
        types, compute = _types("cublasSgemmEx", (Atype, Btype, Ctype), 0)
        operands = _operands(ops, (m, n, k), (A, lda), (B, ldb), (C, ldc), types)
        self._run(handle, "cublasSgemmEx", ops, operands, (alpha, beta), compute)

    def _gemm_ex(
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
        A: int, Atype: int, lda: int, B: int, Btype: int, ldb: int, beta: int,
        C: int, Ctype: int, ldc: int, computeType: int, algo: int,
    ) -> None:  # fmt: skip
        ops = (transa, transb)
        types, compute = _types("cublasGemmEx", (Atype, Btype, Ctype), computeType)
        if compute.kind == "i" and (A | B | lda | ldb) % 4:
            raise CUBLASError(NOT_SUPPORTED)  # bytes are read by fours
        operands = _operands(ops, (m, n, k), (A, lda), (B, ldb), (C, ldc), types)
        self._run(handle, "cublasGemmEx", ops, operands, (alpha, beta), compute)

    def _gemm_strided_ex(
        self, handle: int, transa: int, transb: int, m: int, n: int, k: int, alpha: int,
        A: int, Atype: int, lda: int, strideA: int,
        B: int, Btype: int, ldb: int, strideB: int, beta: int,
        C: int, Ctype: int, ldc: int, strideC: int,
        batchCount: int, computeType: int, algo: int,
    ) -> None:  # fmt: skip
        ops, function = (transa, transb), "cublasGemmStridedBatchedEx"
        types, compute = _types(function, (Atype, Btype, Ctype), computeType)
        operands = _operands(ops, (m, n, k), (A, lda), (B, ldb), (C, ldc), types)
        stacked = _stacked(operands, (strideA, strideB, strideC), batchCount)
        self._run(handle, function, ops, stacked, (alpha, beta), compute)


def _operands(
    ops: tuple[int, int],
    extents: tuple[int, int, int],
    a: tuple[int, int],
    b: tuple[int, int],
    c: tuple[int, int],
    types: tuple[DType, ...],
) -> tuple[Operand, ...]:
    """Return A, B and C, each of which is given by its address and leading dimension."""
    m, n, k = extents
    require(m >= 0, n >= 0, k >= 0, c[1] >= max(1, m))
    require(*(op in (blas.OP_N, blas.OP_T, blas.OP_C) for op in ops))
    return (
        stored("A", a[0], ops[0], m, k, a[1], types[0]),
        stored("B", b[0], ops[1], k, n, b[1], types[1]),
        matrix("C", c[0], m, n, c[1], types[2]),
    )


def _stacked(
    operands: tuple[Operand, ...], strides: tuple[int, ...], count: int
) -> tuple[Operand, ...]:
    """Return the operands as stacks of matrices, `strides` elements apart."""
    require(count >= 0)
    return tuple(
        Operand(each.name, each.address, (count, *each.shape), (stride, *each.strides), each.dtype)
        for each, stride in zip(operands, strides, strict=True)
    )


def _types(
    function: str, numbers: tuple[int, int, int], compute: int
) -> tuple[tuple[DType, ...], DType]:
    """Return the types of A, B and C, and that of the sums and of alpha and beta."""
    if compute in _INTEGER and numbers == _BYTES:
        return (np.dtype(np.int8), np.dtype(np.int8), np.dtype(np.int32)), np.dtype(np.int32)
    if not {compute, *numbers} <= {*_FLOAT, *_DOUBLE, *blas.DATA_TYPES}:
        # Among them float16 as the type of sums.
        asked = f"{function} of cudaDataType {numbers}, computed in {compute}"
        raise not_emulated(LIBRARY, "products of matrices", asked)
    types = tuple(blas.DATA_TYPES[number] for number in numbers)
    code = _ALLOWED.get((types[0].name, types[2].name))
    if types[0] != types[1] or code is None or compute not in (_FLOAT, _DOUBLE)[code in "dD"]:
        raise CUBLASError(NOT_SUPPORTED)
    return types, np.dtype(code)


def _multiply(
    call: Call,
    ops: tuple[int, int],
    operands: tuple[Operand, ...],
    alpha: Scalar,
    beta: Scalar,
    compute: DType,
) -> None:
    """Write ``alpha op(A) op(B) + beta C``, for each in a stack.

    As in BLAS, what is multiplied by an alpha or a beta of 0 is not read.
    """
    a, b, c = operands
    found, factor, kept = np.zeros(c.shape, compute), alpha(call), beta(call)
    if factor != 0:
        left = blas.applied(ops[0], call.read(a).astype(compute, copy=False))
        right = blas.applied(ops[1], call.read(b).astype(compute, copy=False))
        found = factor * (left @ right)
    if kept != 0:
        found += kept * call.read(c).astype(compute, copy=False)
    call.write(c, found)
