"""Scores and pattern made by blocks of query rows, whole, and shown to hooks (clauses SCORE-1,
PAT-1). Where hooks watch the pattern, z is made of what they left of it: torch does not count what
they write through `.data` or numpy, and that is an edit too. A cache is known to look alone."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.base import AttentionBridge
from ropebridge.kernels.gradients import MixOfBlocks, PatternOfBlocks, Scoring
from ropebridge.kernels.row_blocks import Block, RowBlocks, is_everywhere, mix
from ropebridge.masks import Visibility
from ropebridge.readable import version
from ropebridge.stages.pattern import show_pattern
from ropebridge.stages.scores import refuse_forbidden_keys, refuse_no_numbers


def attend_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> tuple[Tensor, Tensor]:
    """Return z (batch, query, head, width), and the pattern (batch, head, query, key) that
    hook_pattern left; no autograd."""
    blocks = RowBlocks(q, k, seen, layer.effective, layer.sinks, layer.kernels.rows)
    shape = (*q.shape[:3], k.shape[2])
    point = layer.hook("hook_pattern")
    values = v if point.looked_at else None
    scores = show_scores(blocks, shape, layer)
    pattern, clean = layer.memory.lend(shape, q, v.dtype)
    z = blocks.write_pattern(pattern, clean, scores, values)
    del scores
    left = show_pattern(pattern, point)
    return mix(left, v, layer.kernels.rows) if z is None else z, left


def show_scores(blocks: RowBlocks, shape: tuple[int, ...], layer: AttentionBridge) -> Tensor | None:
    """Return the scores (batch, head, query, key) that hook_attn_scores left, in the layer's dtype;
    None where nobody watches them.

    Raises:
        ContractError: an edit left NaN or +inf (SCORE-3), or a number at a key that its query may
            not see (SCORE-6).
    """
    point = layer.hook("hook_attn_scores")
    if not point.watched:
        return None
    scores, _ = layer.memory.lend(shape, blocks.q, blocks.dtype)
    blocks.write_scores(scores)
    left, edited = point.show(scores)
    for block in blocks.blocks if edited else ():
        refuse_edit(left[:, :, block.rows], block, blocks.seen, point.name)
    return left


def refuse_edit(scores: Tensor, block: Block, seen: Visibility, name: str) -> None:
    """Refuse what an edit may not leave in the scores (batch, head, rows, key) of some rows."""
    keys = block.keys
    refuse_no_numbers(scores, name)
    if not is_everywhere(scores, -torch.inf, but=keys):
        refuse_forbidden_keys(scores, torch.zeros_like(scores, dtype=torch.bool), name)
    for border in seen.borders(block.rows, keys):
        refuse_forbidden_keys(scores[..., border], seen.block(block.rows, border), name)


def differentiate_by_blocks(
    q: Tensor, k: Tensor, v: Tensor, seen: Visibility, layer: AttentionBridge
) -> tuple[Tensor, Tensor]:
    """Return what `attend_by_blocks` does, with first derivatives."""
    scoring = Scoring(seen, layer.effective, layer.kernels.rows, layer.memory)
    pattern: Tensor = PatternOfBlocks.apply(  # type: ignore[no-untyped-call]
        q, k, scoring
    )
    before = version(pattern)
    left = show_pattern(pattern, layer.hook("hook_pattern"))
    edited = left is not pattern or version(left) != before
    z: Tensor = MixOfBlocks.apply(  # type: ignore[no-untyped-call]
        left, v, edited, scoring
    )
    return z, left
