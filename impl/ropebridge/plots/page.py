"""One HTML page with everything in it: a grid of heads, and the chosen one to look round in by
pointer and keyboard."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor

from ropebridge.extras import need
from ropebridge.plots.panels import Panel


def write_page(panels: Sequence[Panel], tokens: Sequence[str], path: Path, title: str) -> None:
    """Write the page. Nothing in it is fetched from anywhere, and no token in it is taken for
    markup.

    Raises:
        MissingExtra: jinja2 is not installed.
    """
    jinja2 = need("jinja2", "plot", "a page of patterns")
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    )
    queries, keys = panels[0].pattern.shape
    data = {
        "heads": [[panel.layer, panel.head] for panel in panels],
        "tokens": list(tokens),
        "queries": queries,
        "keys": keys,
    }
    path.write_text(
        template.render(title=title, data=data, weights=encode(panels)), encoding="utf-8"
    )


def encode(panels: Sequence[Panel]) -> str:
    """Return every weight as one byte, head by head, row by row, in base64."""
    return b64encode(
        b"".join(quantise(panel.pattern).numpy().tobytes() for panel in panels)
    ).decode("ascii")


def quantise(pattern: Tensor) -> Tensor:
    """Return 255 times the square root of each weight, rounded, as uint8 of the same shape.

    The root keeps small weights apart, which in a long row is what most of them are: 0.0001 is 3,
    and not 0. What is read back is off by at most 0.004, at weights near 1, and by 0.00001 at most
    where the weight is under 0.00002.
    """
    return (pattern.clamp(0, 1).sqrt() * 255).round().to(torch.uint8)
