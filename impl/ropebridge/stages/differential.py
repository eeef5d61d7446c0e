"""Heads in pairs, of which the second's mix is subtracted from the first's (clause DIFF-1)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ropebridge_spec import Differential


def side_by_side(values: Tensor) -> Tensor:
    """Return (batch, kv_head, key, 2 d_head_v): those of kv heads j and j + kv_heads / 2, for
    either: what a pair of heads mixes."""
    both = torch.cat(values.chunk(2, dim=1), dim=-1)
    return torch.cat([both, both], dim=1)


def subtract(z: Tensor, module: nn.Module, kind: Differential) -> Tensor:
    """Return (batch, pos, pair, d_pair): of each pair of heads the first's mix, less the
    second's."""
    one, two = (part.to(z.dtype) for part in strengths(module, kind))
    first, second = z.chunk(2, dim=2)
    return first - (one - two + kind.init) * second


def strengths(module: nn.Module, kind: Differential) -> tuple[Tensor, Tensor]:
    """Return exp(q1 . k1) and exp(q2 . k2), two numbers in at least float32."""
    q1, k1, q2, k2 = (getattr(module, name) for name in (kind.q1, kind.k1, kind.q2, kind.k2))
    wide = torch.promote_types(q1.dtype, torch.float32)
    return (q1 * k1).sum(dtype=wide).exp(), (q2 * k2).sum(dtype=wide).exp()
