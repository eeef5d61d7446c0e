"""Layers whose mix is gated or normalised."""

from __future__ import annotations

from ropebridge_conformance.zoo.recipes.recipe import Recipe
from ropebridge_conformance.zoo.recipes.sizes import (
    HALF_ROTARY,
    LINEAR_FULL,
    LOCAL_GLOBAL,
    mrope,
)

RECIPES: tuple[Recipe, ...] = (
    Recipe("bitnet", "BitNetConfig", "BitNetForCausalLM", config={"head_dim": 10}),
    Recipe(
        "afmoe",
        "AfmoeConfig",
        "AfmoeForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "num_dense_layers": 1, "num_shared_experts": 1},
    ),
    Recipe(
        "hrm_text",
        "HrmTextConfig",
        "HrmTextForCausalLM",
        config={"num_hidden_layers": 1, "H_cycles": 1, "L_cycles": 2, "L_bp_cycles": [1]},
    ),
    Recipe(
        "lfm3",
        "Lfm3Config",
        "Lfm3ForCausalLM",
        layers=(1, 2),
        config={"num_hidden_layers": 3, "layer_types": ["conv", *LOCAL_GLOBAL]},
    ),
    Recipe(
        "step3p7",
        "Step3p7TextConfig",
        "Step3p7TextModel",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "mlp_layer_types": ["dense", "sparse"],
            "share_expert_dim": 24,
            "num_key_value_heads": 2,
            "gating": "per-head",
        },
    ),
    Recipe(
        "laguna",
        "LagunaConfig",
        "LagunaForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "gating": "per-head",
            "num_attention_heads_per_layer": [6, 8],
            "mlp_layer_types": ["dense", "sparse"],
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
                "full_attention": HALF_ROTARY,
            },
        },
    ),
    Recipe(
        "qwen3_next",
        "Qwen3NextConfig",
        "Qwen3NextForCausalLM",
        layers=(1,),
        config={"layer_types": LINEAR_FULL, "rope_parameters": HALF_ROTARY, "attention_bias": True},
    ),
    Recipe(
        "qwen3_5",
        "Qwen3_5TextConfig",
        "Qwen3_5ForCausalLM",
        layers=(1,),
        config={
            "layer_types": LINEAR_FULL,
            "rope_parameters": {**mrope(2, 1, 1), "partial_rotary_factor": 0.4},
        },
    ),
    Recipe(
        "qwen3_5_moe",
        "Qwen3_5MoeTextConfig",
        "Qwen3_5MoeForCausalLM",
        layers=(1,),
        config={
            "layer_types": LINEAR_FULL,
            "rope_parameters": {**mrope(2, 1, 1), "partial_rotary_factor": 0.4},
        },
    ),
    Recipe(
        "muse_glimmer",
        "MuseGlimmerTextConfig",
        "MuseGlimmerTextModel",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "layer_rope_theta": [1e4, 0]},
    ),
    Recipe(
        "muse_spark",
        "MuseSparkTextConfig",
        "MuseSparkTextModel",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "layer_rope_theta": [1e4, 0],
            "moe_hidden_size": 24,
            "mlp_layer_types": ["dense", "sparse"],
        },
    ),
)
