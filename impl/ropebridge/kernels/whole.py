"""Scores and pattern made whole, once, and shown to hooks (clauses SCORE-1, PAT-1)."""

from __future__ import annotations

from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.kernels.row_blocks import drop_by_rows
from ropebridge.masks import Visibility
from ropebridge.stages.mix import mix_values
from ropebridge.stages.pattern import make_pattern, show_pattern
from ropebridge.stages.scores import score_keys, show_scores


def attend_shown(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> tuple[Tensor, Tensor]:
    """Return z (batch, head, query, width), and the pattern (batch, head, query, key) that
    hook_pattern left."""
    mask = seen.block(slice(0, seen.query), slice(0, seen.key))
    scores = score_keys(q, k, mask, layer.effective)
    scores = show_scores(scores, mask, q.dtype, layer.hook("hook_attn_scores"))
    pattern = make_pattern(scores, layer.sinks).to(v.dtype)
    pattern = show_pattern(pattern, layer.hook("hook_pattern"))
    return mix_values(drop_by_rows(pattern, layer.dropout), v), pattern
