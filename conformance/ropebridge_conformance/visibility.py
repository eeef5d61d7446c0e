"""The bias a call's mask means, by the reference's functions."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge_reference import STAGES, Stages
from ropebridge_spec import MaskError, Variant


def bias_of(mask: Tensor | None, first: int, pos: int, variant: Variant, device: torch.device, stages: Stages = STAGES) -> Tensor:
    """(batch or 1, head or 1, query, key) float64: 0, a number, or -inf (MASK-1 to MASK-5)."""
    query = torch.arange(first, first + pos, device=device)
    causal = stages.causal_bias(query, torch.arange(first + pos, device=device), variant)
    if mask is None:
        return causal
    if mask.ndim == 2 and mask.shape[1] == first + pos:
        return causal + stages.padding_bias(mask != 0)
    if mask.ndim != 4 or mask.shape[2:] != (pos, first + pos):
        raise MaskError(f"attention_mask has shape {tuple(mask.shape)}; clause MASK-4 requires None, (batch, {first + pos}) or (.., .., {pos}, {first + pos})")
    return stages.bias_of_mask(mask)
