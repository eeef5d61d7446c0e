"""Scores, pattern and mix by plain operations of torch: whole where hooks are shown them, else for
one block of query rows at a time. Derivatives of every order, transforms and compilers pass
through."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.base import AttentionBridge
from ropebridge.masks import Visibility
from ropebridge.stages.mix import mix_values
from ropebridge.stages.pattern import make_pattern, show_pattern
from ropebridge.stages.scores import score_keys, show_scores
from ropebridge_spec import Variant

ROWS = 128
"""Query rows per block: bounds what is held at a time to heads x ROWS x keys scores."""


def row_slices(query: int, rows: int) -> list[slice]:
    """Return the query rows, so many at a time; of no rows one block all the same, so that z has a
    shape."""
    return [slice(start, min(start + rows, query)) for start in range(0, max(query, 1), rows)]


def by_rows(block: Callable[[slice], Tensor], query: int) -> Tensor:
    """Return (batch, head, query, width): that of every block of rows, joined."""
    blocks = [block(rows) for rows in row_slices(query, ROWS)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def attend_unseen(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Visibility,
    variant: Variant,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return z (batch, head, query, width) by scores and pattern that nobody is shown."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)

    def block(rows: slice) -> Tensor:
        # dropout draws for whole rows, watched or not
        keys = slice(0, seen.key) if dropout else seen.keys_of(rows)
        scores = score_keys(q[:, :, rows], k[:, :, keys], seen.block(rows, keys), variant)
        pattern = make_pattern(scores, sinks).to(v.dtype)
        return mix_values(F.dropout(pattern, dropout), v[:, :, keys])

    return by_rows(block, q.shape[2])


def attend_shown(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> tuple[Tensor, Tensor]:
    """Return z (batch, head, query, width), and the pattern (batch, head, query, key) that
    hook_pattern left."""
    mask = seen.block(slice(0, seen.query), slice(0, seen.key))
    scores = score_keys(q, k, mask, layer.effective)
    scores = show_scores(scores, mask, q.dtype, layer.hook("hook_attn_scores"))
    pattern = make_pattern(scores, layer.sinks).to(v.dtype)
    # with gradients softmax keeps its result for the backward pass
    own = pattern.clone() if torch.is_grad_enabled() else pattern
    pattern = show_pattern(own, layer.hook("hook_pattern"))
    return mix_values(drop_by_rows(pattern, layer.dropout), v), pattern


def drop_by_rows(pattern: Tensor, dropout: float) -> Tensor:
    """Return (batch, head, query, key): a whole pattern after dropout, drawn block by block: the
    numbers do not depend on who watches (DROP-1)."""
    if not dropout:
        return pattern
    return by_rows(lambda rows: F.dropout(pattern[:, :, rows], dropout), pattern.shape[2])
