"""Scores, pattern and mix for one block of query rows at a time: what is held is bounded."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from ropebridge.masks import Visibility
from ropebridge.stages.mix import mix_values
from ropebridge.stages.pattern import make_pattern
from ropebridge.stages.scores import score_keys
from ropebridge_spec import Variant

ROWS = 128
"""Query rows per block: bounds what is held at a time to heads x ROWS x keys scores."""


def row_blocks(query: int) -> list[slice]:
    """Return the query rows, ROWS at a time; of no rows one block all the same, so that z has a
    shape."""
    return [slice(start, min(start + ROWS, query)) for start in range(0, max(query, 1), ROWS)]


def by_rows(block: Callable[[slice], Tensor], query: int) -> Tensor:
    """Return (batch, head, query, width): that of every block of rows, joined."""
    blocks = [block(rows) for rows in row_blocks(query)]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks, dim=2)


def attend_by_rows(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    seen: Visibility,
    variant: Variant,
    sinks: Tensor | None,
    dropout: float,
) -> Tensor:
    """Return z (batch, head, query, width) by explicit scores and pattern, for what the fused
    kernel cannot do."""
    wide = torch.promote_types(q.dtype, torch.float32)
    q, k = q.to(wide), k.to(wide)

    def block(rows: slice) -> Tensor:
        # dropout draws for whole rows, watched or not
        keys = slice(0, seen.key) if dropout else seen.keys_of(rows)
        scores = score_keys(q[:, :, rows], k[:, :, keys], seen.block(rows, keys), variant)
        pattern = make_pattern(scores, sinks).to(v.dtype)
        return mix_values(F.dropout(pattern, dropout), v[:, :, keys])

    return by_rows(block, q.shape[2])


def drop_by_rows(pattern: Tensor, dropout: float) -> Tensor:
    """Return (batch, head, query, key): a whole pattern after dropout, drawn block by block: the
    numbers do not depend on who watches (DROP-1)."""
    if not dropout:
        return pattern
    return by_rows(lambda rows: F.dropout(pattern[:, :, rows], dropout), pattern.shape[2])
