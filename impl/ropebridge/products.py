"""Products of heads with what they share, and with what each has of its own."""

from __future__ import annotations

import torch
from torch import Tensor


def grouped_product(rows: Tensor, shared: Tensor) -> Tensor:
    """Return (batch, head, pos, n) times (batch, kv_head, n, m): the heads of a group stacked along
    the rows, nothing copied."""
    batch, heads, pos, n = rows.shape
    stacked = rows.reshape(batch, shared.shape[1], heads // shared.shape[1] * pos, n)
    return (stacked @ shared).view(batch, heads, pos, shared.shape[-1])


def head_by_head(heads: Tensor, weight: Tensor) -> Tensor:
    """Return (batch, pos, head, n) through (head, n, m): each head by its own weights."""
    return torch.einsum("bphn,hnm->bphm", heads, weight)
