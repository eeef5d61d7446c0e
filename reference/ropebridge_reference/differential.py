"""Clause DIFF-1: heads in pairs, the second's mix of values taken from the first's
(arXiv:2410.05258)."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from ropebridge_spec import Differential

Value = Float[Tensor, "batch key kv_head d_head_v"]
Lambdas = Float[Tensor, "4 d_head"]


def side_by_side(v: Value) -> Float[Tensor, "batch key kv_head d_pair"]:
    """Return what both heads of a pair mix: the values of kv heads j and j + kv_heads / 2, for kv
    head j and again for j + kv_heads / 2."""
    once = rearrange(v, "batch key (half j) d -> batch key j (half d)", half=2)
    return torch.cat([once, once], dim=2)


def strength(lambdas: Lambdas, kind: Differential) -> Float[Tensor, ""]:
    """Return exp(q1 . k1) - exp(q2 . k2) + init, in at least float32."""
    q1, k1, q2, k2 = lambdas.to(torch.promote_types(lambdas.dtype, torch.float32))
    much: Tensor = (q1 @ k1).exp() - (q2 @ k2).exp() + kind.init
    return much


def subtract(
    z: Float[Tensor, "batch query head d_pair"], lambdas: Lambdas, kind: Differential
) -> Float[Tensor, "batch query pair d_pair"]:
    """Return for each pair of heads the first head's mix, less `strength` times the second's."""
    first, second = rearrange(z, "batch query (half pair) d -> half batch query pair d", half=2)
    difference: Tensor = first - strength(lambdas, kind) * second
    return difference.to(z.dtype)
