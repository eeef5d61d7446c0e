"""Layers with neither norms of query and key nor windows: causal, of every rotation."""

from __future__ import annotations

from ropebridge_conformance.zoo.recipes.recipe import Recipe
from ropebridge_conformance.zoo.recipes.sizes import (
    HALF_ROTARY,
    PART,
    SAPROT,
    mrope,
)

FAR = 131072
"""How many rows the tables of a model have that are made once for all positions: as many as the
judge goes to."""

CROSSING = {
    "cross_num_attention_heads": 6,
    "cross_num_key_value_heads": 6,
    "cross_head_dim": 10,
    "cross_hidden_size": 60,
}

SPOKEN = {
    "vocab_size": 50,
    "num_channels": 3,
    "pad_token_id": 47,
    "eos_token_id": 48,
    "bos_token_id": 49,
}

DIA = {
    "delay_pattern": [0, 1, 2],
    "encoder_config": {**PART, "vocab_size": 99},
    "decoder_config": {**PART, **CROSSING, **SPOKEN},
}

EVOLLA = {
    "head_dim": ...,
    "resampler_dim_head": 10,
    "resampler_heads": 2,
    "resampler_depth": 1,
    "resampler_num_latents": 4,
    "aligner_num_add_layers": 1,
    "protein_encoder_config": {name: value for name, value in SAPROT.items() if name != "head_dim"},
}

BLT_PART = {
    "vocab_size": 99,
    "hidden_size": 60,
    "hidden_size_global": 60,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
    "cross_attn_k": 1,
}

RECIPES: tuple[Recipe, ...] = (
    Recipe("llama", "LlamaConfig", "LlamaForCausalLM", config={"attention_bias": True}),
    Recipe("arcee", "ArceeConfig", "ArceeForCausalLM"),
    Recipe(
        "aria",
        "AriaTextConfig",
        "AriaTextForCausalLM",
        config={"moe_num_experts": 4, "moe_topk": 2},
    ),
    Recipe(
        "cosmos3_edge",
        "Cosmos3EdgeTextConfig",
        "Cosmos3EdgeTextModel",
        config={"rope_parameters": mrope(4, 3, 3)},
    ),
    Recipe(
        "emu3",
        "Emu3TextConfig",
        "Emu3ForCausalLM",
        config={"attention_dropout": 0.0, "attention_bias": False, "mlp_bias": False},
    ),
    Recipe(
        "deepseek_ocr2",
        "DeepseekOcr2TextConfig",
        "DeepseekOcr2TextModel",
        config={"num_key_value_heads": 6, "mlp_layer_types": ["dense", "sparse"]},
    ),
    Recipe(
        "unlimited_ocr",
        "UnlimitedOcrTextConfig",
        "UnlimitedOcrTextModel",
        config={"num_key_value_heads": 6, "topk_group": 1, "n_group": 1},
    ),
    Recipe(
        "higgs_audio_v2",
        "HiggsAudioV2Config",
        "HiggsAudioV2Model",
        config={
            "num_codebooks": 2,
            "codebook_size": 16,
            "audio_token_id": 90,
            "audio_bos_token_id": 91,
            "audio_delay_token_id": 92,
            "audio_stream_bos_id": 14,
            "audio_stream_eos_id": 15,
        },
    ),
    Recipe(
        "gradium_phonon_tts",
        "GradiumPhononTTSConfig",
        "GradiumPhononTTSModel",
        inputs="embeds",
        config={
            "num_key_value_heads": 6,
            "latent_dim": 8,
            "flow_head_config": {"condition_dim": 60, "latent_dim": 8},
        },
    ),
    Recipe(
        "pocket_tts",
        "PocketTTSConfig",
        "PocketTTSModel",
        inputs="embeds",
        config={
            "num_key_value_heads": 6,
            "latent_dim": 8,
            "flow_head_config": {"condition_dim": 60, "latent_dim": 8},
            "audio_prompt_token_id": 90,
            "audio_latent_token_id": 91,
            "audio_prompt_bos_token_id": 92,
            "audio_bos_token_id": 93,
        },
    ),
    Recipe(
        "csm",
        "CsmConfig",
        "CsmBackboneModel",
        inputs="codebooks",
        config={
            "num_codebooks": 3,
            "vocab_size": 50,
            "text_vocab_size": 99,
            "audio_token_id": 90,
            "audio_eos_token_id": 91,
            "codebook_pad_token_id": 49,
            "codebook_eos_token_id": 0,
            "depth_decoder_config": {
                "num_codebooks": 3,
                "backbone_hidden_size": 60,
                "vocab_size": 50,
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 33,
            },
        },
    ),
    Recipe("jais2", "Jais2Config", "Jais2ForCausalLM"),
    Recipe(
        "granite",
        "GraniteConfig",
        "GraniteForCausalLM",
        config={
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
            "logits_scaling": 2.0,
        },
    ),
    Recipe(
        "granite4_vision",
        "Granite4VisionTextConfig",
        "Granite4VisionTextModel",
        config={
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
    ),
    Recipe(
        "granite_docling",
        "GraniteDoclingTextConfig",
        "GraniteDoclingTextModel",
        config={
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "embedding_multiplier": 2.0,
        },
    ),
    Recipe(
        "granitemoe",
        "GraniteMoeConfig",
        "GraniteMoeForCausalLM",
        config={"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    Recipe(
        "granitemoeshared",
        "GraniteMoeSharedConfig",
        "GraniteMoeSharedForCausalLM",
        config={"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    Recipe(
        "granitemoehybrid",
        "GraniteMoeHybridConfig",
        "GraniteMoeHybridForCausalLM",
        layers=(1,),
        config={
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "layer_types": ["mamba", "attention"],
            "position_embedding_type": "rope",
            "mamba_n_heads": 4,
            "mamba_d_head": 30,
        },
    ),
    Recipe(
        "hyperclovax",
        "HyperCLOVAXConfig",
        "HyperCLOVAXForCausalLM",
        config={"attention_multiplier": 0.3, "residual_multiplier": 0.5},
    ),
    Recipe("helium", "HeliumConfig", "HeliumForCausalLM", config={"head_dim": 10}),
    Recipe("exaone", "ExaoneConfig", "LlamaForCausalLM", model_package="llama"),
    Recipe(
        "nemotron",
        "NemotronConfig",
        "NemotronForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    Recipe(
        "solar_open", "SolarOpenConfig", "SolarOpenForCausalLM", config={"attention_bias": True}
    ),
    Recipe(
        "bamba",
        "BambaConfig",
        "BambaForCausalLM",
        layers=(1,),
        config={
            "attn_layer_indices": [1],
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            },
        },
    ),
    Recipe(
        "glm",
        "GlmConfig",
        "GlmForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    Recipe(
        "glm4",
        "Glm4Config",
        "Glm4ForCausalLM",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
            }
        },
    ),
    Recipe(
        "glm4v",
        "Glm4vTextConfig",
        "Glm4vTextModel",
        config={
            "head_dim": 10,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [1, 1, 1],
            },
        },
    ),
    Recipe(
        "glm4v_moe",
        "Glm4vMoeTextConfig",
        "Glm4vMoeTextModel",
        config={
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 1e4,
                "partial_rotary_factor": 0.5,
                "mrope_section": [2, 2, 1],
            }
        },
    ),
    Recipe(
        "glm_image",
        "GlmImageTextConfig",
        "GlmImageTextModel",
        config={"vision_vocab_size": 32, "rope_parameters": mrope(4, 3, 3)},
    ),
    Recipe(
        "glm_ocr", "GlmOcrTextConfig", "GlmOcrTextModel", config={"rope_parameters": mrope(4, 3, 3)}
    ),
    Recipe("gemma", "GemmaConfig", "GemmaForCausalLM"),
    Recipe("ernie4_5", "Ernie4_5Config", "Ernie4_5ForCausalLM", config={"use_bias": True}),
    Recipe(
        "ernie4_5_moe",
        "Ernie4_5_MoeConfig",
        "Ernie4_5_MoeForCausalLM",
        config={"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1},
    ),
    Recipe(
        "ernie4_5_vl_moe",
        "Ernie4_5_VLMoeTextConfig",
        "Ernie4_5_VLMoeTextModel",
        config={
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_num_shared_experts": 1,
            "moe_intermediate_size": [32, 32],
            "mlp_layer_types": ["dense", "sparse"],
            "rope_parameters": mrope(4, 4, 2),
        },
    ),
    Recipe(
        "mllama",
        "MllamaTextConfig",
        "MllamaForCausalLM",
        config={"head_dim": 10, "cross_attention_layers": [1]},
    ),
    Recipe(
        "paddleocr_vl",
        "PaddleOCRTextConfig",
        "PaddleOCRTextModel",
        config={"rope_parameters": mrope(4, 3, 3), "use_bias": True},
    ),
    Recipe("seed_oss", "SeedOssConfig", "SeedOssForCausalLM", config={"attention_out_bias": True}),
    Recipe(
        "stablelm",
        "StableLmConfig",
        "StableLmForCausalLM",
        config={"head_dim": 10, "use_qkv_bias": True, "rope_parameters": HALF_ROTARY},
    ),
    Recipe(
        "phi",
        "PhiConfig",
        "PhiForCausalLM",
        config={"head_dim": 10, "rope_parameters": HALF_ROTARY},
    ),
    Recipe(
        "gpt_neox",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        config={"head_dim": 10, "rope_parameters": HALF_ROTARY},
    ),
    Recipe(
        "falcon_h1",
        "FalconH1Config",
        "FalconH1ForCausalLM",
        config={"key_multiplier": 0.7, "mamba_d_ssm": 120},
    ),
    Recipe(
        "blt",
        "BltConfig",
        "BltForCausalLM",
        config={
            "num_hidden_layers": 2,
            "patch_in_forward": False,
            "encoder_hash_byte_group_size": [2],
            "encoder_hash_byte_group_vocab": 32,
            "cross_attn_k": 1,
            **{f"{part}_config": BLT_PART for part in ("encoder", "decoder", "global", "patcher")},
        },
    ),
    Recipe(
        "gpt_neox_japanese",
        "GPTNeoXJapaneseConfig",
        "GPTNeoXJapaneseForCausalLM",
        config={
            "head_dim": 10,
            "attention_dropout": 0.0,
            "intermediate_multiple_size": 2,
            "rope_parameters": HALF_ROTARY,
        },
        since="5.18",  # before, the model itself fails with a partial rotation
    ),
    Recipe(
        "gptj",
        "GPTJConfig",
        "GPTJForCausalLM",
        config={"n_layer": 2, "max_position_embeddings": FAR, "rotary_dim": 6},
    ),
    Recipe(
        "codegen",
        "CodeGenConfig",
        "CodeGenForCausalLM",
        config={
            "hidden_size": 48,
            "num_attention_heads": 4,
            "n_layer": 2,
            "max_position_embeddings": FAR,
            "n_ctx": FAR,
            "rotary_dim": 8,
        },
    ),
    Recipe(
        "falcon",
        "FalconConfig",
        "FalconForCausalLM",
        config={
            "head_dim": ...,
            "num_kv_heads": 2,
            "new_decoder_architecture": True,
            "alibi": False,
        },
    ),
    Recipe(
        "falcon_mqa",
        "FalconConfig",
        "FalconForCausalLM",
        "falcon",
        config={"head_dim": ..., "multi_query": True, "new_decoder_architecture": False},
    ),
    Recipe(
        "falcon_mha",
        "FalconConfig",
        "FalconForCausalLM",
        "falcon",
        config={"head_dim": ..., "multi_query": False, "new_decoder_architecture": False},
    ),
    Recipe(
        "evolla",
        "EvollaConfig",
        "EvollaModel",
        layers=(1,),
        config=EVOLLA,
        extra={"protein_input_ids": (2, 7), "protein_attention_mask": (2, 7)},
        decodes=False,
    ),
    Recipe(
        "roformer",
        "RoFormerConfig",
        "RoFormerForCausalLM",
        config={
            "head_dim": 10,
            "is_decoder": True,
            "rotary_value": True,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
        },
    ),
    Recipe(
        "dia", "DiaConfig", "DiaModel", inputs="speech", part="decoder", decodes=False, config=DIA
    ),
)
