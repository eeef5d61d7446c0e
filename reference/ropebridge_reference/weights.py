"""The learned tensors of one attention layer, head by head."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Weights:
    """W_Q, W_K, W_V, W_O and what else a layer has learned; None where it has not.

    The weight of a norm is one row of d_head, a row a head, or one row of (head d_head) where all heads are normed flat.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_K: Float[Tensor, "kv_head d_model d_head"]
    W_V: Float[Tensor, "kv_head d_model d_head_v"]
    W_O: Float[Tensor, "head d_head_v d_model"]
    b_Q: Float[Tensor, "head d_head"] | None = None
    b_K: Float[Tensor, "kv_head d_head"] | None = None
    b_V: Float[Tensor, "kv_head d_head_v"] | None = None
    b_O: Float[Tensor, " d_model"] | None = None
    q_norm: Float[Tensor, "..."] | None = None
    k_norm: Float[Tensor, "..."] | None = None
    sinks: Float[Tensor, " head"] | None = None
