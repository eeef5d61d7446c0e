"""Greedy generation, with and without a bridge, token by token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ropebridge_conformance.judging.findings import Finding, failed, passed


@torch.no_grad()
def continuation(model: Any, ids: Tensor, tokens: int) -> list[int]:
    """Return the token ids a model goes on with, greedily, from its cache."""
    whole = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=tokens,
        min_new_tokens=tokens,
        do_sample=False,
    )
    return [int(token) for token in whole[0, ids.shape[1] :]]


def judge_tokens(ours: list[int], theirs: list[int]) -> Finding:
    """Judge whether two continuations are the same; if not, where they part."""
    if ours == theirs:
        return passed()
    place = next(
        (i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b),
        min(len(ours), len(theirs)),
    )
    return failed(
        f"the continuations part at new token {place}: {ours[place : place + 3]} with the bridge,"
        f" {theirs[place : place + 3]} without"
    )
