"""Mix of values (clauses MIX-1, MIX-3)."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge.products import grouped_product


def mix_values(pattern: Tensor, v: Tensor) -> Tensor:
    """Return (batch, head, query, width): pattern (batch, head, query, key) times the values
    (batch, kv_head, key, width) of each head's kv head."""
    return grouped_product(pattern, v)


def exclude(z: Tensor, v: Tensor, module: nn.Module, alpha: str) -> Tensor:
    """Return z (batch, pos, head, d_head_v) less its part along the query's own value (batch, pos,
    kv_head, d_head_v) (MIX-3)."""
    wide = torch.promote_types(v.dtype, torch.float32)
    unit = F.normalize(v.to(wide), dim=-1).to(z.dtype)
    unit = unit.repeat_interleave(z.shape[2] // v.shape[2], dim=2)  # (batch, pos, head, d_head_v)
    strength: Tensor = torch.tanh(attrgetter(alpha)(module)).to(z.dtype)[:, None]
    return z - strength * (z * unit).sum(-1, keepdim=True) * unit
