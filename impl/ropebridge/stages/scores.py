"""Scores: what softmax is given (clauses SCORE-1, SCORE-3, SCORE-4 and SCORE-6)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropebridge.calls import Call
from ropebridge.hooks import HookPoint
from ropebridge.products import grouped_product
from ropebridge.readable import unreadable, version
from ropebridge_spec import ContractError, Variant


def score_keys(q: Tensor, k: Tensor, mask: Tensor | None, variant: Variant) -> Tensor:
    """Return (batch, head, query, key), in at least float32: scaled, softcapped, masked scores
    (SCORE-1).

    Args:
        q, k: (batch, head, query, d_head) and (batch, kv_head, key, d_head).
        mask: (batch or 1, head or 1, query, key), booleans or a bias; None where all see all.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    scores = grouped_product(q.to(wide) * variant.scale, k.to(wide).transpose(2, 3))
    if variant.softcap is not None:
        scores = torch.tanh(scores / variant.softcap) * variant.softcap
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill_(~mask, -torch.inf)
    return scores + mask.to(wide)


def scale_by_temperature(q: Tensor, call: Call, variant: Variant) -> Tensor:
    """Return (batch, pos, head, d_head): the query times the family's temperature at its position
    (SCORE-4)."""
    temperature = variant.temperature
    if temperature is None:
        return q
    if temperature.factor_argument is not None:
        return q if call.temperature is None else (q * call.temperature.transpose(1, 2)).to(q.dtype)
    position = call.counted() if temperature.counted else call.ids()
    position = position.to(torch.promote_types(q.dtype, torch.float32))
    steps = torch.floor((position + temperature.shift) / temperature.length)
    factor = 1 + temperature.beta * torch.log1p(steps)  # (batch or 1, pos)
    return (q * factor[..., None, None]).to(q.dtype)


def show_scores(
    scores: Tensor, mask: Tensor | None, dtype: torch.dtype, point: HookPoint
) -> Tensor:
    """Return what softmax is given: what the hooks left of the scores, rounded to the layer's
    dtype; where they left an entry as it was shown, that entry as it was before it was rounded.

    Raises:
        ContractError: an edit left NaN or +inf (SCORE-3), or a number at a key that its query may
            not see (SCORE-6). Of tensors on meta and in a compiled graph nobody can know.
    """
    if not point.watched:
        return scores
    shown = scores.to(dtype)
    if unreadable(shown):
        return unrounded(point(shown, fresh=True), scores)
    # where nobody counts edits, and what is shown is the scores themselves, it is asked before
    overflowed = version(shown) is None and not finite_or_forbidden(shown)
    left, edited = point.show(shown)
    if edited and not overflowed:
        refuse_no_numbers(left, point.name)
    if edited:
        refuse_forbidden_keys(left, mask, point.name)
    return unrounded(left, scores)


def refuse_no_numbers(scores: Tensor, name: str) -> None:
    """Refuse NaN and +inf that an edit left (SCORE-3)."""
    if not finite_or_forbidden(scores):
        raise ContractError(
            f"hook {name!r} left NaN or +inf in the scores; clause SCORE-3 requires finite"
            " numbers, or -inf to forbid a key"
        )


def refuse_forbidden_keys(scores: Tensor, mask: Tensor | None, name: str) -> None:
    """Refuse numbers that an edit left at keys that their query may not see (SCORE-6)."""
    if mask is not None:
        refuse_numbers_at(~mask if mask.dtype == torch.bool else mask == -torch.inf, scores, name)


def refuse_numbers_at(forbidden: Tensor, scores: Tensor, name: str) -> None:
    """Refuse numbers that an edit left in the scores where that is forbidden (SCORE-6)."""
    if bool((forbidden & (scores > -torch.inf)).any()):
        raise ContractError(
            f"hook {name!r} left numbers at keys that their query may not see; clause SCORE-6"
            " requires -inf there\n  keep it: edited = torch.where(scores == -torch.inf, scores,"
            " edited); to let a query see more keys, give the model another attention_mask"
        )


def unrounded(left: Tensor, scores: Tensor) -> Tensor:
    """Return (batch, head, query, key), in the dtype of the scores: what hooks left, and the scores
    themselves where they left what rounding had made of those."""
    if left.dtype == scores.dtype:
        return left
    result: Tensor = Unrounded.apply(left, scores)  # type: ignore[no-untyped-call]
    return result


class Unrounded(torch.autograd.Function):
    """Give back the digits that rounding took; derivatives are those of what hooks left
    (GRAD-1)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(left: Tensor, scores: Tensor) -> Tensor:
        """Return the scores where `left` is what rounding makes of them, else `left`."""
        return torch.where(left == scores.to(left.dtype), scores, left.to(scores.dtype))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep the dtypes that derivatives must have."""
        ctx.dtype, ctx.wide = inputs[0].dtype, output.dtype

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Return the gradient as it is, rounded, for what the hooks left."""
        return gradient.to(ctx.dtype), None

    @staticmethod
    def jvp(ctx: Any, left: Tensor, scores: Tensor) -> Tensor:
        """Return the derivative of what the hooks left, in the dtype of the scores."""
        return left.to(ctx.wide)


def finite_or_forbidden(scores: Tensor) -> bool:
    """Return whether no score (batch, head, query, key) is NaN or +inf."""
    return bool((scores.amax(-1) < torch.inf).all())
