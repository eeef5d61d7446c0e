"""Benchmarks run on all threads that there are, alone in their process."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Leave torch as many threads as it takes: unlike tests, a benchmark has the machine for
    itself."""
