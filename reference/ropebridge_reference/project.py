"""Clause PROJ-1: from the residual stream to the heads."""

from __future__ import annotations

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor


def project(
    x: Float[Tensor, "batch pos head d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """x W + b, each head with its own input and its own weights; summed in at least float32, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = einsum(x.to(wide), W.to(wide), "batch pos head d_model, head d_model d_head -> batch pos head d_head")
    return (y if b is None else y + b).to(x.dtype)
