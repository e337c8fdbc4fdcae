"""Puts the tests about the whole session last."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "last: after every other test of the session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.get_closest_marker("last") is not None)


@pytest.fixture
def whole_session(request):
    """Skip where only some of the instruction tests were asked for."""
    here = request.path.parent
    ran = {item.path for item in request.session.items}
    others = (
        "test_asynchronous.py",
        "test_bulk_copies.py",
        "test_cluster.py",
        "test_mbarrier.py",
        "test_warps.py",
    )
    wanted = [*here.glob("test_isa_*.py"), *(here / name for name in others)]
    missing = {path.name for path in wanted if path not in ran}
    if missing:
        pytest.skip(f"about a session that runs {', '.join(sorted(missing))} too")
