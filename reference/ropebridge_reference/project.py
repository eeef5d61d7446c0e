"""Clauses LAT-1, PROJ-1 and CLIP-1: from the residual stream to the heads."""

from __future__ import annotations

import torch
from einops import einsum, rearrange
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.norm import normalise
from ropebridge_reference.weights import Affine, Weights
from ropebridge_spec import Norm


def project(
    x: Float[Tensor, "batch pos head d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """x W + b, each head with its own input and its own weights; summed in at least float32, rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = einsum(x.to(wide), W.to(wide), "batch pos head d_model, head d_model d_head -> batch pos head d_head")
    return (y if b is None else y + b).to(x.dtype)


def with_rotary_part(
    k: Float[Tensor, "batch pos head d_head_k"], x: Float[Tensor, "batch pos head d_model"], weights: Weights
) -> Float[Tensor, "batch pos head d_head"]:
    """The key heads; with latents, what came up from the latent is followed by the rotary part that all heads share."""
    return k if weights.W_KR is None else torch.cat([k, project(x, weights.W_KR, weights.b_KR)], dim=-1)


def latent(
    x: Float[Tensor, "batch pos d_model"],
    W: Float[Tensor, "d_model rank"],
    b: Float[Tensor, " rank"] | None,
    affine: Affine,
    norm: Norm,
    scale: float,
) -> Float[Tensor, "batch pos rank"]:
    """scale norm(x W + b)."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = einsum(x.to(wide), W.to(wide), "batch pos d_model, d_model rank -> batch pos rank")
    c = rearrange((y if b is None else y + b).to(x.dtype), "batch pos rank -> batch pos 1 rank")
    return scale * rearrange(normalise(c, affine, norm), "batch pos 1 rank -> batch pos rank")


def multiply(x: Float[Tensor, "*axes"], factor: float) -> Float[Tensor, "*axes"]:
    """The family's multiplier of a projection."""
    return x if factor == 1 else factor * x


def clip(x: Float[Tensor, "*axes"], bound: float | None) -> Float[Tensor, "*axes"]:
    """min(max(x, -bound), bound)."""
    return x if bound is None else x.clamp(-bound, bound)
