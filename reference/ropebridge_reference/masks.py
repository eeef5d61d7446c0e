"""Clauses MASK-1 to MASK-5 and SEL-1: what each query may see, as a bias that is added to the
scores: 0, a number, or -inf."""

from __future__ import annotations

import math

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_mask

from ropebridge_spec import Variant

Bias = Float[Tensor, "#batch #head query key"]


def causal_bias(
    query: Int[Tensor, " query"], key: Int[Tensor, " key"], reach: Variant
) -> Float[Tensor, "1 1 query key"]:
    """Return the bias under which position i sees j <= i, unless the layer is not causal, within
    window and chunk (MASK-2)."""
    distance = query[:, None] - key[None, :]
    visible = (distance >= 0) | (not reach.causal)
    if reach.window is not None:
        visible &= distance.abs() < reach.window
    if reach.chunk is not None:
        visible &= query[:, None] // reach.chunk == key[None, :] // reach.chunk
    return forbid(~visible)[None, None]


def padding_bias(padding: Bool[Tensor, "batch key"]) -> Float[Tensor, "batch 1 1 key"]:
    """Return the bias under which no query sees a key whose entry is False (MASK-3)."""
    return forbid(~padding)[:, None, None, :]


def with_four_axes(
    mask: Shaped[Tensor, "#batch #head #query key"]
    | Shaped[Tensor, "#batch #query key"]
    | BlockMask,
) -> Shaped[Tensor, "#batch #head #query key"]:
    """Return a mask that says what each query may see, with all four axes (MASK-1): one of three
    axes is the same for all heads, and a flex BlockMask is what its mask_mod says."""
    if isinstance(mask, BlockMask):
        batch, heads = mask.shape[:2]
        query, key = mask.seq_lengths
        device = mask.kv_num_blocks.device
        made: Tensor = create_mask(mask.mask_mod, batch, heads, query, key, device=device)
        return made
    return mask.unsqueeze(1) if mask.ndim == 3 else mask


def bias_of_mask(
    mask: Bool[Tensor, "#batch #head #query key"] | Bias,
) -> Float[Tensor, "#batch #head #query key"]:
    """Return a mask as a bias (MASK-1, MASK-5): True sees; an additive entry at most half the
    dtype's lowest number forbids."""
    if mask.dtype == torch.bool:
        return forbid(~mask)
    return mask.double().masked_fill(mask <= torch.finfo(mask.dtype).min / 2, -math.inf)


def selection_bias(
    picked: Bool[Tensor, "batch #head query key"],
) -> Float[Tensor, "batch #head query key"]:
    """Return the bias under which no query sees a key that is not picked for it (SEL-1)."""
    return forbid(~picked)


def forbid(forbidden: Bool[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Return -inf where forbidden, else 0."""
    return torch.zeros_like(forbidden, dtype=torch.float64).masked_fill(forbidden, -math.inf)
