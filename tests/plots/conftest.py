"""A browser, where there is one, and patterns whose every weight is known."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from ropebridge.plots import Panel


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    """Chromium, headless."""
    playwright = pytest.importorskip("playwright.sync_api")
    chromium = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
    if chromium is None:
        pytest.skip("there is no Chromium on this machine: apt-get install chromium")
    with playwright.sync_playwright() as run:
        running = run.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture(scope="session")
def panels() -> list[Panel]:
    """Three heads of five tokens: (0, 0) looks at itself, (0, 1) one back, (1, 0) at all it sees alike."""
    eye, ones = torch.eye(5), torch.ones(5, 5).tril()
    back = torch.diag(torch.ones(4), -1)
    back[0, 0] = 1
    return [Panel(0, 0, eye), Panel(0, 1, back), Panel(1, 0, ones / ones.sum(-1, keepdim=True))]
