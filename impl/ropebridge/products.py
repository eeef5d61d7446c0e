"""Matrix products in which a group of query heads shares a key or value head."""

from __future__ import annotations

from torch import Tensor


def grouped_product(rows: Tensor, shared: Tensor) -> Tensor:
    """Return (batch, head, pos, n) times (batch, kv_head, n, m): the heads of a group stacked along
    the rows, nothing copied."""
    batch, heads, pos, n = rows.shape
    stacked = rows.reshape(batch, shared.shape[1], heads // shared.shape[1] * pos, n)
    return (stacked @ shared).view(batch, heads, pos, shared.shape[-1])
