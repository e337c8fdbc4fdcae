"""Arrays as type checkers and editors see them: by what they can do.

CuPy has no types, so that its arrays are ``Any``, and PyTorch and dask need not be there. Results
are what x is: that is a type variable, bound to the protocols by which an op takes an array.
"""

from __future__ import annotations

from typing import Any, Literal, Protocol, TypeAlias, TypeVar

Activation: TypeAlias = Literal["silu", "sigmoid"] | None
Cast: TypeAlias = Literal["before", "after"]
RopeCast: TypeAlias = Literal["before", "between", "after"]

# The arrays of a call by their names in the kernel; None where there is none.
Arrays: TypeAlias = dict[str, Any]


class DLPackArray(Protocol):
    """An array that exports itself by DLPack: a tensor of PyTorch's, say."""

    def __dlpack__(self, *, stream: Any = ...) -> Any: ...

    def __dlpack_device__(self) -> tuple[Any, int]: ...


class CudaArray(Protocol):
    """An array that shows its memory: one of Numba's, say."""

    @property
    def __cuda_array_interface__(self) -> Any: ...


class DaskArray(Protocol):
    """A dask array."""

    def __dask_graph__(self) -> Any: ...

    def rechunk(self, chunks: Any = ...) -> Any: ...


DeviceArray: TypeAlias = DLPackArray | CudaArray
Array: TypeAlias = DLPackArray | CudaArray | DaskArray

# What broadcasts against x; a number stands for an array of x's dtype.
Operand: TypeAlias = DLPackArray | CudaArray | float

DeviceArrayT = TypeVar("DeviceArrayT", bound=DLPackArray | CudaArray)
ArrayT = TypeVar("ArrayT", bound=DLPackArray | CudaArray | DaskArray)
