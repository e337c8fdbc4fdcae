"""What each PTX instruction does: one table of forms, which each module here fills for a family."""

from . import (  # noqa: F401
    access,
    approximate,
    asynchronous,
    atomics,
    bits,
    cluster,
    collective,
    compare,
    control,
    convert,
    floating,
    half,
    integer,
    mbarrier,
    move,
)
from .table import FORMS, Form, Pure, find, pure

__all__ = ["FORMS", "Form", "Pure", "find", "pure"]
