"""A module's learned tensors, as the reference wants them. Read anew each time: a weight that changes is seen."""

from __future__ import annotations

from typing import Any

import torch
from einops import rearrange
from torch import Tensor, nn

from ropebridge_reference import Weights
from ropebridge_spec import Variant


def read_weights(module: nn.Module, variant: Variant, dtype: torch.dtype | None = None) -> Weights:
    """The weights head by head, in the module's dtype or another."""
    p, norm = variant.projections, variant.norm
    q, k, v, o = (getattr(module, name) for name in (p.q, p.k, p.v, p.o))

    def cast(tensor: Tensor) -> Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    def heads_first(linear: Any, heads: int) -> Tensor:
        return rearrange(cast(linear.weight), "(head d_head) d_model -> head d_model d_head", head=heads)

    def bias(linear: Any, heads: int) -> Tensor | None:
        return None if linear.bias is None else rearrange(cast(linear.bias), "(head d_head) -> head d_head", head=heads)

    return Weights(
        W_Q=heads_first(q, variant.heads),
        W_K=heads_first(k, variant.kv_heads),
        W_V=heads_first(v, variant.kv_heads),
        W_O=rearrange(cast(o.weight), "d_model (head d_head) -> head d_head d_model", head=variant.heads),
        b_Q=bias(q, variant.heads),
        b_K=bias(k, variant.kv_heads),
        b_V=bias(v, variant.kv_heads),
        b_O=None if o.bias is None else cast(o.bias),
        q_norm=cast(getattr(module, norm.q).weight) if norm else None,
        k_norm=cast(getattr(module, norm.k).weight) if norm else None,
        sinks=cast(getattr(module, variant.sinks)) if variant.sinks else None,
    )
