"""Sizes of tiny models, and what the configs of several groups of families have in common."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

WINDOW = 5

SIZES: Mapping[str, Any] = {
    "vocab_size": 99,
    "hidden_size": 60,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": False,
    # mixtures of experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "n_shared_experts": 1,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # other mixers of hybrid models
    "mamba_n_heads": 4,
    "mamba_d_head": 30,
    "mamba_d_state": 16,
    "mamba_chunk_size": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
}
"""Given to every config that has a field of the name, and head_dim to all, which most read where
they have it.  1 < kv heads < heads, heads * d_head != d_model, and 1/sqrt(20) is no power of two: a
slip in any of them shows."""

LOCAL_GLOBAL = ["sliding_attention", "full_attention"]

HALF_ROTARY = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.4}

YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "original_max_position_embeddings": 16,
}

LINEAR_FULL = ["linear_attention", "full_attention"]

TEMPERATURE = {
    **YARN,
    "original_max_position_embeddings": 4,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "llama_4_scaling_beta": 0.3,
}
"""A query that grows warmer every four positions."""

PART = {
    "hidden_size": 60,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
}
"""The sizes of one part of a model, whose config has configs in it."""

MODERNBERT = {
    "head_dim": 10,
    "layer_types": LOCAL_GLOBAL,
    "local_attention": 2 * WINDOW,
    "cls_token_id": 1,
    "sep_token_id": 2,
}

T5GEMMA = {
    "vocab_size": 99,
    "hidden_size": 60,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "head_dim": 20,
    "max_position_embeddings": 64,
    "sliding_window": WINDOW,
    "layer_types": LOCAL_GLOBAL,
    "query_pre_attn_scalar": 24,
    "attn_logit_softcapping": 2.0,
}

SAPROT = {
    "head_dim": ...,
    "vocab_size": 99,
    "hidden_size": 60,
    "num_hidden_layers": 1,
    "num_attention_heads": 6,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}


def mrope(*section: int) -> dict[str, Any]:
    """Return rotary parameters of a model whose positions have three axes, each with its share of
    the frequencies."""
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}
