"""Patterns whose every weight is known."""

from __future__ import annotations

import pytest
import torch

from ropebridge.plots import Panel


@pytest.fixture(scope="session")
def panels() -> list[Panel]:
    """Three heads of five tokens: (0, 0) looks at itself, (0, 1) one back, (1, 0) at all it sees
    alike."""
    eye, ones = torch.eye(5), torch.ones(5, 5).tril()
    back = torch.diag(torch.ones(4), -1)
    back[0, 0] = 1
    return [Panel(0, 0, eye), Panel(0, 1, back), Panel(1, 0, ones / ones.sum(-1, keepdim=True))]
