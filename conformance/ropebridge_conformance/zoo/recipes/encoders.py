"""Layers that see later positions."""

from __future__ import annotations

from ropebridge_conformance.zoo.recipes.recipe import Recipe
from ropebridge_conformance.zoo.recipes.sizes import (
    LOCAL_GLOBAL,
    MODERNBERT,
    SAPROT,
    T5GEMMA,
)

RECIPES: tuple[Recipe, ...] = (
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
)
