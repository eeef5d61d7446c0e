"""Clause SPLIT-1: which copy of the residual stream each head reads."""

from __future__ import annotations

from collections.abc import Callable, Collection

from einops import repeat
from jaxtyping import Float
from torch import Tensor

from ropebridge_spec import OptIn, Variant

Residual = Float[Tensor, "batch pos d_model"]
PerHead = Float[Tensor, "batch pos _ d_model"]


def split_inputs(
    x: Residual, variant: Variant, opted_in: Collection[OptIn], at: Callable[[str, Tensor], Tensor]
) -> tuple[PerHead, PerHead, PerHead]:
    """Return what the query, key and value heads read: hook_in, copied for each head.

    Under `attn_in` (clause SPLIT-3) one copy a query head serves query, key and value; `variant` is
    then ungrouped.
    """
    if "attn_in" in opted_in:
        shared = at("hook_attn_in", copies(x, variant.heads))
        return shared, shared, shared
    for_q, for_k, for_v = (
        copies(x, heads) for heads in (variant.heads, variant.kv_heads, variant.kv_heads)
    )
    if "split_qkv_input" in opted_in:
        return at("hook_q_input", for_q), at("hook_k_input", for_k), at("hook_v_input", for_v)
    return for_q, for_k, for_v


def copies(x: Residual, heads: int) -> PerHead:
    """Return the residual stream as each of `heads` heads reads it."""
    return repeat(x, "batch pos d_model -> batch pos head d_model", head=heads)
