"""Attention knockout: queries are forbidden to see keys, layer after layer (Geva et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import Inputs, Metric, logits_of
from ropebridge.methods.selection import Heads, Selection, refuse_unknown, select
from ropebridge.methods.variants import measure_each

Pairs = Iterable[tuple[int, int]]
"""Pairs of a query position and a key position it may not see; -1 is the last."""


@torch.no_grad()
def attention_knockout(
    bridged: BridgedModel,
    inputs: Inputs,
    metric: Metric,
    pairs: Pairs,
    *,
    window: int = 1,
    layers: Iterable[int] | None = None,
    heads: Heads | None = None,
    at_once: int | None = None,
    quiet: bool = False,
) -> Tensor:
    """Return the metric with pairs knocked out in all heads of a window of layers, window after
    window.

    The scores of the pairs are set to -inf before softmax, so that the other keys share what they
    had. A query whose every key is knocked out attends to nothing: its pattern and z are 0.

    Args:
        pairs: (query, key) positions.
        window: how many layers in a row are cut: from `layer` on, as far as there are layers.
        layers: where windows begin; None for every layer.
        heads: which heads of the cut layers, by number or as pairs (layer, head); None for all.
        at_once: how many windows one forward pass cuts, each in rows of its own; None takes as many
            as make 2048 tokens.
        quiet: no progress bar.

    Returns:
        (layer,) float32: the metric with the window that begins at that layer cut; nan where it was
        not chosen.

    Raises:
        MethodError: no pair, a pair outside of the inputs, a key after its query, or a window of no
            layers.
    """
    pairs = list(pairs)
    if window < 1:
        raise MethodError(f"window={window}; it must be 1 layer or more")
    refuse_no_pair(pairs)
    begin = select(bridged, layers).layers
    cut = select(bridged, heads=heads)
    variants = []
    for first in begin:
        within = range(first, first + window)
        places = [(layer, head) for layer, head in heads_in(bridged, cut) if layer in within]
        variants.append(cuts(bridged, pairs, places))
    table = torch.full((len(bridged.layers),), torch.nan)
    found = measure_each(bridged, inputs, metric, variants, "knockout", quiet, at_once)
    for first, value in zip(begin, found, strict=True):
        table[first] = value
    return table


@torch.no_grad()
def knocked_out(
    bridged: BridgedModel,
    inputs: Inputs,
    pairs: Pairs,
    *,
    layers: Iterable[int] | None = None,
    heads: Sequence[tuple[int, int]] | None = None,
) -> Tensor:
    """Return the logits (batch, pos, vocabulary) with pairs knocked out.

    Args:
        pairs: (query, key) positions.
        layers: whole layers that are cut; None means all, or none where `heads` are given.
        heads: pairs (layer, head) that are cut.

    Raises:
        MethodError: as `attention_knockout`; or a head that the model does not have.
    """
    pairs = list(pairs)
    refuse_no_pair(pairs)
    chosen = heads_of(bridged, layers, heads)
    refuse_unknown(bridged, chosen)
    return logits_of(bridged, inputs, cuts(bridged, pairs, chosen))


def refuse_no_pair(pairs: Sequence[tuple[int, int]]) -> None:
    """Refuse to knock out nothing."""
    if not pairs:
        raise MethodError("no pair to knock out; pass (query, key) positions: pairs=[(-1, 0)]")


def cuts(
    bridged: BridgedModel, pairs: list[tuple[int, int]], heads: Iterable[tuple[int, int]]
) -> list[tuple[str, Any]]:
    """Return the hooks that forbid the pairs to these heads (layer, head)."""
    return [
        (f"{bridged.layers[layer].name}.hook_attn_scores", forbid(head, pairs))
        for layer, head in heads
    ]


def heads_in(bridged: BridgedModel, chosen: Selection) -> list[tuple[int, int]]:
    """Return the chosen heads (layer, head)."""
    return [
        (layer, head)
        for layer in chosen.layers
        for head in chosen.heads_of(layer, bridged.layers[layer].variant.heads)
    ]


def heads_of(
    bridged: BridgedModel, layers: Iterable[int] | None, heads: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int]]:
    """Return every head (layer, head) that is cut, once."""
    whole: Iterable[int]
    if layers is not None:
        whole = list(layers)
    elif heads is not None:
        whole = []
    else:
        whole = range(len(bridged.layers))
    refuse_unknown(bridged, [(layer, 0) for layer in whole])
    return sorted(
        {
            *(
                (layer, head)
                for layer in whole
                for head in range(bridged.layers[layer].variant.heads)
            ),
            *(heads or ()),
        }
    )


def forbid(head: int, pairs: list[tuple[int, int]]) -> Any:
    """Return a hook that forbids the pairs to one head."""

    def cut(scores: Tensor, hook: Any) -> None:
        rows, keys = zip(*(places(pair, *scores.shape[-2:]) for pair in pairs), strict=True)
        scores[:, head, rows, keys] = -torch.inf

    return cut


def places(pair: tuple[int, int], query: int, key: int) -> tuple[int, int]:
    """Return a pair counted from the front.

    Raises:
        MethodError: it lies outside, or its key comes after its query, which sees it in no case.
    """
    row, column = pair[0] + query * (pair[0] < 0), pair[1] + key * (pair[1] < 0)
    if not (0 <= row < query and 0 <= column < key):
        raise MethodError(
            f"the pair (query, key) {pair} lies outside of {query} queries and {key} keys, counted"
            " from 0, or from -1 at the end"
        )
    if column - (key - query) > row:
        raise MethodError(
            f"the pair (query, key) {pair} has its key after its query, which does not see it"
            " anyway; is it turned round?"
        )
    return row, column
