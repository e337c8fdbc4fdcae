from typing import Any

OPERATIONS: dict[str, int]

def apply(operation: int, flags: int, out: Any, *operands: Any) -> None: ...
