"""Clauses MIX-1, RES-1 and OUT-1: from pattern and values to the output."""

from __future__ import annotations

import torch
from einops import einsum, rearrange, repeat
from jaxtyping import Float
from torch import Tensor

Pattern = Float[Tensor, "batch head query key"]
Value = Float[Tensor, "batch key kv_head d_head_v"]
Z = Float[Tensor, "batch query head d_head_v"]
W_O = Float[Tensor, "head d_head_v d_model"]


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


def result(z: Z, W: W_O) -> Float[Tensor, "batch query head d_model"]:
    """Return what each head adds to the output."""
    return einsum(z, W, "batch query head d, head d d_model -> batch query head d_model")


def output(
    z: Z, W: W_O, b: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "batch query d_model"]:
    """Return all heads together, and the bias; summed in at least float32, rounded once."""
    wide = torch.promote_types(z.dtype, torch.float32)
    y = einsum(z.to(wide), W.to(wide), "batch query head d, head d d_model -> batch query d_model")
    return (y if b is None else y + b).to(z.dtype)


def sum_of_results(
    r: Float[Tensor, "batch query head d_model"], b: Float[Tensor, " d_model"] | None
) -> Float[Tensor, "batch query d_model"]:
    """Return the output where each head's result was made: their sum, and the bias."""
    y = einsum(
        r.to(torch.promote_types(r.dtype, torch.float32)),
        "batch query head d_model -> batch query d_model",
    )
    return (y if b is None else y + b).to(r.dtype)
