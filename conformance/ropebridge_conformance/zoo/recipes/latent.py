"""Layers whose heads share a latent, and those among them that select keys."""

from __future__ import annotations

from ropebridge_conformance.zoo.recipes.recipe import Recipe
from ropebridge_conformance.zoo.recipes.sizes import (
    LINEAR_FULL,
    TEMPERATURE,
    mrope,
)

LATENT = {
    "head_dim": 8,
    "num_key_value_heads": 6,
    "q_lora_rank": 24,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 12,
    "v_head_dim": 14,
}

SELECTING = {**LATENT, "index_topk": 4, "index_n_heads": 2, "index_head_dim": 20}
"""A selector that picks four keys."""

RECIPES: tuple[Recipe, ...] = (
    Recipe("deepseek_v32", "DeepseekV32Config", "DeepseekV32ForCausalLM", config=SELECTING),
    Recipe(
        "glm_moe_dsa",
        "GlmMoeDsaConfig",
        "GlmMoeDsaForCausalLM",
        config={**SELECTING, "indexer_types": ["full", "shared"]},
        layers=(0, 1),
    ),
    Recipe(
        "hy_v4",
        "HYV4Config",
        "HYV4ForCausalLM",
        config={**SELECTING, "indexer_types": ["full", "shared"], "hc_mult": 2},
        layers=(0, 1),
    ),
    Recipe(
        "hy_v4_vl",
        "HYV4VLTextConfig",
        "HYV4VLTextModel",
        config={
            **SELECTING,
            "indexer_types": ["full", "shared"],
            "hc_mult": 2,
            "rope_parameters": mrope(2, 1, 1),
        },
        layers=(0, 1),
    ),
    Recipe("axk2", "AXK2Config", "AXK2ForCausalLM", config={**SELECTING, "gated_norm_rank": 4}),
    Recipe(
        "dots3_note",
        "Dots3NoteTextConfig",
        "Dots3NoteForCausalLM",
        config={
            **{name: value for name, value in SELECTING.items() if name != "head_dim"},
            "head_dim": 20,
            "layer_types": ["sliding_attention", "indexed_attention"],
            "mlp_layer_types": ["dense", "sparse"],
            "shared_experts_intermediate_size": 24,
            "swa_num_attention_heads": 3,
            "swa_num_key_value_heads": 3,
            "swa_q_lora_rank": 20,
            "swa_kv_lora_rank": 12,
            "swa_head_dim": 20,
            "swa_qk_nope_head_dim": 12,
            "swa_v_head_dim": 10,
        },
        layers=(0, 1),
    ),
    Recipe("axk1", "AXK1Config", "AXK1ForCausalLM", config=LATENT),
    Recipe("deepseek_v3", "DeepseekV3Config", "DeepseekV3ForCausalLM", config=LATENT),
    Recipe(
        "sarvam_mla",
        "SarvamMLAConfig",
        "DeepseekV3ForCausalLM",
        model_package="deepseek_v3",
        config=LATENT,
    ),
    Recipe("glm4_moe_lite", "Glm4MoeLiteConfig", "Glm4MoeLiteForCausalLM", config=LATENT),
    Recipe("youtu", "YoutuConfig", "YoutuForCausalLM", config={**LATENT, "rope_interleave": False}),
    Recipe(
        "deepseek_v2",
        "DeepseekV2Config",
        "DeepseekV2ForCausalLM",
        config={**LATENT, "q_lora_rank": None, "topk_method": "greedy"},
    ),
    Recipe(
        "longcat_flash",
        "LongcatFlashConfig",
        "LongcatFlashForCausalLM",
        config={
            **LATENT,
            "num_layers": 1,
            "ffn_hidden_size": 24,
            "expert_ffn_hidden_size": 24,
            "zero_expert_num": 2,
            "moe_topk": 2,
        },
    ),
    Recipe("minicpm3", "MiniCPM3Config", "MiniCPM3ForCausalLM", config=LATENT),
    Recipe(
        "bailing_hybrid",
        "BailingHybridConfig",
        "BailingHybridForCausalLM",
        layers=(1,),
        config={
            **LATENT,
            "layer_types": LINEAR_FULL,
            "mlp_layer_types": ["dense", "sparse"],
            "head_dim": 20,
        },
    ),
    Recipe(
        "mistral4",
        "Mistral4Config",
        "Mistral4ForCausalLM",
        config={**LATENT, "head_dim": 20, "rope_parameters": TEMPERATURE},
    ),
)
