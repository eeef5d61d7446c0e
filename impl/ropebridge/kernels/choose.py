"""Choice of how each head's mix of values is made: work follows demand."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.hooks import under_transform
from ropebridge.kernels.fused import attend_fused
from ropebridge.kernels.row_blocks import attend_by_rows
from ropebridge.kernels.whole import attend_shown
from ropebridge.masks import Visibility
from ropebridge.stages.differential import side_by_side


def attend(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, wants_pattern: bool, layer: AttentionBridge
) -> tuple[Tensor, Tensor | None]:
    """Return z (batch, pos, head, width), and the pattern (batch, head, query, key) if the call
    wants it or a hook watches it or the scores, else None.

    Args:
        q: (batch, pos, head, d_head). k, v: (batch, kv_head, key, width).
    """
    q = q.transpose(1, 2)  # (batch, head, pos, d_head)
    v = v if layer.variant.differential is None else side_by_side(v)
    shown = layer.hook("hook_pattern").watched
    if wants_pattern or shown or layer.hook("hook_attn_scores").watched:
        z, pattern = attend_shown(q, k, v, seen, layer)
        # what hooks were shown is nobody else's (EDIT-2)
        return z.transpose(1, 2), pattern.clone() if wants_pattern and shown else pattern
    if needs_scores(v, layer) or differentiates_as_eager(q, layer):
        z = attend_by_rows(q, k, v, seen, layer.effective, layer.sinks, layer.dropout)
    else:
        z = attend_fused(q, k, v, seen, layer.variant.scale)
    return z.transpose(1, 2), None


def differentiates_as_eager(q: Tensor, layer: AttentionBridge) -> bool:
    """Return whether derivatives are taken of a layer whose model attends by eager: these may be
    second ones, or forward ones, which the fused kernel does not have."""
    if getattr(layer.config_in_force, "_attn_implementation", None) != "eager":
        return False
    return (torch.is_grad_enabled() and q.requires_grad) or under_transform()


def needs_scores(v: Tensor, layer: AttentionBridge) -> bool:
    """Return whether a layer does between scores and mix what the fused kernel cannot."""
    capped = layer.effective.softcap is not None
    return (
        bool(layer.dropout)
        or capped
        or layer.sinks is not None
        or v.shape[-1] != layer.variant.d_head
    )
