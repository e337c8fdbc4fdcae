"""Puts the tests about the whole session last."""

import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The tests that run instructions: test_forms.py, the last of them, asks whether all were run.
INSTRUCTIONS = [
    *HERE.glob("test_isa_*.py"),
    *(HERE / f"test_{name}.py" for name in ("asynchronous", "bulk_copies", "cluster", "mbarrier")),
    HERE / "test_warps.py",
]


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: after every other test of the session")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:
        # What test_forms.py asks of the whole session is told by one process.
        for item in items:
            if item.path in INSTRUCTIONS or item.path.name == "test_forms.py":
                item.add_marker(pytest.mark.xdist_group("instructions"))
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture
def whole_session(request):
    """Skip where only some of the instruction tests were asked for."""
    ran = {item.path for item in request.session.items}
    missing = {path.name for path in INSTRUCTIONS if path not in ran}
    if missing:
        pytest.skip(f"about a session that runs {', '.join(sorted(missing))} too")
