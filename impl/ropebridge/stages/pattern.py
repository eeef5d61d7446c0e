"""Pattern: softmax over keys (clauses PAT-1, MASK-6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.hooks import HookPoint
from ropebridge.readable import unreadable
from ropebridge_spec import ContractError


def make_pattern(scores: Tensor, sinks: Tensor | None) -> Tensor:
    """Return (batch, head, query, key), in at least float32: softmax over keys, 0 in a row that
    sees none; a sink (head,) joins as a column and is dropped again."""
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        # torch._safe_softmax would break a compiled graph
        pattern: Tensor = torch.ops.aten._safe_softmax(scores.to(wide), -1)
        return pattern
    column = sinks.to(wide).reshape(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    return torch.cat([scores.to(wide), column], dim=-1).softmax(-1)[..., :-1]


def show_pattern(pattern: Tensor, point: HookPoint) -> Tensor:
    """Return the pattern (batch, head, query, key) that its hooks leave (PAT-1). Nobody else holds
    the pattern.

    Raises:
        ContractError: an edit left NaN in it.
    """
    if not point.watched:
        return pattern
    left, edited = point.show(pattern)
    if edited and not unreadable(left):
        refuse_nan(left, point.name)
    return left


def refuse_nan(pattern: Tensor, name: str) -> None:
    """Refuse NaN that an edit left in a pattern (batch, head, query, key), or in a part of one."""
    if holds_nan(pattern):
        raise ContractError(
            f"hook {name!r} left NaN in the pattern, and with it in all that follows\n  a row"
            " whose keys are all forbidden is 0, and divided by its sum NaN: use"
            " torch.nan_to_num(edited)"
        )


def holds_nan(pattern: Tensor) -> bool:
    """Return whether there is NaN in (batch, head, query, key): the largest of its row is NaN
    too."""
    return bool(pattern.amax(-1).isnan().any())
