"""A module's learned tensors, as the reference wants them. Read anew each time: a weight that changes is seen."""

from __future__ import annotations

from typing import Any

import torch
from ropebridge_reference import Weights
from ropebridge_spec import Variant
from torch import Tensor, nn


def read_weights(module: nn.Module, variant: Variant, dtype: torch.dtype | None = None) -> Weights:
    """The weights head by head, in the module's dtype or another."""
    p, norm = variant.projections, variant.norm
    q, k, v, o = (getattr(module, name) for name in (p.q, p.k, p.v, p.o))

    def heads_first(linear: Any, heads: int) -> Tensor:
        return cast(linear.weight).unflatten(0, (heads, -1)).transpose(1, 2)

    def bias(linear: Any, heads: int) -> Tensor | None:
        return None if linear.bias is None else cast(linear.bias).unflatten(0, (heads, -1))

    def cast(tensor: Tensor) -> Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    return Weights(
        W_Q=heads_first(q, variant.heads),
        W_K=heads_first(k, variant.kv_heads),
        W_V=heads_first(v, variant.kv_heads),
        W_O=cast(o.weight).T.unflatten(0, (variant.heads, -1)),
        b_Q=bias(q, variant.heads),
        b_K=bias(k, variant.kv_heads),
        b_V=bias(v, variant.kv_heads),
        b_O=None if o.bias is None else cast(o.bias),
        q_norm=cast(getattr(module, norm.q).weight) if norm else None,
        k_norm=cast(getattr(module, norm.k).weight) if norm else None,
        sinks=cast(getattr(module, variant.sinks)) if variant.sinks else None,
    )
