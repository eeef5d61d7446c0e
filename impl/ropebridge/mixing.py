"""Define what some families do with values before they are mixed, and with the mix (clauses DIFF-1,
MIX-3, SCORE-5)."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge_spec import Differential, KeyBias


def side_by_side(values: Tensor) -> Tensor:
    """Return (batch, kv_head, key, 2 d_head_v): those of kv heads j and j + kv_heads / 2, for
    either: what a pair of heads mixes (DIFF-1)."""
    both = torch.cat(values.chunk(2, dim=1), dim=-1)
    return torch.cat([both, both], dim=1)


def subtract(z: Tensor, module: nn.Module, kind: Differential) -> Tensor:
    """Return (batch, pos, pair, d_pair): of each pair of heads the first's mix less the second's
    (DIFF-1)."""
    one, two = (part.to(z.dtype) for part in strengths(module, kind))
    first, second = z.chunk(2, dim=2)
    return first - (one - two + kind.init) * second


def strengths(module: nn.Module, kind: Differential) -> tuple[Tensor, Tensor]:
    """Return exp(q1 . k1) and exp(q2 . k2), two numbers in at least float32."""
    q1, k1, q2, k2 = (getattr(module, name) for name in (kind.q1, kind.k1, kind.q2, kind.k2))
    wide = torch.promote_types(q1.dtype, torch.float32)
    return (q1 * k1).sum(dtype=wide).exp(), (q2 * k2).sum(dtype=wide).exp()


def exclude(z: Tensor, v: Tensor, module: nn.Module, alpha: str) -> Tensor:
    """Return z (batch, pos, head, d_head_v) less its part along the query's own value (MIX-3)."""
    wide = torch.promote_types(v.dtype, torch.float32)
    unit = (
        F.normalize(v.to(wide), dim=-1)
        .to(z.dtype)
        .repeat_interleave(z.shape[2] // v.shape[2], dim=2)
    )
    much: Tensor = torch.tanh(attrgetter(alpha)(module)).to(z.dtype)[:, None]
    return z - much * (z * unit).sum(-1, keepdim=True) * unit


def key_bias(dt: Tensor, module: nn.Module, kind: KeyBias, group: int) -> Tensor:
    """Return (batch, head, 1, key): exp(A softplus(dt)) of what the values were projected to
    (batch, key, kv_head), in at least float32 (SCORE-5)."""
    wide = torch.promote_types(dt.dtype, torch.float32)
    factor: Tensor = getattr(module, kind.factor).to(wide)
    return (
        (factor * F.softplus(dt.to(wide)))
        .exp()
        .transpose(1, 2)
        .repeat_interleave(group, dim=1)
        .unsqueeze(2)
    )
