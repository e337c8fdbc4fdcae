"""``pytest --simgpu``: the software GPU under a test suite, before anything imports CuPy.

pytest imports this module wherever cunorm is installed, so that it imports next to nothing.
"""

from __future__ import annotations

from typing import Any

import pytest

from .options import Options

_given: dict[str, Any] | None = None  # what install() was given; None while it was not asked for


def _architecture(text: str) -> int:
    return int(text.removeprefix("sm_"))


def _mebibytes(text: str) -> int:
    return int(text) << 20


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options of ``python -m cunorm.simgpu`` that describe its devices."""
    group = parser.getgroup("simgpu", "the software GPU of cunorm; each option implies --simgpu")
    group.addoption("--simgpu", action="store_true", help="run CuPy on simulated devices")
    group.addoption("--simgpu-arch", type=_architecture, metavar="ARCH", help="their architecture")
    group.addoption("--simgpu-devices", type=int, metavar="N", help="how many there are")
    group.addoption("--simgpu-memory", type=_mebibytes, metavar="MIB", help="memory of each")
    group.addoption("--simgpu-budget", type=int, metavar="N", help="instructions a launch may take")
    for name, what in (
        ("uninitialised", "let kernels read memory that nothing has written"),
        ("warp-races", "let lanes of one warp race"),
    ):
        group.addoption(f"--simgpu-{name}", action="store_true", default=None, help=what)
    group.addoption(
        "--simgpu-no-stand-ins",
        dest="simgpu_stand_ins",
        action="store_false",
        default=None,
        help="refuse what CuPy asks of NVIDIA's libraries",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Install the devices before any conftest.py can import CuPy, in workers of xdist too."""
    global _given
    asked = vars(early_config.known_args_namespace)
    given = {name: asked[f"simgpu_{name}"] for name in Options._fields}
    given = {name: value for name, value in given.items() if value is not None}
    if not asked["simgpu"] and not given:
        return
    from . import children, install, installed

    try:
        if given or not installed():
            children.enable(given)
            install(**given)
    except (RuntimeError, ValueError) as error:
        raise pytest.UsageError(f"--simgpu: {error}") from error
    _given = given


def pytest_report_header() -> str | None:
    """Say so at the top of the report."""
    if _given is None:
        return None
    return " ".join(["simgpu: on", *(f"{name}={value}" for name, value in _given.items())])
