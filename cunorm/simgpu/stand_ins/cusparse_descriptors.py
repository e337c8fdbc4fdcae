"""cuSPARSE's handles, and what its descriptors describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from . import blas
from .host import Call, Host, StatusError, not_emulated, refuse_capture
from .operand import matrix, vector
from .sparse import Sparse

LIBRARY = "cuSPARSE"
VERSION = 12510
CONSTANTS = {
    "POINTER_MODE_HOST": 0,
    "POINTER_MODE_DEVICE": 1,
    "ACTION_SYMBOLIC": 0,
    "ACTION_NUMERIC": 1,
    "INDEX_BASE_ZERO": 0,
    "INDEX_BASE_ONE": 1,
    "MATRIX_TYPE_GENERAL": 0,
    "FILL_MODE_LOWER": 0,
    "FILL_MODE_UPPER": 1,
    "DIAG_TYPE_NON_UNIT": 0,
    "DIAG_TYPE_UNIT": 1,
    "OPERATION_NON_TRANSPOSE": 0,
    "OPERATION_TRANSPOSE": 1,
    "OPERATION_CONJUGATE_TRANSPOSE": 2,
    "ORDER_COL": 1,
    "ORDER_ROW": 2,
    "MV_ALG_DEFAULT": 0,
    "MM_ALG_DEFAULT": 0,
    "INDEX_16U": 1,
    "INDEX_32I": 2,
    "INDEX_64I": 3,
    "CSR2CSC_ALG1": 1,
    "DENSETOSPARSE_ALG_DEFAULT": 0,
    "SPARSETODENSE_ALG_DEFAULT": 0,
    "SPGEMM_DEFAULT": 0,
    "SPGEMM_ALG2": 2,
    "SPMAT_FILL_MODE": 0,
    "SPMAT_DIAG_TYPE": 1,
    "SPSM_ALG_DEFAULT": 0,
    "SOLVE_POLICY_NO_LEVEL": 0,
    "SOLVE_POLICY_USE_LEVEL": 1,
}
_INDICES: dict[int, np.dtype[Any]] = {2: np.dtype(np.int32), 3: np.dtype(np.int64)}
_NOT_INITIALISED, ZERO_PIVOT = 1, 9
_STATUS = {
    _NOT_INITIALISED: "CUSPARSE_STATUS_NOT_INITIALIZED",
    ZERO_PIVOT: "CUSPARSE_STATUS_ZERO_PIVOT",
}


class CuSparseError(StatusError):
    """What CuPy raises for a status of cuSPARSE."""

    names = _STATUS


def values_of(number: int) -> np.dtype[Any]:
    """Return the type behind a cudaDataType."""
    known = {code: dtype for code, dtype in blas.DATA_TYPES.items() if dtype in blas.LETTERS}
    if number not in known:
        raise not_emulated(LIBRARY, "sparse matrices", f"a matrix of cudaDataType {number}")
    return known[number]


def indices_of(number: int) -> np.dtype[Any]:
    """Return the type behind a cusparseIndexType_t."""
    if number not in _INDICES:
        raise not_emulated(LIBRARY, "sparse matrices", f"indices of type {number}")
    return _INDICES[number]


class Context:
    """Handles and descriptors.

    Parameters
    ----------
    host : Host
        Where functions run.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._streams: dict[int, int] = {}
        self._modes: dict[int, int] = {}
        self._described: dict[int, Any] = {}

    def functions(self) -> dict[str, Callable[..., object]]:
        """Return them under CuPy's names."""
        names = ["create", "destroy", "getVersion", "get_build_version", "is_cuda_python_build"]
        names += ["setPointerMode", "setStream", "getStream", "spMatGetSize", "spMatSetAttribute"]
        names += ["createCsr", "createCsc", "createCoo", "csrSetPointers"]
        names += ["createSpVec", "createDnVec", "createDnMat"]
        found = {name: getattr(self, name) for name in names}
        for kind in ("SpMat", "SpVec", "DnVec", "DnMat", "MatDescr"):
            found[f"destroy{kind}"] = self.forget
        found["createMatDescr"] = lambda: self.describe(None)
        for setting in ("Type", "IndexBase", "FillMode", "DiagType"):
            found[f"setMat{setting}"] = self._set
        # Attributes are only asked for where a program looks at a descriptor.
        for getter in ("csrGet", "cooGet", "spVecGet", "dnVecGet", "dnMatGet"):
            found[getter] = self.get
        return found

    def describe(self, described: Any) -> int:
        """Return a descriptor."""
        descriptor = self.host.new_handle()
        self._described[descriptor] = described
        return descriptor

    def get(self, descriptor: int) -> Any:
        """Return what a descriptor describes."""
        if descriptor not in self._described:
            raise CuSparseError(_NOT_INITIALISED)
        return self._described[descriptor]

    def forget(self, descriptor: int) -> None:
        """Forget a descriptor."""
        self.get(descriptor)
        del self._described[descriptor]

    def _set(self, descriptor: int, value: int) -> None:
        """Keep what is set by default: general matrices that begin at 0."""
        self.get(descriptor)
        if value != 0:
            raise not_emulated(LIBRARY, "sparse matrices", "a matrix with attributes")

    def create(self) -> int:
        """Return a new handle."""
        handle = self.host.new_handle()
        self._streams[handle], self._modes[handle] = 0, 0
        return handle

    def destroy(self, handle: int) -> None:
        """Forget a handle."""
        self.getStream(handle)
        del self._streams[handle], self._modes[handle]

    def getVersion(self, handle: int) -> int:
        """Return the version that the stand-in imitates."""
        return VERSION

    def get_build_version(self) -> int:
        """Return the same."""
        return VERSION

    def is_cuda_python_build(self) -> bool:
        """Return that CuPy was built with cuSPARSE's headers."""
        return False

    def setPointerMode(self, handle: int, mode: int) -> None:
        """Say where functions find their numbers: the host's memory alone."""
        if mode != CONSTANTS["POINTER_MODE_HOST"]:
            raise not_emulated(LIBRARY, "sparse matrices", "the pointer mode of the device")

    def setStream(self, handle: int, stream: int) -> None:
        """Keep a stream; CuPy sets the current one before each call."""
        refuse_capture(LIBRARY, stream)
        self.getStream(handle)
        self._streams[handle] = stream

    def getStream(self, handle: int) -> int:
        """Return the stream."""
        if handle not in self._streams:
            raise CuSparseError(_NOT_INITIALISED)
        return self._streams[handle]

    def call(self, handle: int, function: str, operation: Callable[[Call], None]) -> None:
        """Run a function's operation on the current stream."""
        self.setStream(handle, self.host.stream())
        self.host.call(LIBRARY, function, operation)

    def scalar(self, name: str, address: int, dtype: np.dtype[Any]) -> Any:
        """Return a number."""
        return self.host.from_host(address, dtype, name)

    def createCsr(
        self, rows: int, cols: int, nnz: int, offsets: int, indices: int, values: int,
        offsets_type: int, indices_type: int, base: int, values_type: int,
    ) -> int:  # fmt: skip
        """Describe a matrix in CSR."""
        if offsets_type != indices_type or base != 0:
            raise not_emulated(LIBRARY, "sparse matrices", "indices of two types or from 1")
        index, dtype = indices_of(indices_type), values_of(values_type)
        made = Sparse("csr", rows, cols, nnz, offsets, indices, values, index, dtype)
        return self.describe(made)

    def createCsc(self, *arguments: int) -> int:
        """Describe a matrix in CSC."""
        descriptor = self.createCsr(*arguments)
        self.get(descriptor).format = "csc"
        return descriptor

    def createCoo(
        self, rows: int, cols: int, nnz: int, row: int, col: int, values: int, index: int,
        base: int, values_type: int,
    ) -> int:  # fmt: skip
        """Describe a matrix in COO."""
        arrays = (row, col, values)
        descriptor = self.createCsr(rows, cols, nnz, *arrays, index, index, base, values_type)
        self.get(descriptor).format = "coo"
        return descriptor

    def csrSetPointers(self, descriptor: int, offsets: int, indices: int, values: int) -> None:
        """Say where a matrix lies."""
        made = self.get(descriptor)
        made.major, made.minor, made.values = offsets, indices, values

    def spMatGetSize(self, descriptor: int, rows: int, cols: int, nnz: int) -> None:
        """Write the extents and the number of elements to the host."""
        made = self.get(descriptor)
        for address, value in ((rows, made.rows), (cols, made.cols), (nnz, made.nnz)):
            self.host.to_host(address, np.asarray(value, np.int64), "the size")

    def spMatSetAttribute(self, descriptor: int, attribute: int, value: int) -> None:
        """Set the triangle, or whether its diagonal counts as ones."""
        self.get(descriptor).attributes[attribute] = value

    def createSpVec(
        self, size: int, nnz: int, indices: int, values: int, index: int, base: int, dtype: int
    ) -> int:
        """Describe a sparse vector."""
        where = vector("indices", indices, nnz, 1, indices_of(index))
        return self.describe((where, vector("values", values, nnz, 1, values_of(dtype))))

    def createDnVec(self, size: int, values: int, dtype: int) -> int:
        """Describe a vector."""
        return self.describe(vector("vector", values, size, 1, values_of(dtype)))

    def createDnMat(
        self, rows: int, cols: int, ld: int, values: int, dtype: int, order: int
    ) -> int:
        """Describe a matrix."""
        if order != CONSTANTS["ORDER_COL"]:
            raise not_emulated(LIBRARY, "sparse matrices", "a dense matrix in the order of rows")
        return self.describe(matrix("matrix", values, rows, cols, ld, values_of(dtype)))
