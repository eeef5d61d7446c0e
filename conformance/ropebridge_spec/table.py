"""The one table of families: class name of an attention module -> what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ropebridge_spec.family import Family, NormKind, RotaryKind
from ropebridge_spec.variant import Projections, Variant


def rows(family: Family, **packages: str) -> dict[str, Family]:
    """Classes that compute the same, each with the package of transformers that it stands in."""
    return {name: replace(family, source=f"models/{package}/modeling_{package}.py") for name, package in packages.items()}


FAMILIES: Mapping[str, Family | Variant] = {
    **rows(
        Family(),
        ArceeAttention="arcee",
        AriaTextAttention="aria",
        Cosmos3EdgeTextAttention="cosmos3_edge",
        CsmAttention="csm",
        DeepseekOcr2TextAttention="deepseek_ocr2",
        Emu3Attention="emu3",
        GemmaAttention="gemma",
        GradiumPhononTTSAttention="gradium_phonon_tts",
        Granite4VisionTextAttention="granite4_vision",
        GraniteAttention="granite",
        GraniteDoclingTextAttention="granite_docling",
        GraniteMoeAttention="granitemoe",
        GraniteMoeSharedAttention="granitemoeshared",
        HiggsAudioV2Attention="higgs_audio_v2",
        HyperCLOVAXAttention="hyperclovax",
        Jais2Attention="jais2",
        LlamaAttention="llama",
        MllamaTextSelfAttention="mllama",
        PocketTTSAttention="pocket_tts",
        SolarOpenAttention="solar_open",
        UnlimitedOcrTextAttention="unlimited_ocr",
    ),
    **rows(
        Family(window="sliding_window"),
        CwmAttention="cwm",
        MinistralAttention="ministral",
        PaddleOCRAttention="paddleocr_vl",
        Qwen2Attention="qwen2",
        Qwen2VLAttention="qwen2_vl",
        Qwen2_5OmniAttention="qwen2_5_omni",
        Qwen2_5_VLAttention="qwen2_5_vl",
    ),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True), window="sliding_window"),
        Dots1Attention="dots1",
        MellumAttention="mellum",
        Qwen3Attention="qwen3",
        Qwen3MoeAttention="qwen3_moe",
        Qwen3OmniMoeTalkerCodePredictorAttention="qwen3_omni_moe",
        Qwen3OmniMoeThinkerTextAttention="qwen3_omni_moe",
    ),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True)),
        ApertusAttention="apertus",
        HYV3Attention="hy_v3",
        Qwen3VLMoeTextAttention="qwen3_vl_moe",
        Qwen3VLTextAttention="qwen3_vl",
    ),
    **rows(
        Family(window="config.sliding_window"),
        MiniMaxAttention="minimax",
        MistralAttention="mistral",
        MixtralAttention="mixtral",
        PhimoeAttention="phimoe",
        VoxtralRealtimeTextAttention="voxtral_realtime",
    ),
    **rows(
        Family(rotary=RotaryKind(partial=True)),
        BambaAttention="bamba",
        Glm4vMoeTextAttention="glm4v_moe",
        GlmImageTextAttention="glm_image",
        NemotronAttention="nemotron",
    ),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True), rotary=RotaryKind(where=("!sliding_window", "is_sliding")), window="sliding_window"),
        Exaone4Attention="exaone4",
        ExaoneMoeAttention="exaone_moe",
        Kolibri1Attention="kolibri1",
    ),
    **rows(
        Family(norm=NormKind(over="flat"), rotary=RotaryKind(precision="float32")),
        FlexOlmoAttention="flex_olmo",
        Olmo2Attention="olmo2",
        OlmoHybridAttention="olmo_hybrid",
    ),
    **rows(
        Family(window="sliding_window", softcap="attn_logit_softcapping"),
        Gemma2Attention="gemma2",
        VaultGemmaAttention="vaultgemma",
    ),
    **rows(Family(rotary=RotaryKind(pairing="interleaved", precision="float32")), Ernie4_5Attention="ernie4_5", Ernie4_5_MoeAttention="ernie4_5_moe"),
    **rows(Family(norm=NormKind(weight="one_plus"), window="sliding_window"), Gemma3Attention="gemma3"),
    **rows(Family(rotary=RotaryKind(pairing="interleaved", partial=True)), Glm4Attention="glm4", GlmAttention="glm"),
    **rows(Family(rotary=RotaryKind(pairing="interleaved", table="repeated", partial=True)), Glm4vTextAttention="glm4v", GlmOcrTextAttention="glm_ocr"),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True, q="q_layernorm", k="k_layernorm"), projections=Projections(o="out_proj")),
        Lfm2Attention="lfm2",
        Lfm2MoeAttention="lfm2_moe",
    ),
    **rows(
        Family(norm=NormKind(kind="layer", per_head=True), rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32")),
        CohereAttention="cohere",
    ),
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32", where=("sliding_window",)), window="sliding_window"),
        Cohere2Attention="cohere2",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32", where=("sliding_window", "force_rope")), window="sliding_window"
        ),
        Cohere2MoeAttention="cohere2_moe",
    ),
    **rows(Family(rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32")), Ernie4_5_VLMoeTextAttention="ernie4_5_vl_moe"),
    **rows(Family(norm=NormKind(rounds_before_weight=True), rotary=RotaryKind(partial=True)), Glm4MoeAttention="glm4_moe"),
    **rows(Family(rotary=RotaryKind(pairing="interleaved")), HeliumAttention="helium"),
    **rows(Family(norm=NormKind(over="flat", rounds_before_weight=True), rotary=RotaryKind(partial=True)), MiniMaxM2Attention="minimax_m2"),
    **rows(Family(norm=NormKind(over="flat"), rotary=RotaryKind(precision="float32"), window="sliding_window"), Olmo3Attention="olmo3"),
    **rows(Family(rotary=RotaryKind(where=("use_rope",)), window="sliding_window"), SmolLM3Attention="smollm3"),
    **rows(Family(rotary=RotaryKind(table="half"), window="sliding_window", sinks="sinks"), GptOssAttention="gpt_oss"),
    **rows(Family(rotary=RotaryKind(where=("config.position_embedding_type",))), GraniteMoeHybridAttention="granitemoehybrid"),
    **rows(Family(window="sliding_window?"), Qwen2MoeAttention="qwen2_moe"),
    **rows(Family(window="config.sliding_window", output_dropout="residual_dropout"), Starcoder2Attention="starcoder2"),
    **rows(Family(output_dropout="residual_dropout"), SeedOssAttention="seed_oss"),
    **rows(Family(rotary=RotaryKind(partial=True)), StableLmAttention="stablelm"),
    **rows(Family(rotary=RotaryKind(partial=True), projections=Projections(o="dense")), PhiAttention="phi"),
    **rows(
        Family(window="config.sliding_window", rotary=RotaryKind(partial=True), projections=Projections(fused="qkv_proj")),
        Phi3Attention="phi3",
        Phi4MultimodalAttention="phi4_multimodal",
    ),
    **rows(Family(rotary=RotaryKind(partial=True), projections=Projections(o="dense", fused="query_key_value", layout="heads")), GPTNeoXAttention="gpt_neox"),
}
"""A `Variant` serves where nothing is to be read from the module."""

OTHERS = ("MiniMaxLightningAttention",)
"""Classes that are handed rotary tables and make no use of them: a model's other layers, which a bridge leaves alone."""
