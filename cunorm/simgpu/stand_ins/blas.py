"""What cuBLAS and cuSOLVER have in common: enumerations, types, triangles, and a handle's state."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..lanes import Array

OP_N, OP_T, OP_C = range(3)
LOWER, UPPER = range(2)
LEFT, RIGHT = range(2)
NON_UNIT, UNIT = range(2)
HOST, DEVICE = range(2)

# The four types that BLAS spells in its functions' names.
TYPES: dict[str, np.dtype[Any]] = {
    "s": np.dtype(np.float32),
    "d": np.dtype(np.float64),
    "c": np.dtype(np.complex64),
    "z": np.dtype(np.complex128),
}
LETTERS = {dtype: letter for letter, dtype in TYPES.items()}
# cudaDataType
DATA_TYPES: dict[int, np.dtype[Any]] = {
    2: np.dtype(np.float16),
    0: TYPES["s"],
    1: TYPES["d"],
    4: TYPES["c"],
    5: TYPES["z"],
}
try:
    import ml_dtypes
except ModuleNotFoundError:
    pass  # then CuPy has no arrays of bfloat16 either
else:
    DATA_TYPES[14] = np.dtype(ml_dtypes.bfloat16)


@dataclass
class Handle:
    """What a library remembers for a program."""

    pointer_mode: int = HOST
    math_mode: int = 0
    stream: int = 0


def real(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of a number's real part."""
    return np.zeros(0, dtype).real.dtype


def applied(op: int, a: Array) -> Array:
    """Return a matrix, its transpose, or its conjugate transpose; of each in a stack."""
    if op == OP_N:
        return a
    turned = a.swapaxes(-1, -2)
    return turned.conj() if op == OP_C else turned


def triangle(a: Array, uplo: int, diag: int = NON_UNIT) -> Array:
    """Return a triangle of a matrix, zeros elsewhere; with ones on its diagonal if UNIT."""
    kept = np.tril(a) if uplo == LOWER else np.triu(a)
    if diag == UNIT:
        at = np.arange(a.shape[-1])
        kept[..., at, at] = 1
    return kept


def solve_triangular(a: Array, uplo: int, op: int, diag: int, b: Array) -> Array:
    """Return x of ``op(a) x = b`` by substitution, where a is triangular.

    A zero on the diagonal divides by zero, as it does in BLAS.
    """
    a = applied(op, triangle(a, uplo, diag))
    n = a.shape[-1]
    forward = (uplo == LOWER) == (op == OP_N)
    x = np.array(b, copy=True)
    for row in range(n) if forward else reversed(range(n)):
        known = slice(0, row) if forward else slice(row + 1, n)
        x[..., row, :] -= (a[..., row : row + 1, known] @ x[..., known, :])[..., 0, :]
        if diag == NON_UNIT:
            x[..., row, :] /= a[..., row, row, None]
    return x


def factor_lu(a: Array, *, pivoting: bool = True) -> tuple[Array, Array, int]:
    """Return ``P a = L U`` as LAPACK does: both factors in one, the rows swapped from 1, the info.

    The info is 0, or which diagonal element of U, from 1, is the first that is zero.
    """
    lu = np.array(a, copy=True)
    steps = min(lu.shape)
    pivots = np.arange(1, steps + 1, dtype=np.int32)
    info = 0
    for at in range(steps):
        if pivoting:
            # LAPACK compares |Re| + |Im| of complex numbers.
            column = np.abs(lu[at:, at].real) + np.abs(lu[at:, at].imag)
            other = at + int(column.argmax())
            pivots[at] = other + 1
            lu[[at, other]] = lu[[other, at]]
        if lu[at, at] == 0:
            info = info or at + 1
            continue
        lu[at + 1 :, at] /= lu[at, at]
        lu[at + 1 :, at + 1 :] -= np.outer(lu[at + 1 :, at], lu[at, at + 1 :])
    return lu, pivots, info


def permuted(b: Array, pivots: Array, *, backwards: bool = False) -> Array:
    """Return the rows of a matrix, swapped as a factorisation did, or swapped back."""
    rows = np.arange(b.shape[0])
    order = range(len(pivots))
    for at in reversed(order) if backwards else order:
        other = int(pivots[at]) - 1
        rows[[at, other]] = rows[[other, at]]
    return b[rows]


def solve_lu(lu: Array, pivots: Array, op: int, b: Array) -> Array:
    """Return x of ``op(a) x = b`` from the factors of a."""
    if op == OP_N:
        y = solve_triangular(lu, LOWER, OP_N, UNIT, permuted(b, pivots))
        return solve_triangular(lu, UPPER, OP_N, NON_UNIT, y)
    y = solve_triangular(lu, UPPER, op, NON_UNIT, b)
    return permuted(solve_triangular(lu, LOWER, op, UNIT, y), pivots, backwards=True)


def typed(
    library: str, pattern: str, function: Callable[..., Any], letters: str = "sdcz"
) -> dict[str, Callable[..., Any]]:
    """Return a function for each type, whose letter replaces "{}" in CuPy's name of it.

    It is given the library's own name of itself (sgemm is cublasSgemm) and the type first.
    """
    return {
        name: named(name, function, library + name[0].upper() + name[1:], TYPES[letter])
        for letter in letters
        for name in [pattern.format(letter)]
    }


def named(name: str, function: Callable[..., Any], *first: Any) -> Callable[..., Any]:
    """Return a function with its first arguments given, that has this name."""

    def call(*arguments: Any, **keywords: Any) -> Any:
        return function(*first, *arguments, **keywords)

    call.__name__ = name
    return call


def factor_cholesky(a: Array, uplo: int) -> tuple[Array, int]:
    """Return the factor in the triangle that is given, and LAPACK's info.

    The info is 0, or the order of the first leading minor that is not positive.
    """
    whole = np.tril(a) if uplo == LOWER else np.triu(a).conj().T
    for n in range(a.shape[0], 0, -1):
        try:
            factor = np.array(whole, copy=True)
            factor[:n, :n] = np.linalg.cholesky(whole[:n, :n])
        except np.linalg.LinAlgError:
            continue
        break
    else:
        n, factor = 0, whole
    info = 0 if n == a.shape[0] else n + 1
    return (factor if uplo == LOWER else factor.conj().T), info


def reflected(reflectors: Array, tau: Array, c: Array, *, adjoint: bool = False) -> Array:
    """Return Q times a matrix, or its adjoint times it.

    Q is ``H[0] H[1] ...``, each ``1 - tau v v^H``, where v is a column below the diagonal, with a
    one on it and zeros above, as LAPACK's geqrf leaves them.
    """
    product = np.array(c, copy=True)
    order = range(len(tau))
    for at in order if adjoint else reversed(order):
        v = np.array(reflectors[:, at])
        v[:at], v[at] = 0, 1
        factor = tau[at].conj() if adjoint else tau[at]
        product -= factor * np.outer(v, v.conj() @ product)
    return product


def packed_eigenvectors(values: Array, vectors: Array) -> Array:
    """Return eigenvectors of a real matrix as geev does.

    Two columns that belong to conjugate eigenvalues are the real and the imaginary part of the
    first one's vector.
    """
    packed = np.array(vectors.real)
    for at in np.flatnonzero(values.imag > 0):
        packed[:, at + 1] = vectors[:, at].imag
    return packed
