"""Bias that a key has by its values (clause SCORE-5)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.base import AttentionBridge
from ropebridge.masks import Visibility


def add_key_bias(seen: Visibility, values: Tensor, layer: AttentionBridge) -> Visibility:
    """Return what may be seen, with the bias that keys have by their values (batch, kv_head, key,
    d_head_v); as it is in a family that has none."""
    kind = layer.variant.key_bias
    if kind is None:
        return seen
    rows = values.transpose(1, 2).flatten(-2)  # (batch, key, kv_head d_head_v)
    logits = layer.submodule("key_bias")(rows)  # (batch, key, kv_head)
    wide = torch.promote_types(logits.dtype, torch.float32)
    factor: Tensor = getattr(layer.wrapped, kind.factor).to(wide)
    bias = (factor * F.softplus(logits.to(wide))).exp().transpose(1, 2)  # (batch, kv_head, key)
    by_head = bias.repeat_interleave(layer.variant.group, dim=1).unsqueeze(2)
    return seen._replace(key_bias=by_head, keep=kind.keep)
