"""Bias a call's mask means, by the reference's functions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.nn.functional import pad

from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.zoo.selection import picked_for
from ropebridge_spec import MaskError, Variant


@dataclass(frozen=True)
class Span:
    """Hold where the queries and keys of a call stand.

    first_query, queries: position of the first query, and how many there are.
    first_key, keys: position of the first key that the cache gives back, and how many: a sliding
        cache forgets the first, a static one has room for more than there were; None where keys
        are those of all positions up to the last query.
    source: how many keys of another sequence there are beside (KV-2).
    """

    first_query: int
    queries: int
    first_key: int = 0
    keys: int | None = None
    source: int = 0

    @property
    def own_keys(self) -> int:
        """Return how many keys of the layer's own sequence there are."""
        return self.first_query + self.queries if self.keys is None else self.keys

    @property
    def all_keys(self) -> int:
        """Return how long the axis of keys is."""
        return self.own_keys + self.source


def selected_bias(
    mask: Tensor | BlockMask | None,
    x: Tensor,
    span: Span,
    variant: Variant,
    stages: Stages = STAGES,
) -> Tensor:
    """Return (batch or 1, head or 1, query, key) float64: `bias_of` a call with the hidden states
    x, of the keys that are picked (SEL-1)."""
    bias = bias_of(mask, span, variant, x.device, stages)
    picked = picked_for(bias, variant, x.shape[0], span.first_query)
    return bias if picked is None else bias + stages.selection_bias(picked)


def bias_of(
    mask: Tensor | BlockMask | None,
    span: Span,
    variant: Variant,
    device: torch.device,
    stages: Stages = STAGES,
) -> Tensor:
    """Return (batch or 1, head or 1, query, key) float64: 0, a number, or -inf (MASK-1 to
    MASK-5)."""
    pos, keys = span.queries, span.all_keys
    if mask is None:
        return reach_bias(span, variant, device, stages)
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == keys:
        return reach_bias(span, variant, device, stages) + stages.padding_bias(mask != 0)
    shape = mask.shape if isinstance(mask, Tensor) else (*mask.shape[:2], *mask.seq_lengths)
    if len(shape) not in (3, 4) or shape[-2] not in (1, pos) or shape[-1] != keys:
        raise MaskError(
            f"attention_mask has shape {tuple(shape)}; clause MASK-4 requires None, (batch,"
            f" {keys}), (batch, {pos}, {keys}), (batch, head or 1, {pos} or 1, {keys}) or a"
            " BlockMask of that shape"
        )
    return stages.bias_of_mask(stages.with_four_axes(mask)).expand(-1, -1, pos, -1)


def reach_bias(span: Span, variant: Variant, device: torch.device, stages: Stages) -> Tensor:
    """Return how far a query sees by itself (MASK-2): positions count on from a sequence that comes
    before, and one that comes after is seen whole."""
    before = span.source if variant.source and variant.source.place == "before" else 0
    query = torch.arange(span.queries, device=device) + before + span.first_query
    key = torch.arange(before + span.own_keys, device=device) + span.first_key
    return pad(stages.causal_bias(query, key, variant), (0, span.source - before))
