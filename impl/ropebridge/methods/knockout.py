"""Attention knockout: queries are forbidden to see keys, layer after layer (Geva et al. 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from ropebridge.bridged import BridgedModel
from ropebridge.methods.ablation import refuse_unknown_heads
from ropebridge.methods.errors import MethodError
from ropebridge.methods.running import Inputs, Metric, bar, logits_of, measure

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
    quiet: bool = False,
) -> Tensor:
    """Return the metric with pairs knocked out in all heads of a window of layers, window after
    window.

    The scores of the pairs are set to -inf before softmax, so that the other keys share what they
    had. A query whose every key is knocked out attends to nothing: its pattern and z are 0.

    Args:
        pairs: (query, key) positions.
        window: how many layers in a row are cut: from `layer` on, as far as there are layers.
        quiet: no progress bar.

    Returns:
        (layer,) float32: the metric with the window that begins at that layer cut.

    Raises:
        MethodError: no pair, a pair outside of the inputs, a key after its query, or a window of no
            layers.
    """
    pairs = list(pairs)
    if window < 1:
        raise MethodError(f"window={window}; it must be 1 layer or more")
    found = []
    for first in bar(range(len(bridged.layers)), "knockout", quiet):
        cut = range(first, min(first + window, len(bridged.layers)))
        found.append(measure(metric, knocked_out(bridged, inputs, pairs, layers=cut)))
    return torch.stack(found).float().cpu()


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
    if not pairs:
        raise MethodError("no pair to knock out; pass (query, key) positions: pairs=[(-1, 0)]")
    chosen = heads_of(bridged, layers, heads)
    refuse_unknown_heads(bridged, chosen)
    return logits_of(
        bridged,
        inputs,
        [
            (f"{bridged.layers[layer].name}.hook_attn_scores", forbid(head, pairs))
            for layer, head in chosen
        ],
    )


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
    refuse_unknown_heads(bridged, [(layer, 0) for layer in whole])
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
