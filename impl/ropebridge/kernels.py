"""From rotated query and key to z (clauses SCORE-1, PAT-1, MIX-1): one fused kernel, or the same
stages made explicitly.

Everything here has axes batch head pos d_head, the layout the matrix products want. Key and value
heads are never copied for the query heads that share them: a group's queries are stacked along the
rows instead.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.masks import Visibility
from ropebridge.products import grouped_product
from ropebridge.stages.scores import score_keys
from ropebridge_spec import Variant

ROWS = 128
"""Query rows a block: bounds what is held at a time to heads x ROWS x keys scores."""


def row_blocks(query: int) -> list[slice]:
    """Return the query rows, ROWS at a time; of no rows one block all the same, so that z has a
    shape."""
    return [slice(start, min(start + ROWS, query)) for start in range(0, max(query, 1), ROWS)]


def fused(q: Tensor, k: Tensor, v: Tensor, seen: Visibility, variant: Variant) -> Tensor:
    """Return z (batch, head, query, d_head_v) by scaled_dot_product_attention, which makes no
    scores and no pattern.

    One call where its own causal flag, or a boolean mask already in memory, says what is visible;
    otherwise a call for each block of rows, with a mask of that block alone and only the keys that
    the block can see.
    """
    if seen.plain_causal:
        return sdpa(q, k, v, variant, causal=q.shape[2] > 1)
    if seen.whole is not None:
        return sdpa(q, k, v, variant, mask=seen.whole)

    def block(rows: slice) -> Tensor:
        keys = seen.keys_of(rows)
        mask = seen.block(rows, keys)
        if mask is not None and mask.dtype != torch.bool:
            mask = mask.to(torch.promote_types(q.dtype, torch.float32))  # the kernel takes no other
        return sdpa(q[:, :, rows], k[:, :, keys], v[:, :, keys], variant, mask=mask)

    return by_rows(block, q.shape[2])


def sdpa(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    variant: Variant,
    *,
    mask: Tensor | None = None,
    causal: bool = False,
) -> Tensor:
    """Return (batch, head, query, d_head_v) of torch's fused kernel, with this layer's scale and
    grouped heads."""
    return F.scaled_dot_product_attention(
        q, k, v, mask, is_causal=causal, scale=variant.scale, enable_gqa=variant.group > 1
    )


def by_rows(block: Callable[[slice], Tensor], query: int) -> Tensor:
    """Return z (batch, head, query, d_head_v): that of every block of rows, joined."""
    blocks = [block(rows) for rows in row_blocks(query)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Visibility,
    variant: Variant,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return z (batch, head, query, d_head_v) by explicit scores and pattern, one block of rows at
    a time: for what the fused kernel cannot do."""

    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)

    def block(rows: slice) -> Tensor:
        # dropout draws for whole rows, watched or not
        keys = slice(0, seen.key) if dropout else seen.keys_of(rows)
        scores = score_keys(q[:, :, rows], k[:, :, keys], seen.block(rows, keys), variant)
        pattern = softmax(scores, sinks).to(v.dtype)
        return mix(F.dropout(pattern, dropout), v[:, :, keys])

    return by_rows(block, q.shape[2])


def softmax(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return (batch, head, query, key): softmax over keys in at least float32, 0 in a row that sees
    none; a sink joins as a column and is dropped again."""
    work = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        # torch._safe_softmax would break a compiled graph
        pattern: Tensor = torch.ops.aten._safe_softmax(scores.to(work), -1)
        return pattern.to(scores.dtype)
    column = sinks.to(work).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores.to(work), column], dim=-1).softmax(-1)[..., :-1].to(scores.dtype)


def drop(pattern: Tensor, dropout: float) -> Tensor:
    """Return (batch, head, query, key): a whole pattern after dropout, drawn block by block: the
    numbers do not depend on who watches (DROP-1)."""
    if not dropout:
        return pattern
    return torch.cat(
        [F.dropout(pattern[:, :, rows], dropout) for rows in row_blocks(pattern.shape[2])], dim=2
    )


def mix(pattern: Tensor, v: Tensor) -> Tensor:
    """Return z = pattern v, (batch, head, query, d_head_v)."""
    return grouped_product(pattern, v)
