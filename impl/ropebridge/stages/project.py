"""Projections: query, key and value of each head (clauses PROJ-1, CLIP-1)."""

from __future__ import annotations

from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.calls import Call
from ropebridge.heads import Heads, split_fused, split_heads, split_query
from ropebridge.stages.split import add_split_inputs, repeat_for_query_heads, repeat_heads


def finish_projections(heads: Heads, x: Tensor, call: Call, layer: AttentionBridge) -> Heads:
    """Return query, key and value of this call's positions, (batch, pos, heads, width), as hook_q,
    hook_k and hook_v left them: with what hooks changed in split inputs, times the family's
    factors, clipped."""
    heads = add_split_inputs(repeat_for_query_heads(heads, layer), x, layer)
    variant = layer.variant
    bound = None if variant.norms_before_rotation else variant.clip
    q = layer.show("hook_q", clip(heads.q, bound), made_by="q")
    if heads.k is None:
        return Heads(q, heads.k, heads.v, heads.gate)
    k = clip(multiply(heads.k, variant.k_multiplier), bound)
    k = layer.show("hook_k", k, made_by="k")
    if heads.v is None:
        return Heads(q, k, layer.show("hook_v", k), heads.gate)
    v = clip(multiply(heads.v, variant.v_multiplier), variant.clip)
    v = layer.show("hook_v", add_value(v, call, layer), made_by="v")
    return Heads(q, k, v, heads.gate)


def heads_of_input(x: Tensor, x_kv: Tensor, call: Call, layer: AttentionBridge) -> Heads:
    """Return query, key and value, (batch, pos, heads, width), through the module's own
    projections; None where it has none."""
    if "qkv" in layer.roles:
        return Heads(*split_fused(project("qkv", x, call, layer), layer.variant))
    q, gate = split_query(project("q", x, call, layer), layer.variant)
    k = v = None
    if "k" in layer.roles:
        k = split_heads(project("k", x_kv, call, layer), "k", layer.variant)
    if "v" in layer.roles:
        v = split_heads(project("v", x_kv, call, layer), "v", layer.variant)
    return Heads(q, k, v, gate)


def project(role: str, x: Tensor, call: Call, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, rows): a projection, and what the layer's adapter beside it adds."""
    rows: Tensor = layer.submodule(role)(x)
    adapters = layer.variant.projections.beside
    if adapters is None:
        return rows
    own = layer.wrapped.layer_dic[call.cache_layer]
    added: Tensor = getattr(layer.wrapped, adapters.format(role))[own](x)
    return rows + added


def multiply(x: Tensor, factor: float) -> Tensor:
    """Return x, of any shape, times the family's factor."""
    return x if factor == 1 else x * factor


def clip(x: Tensor, bound: float | None) -> Tensor:
    """Return x, of any shape, within a bound, or as it is where there is none (CLIP-1)."""
    return x if bound is None else x.clamp(-bound, bound)


def add_value(v: Tensor, call: Call, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, kv_head, d_head_v): the value, and what the model hands down to be added
    to it."""
    if call.added_value is None:
        return v
    added = split_heads(call.added_value, "v", layer.variant)
    return v + (added if added.shape[2] == v.shape[2] else repeat_heads(added, 2, layer))
