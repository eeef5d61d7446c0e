"""Pattern and mix with first derivatives, by blocks of query rows, forward and backward.

The pattern stands between two functions, because hooks read and edit the gradient there (GRAD-1).
A derivative of a derivative goes by plain operations of torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ropebridge.kernels.buffers import Buffers
from ropebridge.kernels.composite import row_slices
from ropebridge.kernels.row_blocks import RowBlocks, mix
from ropebridge.masks import Visibility
from ropebridge.products import grouped_product
from ropebridge.stages.pattern import make_pattern
from ropebridge.stages.scores import score_keys
from ropebridge_spec import Variant


@dataclass
class Scoring:
    """Hold what makes a pattern of query and key, and what one backward pass hands to the next.

    seen: which keys each query may see. variant: scale. rows: query rows per block. buffers: where
        memory is lent. pattern: as it was made, once the backward pass of the mix has it.
    """

    seen: Visibility
    variant: Variant
    rows: int
    buffers: Buffers
    pattern: Tensor | None = None

    def blocks(self, q: Tensor, k: Tensor) -> RowBlocks:
        """Return what makes scores and pattern of query and key."""
        return RowBlocks(q, k, self.seen, self.variant, rows=self.rows)


class PatternOfBlocks(torch.autograd.Function):
    """Make the pattern of query and key."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, scoring: Scoring) -> Tensor:
        """Return the pattern (batch, head, query, key)."""
        pattern, clean = scoring.buffers.lend((*q.shape[:3], k.shape[2]), q, q.dtype)
        scoring.blocks(q, k).write_pattern(pattern, clean, None, None)
        # not the pattern: hooks may write into it
        ctx.save_for_backward(q, k)
        ctx.scoring = scoring
        return pattern

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of query and key."""
        q, k = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        pattern, scoring.pattern = scoring.pattern, None
        if torch.is_grad_enabled():
            of_q, of_k = derivable_gradients(q, k, gradient, scoring)
        else:
            of_q, of_k = gradients(scoring.blocks(q, k), gradient, pattern)
        return of_q.to(q.dtype), of_k.view(k.shape).to(k.dtype), None


def gradients(blocks: RowBlocks, gradient: Tensor, pattern: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the gradients of query (batch, head, query, d_head) and key (batch kv_head, key,
    d_head), of one at the pattern (batch, head, query, key).

    Args:
        blocks: what made the pattern. gradient: (batch, head, query, key).
        pattern: as it was made; None where it must be made again.
    """
    scale = blocks.variant.scale
    of_q = torch.empty_like(blocks.q, dtype=blocks.wide)
    of_k = torch.zeros_like(blocks.k)
    for block in blocks.blocks:
        if pattern is None:
            weights = blocks.weigh(blocks.score(block))
        else:
            weights = pattern[:, :, block.rows, block.keys].to(blocks.wide)
        # the derivative of softmax: p * (g - sum(p * g))
        of_scores = weights * gradient[:, :, block.rows, block.keys]
        of_scores.addcmul_(weights, of_scores.sum(-1, keepdim=True), value=-1)
        stacked = blocks.grouped(of_scores)  # (batch kv_head, group rows, keys)
        part = torch.bmm(stacked, blocks.k[:, block.keys])
        of_q[:, :, block.rows] = part.view(*of_scores.shape[:-1], -1) * scale
        of_k[:, block.keys].baddbmm_(stacked.transpose(1, 2), blocks.query_of(block, scale))
    return of_q, of_k


def derivable_gradients(
    q: Tensor, k: Tensor, gradient: Tensor, scoring: Scoring
) -> tuple[Tensor, Tensor]:
    """Return what `gradients` does, the key's as (batch, kv_head, key, d_head), by operations that
    have derivatives of their own."""
    seen, variant = scoring.seen, scoring.variant
    mask = seen.block(slice(0, seen.query), slice(0, seen.key))
    weights = make_pattern(score_keys(q, k, mask, variant), None)
    of_scores = weights * gradient
    of_scores = of_scores - weights * of_scores.sum(-1, keepdim=True)
    of_q = grouped_product(of_scores, k.to(weights.dtype)) * variant.scale
    return of_q, summed_over_group(of_scores, q.to(weights.dtype), k.shape[1]) * variant.scale


class MixOfBlocks(torch.autograd.Function):
    """Mix the values by a pattern."""

    @staticmethod
    def forward(ctx: Any, pattern: Tensor, v: Tensor, edited: bool, scoring: Scoring) -> Tensor:
        """Return z (batch, query, head, width).

        Args:
            ctx: what backward is handed.
            pattern: (batch, head, query, key). v: (batch, kv_head, key, width).
            edited: whether a hook replaced it or wrote into it. scoring: what made it.
        """
        ctx.save_for_backward(pattern, v)
        ctx.edited, ctx.scoring = edited, scoring
        return mix(pattern, v, scoring.rows)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of pattern and values."""
        pattern, v = ctx.saved_tensors
        scoring: Scoring = ctx.scoring
        of_z = gradient.transpose(1, 2)  # (batch, head, query, width)
        asked_pattern, asked_v = ctx.needs_input_grad[:2]
        of_pattern = of_v = None
        if torch.is_grad_enabled():
            of_pattern = grouped_product(of_z, v.transpose(2, 3)) if asked_pattern else None
            of_v = summed_over_group(pattern, of_z, v.shape[1]) if asked_v else None
            return of_pattern, of_v, None, None
        if asked_pattern:
            of_pattern, _ = scoring.buffers.lend(tuple(pattern.shape), pattern, pattern.dtype)
            fill_gradient_of_pattern(of_pattern, of_z, v, scoring.rows)
        if asked_v:
            seen = None if ctx.edited else scoring.seen
            of_v = gradient_of_values(pattern, of_z, v, seen, scoring.rows)
        scoring.pattern = None if ctx.edited else pattern
        return of_pattern, of_v, None, None


def fill_gradient_of_pattern(whole: Tensor, of_z: Tensor, v: Tensor, rows: int) -> None:
    """Write the gradient (batch, head, query, key) at the pattern, of one at z (batch, head, query,
    width): times the values (batch, kv_head, key, width)."""
    wide = torch.promote_types(v.dtype, torch.float32)
    values = v.to(wide).transpose(2, 3)
    for part in row_slices(of_z.shape[2], rows):
        whole[:, :, part] = grouped_product(of_z[:, :, part].to(wide), values)


def gradient_of_values(
    pattern: Tensor, of_z: Tensor, v: Tensor, seen: Visibility | None, rows: int
) -> Tensor:
    """Return the gradient (batch, kv_head, key, width) at the values, of one at z (batch, head,
    query, width): times the pattern (batch, head, query, key), transposed."""
    wide = torch.promote_types(v.dtype, torch.float32)
    of_v = torch.zeros_like(v, dtype=wide)
    for part in row_slices(of_z.shape[2], rows):
        keys = slice(None) if seen is None else seen.keys_of(part)
        weights = pattern[:, :, part, keys].to(wide)
        of_v[:, :, keys] += summed_over_group(weights, of_z[:, :, part].to(wide), v.shape[1])
    return of_v.to(v.dtype)


def summed_over_group(rows: Tensor, other: Tensor, kv_heads: int) -> Tensor:
    """Return (batch, kv_head, n, m): (batch, head, query, n), transposed, times (batch, head,
    query, m), summed over the heads that share a kv head."""
    batch, heads, query, n = rows.shape
    one = rows.reshape(batch, kv_heads, heads // kv_heads * query, n)
    return one.transpose(2, 3) @ other.reshape(*one.shape[:3], other.shape[-1])
