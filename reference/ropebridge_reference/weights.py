"""Learned tensors of one attention layer, head by head."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Affine:
    """Hold what a norm multiplies by and adds; None where it does not.

    One row of the normed width, one row per head, or one row of (head width) where all heads are
    normed flat.
    """

    weight: Float[Tensor, "..."] | None = None
    bias: Float[Tensor, "..."] | None = None


NO_AFFINE = Affine()


@dataclass(frozen=True)
class Weights:
    """Hold W_Q, W_K, W_V, W_O and what else a layer has learned; None where it has not.

    With latents, W_Q, W_K and W_V are the up-projections (d_model is then the latent's rank), W_DQ
    and W_DKV go down to the latents, and W_KR gives the rotary part of the key, the same for every
    head. W_G gives the gate, a number or d_head_v of them for each head, of hook_in, or where it
    lies in the query projection of what the query is projected from. `adapters` are, by role (Q, K,
    V), the maps down and up beside a projection. `alpha` is that of exclusive self-attention,
    `lambdas` are q1, k1, q2 and k2 of differential attention. W_dt, b_dt and A make a key's bias of
    its values.
    """

    W_Q: Float[Tensor, "head d_model d_head"]
    W_O: Float[Tensor, "z_head d_z d_out"]
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
    W_G: Float[Tensor, "head d_model_q gate"] | None = None
    b_G: Float[Tensor, "head gate"] | None = None
    q_latent_norm: Affine = NO_AFFINE
    k_rotary_norm: Affine = NO_AFFINE
    kv_latent_norm: Affine = NO_AFFINE
    q_norm: Affine = NO_AFFINE
    k_norm: Affine = NO_AFFINE
    v_norm: Affine = NO_AFFINE
    z_norm: Affine = NO_AFFINE
    sinks: Float[Tensor, " head"] | None = None
    adapters: Mapping[
        str, tuple[Float[Tensor, "d_model adapter"], Float[Tensor, "heads adapter width"]]
    ] = field(default_factory=dict)
    alpha: Float[Tensor, " head"] | None = None
    lambdas: Float[Tensor, "4 d_head"] | None = None
    W_dt: Float[Tensor, "kv_head from_kv_head d_head_v"] | None = None
    b_dt: Float[Tensor, " kv_head"] | None = None
    A: Float[Tensor, " kv_head"] | None = None
