"""Bias a call's mask means, by the reference's functions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from ropebridge_conformance.stages.functions import STAGES, Stages
from ropebridge_conformance.zoo.selection import picked_for
from ropebridge_spec import MaskError, Variant


def selected_bias(
    mask: Tensor | BlockMask | None,
    x: Tensor,
    first: int,
    variant: Variant,
    stages: Stages = STAGES,
    source: int = 0,
) -> Tensor:
    """Return (batch or 1, head or 1, query, key) float64: `bias_of` a call with the hidden states
    x, of the keys that are picked (SEL-1)."""
    bias = bias_of(mask, first, x.shape[1], variant, x.device, stages, source)
    picked = picked_for(bias, variant, x.shape[0], first)
    return bias if picked is None else bias + stages.selection_bias(picked)


def bias_of(
    mask: Tensor | BlockMask | None,
    first: int,
    pos: int,
    variant: Variant,
    device: torch.device,
    stages: Stages = STAGES,
    source: int = 0,
) -> Tensor:
    """Return (batch or 1, head or 1, query, key) float64: 0, a number, or -inf (MASK-1 to MASK-5);
    `source` is the length of another sequence (KV-2)."""
    keys, reach = first + pos + source, reach_bias(first, pos, variant, device, stages, source)
    if mask is None:
        return reach
    if isinstance(mask, Tensor) and mask.ndim == 2 and mask.shape[1] == keys:
        return reach + stages.padding_bias(mask != 0)
    shape = mask.shape if isinstance(mask, Tensor) else (*mask.shape[:2], *mask.seq_lengths)
    if len(shape) not in (3, 4) or shape[-2] not in (1, pos) or shape[-1] != keys:
        raise MaskError(
            f"attention_mask has shape {tuple(shape)}; clause MASK-4 requires None, (batch,"
            f" {keys}), (batch, {pos}, {keys}), (batch, head or 1, {pos} or 1, {keys}) or a"
            " BlockMask of that shape"
        )
    return stages.bias_of_mask(stages.with_four_axes(mask)).expand(-1, -1, pos, -1)


def reach_bias(
    first: int, pos: int, variant: Variant, device: torch.device, stages: Stages, source: int
) -> Tensor:
    """Return how far a query sees by itself (MASK-2): positions count on from a sequence that comes
    before, and one that comes after is seen whole."""
    before = source if variant.source and variant.source.place == "before" else 0
    query = torch.arange(before + first, before + first + pos, device=device)
    own = stages.causal_bias(query, torch.arange(before + first + pos, device=device), variant)
    return torch.nn.functional.pad(own, (0, source - before))
