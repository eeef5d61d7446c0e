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
    norm = variant.norm
    o: Any = getattr(module, variant.projections.o)
    (W_Q, b_Q), (W_K, b_K), (W_V, b_V) = read_projections(module, variant)

    def cast(tensor: Tensor) -> Tensor:
        return tensor if dtype is None else tensor.to(dtype)

    def heads_first(weight: Tensor, heads: int) -> Tensor:
        return rearrange(cast(weight), "(head d_head) d_model -> head d_model d_head", head=heads)

    def bias(rows: Tensor | None, heads: int) -> Tensor | None:
        return None if rows is None else rearrange(cast(rows), "(head d_head) -> head d_head", head=heads)

    return Weights(
        W_Q=heads_first(W_Q, variant.heads),
        W_K=heads_first(W_K, variant.kv_heads),
        W_V=heads_first(W_V, variant.kv_heads),
        W_O=rearrange(cast(o.weight), "d_model (head d_head) -> head d_head d_model", head=variant.heads),
        b_Q=bias(b_Q, variant.heads),
        b_K=bias(b_K, variant.kv_heads),
        b_V=bias(b_V, variant.kv_heads),
        b_O=None if o.bias is None else cast(o.bias),
        q_norm=cast(getattr(module, norm.q).weight) if norm else None,
        k_norm=cast(getattr(module, norm.k).weight) if norm else None,
        sinks=cast(getattr(module, variant.sinks)) if variant.sinks else None,
    )


def read_projections(module: nn.Module, variant: Variant) -> list[tuple[Tensor, Tensor | None]]:
    """Weight (rows, d_model) and bias (rows,) of query, key and value, of a fused projection each its own rows."""
    names = variant.projections
    linears: list[Any] = [getattr(module, name) for name in ((names.q, names.k, names.v) if names.fused is None else (names.fused,))]
    if names.fused is None:
        return [(linear.weight, linear.bias) for linear in linears]
    weights = own_rows(linears[0].weight, variant)
    biases = [None] * 3 if linears[0].bias is None else own_rows(linears[0].bias, variant)
    return list(zip(weights, biases, strict=True))


def own_rows(fused: Tensor, variant: Variant) -> list[Tensor]:
    """The rows of query, key and value in a fused tensor."""
    if variant.projections.layout == "heads":
        return list(rearrange(fused, "(head role d_head) ... -> role (head d_head) ...", role=3, head=variant.heads))
    sizes = (variant.heads * variant.d_head, variant.kv_heads * variant.d_head, variant.kv_heads * variant.d_head_v)
    return list(fused.split(sizes))
