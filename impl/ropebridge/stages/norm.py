"""Norms of query, key, value, latents and z (clause NORM-1)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.dispatch import weight_of
from ropebridge.heads import Heads
from ropebridge.stages.project import clip
from ropebridge.stages.split import repeat_heads
from ropebridge_spec import Norm


def norm_q_and_k(heads: Heads, layer: AttentionBridge) -> Heads:
    """Return the heads, query and key as hook_q_normed and hook_k_normed left them (NORM-1, NORM-3,
    CLIP-1). The hooks are shown the family's axes: all heads in one axis where they are normalised
    together."""
    norm = layer.variant.norm
    assert norm is not None
    bound = layer.variant.clip if layer.variant.norms_before_rotation else None
    q = clip(norm_query(heads.q, norm, layer), bound)
    q = layer.show("hook_q_normed", q).reshape(heads.q.shape)
    if heads.k is None:
        return Heads(q, heads.k, heads.v, heads.gate)
    k = clip(norm_key(heads.k, norm, layer), bound)
    k = layer.show("hook_k_normed", k).reshape(heads.k.shape)
    return Heads(q, k, heads.v, heads.gate)


def norm_value(heads: Heads, layer: AttentionBridge) -> Heads:
    """Return the heads, the value as hook_v_normed left it."""
    norm = layer.variant.value_norm
    if norm is None or heads.v is None:
        return heads
    v = normalise(heads.v, layer.submodule("v_norm"), norm)
    return heads._replace(v=layer.show("hook_v_normed", v))


def norm_query(q: Tensor, norm: Norm, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, head, d_head), or (batch, pos, head d_head) where all heads are
    normalised together."""
    module = layer.submodule("q_norm")
    return normalise(q.flatten(-2) if norm.over == "flat" else q, module, norm)


def norm_key(k: Tensor, norm: Norm, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, kv_head, d_head), or (batch, pos, kv_head d_head) where all heads are
    normalised together.

    Under `attn_in` there is a key for each query head (SPLIT-3), and the module's weights are for
    kv heads: a weight for all heads together is repeated, one for each head is read by kv head.
    """
    module = layer.submodule("k_norm")
    repeated = "attn_in" in layer.opted_in
    if norm.over == "flat":
        rows = k.flatten(-2)  # (batch, pos, kv_head d_head)
        if not repeated or (norm.weight == "none" and not norm.bias):
            return normalise(rows, module, norm)
        weight, bias = (repeat_flat(row, k.shape[-1], layer) for row in affine(module, norm))
        return by_formula(rows, weight, bias, norm)
    if not repeated or norm.module_per_head:
        return normalise(k, module, norm)
    by_kv_head = k.unflatten(2, (-1, layer.variant.group)).transpose(2, 3)
    shown = normalise(by_kv_head, module, norm)  # (batch, pos, group, kv_head, d_head)
    return shown.transpose(2, 3).flatten(2, 3)


def repeat_flat(row: Tensor | None, d_head: int, layer: AttentionBridge) -> Tensor | None:
    """Return (head d_head,): a weight or bias (kv_head d_head,), once for each query head."""
    if row is None:
        return None
    return repeat_heads(row.unflatten(0, (-1, d_head)), 0, layer).flatten()


def normalise(x: Tensor, module: Any, norm: Norm) -> Tensor:
    """Normalise the last axis of (batch, pos, head, width), or (batch, pos, head width), by the
    family's own module.

    In float64 it goes by the formula, because the module would round to float32.
    """
    if x.dtype == torch.float64:
        return by_formula(x, *affine(module, norm), norm)
    unit: Tensor = norm_head_by_head(x, module) if norm.module_per_head else module(x)
    return unit


def affine(module: Any, norm: Norm) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias of a norm, (width,), or (head, width) where each head has a module of
    its own; None where there is none."""
    if norm.module_per_head:
        weights = torch.stack([weight_of(part, "weight") for part in module.norms])
        if not norm.bias:
            return weights, None
        return weights, torch.stack([weight_of(part, "bias") for part in module.norms])
    weight = None if norm.weight == "none" else weight_of(module, "weight")
    return weight, weight_of(module, "bias") if norm.bias else None


def norm_head_by_head(x: Tensor, module: Any) -> Tensor:
    """Return each head by its own norm: the module takes (batch, head, pos, width). Several heads
    may share a norm, side by side."""
    batch, pos, heads, width = x.shape
    norms = len(module.norms)
    # (batch, norm, pos, heads of a norm, width)
    grouped = x.reshape(batch, pos, norms, heads // norms, width).permute(0, 2, 1, 3, 4)
    unit: Tensor = module(grouped.flatten(2, 3))
    return unit.reshape(grouped.shape).permute(0, 2, 1, 3, 4).reshape(x.shape)


def by_formula(x: Tensor, weight: Tensor | None, bias: Tensor | None, norm: Norm) -> Tensor:
    """Return the formula of clause NORM-1, in at least float32; the result has the shape and the
    dtype of x."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide - wide.mean(-1, keepdim=True) if norm.kind == "layer" else wide
    unit = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
    unit = unit.to(x.dtype) if norm.rounds_before_weight else unit
    if weight is not None:
        unit = unit * (weight if norm.weight == "scale" else 1.0 + weight.to(wide.dtype))
    return (unit if bias is None else unit + bias).to(x.dtype)
