"""Clauses SCORE-1 and SCORE-4: what softmax is given."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float, Real
from torch import Tensor

from ropebridge_reference.masks import Bias
from ropebridge_spec import Temperature, Variant

Query = Float[Tensor, "batch query head d_head"]
Key = Float[Tensor, "batch key kv_head d_head"]
Scores = Float[Tensor, "batch head query key"]


def score_keys(q: Query, k: Key, bias: Bias, variant: Variant) -> Scores:
    """Return the scores in at least float32, scaled, softcapped and masked. Each kv head serves one
    group of query heads: head = (kv_head group)."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)
    q = rearrange(
        q * variant.scale,
        "batch query (kv_head group) d -> batch query kv_head group d",
        group=variant.group,
    )
    s = einsum(
        q, k, "batch query kv_head group d, batch key kv_head d -> batch kv_head group query key"
    )
    s = rearrange(s, "batch kv_head group query key -> batch (kv_head group) query key")
    return softcap(s, variant.softcap) + bias.to(wide)


def unrounded(left: Scores, s: Scores) -> Scores:
    """Return what hooks left of the rounded scores; where that is what rounding made of s, s."""
    if left.dtype == s.dtype:
        return left
    untouched = (left == s.to(left.dtype)) & s.isfinite()
    lost = torch.where(untouched, s - left, 0.0).detach()  # the gradient is that of `left`
    return left + lost


def softcap(s: Scores, cap: float | None) -> Scores:
    """Return cap * tanh(s / cap) (Gemma 2, arXiv:2408.00118, section 2)."""
    return s if cap is None else cap * torch.tanh(s / cap)


def scale_by_temperature(
    q: Query, positions: Real[Tensor, "#batch query"] | None, temperature: Temperature | None
) -> Query:
    """Return the query times its temperature; of a temperature that is given, `positions` is the
    factor itself."""
    if temperature is None or positions is None:
        return q
    factor = (
        positions.double()
        if temperature.factor_argument
        else temperature_at(positions, temperature)
    )
    return (q * rearrange(factor, "batch query -> batch query 1 1")).to(q.dtype)


def temperature_at(
    positions: Real[Tensor, "#batch query"], temperature: Temperature
) -> Float[Tensor, "#batch query"]:
    """Return 1 + beta log(1 + floor((i + shift) / length)) (Llama 4; arXiv:2501.19399)."""
    return 1 + temperature.beta * torch.log1p(
        torch.floor((positions.double() + temperature.shift) / temperature.length)
    )
