"""The four dtypes, by their names in NumPy and ml_dtypes, and in C with those of codes."""

from __future__ import annotations

ITEMSIZE = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
C_TYPE = {
    "float16": "__half",
    "bfloat16": "__nv_bfloat16",
    "float32": "float",
    "float64": "double",
    # Of positions and codes.
    "int8": "signed char",
    "uint8": "unsigned char",
    "int16": "short",
    "uint16": "unsigned short",
    "int32": "int",
    "uint32": "unsigned",
    "int64": "long long",
    "uint64": "unsigned long long",
}


def accumulator(dtype: str) -> str:
    """Return the dtype of sums and statistics for data of `dtype`."""
    return "float64" if dtype == "float64" else "float32"


def promoted(a: str, b: str) -> str:
    """Return the dtype of what NumPy's operators make of two: float32 of float16 and bfloat16."""
    if ITEMSIZE[a] == ITEMSIZE[b] and a != b:
        return "float32"
    return max(a, b, key=ITEMSIZE.__getitem__)
