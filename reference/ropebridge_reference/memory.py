"""Clauses CACHE-1 and KV-1: keys and values of earlier positions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Past:
    """Hold rotated keys, and values, of the positions before this call (clause CACHE-1)."""

    key: Float[Tensor, "batch past kv_head d_head"]
    value: Float[Tensor, "batch past kv_head d_head_v"]


def recall(
    past: Float[Tensor, "batch past kv_head d"], new: Float[Tensor, "batch pos kv_head d"]
) -> Float[Tensor, "batch key kv_head d"]:
    """Return (batch, key, kv_head, width): what was there before, then the own, along the key axis
    (CACHE-1)."""
    return torch.cat([past, new], dim=1)
