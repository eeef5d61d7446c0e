"""Three heads worth a picture, each the model's strongest at something that can be measured."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Score = Callable[[Tensor, Sequence[int]], Tensor]


@dataclass(frozen=True)
class Chosen:
    """Hold a head, what it does more than any other, and how much: the mean weight it gives
    there."""

    does: str
    layer: int
    head: int
    weight: float
    pattern: Tensor


def previous_token(pattern: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return (head,) mean weight on the token before."""
    return pattern.diagonal(offset=-1, dim1=-2, dim2=-1).mean(-1)


def first_token(pattern: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return (head,) mean weight on the first token."""
    return pattern[:, 1:, 0].mean(-1)


def induction(pattern: Tensor, tokens: Sequence[int]) -> Tensor:
    """Return (head,) mean weight on what followed the same token last time (Olsson et al. 2022,
    In-context Learning and Induction Heads)."""
    pairs = [(i, last_seen(tokens, i) + 1) for i in range(len(tokens)) if last_seen(tokens, i) >= 0]
    if not pairs:
        return torch.zeros(pattern.shape[0])
    return torch.stack([pattern[:, i, j] for i, j in pairs]).mean(0)


def last_seen(tokens: Sequence[int], place: int) -> int:
    """Return where a token last stood before its place; -1 if nowhere."""
    return next((j for j in range(place - 1, -1, -1) if tokens[j] == tokens[place]), -1)


SCORES: Mapping[str, Score] = {
    "looks at the token before": previous_token,
    "looks for what followed last time": induction,
    "rests on the first token": first_token,
}


def choose(patterns: Mapping[int, Tensor], tokens: Sequence[int]) -> list[Chosen]:
    """Return for each behaviour the head that shows it most.

    Args:
        patterns: layer -> (head, query, key).
        tokens: the ids at the positions.
    """
    chosen = []
    for does, score in SCORES.items():
        scores = {layer: score(pattern, tokens) for layer, pattern in patterns.items()}
        layer = max(scores, key=lambda n: float(scores[n].max()))
        head = int(scores[layer].argmax())
        chosen.append(Chosen(does, layer, head, float(scores[layer][head]), patterns[layer][head]))
    return chosen
