"""Clause LAT-1: what query, and key and value, come up from (DeepSeek-V2, arXiv:2405.04434)."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.norm import normalise
from ropebridge_reference.weights import Affine
from ropebridge_spec import Norm


def make_latent(
    x: Float[Tensor, "batch pos d_model"],
    W: Float[Tensor, "d_model rank"],
    b: Float[Tensor, " rank"] | None,
    affine: Affine,
    norm: Norm,
    scale: float,
    beside: bool = False,
) -> Float[Tensor, "batch pos width"]:
    """Return scale norm(x W + b); and x W + b itself beside it, where the family brings that up
    too."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = einsum(x.to(wide), W.to(wide), "batch pos d_model, d_model rank -> batch pos rank")
    c = rearrange((y if b is None else y + b).to(x.dtype), "batch pos rank -> batch pos 1 rank")
    unit = scale * normalise(c, affine, norm)
    both = torch.cat([unit, c], dim=-1) if beside else unit
    return rearrange(both, "batch pos 1 width -> batch pos width")
