"""Inputs: what the heads read (clauses KV-2, SPLIT-1 to SPLIT-3)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.heads import Heads
from ropebridge.products import head_by_head


def join_source(x: Tensor, source: Tensor | None, layer: AttentionBridge) -> Tensor:
    """Return (batch, kv_pos, d_model): what key and value are projected from: hook_in, and the
    states of another sequence through hook_kv_in (KV-2)."""
    if layer.variant.source is None or source is None:
        return x
    states = layer.show("hook_kv_in", source)
    before = layer.variant.source.place == "before"
    return torch.cat([states, x] if before else [x, states], dim=1)


def repeat_for_query_heads(heads: Heads, layer: AttentionBridge) -> Heads:
    """Return the heads; where `attn_in` is opted in to, a key and a value for each query head
    (SPLIT-3)."""
    if "attn_in" not in layer.opted_in:
        return heads
    k, v = (x if x is None else repeat_heads(x, 2, layer) for x in (heads.k, heads.v))
    return heads._replace(k=k, v=v)


def repeat_heads(x: Tensor, axis: int, layer: AttentionBridge) -> Tensor:
    """Return a tensor whose kv heads, along an axis, stand once for each query head that shares
    them."""
    return x.repeat_interleave(layer.variant.group, dim=axis)


def add_split_inputs(heads: Heads, x: Tensor, layer: AttentionBridge) -> Heads:
    """Return the heads with what hooks changed in the inputs that are split by head (SPLIT-1).

    x was projected once, for all heads, by the module itself. Only what a hook added to a head's
    copy of x goes through that head's weights besides, and that is exactly 0 where hooks only
    looked (LOOK-1).
    """
    if "attn_in" in layer.opted_in and layer.hook("hook_attn_in").watched:
        change = change_of_copies("hook_attn_in", x, heads.q.shape[2], layer)
        return add_projections(heads, change, change, change, layer)
    if "split_qkv_input" in layer.opted_in and heads.k is not None and heads.v is not None:
        of_q = change_of_copies("hook_q_input", x, heads.q.shape[2], layer)
        of_k = change_of_copies("hook_k_input", x, heads.k.shape[2], layer)
        of_v = change_of_copies("hook_v_input", x, heads.v.shape[2], layer)
        return add_projections(heads, of_q, of_k, of_v, layer)
    return heads


def change_of_copies(name: str, x: Tensor, heads: int, layer: AttentionBridge) -> Tensor | None:
    """Return (batch, pos, heads, d_model): what hooks added to each head's copy of x; None where
    nobody watches."""
    if not layer.hook(name).watched:
        return None
    copies = x.unsqueeze(2).expand(-1, -1, heads, -1)
    return layer.show(name, copies) - copies


def add_projections(
    heads: Heads,
    of_q: Tensor | None,
    of_k: Tensor | None,
    of_v: Tensor | None,
    layer: AttentionBridge,
) -> Heads:
    """Return the heads and, added to each, its own weights' projection of a change (batch, pos,
    heads, d_model) of its input."""
    q, k, v = heads.q, heads.k, heads.v
    if of_q is not None:
        q = q + head_by_head(of_q, layer.W_Q)
    if of_k is not None and k is not None:
        k = k + head_by_head(of_k, weight_for(k, layer.W_K, layer))
    if of_v is not None and v is not None:
        v = v + head_by_head(of_v, weight_for(v, layer.W_V, layer))
    return Heads(q, k, v, heads.gate)


def weight_for(heads: Tensor, weight: Tensor, layer: AttentionBridge) -> Tensor:
    """Return a weight (kv_head, d_model, width) once for each of the heads (batch, pos, heads,
    width)."""
    return weight if heads.shape[2] == weight.shape[0] else repeat_heads(weight, 0, layer)
