"""Mix of values (clauses MIX-1, MIX-3)."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ropebridge.base import AttentionBridge
from ropebridge.products import grouped_product
from ropebridge.stages.differential import subtract
from ropebridge.stages.norm import normalise
from ropebridge.stages.project import multiply


def mix_values(pattern: Tensor, v: Tensor) -> Tensor:
    """Return (batch, head, query, width): pattern (batch, head, query, key) times the values
    (batch, kv_head, key, width) of each head's kv head."""
    return grouped_product(pattern, v)


def finish_mix(z: Tensor, v: Tensor | None, gate: Tensor | None, layer: AttentionBridge) -> Tensor:
    """Return what hook_z left, (batch, pos, head, d_head_v): the mix of values subtracted,
    normalised and gated where the family does so.

    Args:
        z: (batch, pos, head, width), each head's mix. v: (batch, pos, kv_head, d_head_v), the
            values of this call, or None.
        gate: (batch, pos, head, d_head_v) or (batch, pos, head), or None.
    """
    variant = layer.variant
    if variant.differential is not None:
        z = subtract(z, layer.wrapped, variant.differential)
    if variant.exclusive is not None and v is not None:
        z = exclude(z, v, layer.wrapped, variant.exclusive)
    if variant.z_norm is not None:
        rows = z.flatten(-2) if variant.z_norm.over == "flat" else z
        z = normalise(rows, layer.submodule("z_norm"), variant.z_norm).view(z.shape)
    if gate is not None:
        z = z * (gate if gate.ndim == z.ndim else gate.unsqueeze(-1))
    # autograd may have kept z for the backward pass, and raw hooks what a norm made
    alone = variant.z_norm is None and not torch.is_grad_enabled()
    return layer.show("hook_z", multiply(z, variant.z_multiplier), fresh=alone)


def exclude(z: Tensor, v: Tensor, module: nn.Module, alpha: str) -> Tensor:
    """Return z (batch, pos, head, d_head_v) less its part along the query's own value (batch, pos,
    kv_head, d_head_v) (MIX-3)."""
    wide = torch.promote_types(v.dtype, torch.float32)
    unit = F.normalize(v.to(wide), dim=-1).to(z.dtype)
    unit = unit.repeat_interleave(z.shape[2] // v.shape[2], dim=2)  # (batch, pos, head, d_head_v)
    strength: Tensor = torch.tanh(attrgetter(alpha)(module)).to(z.dtype)[:, None]
    return z - strength * (z * unit).sum(-1, keepdim=True) * unit
