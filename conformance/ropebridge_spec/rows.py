"""One table of families: class name of an attention module -> what it computes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from ropebridge_spec.family import (
    Family,
    GateKind,
    LatentKind,
    NormKind,
    RotaryKind,
    SelectorKind,
    SharedKind,
    TemperatureKind,
)
from ropebridge_spec.variant import Calling, Projections, Source, Variant


def rows(family: Family, **packages: str) -> dict[str, Family]:
    """Return classes that compute the same, each with the package of transformers that it stands
    in."""
    return {
        name: replace(family, source=f"models/{package}/modeling_{package}.py")
        for name, package in packages.items()
    }


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
        Apertus1p5TextAttention="apertus1p5",
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
        VoxtralRealtimeTextAttention="voxtral_realtime",
    ),
    **rows(Family(window="config.sliding_window?"), PhimoeAttention="phimoe"),
    **rows(
        Family(rotary=RotaryKind(partial=True)),
        BambaAttention="bamba",
        Glm4vMoeTextAttention="glm4v_moe",
        GlmImageTextAttention="glm_image",
        NemotronAttention="nemotron",
    ),
    **rows(
        Family(
            norm=NormKind(rounds_before_weight=True),
            rotary=RotaryKind(where=("!sliding_window", "is_sliding")),
            window="sliding_window",
        ),
        Exaone4Attention="exaone4",
        ExaoneMoeAttention="exaone_moe",
        Kolibri1Attention="kolibri1",
    ),
    **rows(
        Family(
            norm=NormKind(rounds_before_weight=True),
            rotary=RotaryKind(where=("sliding_window",)),
            window="sliding_window",
            calling=Calling(tables="rotating"),
        ),
        LaraMiniAttention="lara_mini",
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
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", precision="float32")),
        Ernie4_5Attention="ernie4_5",
        Ernie4_5_MoeAttention="ernie4_5_moe",
    ),
    **rows(
        Family(norm=NormKind(weight="one_plus"), window="sliding_window"), Gemma3Attention="gemma3"
    ),
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", partial=True)),
        Glm4Attention="glm4",
        GlmAttention="glm",
    ),
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", table="repeated", partial=True)),
        Glm4vTextAttention="glm4v",
        GlmOcrTextAttention="glm_ocr",
    ),
    **rows(
        Family(
            norm=NormKind(rounds_before_weight=True, q="q_layernorm", k="k_layernorm"),
            projections=Projections(o="out_proj"),
        ),
        Lfm2Attention="lfm2",
        Lfm2MoeAttention="lfm2_moe",
    ),
    **rows(
        Family(
            norm=NormKind(kind="layer", per_head=True),
            rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32"),
        ),
        CohereAttention="cohere",
    ),
    **rows(
        Family(
            rotary=RotaryKind(
                pairing="interleaved",
                table="repeated",
                precision="float32",
                where=("sliding_window",),
            ),
            window="sliding_window",
        ),
        Cohere2Attention="cohere2",
    ),
    **rows(
        Family(
            rotary=RotaryKind(
                pairing="interleaved",
                table="repeated",
                precision="float32",
                where=("sliding_window", "force_rope"),
            ),
            window="sliding_window",
        ),
        Cohere2MoeAttention="cohere2_moe",
    ),
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", table="repeated", precision="float32")),
        Ernie4_5_VLMoeTextAttention="ernie4_5_vl_moe",
    ),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True), rotary=RotaryKind(partial=True)),
        Glm4MoeAttention="glm4_moe",
    ),
    **rows(Family(rotary=RotaryKind(pairing="interleaved")), HeliumAttention="helium"),
    **rows(
        Family(
            norm=NormKind(over="flat", rounds_before_weight=True), rotary=RotaryKind(partial=True)
        ),
        MiniMaxM2Attention="minimax_m2",
    ),
    **rows(
        Family(
            norm=NormKind(over="flat"),
            rotary=RotaryKind(precision="float32"),
            window="sliding_window",
        ),
        Olmo3Attention="olmo3",
    ),
    **rows(
        Family(rotary=RotaryKind(where=("use_rope",)), window="sliding_window"),
        SmolLM3Attention="smollm3",
    ),
    **rows(
        Family(rotary=RotaryKind(table="half"), window="sliding_window", sinks="sinks"),
        GptOssAttention="gpt_oss",
    ),
    **rows(
        Family(rotary=RotaryKind(where=("config.position_embedding_type",))),
        GraniteMoeHybridAttention="granitemoehybrid",
    ),
    **rows(Family(window="sliding_window?"), Qwen2MoeAttention="qwen2_moe"),
    **rows(
        Family(window="config.sliding_window", output_dropout="residual_dropout"),
        Starcoder2Attention="starcoder2",
    ),
    **rows(Family(output_dropout="residual_dropout"), SeedOssAttention="seed_oss"),
    **rows(
        Family(
            rotary=RotaryKind(partial=True),
            norm=NormKind(
                kind="layer", per_head=True, module_per_head=True, q="q_layernorm", k="k_layernorm"
            ),
        ),
        StableLmAttention="stablelm",
    ),
    **rows(
        Family(
            rotary=RotaryKind(partial=True),
            norm=NormKind(kind="layer", bias=True, q="q_layernorm", k="k_layernorm"),
            projections=Projections(o="dense"),
        ),
        PhiAttention="phi",
    ),
    **rows(
        Family(
            window="config.sliding_window",
            rotary=RotaryKind(partial=True),
            projections=Projections(fused="qkv_proj"),
        ),
        Phi3Attention="phi3",
        Phi4MultimodalAttention="phi4_multimodal",
    ),
    **rows(
        Family(
            rotary=RotaryKind(partial=True),
            projections=Projections(o="dense", fused="query_key_value", layout="groups"),
        ),
        GPTNeoXAttention="gpt_neox",
    ),
    # norms of other kinds and places
    **rows(
        Family(norm=NormKind(kind="layer", per_head=True, bias=True)),
        ChameleonAttention="chameleon",
    ),
    **rows(
        Family(
            z_norm=NormKind(
                over="flat", rounds_before_weight=True, q="attn_sub_norm", k="attn_sub_norm"
            )
        ),
        BitNetAttention="bitnet",
    ),
    **rows(
        Family(
            norm=NormKind(
                rounds_before_weight=True,
                after_rotation=True,
                q="query_layernorm",
                k="key_layernorm",
            )
        ),
        HunYuanDenseV1Attention="hunyuan_v1_dense",
        HunYuanMoEV1Attention="hunyuan_v1_moe",
    ),
    **rows(
        Family(
            norm=NormKind(
                rounds_before_weight=True,
                after_rotation=True,
                q="query_layernorm",
                k="key_layernorm",
            ),
            rotary=RotaryKind(precision="float32"),
        ),
        HunYuanVLDenseV1Attention="hunyuan_vl",
    ),
    **rows(
        Family(
            norm=NormKind(weight="none", after_rotation=True),
            rotary=RotaryKind(direction="backward"),
        ),
        NanoChatAttention="nanochat",
    ),
    **rows(
        Family(
            norm=NormKind(weight="none", after_rotation=True, q="qk_norm", k="qk_norm"),
            rotary=RotaryKind(
                pairing="interleaved", table="complex", precision="float32", where=("use_rope",)
            ),
            temperature=TemperatureKind(
                "attn_scale",
                "floor_scale",
                shift=1,
                counted=True,
                where=("attn_temperature_tuning", "!use_rope"),
            ),
            chunk="config.attention_chunk_size",
        ),
        Llama4TextAttention="llama4",
    ),
    **rows(
        Family(
            rotary=RotaryKind(partial=True),
            norm=NormKind(kind="layer", bias=True, q="q_layernorm", k="k_layernorm"),
            dropout="attention_dropout.p",
            projections=Projections(o="dense", fused="query_key_value", layout="groups"),
        ),
        PersimmonAttention="persimmon",
    ),
    **rows(
        Family(norm=NormKind(rounds_before_weight=True, flat_if="qk_norm_type=olmo")),
        Molmo2Attention="molmo2",
    ),
    # clip and multipliers
    **rows(
        Family(clip="config.clip_qkv", rotary=RotaryKind(precision="float32")), OlmoAttention="olmo"
    ),
    **rows(
        Family(clip="config.clip_qkv", norm=NormKind(over="flat", rounds_before_weight=True)),
        OlmoeAttention="olmoe",
    ),
    **rows(
        Family(clip="clip_qkv", projections=Projections(fused="Wqkv", o="out_proj")),
        DbrxAttention="dbrx",
    ),
    **rows(Family(k_multiplier="key_multiplier"), FalconH1Attention="falcon_h1"),
    **rows(
        Family(
            v_multiplier="v_scale",
            sinks="sinks",
            rotary=RotaryKind(partial=True),
            window="sliding_window",
        ),
        MiMoV2FlashAttention="mimo_v2_flash",
    ),
    # gates
    **rows(
        Family(
            norm=NormKind(),
            rotary=RotaryKind(where=("is_local_attention",)),
            gate=GateKind(),
            window="sliding_window",
        ),
        AfmoeAttention="afmoe",
    ),
    **rows(
        Family(
            norm=NormKind(),
            rotary=RotaryKind(
                precision="float32",
                where=("config.rope_parameters[config.layer_types[layer_idx]]",),
            ),
            gate=GateKind(bias="gate_bias"),
            temperature=TemperatureKind(factor_argument="attention_scaling"),
            window="sliding_window",
            calling=Calling(tables="rotating"),
        ),
        BeamAttention="beam",
    ),
    **rows(
        Family(gate=GateKind(), calling=Calling(cache_offset="cycle_offset")),
        HrmTextAttention="hrm_text",
    ),
    **rows(
        Family(norm=NormKind(), gate=GateKind(module="g_proj"), window="sliding_window"),
        Lfm3Attention="lfm3",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"),
            gate=GateKind(module="g_proj"),
            rotary=RotaryKind(partial=True),
            window="sliding_window",
        ),
        Step3p7Attention="step3p7",
    ),
    **rows(
        Family(
            norm=NormKind(),
            gate=GateKind(module="g_proj", activation="softplus"),
            rotary=RotaryKind(partial=True),
            window="sliding_window",
        ),
        LagunaAttention="laguna",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"),
            rotary=RotaryKind(partial=True),
            gate=GateKind(module="q_proj", in_query=True),
        ),
        Qwen3NextAttention="qwen3_next",
        Qwen3_5Attention="qwen3_5",
        Qwen3_5MoeAttention="qwen3_5_moe",
    ),
    **rows(
        Family(
            norm=NormKind(weight="none", q="qk_norm", k="qk_norm"),
            scale=("scaling", "qk_scale_factor"),
            rotary=RotaryKind(where=("config.layer_rope_theta[layer_idx]",)),
            gate=GateKind(),
            window="sliding_window",
            calling=Calling(tables="rotating"),
        ),
        MuseGlimmerTextAttention="muse_glimmer",
    ),
    **rows(
        Family(
            norm=NormKind(weight="none", q="qk_norm", k="qk_norm"),
            scale=("scaling", "qk_scale_factor"),
            rotary=RotaryKind(where=("config.layer_rope_theta[layer_idx]",)),
            gate=GateKind(),
            z_norm=NormKind(weight="none", q="o_norm", k="o_norm"),
            window="sliding_window",
            calling=Calling(tables="rotating"),
        ),
        MuseSparkTextAttention="muse_spark",
    ),
    # sinks of other forms
    **rows(
        Family(
            rotary=RotaryKind(where=("config.layer_rope_theta[layer_idx]",)),
            window="sliding_window",
            sinks="sinks",
            calling=Calling(tables="rotating"),
        ),
        GraniteSWAAttention="granite_swa",
        GraniteMoeSWAAttention="granitemoe_swa",
    ),
    **rows(
        Family(
            norm=NormKind(),
            rotary=RotaryKind(where=("sliding_window",)),
            window="sliding_window",
            sinks="sinks",
        ),
        FlintAttention="flint",
    ),
    # temperature, other tables
    **rows(
        Family(
            temperature=TemperatureKind(
                "config.rope_parameters.llama_4_scaling_beta",
                "config.rope_parameters.original_max_position_embeddings",
            ),
            window="config.sliding_window?",
        ),
        Ministral3Attention="ministral3",
    ),
    **rows(
        Family(
            rotary=RotaryKind(where=("config.rope_parameters[config.layer_types[layer_idx]]",)),
            window="sliding_window",
            calling=Calling(tables="rotating"),
        ),
        CohereCompassAttention="cohere_compass",
    ),
    **rows(
        Family(rotary=RotaryKind(pairing="interleaved", table="repeated"), dropout="dropout"),
        BltSelfAttention="blt",
    ),
    **rows(Family(rotary=RotaryKind(precision="float32")), EvollaAttention="evolla"),
    # keys and values shared between layers
    **rows(
        Family(
            norm=NormKind(),
            value_norm=NormKind(weight="none", q="v_norm", k="v_norm"),
            shared=SharedKind(),
            window="sliding_window",
        ),
        Gemma3nTextAttention="gemma3n",
        Gemma4TextAttention="gemma4",
        Gemma4UnifiedTextAttention="gemma4_unified",
    ),
    **rows(
        Family(
            norm=NormKind(),
            value_norm=NormKind(weight="none", q="v_norm", k="v_norm"),
            window="sliding_window",
        ),
        DiffusionGemmaEncoderTextAttention="diffusion_gemma",
    ),
    **rows(
        Family(
            norm=NormKind(),
            value_norm=NormKind(weight="none", q="v_norm", k="v_norm"),
            # no window of its own: the encoder's cache holds what may be seen, and the mask says
            # the rest
            calling=Calling(extends_cache=False),
        ),
        DiffusionGemmaDecoderTextAttention="diffusion_gemma",
    ),
    # heads subtracted from each other
    **rows(
        Family(
            differential="lambda_init",
            z_norm=NormKind(weight="none", q="groupnorm", k="groupnorm"),
            rotary=RotaryKind(),
        ),
        DiffLlamaAttention="diffllama",
    ),
    # keys biased by their values
    **rows(
        Family(norm=NormKind(rounds_before_weight=True), key_bias="keep_window_size"),
        DogeAttention="doge",
    ),
    # less of its own value
    **rows(
        Family(
            norm=NormKind(weight="none"),
            rotary=RotaryKind(partial=True),
            exclusive="exclusive_self_attention.alpha",
            added_value="value_embeds",
            gate=GateKind(module="output_projection.gate_proj"),
            window="sliding_window",
            projections=Projections(o="output_projection.o_proj"),
            calling=Calling(position_axes=2),
        ),
        NeoMMEAttention="neomme",
    ),
    # adapters beside shared projections
    **rows(
        Family(
            rotary=RotaryKind(where=("config.use_mem_rope",)),
            projections=Projections(beside="linear_{}_adapter_list"),
            calling=Calling(layer="layer_idx"),
        ),
        Zamba2Attention="zamba2",
    ),
    # values rotated too
    **rows(
        Family(
            scale=(),
            causal="is_decoder",
            rotary=RotaryKind(pairing="interleaved", table="half", values="rotary_value"),
            dropout="dropout.p",
            projections=Projections(q="query", k="key", v="value", o=None),
            calling=Calling(tables_in="sinusoidal_pos"),
        ),
        RoFormerSelfAttention="roformer",
    ),
    # keys of another sequence too
    **rows(
        # what it sees of the other model's states the mask alone says: without one, transformers'
        # eager and sdpa see all of them
        Family(
            norm=NormKind(rounds_before_weight=True),
            source_states=Source("context_hidden_states", "before"),
        ),
        MuseGlimmerAssistantAttention="muse_glimmer_assistant",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"),
            window="sliding_window",
            source_states=Source("encoder_hidden_states", "after"),
            calling=Calling(
                mask_in="merged_attention_mask", returns=("out", "pattern_own", "pattern_source")
            ),
        ),
        T5Gemma2MergedAttention="t5gemma2",
    ),
    # wrapped projections, layers beside cross-attention
    **rows(
        Family(
            projections=Projections(within="linear"),
            calling=Calling(tables="own"),
            rotary=RotaryKind(where=("rotary_emb",)),
        ),
        KyutaiSpeechToTextAttention="kyutai_speech_to_text",
        MoshiAttention="moshi",
    ),
    **rows(Family(), DiaSelfAttention="dia"),
    **rows(
        Family(
            only="!is_cross_attention",
            norm=NormKind(
                rounds_before_weight=True, after_rotation=True, q="q_layer_norm", k="k_layer_norm"
            ),
            dropout="dropout",
            calling=Calling(tables="own"),
        ),
        IdeficsAttention="idefics",
    ),
    # encoders
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(precision="float32"),
            window="sliding_window",
            output_dropout="out_drop.p?",
            projections=Projections(fused="Wqkv", o="Wo"),
        ),
        ModernBertAttention="modernbert",
    ),
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(precision="float32"),
            window="sliding_window",
            output_dropout="out_drop.p?",
            projections=Projections(o="Wo"),
        ),
        ModernBertDecoderAttention="modernbert_decoder",
    ),
    **rows(
        Family(),
        EuroBertAttention="eurobert",
        GteAttention="gte",
        JinaEmbeddingsV3Attention="jina_embeddings_v3",
        NomicBertAttention="nomic_bert",
    ),
    **rows(Family(window="sliding_window"), UltrabertAttention="ultrabert"),
    **rows(Family(norm=NormKind(kind="layer", over="flat")), EsmcAttention="esmc"),
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(precision="float32", where=("position_embedding_type=rotary",)),
            dropout="dropout",
            projections=Projections(q="query", k="key", v="value", o=None),
        ),
        EsmSelfAttention="esm",
        EvollaSaProtSelfAttention="evolla",
    ),
    **rows(
        Family(
            window="sliding_window", window_excludes_self=True, softcap="attn_logit_softcapping"
        ),
        T5GemmaSelfAttention="t5gemma",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"), window="sliding_window", window_excludes_self=True
        ),
        T5Gemma2SelfAttention="t5gemma2",
    ),
    **rows(
        Family(
            norm=NormKind(),
            value_norm=NormKind(weight="none", q="v_norm", k="v_norm"),
            window="sliding_window",
        ),
        EmbeddingGemma2Attention="embedding_gemma2",
    ),
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(pairing="interleaved", table="half"),
            window="sliding_window",
            sinks="sinks",
        ),
        OpenAIPrivacyFilterAttention="openai_privacy_filter",
    ),
    # multi-head latent attention
    **rows(
        Family(
            rotary=RotaryKind(end="trailing", interleaved_if="config.rope_interleave"),
            latent=LatentKind(),
        ),
        AXK1Attention="axk1",
        DeepseekV3Attention="deepseek_v3",
        Glm4MoeLiteAttention="glm4_moe_lite",
        YoutuAttention="youtu",
    ),
    **rows(
        Family(
            rotary=RotaryKind(
                pairing="interleaved", table="complex", precision="float32", end="trailing"
            ),
            latent=LatentKind(),
        ),
        DeepseekV2Attention="deepseek_v2",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing"),
            latent=LatentKind(q_scale="mla_scale_q_lora", kv_scale="mla_scale_kv_lora"),
        ),
        LongcatFlashMLA="longcat_flash",
    ),
    **rows(
        Family(rotary=RotaryKind(end="trailing"), latent=LatentKind()), MiniCPM3Attention="minicpm3"
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing"),
            latent=LatentKind(),
            gate=GateKind(module="g_proj"),
        ),
        BailingHybridAttention="bailing_hybrid",
    ),
    **rows(
        Family(
            rotary=RotaryKind(end="trailing", interleaved_if="config.rope_interleave"),
            latent=LatentKind(),
            temperature=TemperatureKind(
                "config.rope_parameters.llama_4_scaling_beta",
                "config.rope_parameters.original_max_position_embeddings",
            ),
        ),
        Mistral4Attention="mistral4",
    ),
    # keys that a selector picks
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing"),
            latent=LatentKind(),
            selector=SelectorKind(),
        ),
        DeepseekV32Attention="deepseek_v32",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing"),
            latent=LatentKind(),
            selector=SelectorKind(through="prev_topk_indices"),
            calling=Calling(returns=("out", "pattern", "picks")),
        ),
        GlmMoeDsaAttention="glm_moe_dsa",
    ),
    **rows(
        Family(
            rotary=RotaryKind(end="trailing"),
            latent=LatentKind(),
            gate=GateKind(),
            sinks="sinks",
            selector=SelectorKind(through="prev_topk_indices"),
            calling=Calling(returns=("out", "pattern", "picks")),
        ),
        HYV4Attention="hy_v4",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing", precision="float32"),
            latent=LatentKind(),
            gate=GateKind(),
            sinks="sinks",
            selector=SelectorKind(through="prev_topk_indices"),
            calling=Calling(returns=("out", "pattern", "picks")),
        ),
        HYV4VLAttention="hy_v4_vl",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing"),
            latent=LatentKind(q_beside=True, q_up="q_gate_proj"),
            gate=GateKind(module="q_gate_proj", in_query=True),
            selector=SelectorKind(),
        ),
        AXK2Attention="axk2",
    ),
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", end="trailing", precision="float32"),
            latent=LatentKind(
                rotary_norm=NormKind(
                    rounds_before_weight=True, q="k_rope_only_layernorm", k="k_rope_only_layernorm"
                ),
                q_scale="q_lora_scale",
                kv_scale="kv_lora_scale",
            ),
            gate=GateKind(module="g_proj"),
            window="sliding_window",
            selector=SelectorKind(),
        ),
        Dots3NoteTextAttention="dots3_note",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"),
            rotary=RotaryKind(partial=True),
            selector=SelectorKind(picks="blocks", block="indexer.block_size?"),
        ),
        MiniMaxM3VLAttention="minimax_m3_vl",
    ),
    **rows(
        Family(
            norm=NormKind(weight="one_plus"),
            rotary=RotaryKind(partial=True),
            gate=GateKind(module="q_proj", in_query=True),
            selector=SelectorKind(picks="mask"),
            calling=Calling(tables_of="keys"),
        ),
        Qwen4ExpTextAttention="qwen4_exp",
    ),
    # rotation of their own; since transformers 5.24 by tables that the model around makes
    **rows(
        Family(
            rotary=RotaryKind(pairing="interleaved", table="half", width="rotary_dim"),
            dropout="attention_dropout",
            output_dropout="resid_dropout.p",
            projections=Projections(o="out_proj"),
            calling=Calling(tables_order="sin_cos"),
            since="attention_dropout",
            before=Family(
                scale=(),
                rotary=RotaryKind(pairing="interleaved", table="half", width="rotary_dim"),
                dropout="attn_dropout.p",
                output_dropout="resid_dropout.p",
                projections=Projections(o="out_proj"),
                calling=Calling(tables="own", table_buffer="embed_positions"),
            ),
        ),
        GPTJAttention="gptj",
    ),
    **rows(
        Family(
            rotary=RotaryKind(
                pairing="interleaved", table="half", width="rotary_dim", precision="float32"
            ),
            dropout="attention_dropout",
            output_dropout="resid_dropout.p",
            projections=Projections(fused="qkv_proj", layout="quarters", o="out_proj"),
            calling=Calling(tables_order="sin_cos"),
            since="attention_dropout",
            before=Family(
                scale=(),
                rotary=RotaryKind(pairing="interleaved", table="half", width="rotary_dim"),
                dropout="attn_dropout.p",
                output_dropout="resid_dropout.p",
                projections=Projections(fused="qkv_proj", layout="quarters", o="out_proj"),
                calling=Calling(tables="own", table_buffer="embed_positions"),
            ),
        ),
        CodeGenAttention="codegen",
    ),
    **rows(
        Family(
            rotary=RotaryKind(partial=True), window="sliding_window", calling=Calling(tables="own")
        ),
        RecurrentGemmaAttention="recurrent_gemma",
    ),
    # others
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(where=("!config.alibi",)),
            dropout=None,
            projections=Projections(fused="query_key_value", layout="groups", o="dense"),
        ),
        FalconAttention="falcon",
    ),
    **rows(
        Family(
            scale=(),
            rotary=RotaryKind(width="rotary_ndims"),
            dropout="attention_dropout.p",
            projections=Projections(fused="query_key_value", layout="groups", o="dense"),
            calling=Calling(returns=("out", "pattern", "dense_bias")),
        ),
        GPTNeoXJapaneseAttention="gpt_neox_japanese",
    ),
}
"""A `Variant` serves where nothing is to be read from the module."""

LEFT_ALONE = ("EsmAttention", "EvollaSaProtAttention", "MiniMaxLightningAttention")
"""Classes that are handed rotary tables and do not attend by them: other layers of a model, or what
lies around its attention. A bridge leaves them alone."""
