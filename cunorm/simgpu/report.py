"""Counters as tables for people, and as CSV and JSON for files."""

from __future__ import annotations

from collections.abc import Sequence

from .counters import LaunchCounters


def table(launches: Sequence[LaunchCounters]) -> str:
    """Return the tables."""
    return "\n".join(map(str, launches))
