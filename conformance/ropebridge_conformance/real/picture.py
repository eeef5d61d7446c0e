"""Picture of attention patterns, labelled with tokens."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ropebridge_conformance.real.heads import Chosen

INCHES, DPI = 6.2, 150


def draw(chosen: Sequence[Chosen], tokens: Sequence[str], path: Path, title: str) -> None:
    """Write a PNG with one panel per head: one row per query, one column per key, the darker the
    more weight.

    Args:
        tokens: what stands at the positions.
        path: where to write; its folder is made.
    """
    from matplotlib.figure import Figure

    path.parent.mkdir(parents=True, exist_ok=True)
    figure = Figure(figsize=(INCHES * len(chosen), INCHES + 0.6), dpi=DPI, layout="constrained")
    figure.suptitle(title, fontsize=15)
    axes: Any = figure.subplots(1, len(chosen), squeeze=False)[0]
    images = [draw_head(axis, head, tokens) for axis, head in zip(axes, chosen, strict=True)]
    figure.colorbar(
        images[0], ax=list(axes), label="weight (hook_pattern)", fraction=0.02, pad=0.01
    )
    figure.savefig(path)


def draw_head(axis: Any, chosen: Chosen, tokens: Sequence[str]) -> Any:
    """Draw one panel, and return its image, which the colour scale is made of."""
    image = axis.imshow(chosen.pattern.float().numpy(), cmap="Blues", vmin=0, vmax=1)
    axis.set_title(
        f"layer {chosen.layer}, head {chosen.head}: {chosen.does}\nmean weight there"
        f" {chosen.weight:.2f}",
        fontsize=12,
    )
    axis.set_xticks(range(len(tokens)), tokens, rotation=90, fontsize=8)
    axis.set_yticks(range(len(tokens)), tokens, fontsize=8)
    axis.set_xlabel("key")
    axis.set_ylabel("query")
    return image
