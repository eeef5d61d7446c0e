"""Clauses PROJ-1 and CLIP-1: from what the heads read to query, key and value."""

from __future__ import annotations

import torch
from einops import einsum, repeat
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.norm import normalise
from ropebridge_reference.weights import Weights
from ropebridge_spec import Norm


def project_heads(
    x: Float[Tensor, "batch pos head d_model"],
    W: Float[Tensor, "head d_model d_head"],
    b: Float[Tensor, "head d_head"] | None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Return x W + b, each head with its own input and its own weights; summed in at least float32,
    rounded once."""
    wide = torch.promote_types(x.dtype, torch.float32)
    y = einsum(
        x.to(wide),
        W.to(wide),
        "batch pos head d_model, head d_model d_head -> batch pos head d_head",
    )
    return (y if b is None else y + b).to(x.dtype)


def adapt(
    y: Float[Tensor, "batch pos head width"],
    x: Float[Tensor, "batch pos head d_model"],
    adapter: tuple[Float[Tensor, "d_model adapter"], Float[Tensor, "head adapter width"]] | None,
) -> Float[Tensor, "batch pos head width"]:
    """Return a projection, and what its adapter adds (LoRA, arXiv:2106.09685)."""
    if adapter is None:
        return y
    down, up = adapter
    return y + project_heads(
        project_heads(
            x, repeat(down, "d_model adapter -> head d_model adapter", head=x.shape[2]), None
        ),
        up,
        None,
    )


def with_rotary_part(
    k: Float[Tensor, "batch pos head d_head_k"],
    x: Float[Tensor, "batch pos head d_model"],
    weights: Weights,
    norm: Norm | None = None,
) -> Float[Tensor, "batch pos head d_head"]:
    """Return the key heads; with latents, what came up from the latent is followed by the rotary
    part that all heads share, normed where the family does so."""
    if weights.W_KR is None:
        return k
    rotary = project_heads(x, weights.W_KR, weights.b_KR)
    return torch.cat(
        [k, rotary if norm is None else normalise(rotary, weights.k_rotary_norm, norm)], dim=-1
    )


def multiply(x: Float[Tensor, "*axes"], factor: float) -> Float[Tensor, "*axes"]:
    """Return the family's multiplier of a projection."""
    return x if factor == 1 else factor * x


def add(
    v: Float[Tensor, "batch pos head d"], added_value: Float[Tensor, "batch pos kv_head d"]
) -> Float[Tensor, "batch pos head d"]:
    """Return the value and what the model hands down to be added to it, the same for all heads that
    share it."""
    return v + repeat(
        added_value,
        "batch pos kv_head d -> batch pos (kv_head group) d",
        group=v.shape[2] // added_value.shape[2],
    )


def clip(x: Float[Tensor, "*axes"], bound: float | None) -> Float[Tensor, "*axes"]:
    """Return min(max(x, -bound), bound), or x where there is no bound."""
    return x if bound is None else x.clamp(-bound, bound)
