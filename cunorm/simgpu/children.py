"""The Python processes that a program starts: they have the devices that it has.

Environment variables carry that to all of them, whoever starts them and how: the options in one of
ours, and a ``sitecustomize`` on PYTHONPATH that has CuPy imported on the devices. A process that is
started without them, or that ignores PYTHONPATH (``python -E``, ``-I``) or ``sitecustomize``
(``-S``), is not reached.
"""

from __future__ import annotations

import json
import os
from typing import Any

VARIABLE = "CUNORM_SIMGPU"  # startup/sitecustomize.py knows its name
_STARTUP = os.path.join(os.path.dirname(os.path.abspath(__file__)), "startup")


def enable(options: dict[str, Any]) -> None:
    """Let processes that are started from now on have the devices that `install` gives for this."""
    os.environ[VARIABLE] = json.dumps(options)
    path = os.environ.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != _STARTUP:
        os.environ["PYTHONPATH"] = _STARTUP + (os.pathsep + path if path else "")


def inherited() -> dict[str, Any] | None:
    """Return the options that the program that started this one was given, None without one."""
    given = os.environ.get(VARIABLE)
    return None if given is None else dict(json.loads(given))
