"""Pattern: softmax over keys (clauses PAT-1, MASK-6)."""

from __future__ import annotations

import torch
from torch import Tensor

from ropebridge.hooks import HookPoint, unreadable, version
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
    """Return the pattern (batch, head, query, key) that its hooks leave (PAT-1).

    Raises:
        ContractError: an edit left NaN in it.
    """
    if not point.watched:
        return pattern
    # with gradients softmax keeps its result for the backward pass
    shown = pattern.clone() if torch.is_grad_enabled() else pattern
    before = version(shown)
    left = point(shown, fresh=True)
    edited = left is not shown or before is None or version(left) != before
    if edited and not unreadable(left) and bool(left.isnan().any()):
        raise ContractError(
            f"hook {point.name!r} left NaN in the pattern, and with it in all that follows\n  a row"
            " whose keys are all forbidden is 0, and divided by its sum NaN: use"
            " torch.nan_to_num(edited)"
        )
    return left
