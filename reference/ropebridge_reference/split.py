"""Clauses KV-2, SPLIT-1 and SPLIT-3: what the heads read."""

from __future__ import annotations

from dataclasses import replace

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from ropebridge_reference.weights import Affine, Weights
from ropebridge_spec import Source, Variant


def copies(
    x: Float[Tensor, "batch pos width"], heads: int
) -> Float[Tensor, "batch pos head width"]:
    """Return what each of so many heads reads: the residual stream, or a latent that all share."""
    return repeat(x, "batch pos width -> batch pos head width", head=heads)


def join_source(
    x: Float[Tensor, "batch pos d_model"],
    states: Float[Tensor, "batch source d_model"],
    source: Source,
) -> Float[Tensor, "batch kv_pos d_model"]:
    """Return what key and value are projected from, in the order of the keys (KV-2)."""
    return torch.cat([states, x] if source.place == "before" else [x, states], dim=1)


def a_key_for_every_head(weights: Weights, variant: Variant) -> tuple[Weights, Variant]:
    """Return the weights with those of a kv head once for each query head that shares it (SPLIT-3),
    and the variant, in which kv_head is then head."""
    group = variant.group
    by_head = replace(
        weights,
        W_K=for_every_head(weights.W_K, group),
        W_V=for_every_head(weights.W_V, group),
        b_K=for_every_head(weights.b_K, group),
        b_V=for_every_head(weights.b_V, group),
        k_norm=key_norm_for_every_head(weights.k_norm, variant),
    )
    return by_head, replace(variant, kv_heads=variant.heads)


def for_every_head(
    weight: Float[Tensor, "kv_head *axes"] | None, group: int
) -> Float[Tensor, "head *axes"] | None:
    """Return a weight of each kv head once for each query head of its group."""
    if weight is None:
        return None
    return repeat(weight, "kv_head ... -> (kv_head group) ...", group=group)


def key_norm_for_every_head(affine: Affine, variant: Variant) -> Affine:
    """Return the key norm's weight and bias, where they tell heads apart, once for each query
    head."""
    norm = variant.norm
    if norm is None or (norm.over == "head" and not norm.per_head):
        return affine
    if norm.per_head:
        return Affine(
            for_every_head(affine.weight, variant.group), for_every_head(affine.bias, variant.group)
        )
    return Affine(
        row_for_every_head(affine.weight, variant), row_for_every_head(affine.bias, variant)
    )


def row_for_every_head(
    row: Float[Tensor, " kv_head_d_head"] | None, variant: Variant
) -> Float[Tensor, " head_d_head"] | None:
    """Return a row over all kv heads as one over all query heads."""
    if row is None:
        return None
    by_kv_head = rearrange(row, "(kv_head d_head) -> kv_head d_head", kv_head=variant.kv_heads)
    return repeat(by_kv_head, "kv_head d_head -> (kv_head group d_head)", group=variant.group)
