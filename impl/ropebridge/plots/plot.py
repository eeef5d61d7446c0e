"""`plot_patterns`: the ending of the file's name says what is made of the patterns."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.plots.page import write_page
from ropebridge.plots.panels import Heads, Panel, PlotError, panels_of, tokens_of
from ropebridge.plots.picture import write_picture

Writer = Callable[[Sequence[Panel], Sequence[str], Path, str], None]
WRITERS: Mapping[str, Writer] = {
    ".html": write_page,
    ".png": write_picture,
    ".svg": write_picture,
    ".pdf": write_picture,
}


def plot_patterns(
    bridged: BridgedModel,
    inputs: Tensor | Mapping[str, Any],
    path: str | PathLike[str],
    *,
    tokens: Sequence[str] | None = None,
    layers: Iterable[int] | None = None,
    heads: Heads = None,
    row: int = 0,
    title: str | None = None,
) -> Path:
    """Run the model once and write the attention patterns of one row of the batch.

    Args:
        inputs: token ids (batch, pos), or the keywords of the model's call.
        path: where to write, its folder is made: `.html` for one page, with everything in it, that
            opens from disk; `.png`, `.svg`, `.pdf` for a picture.
        tokens: what stands at the keys, `tokenizer.convert_ids_to_tokens(ids[0])`; None shows token
            ids.
        layers: places in `bridged.layers`; None means all.
        heads: heads of each of these layers, or pairs (layer, head); None means all.
        row: which row of the batch.
        title: a heading; None takes the name of the model's class.

    Returns:
        The path.

    Raises:
        PlotError: another ending, a layer, head or row that is not there, or another number of
            tokens than of keys.
        MissingExtra: matplotlib or jinja2 is not installed: the extra `[plot]`.
    """
    path = Path(path)
    if path.suffix.lower() not in WRITERS:
        raise PlotError(
            f"{path.name!r} ends in {path.suffix or 'nothing'!r}; the ending says what is written:"
            f" {', '.join(WRITERS)}"
        )
    panels = panels_of(bridged, inputs, layers, heads, row)
    path.parent.mkdir(parents=True, exist_ok=True)
    WRITERS[path.suffix.lower()](
        panels,
        tokens_of(tokens, inputs, row, panels[0]),
        path,
        title or type(bridged.model).__name__,
    )
    return path
