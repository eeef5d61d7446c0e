"""Pattern: softmax over keys (clauses PAT-1, MASK-6)."""

from __future__ import annotations

import torch
from torch import Tensor


def make_pattern(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return (batch, head, query, key), in at least float32: softmax over keys, 0 in a row that
    sees none; a sink (head,) joins as a column and is dropped again."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        # torch._safe_softmax would break a compiled graph
        pattern: Tensor = torch.ops.aten._safe_softmax(scores.to(wide), -1)
        return pattern
    column = sinks.to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores.to(wide), column], dim=-1).softmax(-1)[..., :-1]
