"""Clause SCORE-5: a bias that a key has by its values (Doge, arXiv:2412.11834)."""

from __future__ import annotations

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import softplus

from ropebridge_reference.masks import Bias
from ropebridge_reference.weights import Weights
from ropebridge_spec import Variant

Value = Float[Tensor, "batch key kv_head d_head_v"]


def bias_keys(v: Value, weights: Weights, variant: Variant) -> Float[Tensor, "batch head 1 key"]:
    """Return exp(A softplus(W_dt v + b_dt)) of each kv head, for the query heads that share it; in
    at least float32."""
    assert weights.W_dt is not None
    assert weights.A is not None
    wide = torch.promote_types(v.dtype, torch.float32)
    dt = einsum(
        v.to(wide),
        weights.W_dt.to(wide),
        "batch key from_kv_head d, kv_head from_kv_head d -> batch key kv_head",
    )
    dt = dt if weights.b_dt is None else dt + weights.b_dt.to(wide)
    return repeat(
        (weights.A.to(wide) * softplus(dt)).exp(),
        "batch key kv_head -> batch (kv_head group) 1 key",
        group=variant.group,
    )


def of_the_largest(
    biases: Float[Tensor, "batch head 1 key"], bias: Bias, keep: int
) -> Float[Tensor, "batch head query key"]:
    """Return the mask's bias and the keys' own, -inf but for so many keys of the largest own bias
    among those that may be seen."""
    both = bias + biases.to(bias.dtype)
    if keep >= both.shape[-1]:
        return both
    own = biases.to(bias.dtype).expand(both.shape).masked_fill(both == -torch.inf, -torch.inf)
    nowhere = torch.zeros_like(both, dtype=torch.bool)
    largest = nowhere.scatter(-1, own.topk(keep, dim=-1).indices, True)
    return both.masked_fill(~largest, -torch.inf)
