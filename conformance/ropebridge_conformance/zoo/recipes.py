"""Tiny random model of every served family, as data: which classes of transformers, and what their
configs set.

What makes a family's attention differ (norms, windows, multipliers, layers that do not rotate) is
switched on, even where the config's default leaves it off.
"""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any, Literal

import torch
from packaging.version import Version
from torch import Tensor

WINDOW = 5
FAR = 131072
"""How many rows the tables of a model have that are made once for all positions: as many as the
judge goes to."""
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
DIFFUSION = {
    **PART,
    "num_experts": 4,
    "top_k_experts": 2,
    "moe_intermediate_size": 24,
    "num_global_key_value_heads": 1,
}
VISION = {
    "hidden_size": 24,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 12,
}
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
SINKS_BY_LAYER = {
    "attention_multiplier": 0.3,
    "num_hidden_layers": 3,
    "layer_types": ["full_attention", "sliding_attention", "sliding_attention"],
    "layer_rope_theta": [1e4, 1e3, 0],
}
SHARING = {
    "num_hidden_layers": 4,
    "layer_types": [*LOCAL_GLOBAL, *LOCAL_GLOBAL],
    "num_kv_shared_layers": 2,
}
ALTERNATIVE = {"attention_k_eq_v": True, "global_head_dim": 28, "num_global_key_value_heads": 1}
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


def mrope(*section: int) -> dict[str, Any]:
    """Return rotary parameters of a model whose positions have three axes, each with its share of
    the frequencies."""
    return {"rope_type": "default", "rope_theta": 1e4, "mrope_section": list(section)}


@dataclass(frozen=True)
class Recipe:
    """Describe one family's tiny model.

    name: the family. package: its package in transformers, where that has another name;
        model_package: that of its model, where it is another family's.
    since: the first release of transformers whose config takes what the recipe says.
    layers: one of each kind of attention layer that the model has.
    config: what the config sets beside `SIZES`; `...` leaves out what stands there.
    inputs: what a forward is given: token ids, token ids of several codebooks, embeddings, a pair
        of texts for encoder and decoder, a text and codebooks for them, a text and which of its
        tokens see images, or a block to draft after the states of another model.
    decodes: its forward takes a cache and goes on from it.
    extra: other tensors that every forward is given, by their shapes.
    codebooks: how many tokens stand at one position.
    part: path of the part of the model whose layers are meant, where several stacks number theirs.
    """

    name: str
    config_class: str
    model_class: str
    package: str = ""
    model_package: str = ""
    layers: tuple[int, ...] = (0,)
    config: Mapping[str, Any] = field(default_factory=dict)
    inputs: Literal["ids", "codebooks", "embeds", "pair", "speech", "seeing", "draft"] = "ids"
    decodes: bool = True
    extra: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    codebooks: int = 3
    part: str = ""
    since: str = ""

    @property
    def installed(self) -> bool:
        """Return whether the installed transformers has the family: an older one may not."""
        new_enough = not self.since or Version(version("transformers")) >= Version(self.since)
        return (
            new_enough and find_spec(f"transformers.models.{self.package or self.name}") is not None
        )

    def load(self, stem: str, name: str) -> Any:
        """Return a class of the family's package."""
        package = self.package or self.name
        package = self.model_package or package if stem == "modeling" else package
        return getattr(import_module(f"transformers.models.{package}.{stem}_{package}"), name)


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
        "cwm",
        "CwmConfig",
        "CwmForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 1e4,
                "factor": 4.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            },
        },
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
        "phimoe",
        "PhimoeConfig",
        "PhimoeForCausalLM",
        config={
            "attention_bias": True,
            "input_jitter_noise": 0.0,
            "router_jitter_noise": 0.0,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 1e4,
                "short_factor": [1.0] * 10,
                "long_factor": [2.0] * 10,
                "short_mscale": 1.1,
                "long_mscale": 1.3,
                "original_max_position_embeddings": 8,
            },
        },
    ),
    Recipe(
        "ministral",
        "MinistralConfig",
        "MinistralForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
    Recipe("mistral", "MistralConfig", "MistralForCausalLM"),
    Recipe("mixtral", "MixtralConfig", "MixtralForCausalLM"),
    Recipe(
        "voxtral_realtime",
        "VoxtralRealtimeTextConfig",
        "VoxtralRealtimeTextModel",
        extra={"t_cond": (1, 1, 60)},
    ),
    Recipe(
        "qwen2",
        "Qwen2Config",
        "Qwen2ForCausalLM",
        layers=(0, 1),
        config={"use_sliding_window": True, "max_window_layers": 1},
    ),
    Recipe(
        "qwen2_moe",
        "Qwen2MoeConfig",
        "Qwen2MoeForCausalLM",
        layers=(0, 1),
        config={"use_sliding_window": True, "layer_types": LOCAL_GLOBAL},
    ),
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
    Recipe(
        "gpt_oss",
        "GptOssConfig",
        "GptOssForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "rope_parameters": YARN,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
        },
    ),
    Recipe("helium", "HeliumConfig", "HeliumForCausalLM", config={"head_dim": 10}),
    Recipe(
        "qwen3",
        "Qwen3Config",
        "Qwen3ForCausalLM",
        layers=(0, 1),
        config={"attention_bias": True, "use_sliding_window": True, "max_window_layers": 1},
    ),
    Recipe(
        "qwen3_moe", "Qwen3MoeConfig", "Qwen3MoeForCausalLM", config={"use_sliding_window": True}
    ),
    Recipe(
        "dots1",
        "Dots1Config",
        "Dots1ForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
    Recipe(
        "mellum",
        "MellumConfig",
        "MellumForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
    Recipe("apertus", "ApertusConfig", "ApertusForCausalLM"),
    Recipe("apertus1p5", "Apertus1p5TextConfig", "Apertus1p5TextForCausalLM"),
    Recipe("exaone", "ExaoneConfig", "LlamaForCausalLM", model_package="llama"),
    Recipe("sarvam_moe", "SarvamMoEConfig", "Glm4MoeForCausalLM", model_package="glm4_moe"),
    Recipe(
        "lara_mini",
        "LaraMiniConfig",
        "LaraMiniForCausalLM",
        config={"num_hidden_layers": 3, "layer_types": ["linear_attention", *LOCAL_GLOBAL]},
        layers=(1, 2),
    ),
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
        "olmo3",
        "Olmo3Config",
        "Olmo3ForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
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
        "smollm3",
        "SmolLM3Config",
        "SmolLM3ForCausalLM",
        layers=(0, 1),
        config={"no_rope_layers": [1, 0], "use_sliding_window": True, "layer_types": LOCAL_GLOBAL},
    ),
    Recipe(
        "cohere2",
        "Cohere2Config",
        "Cohere2ForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
    Recipe(
        "cohere2_moe",
        "Cohere2MoeConfig",
        "Cohere2MoeForCausalLM",
        layers=(0, 1, 2),
        config={
            "num_hidden_layers": 3,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "mlp_layer_types": ["dense", "sparse", "sparse"],
            "prefix_dense_sliding_window_pattern": 1,
            "prefix_dense_intermediate_size": 96,
        },
    ),
    Recipe(
        "exaone4",
        "Exaone4Config",
        "Exaone4ForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
    Recipe(
        "exaone_moe",
        "ExaoneMoeConfig",
        "ExaoneMoeForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "num_shared_experts": 1},
    ),
    Recipe(
        "kolibri1",
        "Kolibri1Config",
        "Kolibri1ForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
    ),
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
    Recipe(
        "gemma2",
        "Gemma2Config",
        "Gemma2ForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 24,
        },
    ),
    Recipe(
        "vaultgemma",
        "VaultGemmaConfig",
        "VaultGemmaForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 2.0,
        },
    ),
    Recipe(
        "gemma3",
        "Gemma3TextConfig",
        "Gemma3ForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 24,
        },
    ),
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
        "qwen2_vl",
        "Qwen2VLTextConfig",
        "Qwen2VLTextModel",
        layers=(0, 1),
        config={
            "head_dim": 10,
            "rope_parameters": mrope(2, 2, 1),
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
    ),
    Recipe(
        "qwen2_5_vl",
        "Qwen2_5_VLTextConfig",
        "Qwen2_5_VLTextModel",
        layers=(0, 1),
        config={
            "head_dim": 10,
            "rope_parameters": mrope(2, 2, 1),
            "use_sliding_window": True,
            "max_window_layers": 1,
        },
    ),
    Recipe(
        "qwen2_5_omni",
        "Qwen2_5OmniTextConfig",
        "Qwen2_5OmniThinkerTextModel",
        layers=(0, 1),
        config={
            "rope_parameters": mrope(4, 3, 3),
            "use_sliding_window": True,
            "max_window_layers": 1,
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
        "paddleocr_vl",
        "PaddleOCRTextConfig",
        "PaddleOCRTextModel",
        config={"rope_parameters": mrope(4, 3, 3), "use_bias": True},
    ),
    Recipe(
        "minimax",
        "MiniMaxConfig",
        "MiniMaxForCausalLM",
        config={"layer_types": ["full_attention", "linear_attention"], "block_size": 4},
    ),
    Recipe(
        "lfm2_moe",
        "Lfm2MoeConfig",
        "Lfm2MoeForCausalLM",
        layers=(1,),
        config={"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    ),
    Recipe(
        "starcoder2", "Starcoder2Config", "Starcoder2ForCausalLM", config={"residual_dropout": 0.1}
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
        "phi3",
        "Phi3Config",
        "Phi3ForCausalLM",
        config={"rope_parameters": {**HALF_ROTARY, "partial_rotary_factor": 0.8}},
    ),
    Recipe(
        "phi4_multimodal",
        "Phi4MultimodalConfig",
        "Phi4MultimodalForCausalLM",
        config={
            "rope_parameters": {**HALF_ROTARY, "partial_rotary_factor": 0.8},
            "vision_config": {
                "hidden_size": 32,
                "intermediate_size": 32,
                "num_hidden_layers": 2,
                "num_attention_heads": 2,
                "image_size": 28,
                "patch_size": 14,
                "crop_size": 28,
                "feature_layer": -1,
            },
            "audio_config": {
                "hidden_size": 16,
                "intermediate_size": 16,
                "num_blocks": 1,
                "num_attention_heads": 2,
                "ext_pw_out_channel": 16,
                "nemo_conv_channels": 16,
                "depthwise_separable_out_channel": 16,
                "input_size": 16,
            },
        },
    ),
    Recipe(
        "gpt_neox",
        "GPTNeoXConfig",
        "GPTNeoXForCausalLM",
        config={"head_dim": 10, "rope_parameters": HALF_ROTARY},
    ),
    # norms of other kinds and places
    Recipe("bitnet", "BitNetConfig", "BitNetForCausalLM", config={"head_dim": 10}),
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
        "llama4",
        "Llama4TextConfig",
        "Llama4ForCausalLM",
        layers=(0, 1),
        config={
            "intermediate_size_mlp": 24,
            "moe_layers": [0],
            "no_rope_layers": [1, 0],
            "attention_chunk_size": WINDOW,
            "floor_scale": 4,
            "attn_scale": 0.3,
            "num_experts_per_tok": 1,
        },
    ),
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
    # clip and multipliers
    Recipe("olmo", "OlmoConfig", "OlmoForCausalLM", config={"clip_qkv": 0.9}),
    Recipe("olmoe", "OlmoeConfig", "OlmoeForCausalLM", config={"head_dim": 10, "clip_qkv": 0.9}),
    Recipe(
        "dbrx",
        "DbrxConfig",
        "DbrxForCausalLM",
        config={
            "attn_config": {"kv_n_heads": 2, "clip_qkv": 0.9, "rope_theta": 1e4, "attn_pdrop": 0.0},
            "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
            "head_dim": 10,
            "d_model": 60,
            "n_heads": 6,
            "n_layers": 2,
            "max_seq_len": 64,
        },
    ),
    Recipe(
        "falcon_h1",
        "FalconH1Config",
        "FalconH1ForCausalLM",
        config={"key_multiplier": 0.7, "mamba_d_ssm": 120},
    ),
    Recipe(
        "mimo_v2_flash",
        "MiMoV2FlashConfig",
        "MiMoV2FlashForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": ["full_attention", "sliding_attention"],
            "num_key_value_heads": 1,
            "v_head_dim": 12,
            "rope_parameters": {"full_attention": HALF_ROTARY, "sliding_attention": HALF_ROTARY},
        },
    ),
    # gates
    Recipe(
        "afmoe",
        "AfmoeConfig",
        "AfmoeForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "num_dense_layers": 1, "num_shared_experts": 1},
    ),
    Recipe(
        "beam",
        "BeamConfig",
        "BeamForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "mlp_layer_types": ["dense", "sparse"]},
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
    # sinks of other forms
    Recipe(
        "granite_swa",
        "GraniteSWAConfig",
        "GraniteSWAForCausalLM",
        layers=(0, 1, 2),
        config=SINKS_BY_LAYER,
    ),
    Recipe(
        "granitemoe_swa",
        "GraniteMoeSWAConfig",
        "GraniteMoeSWAForCausalLM",
        layers=(0, 1, 2),
        config=SINKS_BY_LAYER,
    ),
    Recipe(
        "flint",
        "FlintConfig",
        "FlintForCausalLM",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL, "mlp_only_layers": [0]},
    ),
    # temperature, other tables
    Recipe(
        "ministral3",
        "Ministral3Config",
        "Ministral3ForCausalLM",
        config={"rope_parameters": TEMPERATURE},
    ),
    Recipe(
        "cohere_compass",
        "CohereCompassTextConfig",
        "CohereCompassForCausalLM",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "logit_scale": 0.25,
            "rope_parameters": {"sliding_attention": mrope(4, 3, 3), "full_attention": None},
        },
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
    # keys and values shared between layers
    Recipe(
        "gemma3n",
        "Gemma3nTextConfig",
        "Gemma3nForCausalLM",
        layers=(0, 1, 2, 3),
        config={
            **SHARING,
            "vocab_size_per_layer_input": 99,
            "hidden_size_per_layer_input": 8,
            "altup_num_inputs": 2,
            "laurel_rank": 8,
        },
    ),
    Recipe(
        "gemma4",
        "Gemma4TextConfig",
        "Gemma4ForCausalLM",
        layers=(0, 1, 2, 3),
        config={
            **SHARING,
            **ALTERNATIVE,
            "vocab_size_per_layer_input": 99,
            "hidden_size_per_layer_input": 8,
        },
    ),
    Recipe(
        "gemma4_unified",
        "Gemma4UnifiedTextConfig",
        "Gemma4UnifiedForCausalLM",
        layers=(0, 1, 2, 3),
        config={**SHARING, **ALTERNATIVE},
    ),
    Recipe(
        "diffusion_gemma",
        "DiffusionGemmaTextConfig",
        "DiffusionGemmaEncoderTextModel",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "num_experts": 4,
            "top_k_experts": 2,
            "global_head_dim": 28,
            "num_global_key_value_heads": 1,
        },
        decodes=False,
    ),
    # rotation of their own
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
        "recurrent_gemma",
        "RecurrentGemmaConfig",
        "RecurrentGemmaForCausalLM",
        layers=(2,),
        decodes=False,
        config={
            "num_hidden_layers": 3,
            "block_types": ["recurrent", "recurrent", "attention"],
            "lru_width": 60,
            "attention_window_size": WINDOW,
            "rope_parameters": HALF_ROTARY,
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
    # encoders
    Recipe(
        "modernbert_decoder",
        "ModernBertDecoderConfig",
        "ModernBertDecoderForCausalLM",
        layers=(0, 1),
        config=MODERNBERT,
    ),
    Recipe(
        "modernbert",
        "ModernBertConfig",
        "ModernBertModel",
        layers=(0, 1),
        config=MODERNBERT,
        decodes=False,
    ),
    Recipe(
        "eurobert", "EuroBertConfig", "EuroBertModel", config={"mask_token_id": 3}, decodes=False
    ),
    Recipe("gte", "GteConfig", "GteModel", decodes=False),
    Recipe("jina_embeddings_v3", "JinaEmbeddingsV3Config", "JinaEmbeddingsV3Model", decodes=False),
    Recipe("nomic_bert", "NomicBertConfig", "NomicBertModel", decodes=False),
    Recipe(
        "ultrabert",
        "UltrabertConfig",
        "UltrabertModel",
        layers=(0, 1),
        config={"layer_types": LOCAL_GLOBAL},
        decodes=False,
    ),
    Recipe(
        "esmc",
        "EsmcConfig",
        "EsmcModel",
        config={"head_dim": 10, "mask_token_id": 3, "num_key_value_heads": 6},
        decodes=False,
    ),
    Recipe(
        "esm",
        "EsmConfig",
        "EsmModel",
        config={"head_dim": 10, "position_embedding_type": "rotary", "mask_token_id": 3},
        decodes=False,
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
        "evolla_saprot",
        "SaProtConfig",
        "EvollaSaProtProteinEncoder",
        "evolla",
        config=SAPROT,
        decodes=False,
    ),
    Recipe(
        "t5gemma2",
        "T5Gemma2TextConfig",
        "T5Gemma2TextEncoder",
        config={**T5GEMMA, "eoi_token_index": 97, "dropout_rate": 0.0},
        layers=(0, 1),
        decodes=False,
    ),
    Recipe(
        "t5gemma",
        "T5GemmaConfig",
        "T5GemmaForConditionalGeneration",
        config={"encoder": T5GEMMA, "decoder": T5GEMMA},
        layers=(0, 1),
        inputs="pair",
        decodes=False,
    ),
    Recipe(
        "embedding_gemma2",
        "EmbeddingGemma2TextConfig",
        "EmbeddingGemma2TextModel",
        layers=(0, 1),
        config={
            "layer_types": LOCAL_GLOBAL,
            "hidden_size_per_layer_input": 8,
            "embedding_dim": 16,
            "global_head_dim": 28,
        },
        decodes=False,
    ),
    Recipe(
        "openai_privacy_filter",
        "OpenAIPrivacyFilterConfig",
        "OpenAIPrivacyFilterModel",
        decodes=False,
    ),
    Recipe(
        "diffusion_gemma_decoder",
        "DiffusionGemmaConfig",
        "DiffusionGemmaModel",
        package="diffusion_gemma",
        part="decoder",
        layers=(0, 1),
        decodes=False,
        extra={"decoder_input_ids": (2, 4)},
        config={
            "text_config": {
                **DIFFUSION,
                "vocab_size": 99,
                "sliding_window": WINDOW,
                "layer_types": LOCAL_GLOBAL,
                "global_head_dim": 28,
            },
            "vision_config": {**VISION, "num_hidden_layers": 0},
            "image_token_id": 98,
            "boi_token_id": 97,
            "eoi_token_id": 96,
            "canvas_length": 4,
        },
    ),
    # heads subtracted from each other
    Recipe(
        "diffllama",
        "DiffLlamaConfig",
        "DiffLlamaForCausalLM",
        config={"num_attention_heads": 12, "num_key_value_heads": 4},
    ),
    # keys biased by their values
    Recipe(
        "doge",
        "DogeConfig",
        "DogeForCausalLM",
        config={"keep_window_size": 64, "num_experts": 16, "sliding_window": None},
    ),
    # less of its own value
    Recipe(
        "neomme",
        "NeoMMEConfig",
        "NeoMMEModel",
        layers=(0, 1),
        decodes=False,
        config={
            "head_dim": 32,
            "layer_types": LOCAL_GLOBAL,
            "embedding_rank": 16,
            "embedding_dim": 16,
        },
    ),
    # adapters beside shared projections
    Recipe(
        "zamba2",
        "Zamba2Config",
        "Zamba2ForCausalLM",
        layers=(1,),
        config={
            "num_hidden_layers": 2,
            "layers_block_type": ["hybrid", "hybrid"],
            "use_mem_rope": True,
            "use_shared_attention_adapter": True,
            "adapter_rank": 8,
            "num_key_value_heads": 6,
            "num_mem_blocks": 1,
            "n_mamba_heads": 4,
            "mamba_d_state": 16,
            "mamba_ngroups": 1,
            "chunk_size": 8,
            "head_dim": ...,
        },
    ),
    # values rotated too
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
    # keys of another sequence too
    Recipe(
        "muse_glimmer_assistant",
        "MuseGlimmerAssistantConfig",
        "MuseGlimmerAssistantModel",
        layers=(0, 1),
        inputs="draft",
        decodes=False,
        config={
            "layer_types": LOCAL_GLOBAL,
            "target_layer_ids": [0, 1],
            "mask_token_id": 5,
            "block_size": 4,
        },
    ),
    Recipe(
        "t5gemma2_decoder",
        "T5Gemma2Config",
        "T5Gemma2ForConditionalGeneration",
        package="t5gemma2",
        part="model.decoder",
        layers=(0, 1),
        inputs="pair",
        decodes=False,
        config={
            "encoder": {
                "text_config": T5GEMMA,
                "vision_config": {**VISION, "image_size": 28, "patch_size": 14},
                "mm_tokens_per_image": 4,
                "boi_token_index": 96,
                "eoi_token_index": 97,
                "image_token_index": 98,
            },
            "decoder": T5GEMMA,
            "image_token_index": 98,
            "eoi_token_index": 97,
        },
    ),
    # wrapped projections, layers beside cross-attention
    Recipe(
        "moshi",
        "MoshiConfig",
        "MoshiForCausalLM",
        config={"ffn_dim": 24, "num_codebooks": 2, "head_dim": 20},
    ),
    Recipe(
        "kyutai_speech_to_text",
        "KyutaiSpeechToTextConfig",
        "KyutaiSpeechToTextModel",
        inputs="codebooks",
        config={
            "codebook_vocab_size": 50,
            "ffn_dim": 24,
            "num_codebooks": 2,
            "audio_pad_token_id": 98,
            "head_dim": 20,
        },
    ),
    Recipe(
        "dia", "DiaConfig", "DiaModel", inputs="speech", part="decoder", decodes=False, config=DIA
    ),
    Recipe(
        "idefics",
        "IdeficsConfig",
        "IdeficsForVisionText2Text",
        inputs="seeing",
        extra={"pixel_values": (2, 1, 3, 8, 8)},
        decodes=False,
        config={
            "head_dim": 10,
            "qk_layer_norms": True,
            "vision_config": {
                "embed_dim": 24,
                "image_size": 8,
                "intermediate_size": 24,
                "patch_size": 4,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
            },
        },
    ),
    # keys that a selector picks
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
    Recipe(
        "minimax_m3",
        "MiniMaxM3VLTextConfig",
        "MiniMaxM3VLForCausalLM",
        package="minimax_m3_vl",
        config={
            "layer_types": ["full_attention", "minimax_m3_sparse"],
            "mlp_layer_types": ["dense", "sparse"],
            "dense_intermediate_size": 24,
            "index_n_heads": 2,
            "index_head_dim": 20,
            "index_block_size": 2,
            "index_topk_blocks": 2,
            "index_local_blocks": 1,
            "rope_parameters": HALF_ROTARY,
        },
        layers=(0, 1),
    ),
    Recipe(
        "qwen4_exp",
        "Qwen4ExpTextConfig",
        "Qwen4ExpForCausalLM",
        since="5.18",
        config={
            "layer_types": ["linear_attention", "indexed_attention"],
            "rope_parameters": {**HALF_ROTARY, "mrope_section": [2, 1, 1]},
            "hc_count": 2,
            "hc_lowrank": 8,
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 20,
            "indexer_budget": 4,
            "indexer_compress_ratio": 2,
            "ple_layer_ids": [],
        },
        layers=(1,),
    ),
    # multi-head latent attention
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
INSTALLED = tuple(recipe for recipe in RECIPES if recipe.installed)
RECIPE_BY_NAME: Mapping[str, Recipe] = {recipe.name: recipe for recipe in RECIPES}


def build_config(name: str, **changes: Any) -> Any:
    """Return the tiny config of a family; `changes` replace what its recipe sets."""
    recipe = RECIPE_BY_NAME[name]
    config_class = recipe.load("configuration", recipe.config_class)
    aliases = getattr(config_class, "attribute_map", {})
    known = (
        {entry.name for entry in dataclasses.fields(config_class)} - set(aliases.values())
        | set(aliases)
        | {"head_dim"}
    )
    given = (
        {key: value for key, value in SIZES.items() if key in known}
        | copy.deepcopy(dict(recipe.config))
        | changes
    )
    return config_class(**{key: value for key, value in given.items() if value is not ...})


def build_model(name: str, attn: str = "eager", **changes: Any) -> Any:
    """Return a family's tiny model as transformers initialises it, in float32 on the cpu and in
    eval mode, attending by `attn`."""
    recipe, config = RECIPE_BY_NAME[name], build_config(name, **changes)
    config._experts_implementation = "eager"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = recipe.load("modeling", recipe.model_class)._from_config(
            config, attn_implementation=attn
        )
    return model.eval()


def inputs_of(name: str, config: Any, batch: int = 2, pos: int = 12) -> dict[str, Tensor]:
    """Return what one forward of a family's tiny model is given, position by position; longer than
    the window, no special token."""
    draw = torch.Generator().manual_seed(1)
    recipe = RECIPE_BY_NAME[name]
    if recipe.inputs == "embeds":
        return {"inputs_embeds": torch.randn(batch, pos, config.hidden_size, generator=draw)}
    if recipe.inputs == "draft":
        states = torch.randn(
            batch, pos, config.hidden_size * len(config.target_layer_ids), generator=draw
        )
        return {
            "noise_embeds": torch.randn(
                batch, config.block_size, config.hidden_size, generator=draw
            ),
            "context_hidden_states": states,
        }
    shape = (batch, pos, recipe.codebooks) if recipe.inputs == "codebooks" else (batch, pos)
    ids = torch.randint(3, 40, shape, generator=draw)
    if recipe.inputs == "seeing":
        return {
            "input_ids": ids,
            "image_attention_mask": torch.ones(batch, pos, 1, dtype=torch.long),
        }
    if recipe.inputs == "speech":
        return {
            "input_ids": ids,
            "decoder_input_ids": torch.randint(3, 40, (*shape, recipe.codebooks), generator=draw),
        }
    return (
        {"input_ids": ids, "decoder_input_ids": ids.flip(0)}
        if recipe.inputs == "pair"
        else {"input_ids": ids}
    )


def cache_name(model: Any) -> str:
    """Return under which name a model's forward takes its cache and its output holds it: `cache`
    since transformers 5.24, `past_key_values` before."""
    return (
        "cache"
        if "cache" in inspect.signature(type(model).forward).parameters
        else "past_key_values"
    )


def extra_of(name: str) -> dict[str, Tensor]:
    """Return what every forward of a family's tiny model is given beside."""
    draw = torch.Generator().manual_seed(2)
    ids = {
        key: torch.randint(3, 20, shape, generator=draw)
        for key, shape in RECIPE_BY_NAME[name].extra.items()
        if key.endswith("_ids")
    }
    masks = {
        key: torch.ones(shape, dtype=torch.long)
        for key, shape in RECIPE_BY_NAME[name].extra.items()
        if key.endswith("_attention_mask")
    }
    return (
        {
            key: torch.randn(shape, generator=draw)
            for key, shape in RECIPE_BY_NAME[name].extra.items()
        }
        | ids
        | masks
    )
