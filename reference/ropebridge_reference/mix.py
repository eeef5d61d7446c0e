"""Clauses MIX-1 and MIX-3: each head's mix of values."""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

Pattern = Float[Tensor, "batch head query key"]
Value = Float[Tensor, "batch key kv_head d_head_v"]
Z = Float[Tensor, "batch query head d_head_v"]


def mix_values(p: Pattern, v: Value) -> Z:
    """Return each head's weighted mean of the values of its kv head."""
    p = rearrange(
        p, "batch (kv_head group) query key -> batch kv_head group query key", kv_head=v.shape[2]
    )
    z = einsum(
        p, v, "batch kv_head group query key, batch key kv_head d -> batch query kv_head group d"
    )
    return rearrange(z, "batch query kv_head group d -> batch query (kv_head group) d")


def exclude(
    z: Z, v: Float[Tensor, "batch query kv_head d_head_v"], alpha: Float[Tensor, " head"]
) -> Z:
    """Return z less its part along the query's own value (MIX-3)."""
    wide = torch.promote_types(z.dtype, torch.float32)
    u = repeat(
        torch.nn.functional.normalize(v.to(wide), dim=-1),
        "batch query kv_head d -> batch query (kv_head group) d",
        group=z.shape[2] // v.shape[2],
    )
    along = einsum(z.to(wide), u, "batch query head d, batch query head d -> batch query head")
    taken = einsum(
        alpha.to(wide).tanh(),
        along,
        u,
        "head, batch query head, batch query head d -> batch query head d",
    )
    return (z.to(wide) - taken).to(z.dtype)
