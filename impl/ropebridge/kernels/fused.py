"""Fused attention: torch's scaled_dot_product_attention, which makes no scores and no pattern."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.kernels.composite import by_rows
from ropebridge.masks import Visibility


def attend_fused(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, scale: float) -> Tensor:
    """Return z (batch, head, query, d_head_v).

    One call where every query sees every key, or where its own causal flag, or a boolean mask
    already in memory, says what is visible;
    otherwise a call for each block of rows, with a mask of that block alone and only the keys that
    the block can see.
    """
    if seen.plain_causal:
        return sdpa(q, k, v, scale, causal=q.shape[2] > 1)
    if seen.sees_all:
        return sdpa(q, k, v, scale)
    if seen.whole is not None:
        return sdpa(q, k, v, scale, mask=seen.whole)

    def block(rows: slice) -> Tensor:
        keys = seen.keys_of(rows)
        mask = seen.block(rows, keys)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(torch.promote_types(q.dtype, torch.float32))  # the kernel takes no other
        return sdpa(q[:, :, rows], k[:, :, keys], v[:, :, keys], scale, mask=mask)

    return by_rows(block, q.shape[2])


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return (batch, head, query, d_head_v) of torch's fused kernel, with grouped heads."""
    grouped = q.shape[1] > k.shape[1]
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=scale, enable_gqa=grouped
    )
