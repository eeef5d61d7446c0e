"""The learned tensors of one attention layer, head by head."""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """What a norm multiplies by and adds; None where it does not.

    One row of the normed width, a row a head, or one row of (head width) where all heads are normed flat.
    """

    weight: Float[Tensor, "..."] | None = None
    bias: Float[Tensor, "..."] | None = None


PLAIN = Affine()


@dataclass(frozen=True)
class Weights:
    """W_Q, W_K, W_V, W_O and what else a layer has learned; None where it has not.

    With latents, W_Q, W_K and W_V are the up-projections (d_model is then the latent's rank), W_DQ and W_DKV go down to
    the latents, and W_KR gives the rotary part of the key, the same for every head. W_G gives the gate, a number or
    d_head_v of them for each head.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "head d_head_v d_out"]
    W_K: Float[Tensor, "kv_head d_model_k d_head_k"] | None = None
    W_V: Float[Tensor, "kv_head d_model_k d_head_v"] | None = None
    b_Q: Float[Tensor, "head d_head"] | None = None
    b_K: Float[Tensor, "kv_head d_head_k"] | None = None
    b_V: Float[Tensor, "kv_head d_head_v"] | None = None
    b_O: Float[Tensor, " d_out"] | None = None
    W_DQ: Float[Tensor, "d_out q_rank"] | None = None
    b_DQ: Float[Tensor, " q_rank"] | None = None
    W_DKV: Float[Tensor, "d_out kv_rank"] | None = None
    b_DKV: Float[Tensor, " kv_rank"] | None = None
    W_KR: Float[Tensor, "head d_out rotary"] | None = None
    b_KR: Float[Tensor, "head rotary"] | None = None
    W_G: Float[Tensor, "head d_out gate"] | None = None
    b_G: Float[Tensor, "head gate"] | None = None
    q_latent_norm: Affine = PLAIN
    kv_latent_norm: Affine = PLAIN
    q_norm: Affine = PLAIN
    k_norm: Affine = PLAIN
    v_norm: Affine = PLAIN
    z_norm: Affine = PLAIN
    sinks: Float[Tensor, " head"] | None = None
