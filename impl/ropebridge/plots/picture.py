"""Picture of attention patterns, by matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from pathlib import Path
from typing import Any

from ropebridge.extras import need
from ropebridge.plots.panels import Panel

INCHES, DPI, COLUMNS, LABELS = 3.2, 150, 4, 32
"""Size of a panel, resolution, panels in a row, and up to how many tokens each is written out."""


def write_picture(panels: Sequence[Panel], tokens: Sequence[str], path: Path, title: str) -> None:
    """Write one panel per head: one row per query, one column per key, the darker the more weight.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    figures = need("matplotlib.figure", "plot", "a picture of patterns")
    columns = min(COLUMNS, len(panels))
    rows = ceil(len(panels) / columns)
    figure = figures.Figure(
        figsize=(INCHES * columns + 0.8, INCHES * rows + 0.5), dpi=DPI, layout="constrained"
    )
    figure.suptitle(literal(title))
    grid = figure.subplots(rows, columns, squeeze=False).flatten()
    images = [draw(axis, panel, tokens) for axis, panel in zip(grid, panels, strict=False)]
    for axis in grid[len(panels) :]:
        axis.set_axis_off()
    figure.colorbar(
        images[0], ax=list(grid), label="weight (hook_pattern)", fraction=0.02, pad=0.01
    )
    figure.savefig(path)


def draw(axis: Any, panel: Panel, tokens: Sequence[str]) -> Any:
    """Draw one panel, and return its image, which the colour scale is made of."""
    image = axis.imshow(panel.pattern.numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set_title(f"layer {panel.layer}, head {panel.head}", fontsize=9)
    axis.set_xlabel("key")
    axis.set_ylabel("query")
    queries, keys = panel.pattern.shape
    if keys <= LABELS:
        labels = [literal(token) for token in tokens]
        axis.set_xticks(range(keys), labels, rotation=90, fontsize=6)
        axis.set_yticks(range(queries), labels[keys - queries :], fontsize=6)
    return image


def literal(text: str) -> str:
    """Return text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
