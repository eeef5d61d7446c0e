"""Layers that normalise query and key."""

from __future__ import annotations

from ropebridge_conformance.zoo.recipes.recipe import Recipe
from ropebridge_conformance.zoo.recipes.sizes import (
    HALF_ROTARY,
    mrope,
)

SMALL_PICTURES = {
    "embed_dim": 8,
    "num_embeddings": 8,
    "double_latent": False,
    "latent_channels": 8,
    "resolution": 16,
    "in_channels": 3,
    "base_channels": 32,
    "channel_multiplier": [1, 1],
    "num_res_blocks": 1,
    "attn_resolutions": [],
    "dropout": 0.0,
}

RECIPES: tuple[Recipe, ...] = (
    Recipe(
        "qwen3",
        "Qwen3Config",
        "Qwen3ForCausalLM",
        layers=(0, 1),
        config={"attention_bias": True, "use_sliding_window": True, "max_window_layers": 1},
    ),
    Recipe("apertus", "ApertusConfig", "ApertusForCausalLM"),
    Recipe("apertus1p5", "Apertus1p5TextConfig", "Apertus1p5TextForCausalLM"),
    Recipe("sarvam_moe", "SarvamMoEConfig", "Glm4MoeForCausalLM", model_package="glm4_moe"),
    Recipe("hy_v3", "HYV3Config", "HYV3ForCausalLM"),
    Recipe(
        "lfm2",
        "Lfm2Config",
        "Lfm2ForCausalLM",
        layers=(1,),
        config={"layer_types": ["conv", "full_attention"]},
    ),
    Recipe("cohere", "CohereConfig", "CohereForCausalLM", config={"use_qk_norm": True}),
    Recipe("olmo2", "Olmo2Config", "Olmo2ForCausalLM"),
    Recipe(
        "olmo_hybrid",
        "OlmoHybridConfig",
        "OlmoHybridForCausalLM",
        layers=(1,),
        config={"layer_types": ["linear_attention", "full_attention"]},
    ),
    Recipe("flex_olmo", "FlexOlmoConfig", "FlexOlmoForCausalLM"),
    Recipe(
        "minimax_m2",
        "MiniMaxM2Config",
        "MiniMaxM2ForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    Recipe(
        "glm4_moe",
        "Glm4MoeConfig",
        "Glm4MoeForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
            "use_qk_norm": True,
            "attention_bias": True,
        },
    ),
    Recipe(
        "qwen3_vl",
        "Qwen3VLTextConfig",
        "Qwen3VLTextModel",
        config={"rope_parameters": mrope(4, 3, 3)},
    ),
    Recipe(
        "qwen3_vl_moe",
        "Qwen3VLMoeTextConfig",
        "Qwen3VLMoeTextModel",
        config={"rope_parameters": mrope(4, 3, 3)},
    ),
    Recipe(
        "qwen3_omni_moe",
        "Qwen3OmniMoeTextConfig",
        "Qwen3OmniMoeThinkerTextModel",
        config={"rope_parameters": mrope(4, 3, 3), "sliding_window": None},
    ),
    Recipe(
        "qwen3_omni_moe_code_predictor",
        "Qwen3OmniMoeTalkerCodePredictorConfig",
        "Qwen3OmniMoeTalkerCodePredictorModel",
        package="qwen3_omni_moe",
        inputs="embeds",
        config={"num_code_groups": 4},
    ),
    Recipe(
        "lfm2_moe",
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        layers=(1,),
        config={"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    Recipe(
        "chameleon",
        "ChameleonConfig",
        "ChameleonModel",
        config={
            "head_dim": 10,
            "vq_config": SMALL_PICTURES,
            "vocabulary_map": {"<image>": 3, "IMGIMGBSZ": 4},
        },
    ),
    Recipe("hunyuan_v1_dense", "HunYuanDenseV1Config", "HunYuanDenseV1ForCausalLM"),
    Recipe(
        "hunyuan_v1_moe", "HunYuanMoEV1Config", "HunYuanMoEV1ForCausalLM", config={"moe_topk": 2}
    ),
    Recipe(
        "hunyuan_vl",
        "HunYuanVLTextConfig",
        "HunYuanVLTextModel",
        config={"rope_parameters": mrope(3, 3, 2, 2)},
    ),
    Recipe("nanochat", "NanoChatConfig", "NanoChatForCausalLM"),
    Recipe(
        "molmo2",
        "Molmo2TextConfig",
        "Molmo2TextModel",
        config={"qk_norm_type": "olmo", "additional_vocab_size": 4, "rope_scaling_layers": [1]},
    ),
    Recipe(
        "persimmon",
        "PersimmonConfig",
        "PersimmonForCausalLM",
        config={"head_dim": 10, "rope_parameters": HALF_ROTARY, "qk_layernorm": True},
    ),
)
