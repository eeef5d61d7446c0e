"""Latents: what query, key and value come up from in multi-head latent attention (clause LAT-1)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.heads import Heads, split_query
from ropebridge.stages.norm import normalise


@dataclass(frozen=True)
class Latents:
    """Hold what the heads come up from.

    q: (batch, pos, q_rank), followed by the latent before its norm where the family brings that up
        too; hook_in where the query has no latent. kv: (batch, pos, kv_rank). rotary: (batch, pos,
        width), the rotary part of the key that all heads share.
    """

    q: Tensor
    kv: Tensor
    rotary: Tensor


def make_latents(x: Tensor, layer: AttentionBridge) -> Latents | None:
    """Return what hook_q_latent and hook_kv_latent left, and the rotary part of the key; None in a
    layer without latents."""
    latent = layer.variant.latent
    if latent is None:
        return None
    q = x
    if latent.q_rank is not None:
        down = layer.submodule("q_down")(x)
        c_q = normalise_latent(down, "q_latent_norm", latent.q_scale, layer)
        q = layer.show("hook_q_latent", torch.cat([c_q, down], dim=-1) if latent.q_beside else c_q)
    down = layer.submodule("kv_down")(x)
    kv, rotary = down[..., : latent.kv_rank], down[..., latent.kv_rank :]
    kv = normalise_latent(kv, "kv_latent_norm", latent.kv_scale, layer)
    kv = layer.show("hook_kv_latent", kv)
    if latent.rotary_norm is not None:
        rotary = normalise(rotary, layer.submodule("k_rotary_norm"), latent.rotary_norm)
    return Latents(q, kv, rotary)


def normalise_latent(down: Tensor, role: str, scale: float, layer: AttentionBridge) -> Tensor:
    """Return (batch, pos, rank): a latent, normalised and scaled."""
    latent = normalise(down, layer.submodule(role), layer.variant.norm_in(role))
    return latent if scale == 1 else latent * scale


def heads_of_latents(latents: Latents, layer: AttentionBridge) -> Heads:
    """Return query, key and value of each head, (batch, pos, head, width): what comes up from the
    latents, and the rotary part at the end of every key."""
    variant, latent = layer.variant, layer.variant.latent
    assert latent is not None
    up = layer.submodule("q" if latent.q_rank is None else "q_up")
    q, gate = split_query(up(latents.q), variant)
    own = variant.d_head - latents.rotary.shape[-1]
    widths = [own, variant.d_head_v]
    keys_and_values = layer.submodule("kv_up")(latents.kv).unflatten(-1, (-1, sum(widths)))
    k, v = keys_and_values.split(widths, dim=-1)
    rotary = latents.rotary.unsqueeze(2).expand(-1, -1, k.shape[2], -1)
    return Heads(q, torch.cat([k, rotary], dim=-1), v, gate)
