"""Puts the tests about the whole session last."""

import pytest
from whole_session import runs_instructions


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: after every other test of the session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture
def whole_session(request):
    """Skip where only some of the instruction tests were asked for."""
    ran = {item.path for item in request.session.items}
    wanted = filter(
        lambda path: runs_instructions(path.name), request.path.parent.glob("test_*.py")
    )
    missing = {path.name for path in wanted if path not in ran}
    if missing:
        pytest.skip(f"about a session that runs {', '.join(sorted(missing))} too")
